package guest

import "sync"

// Buffers lends out what a proxy copies by, so that a small answer does not cost 32 KiB of memory each time. The zero
// value is ready. It may be used concurrently.
type Buffers struct{ pool sync.Pool }

const bufferSize = 32 << 10

// Get implements httputil.BufferPool.
func (b *Buffers) Get() []byte {
	if one, ok := b.pool.Get().(*[bufferSize]byte); ok {
		return one[:]
	}
	return make([]byte, bufferSize)
}

// Put implements httputil.BufferPool.
func (b *Buffers) Put(one []byte) { b.pool.Put((*[bufferSize]byte)(one)) }
