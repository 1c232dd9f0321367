package proc

import "sync/atomic"

// Budget bounds the memory of all rings together.
type Budget struct{ left atomic.Int64 }

// NewBudget returns a budget of n bytes.
func NewBudget(n int64) *Budget {
	b := new(Budget)
	b.left.Store(n)
	return b
}

func (b *Budget) take(n int) bool {
	if b.left.Add(-int64(n)) >= 0 {
		return true
	}
	b.left.Add(int64(n))
	return false
}

func (b *Budget) give(n int) { b.left.Add(int64(n)) }

// minRing is what every ring may have beside the budget, so that output always moves.
const minRing = 16 << 10

// ring is a ring of bytes that grows up to its limit, and knows the offsets of what it holds.
type ring struct {
	limit  int
	budget *Budget
	buf    []byte // its length is a power of two
	head   uint64 // offset of the byte that is written next
	kept   int    // how many bytes before head it holds
	sent   uint64 // offset after the last byte that any reader was sent
}

func (r *ring) base() uint64 { return r.head - uint64(r.kept) }

// reserve makes room for up to want bytes by growing, then by dropping bytes before keep, and returns for how many
// there is room.
func (r *ring) reserve(want int, keep uint64) int {
	for r.kept+want > len(r.buf) && r.grow() {
	}
	room := len(r.buf) - r.kept
	if room < want {
		drop := min(want-room, int(min(keep, r.head)-min(r.base(), keep)))
		r.kept -= drop
		room += drop
	}
	return min(room, want)
}

func (r *ring) grow() bool {
	size := max(4<<10, 2*len(r.buf))
	if size > r.limit && len(r.buf) > 0 {
		return false
	}
	if size > minRing && !r.budget.take(size-max(len(r.buf), minRing)) {
		return false
	}
	buf := make([]byte, size)
	for at, i := r.base(), 0; i < r.kept; {
		from := r.at(at + uint64(i))
		n := copy(buf[(at+uint64(i))&uint64(size-1):], from[:min(len(from), r.kept-i)])
		i += n
	}
	r.buf = buf
	return true
}

// at is the ring from the place of offset on, up to where it wraps.
func (r *ring) at(offset uint64) []byte { return r.buf[offset&uint64(len(r.buf)-1):] }

func (r *ring) write(p []byte) {
	for len(p) > 0 {
		n := copy(r.at(r.head), p)
		p = p[n:]
		r.head += uint64(n)
		r.kept += n
	}
}

// read copies what follows offset to buf. Bytes that were dropped are not there: 0.
func (r *ring) read(offset uint64, buf []byte) int {
	if offset < r.base() || offset >= r.head {
		return 0
	}
	want := min(len(buf), int(r.head-offset))
	for n := 0; n < want; {
		n += copy(buf[n:want], r.at(offset+uint64(n)))
	}
	return want
}

func (r *ring) free() {
	if len(r.buf) > minRing {
		r.budget.give(len(r.buf) - minRing)
	}
	r.buf, r.kept, r.limit = nil, 0, 0
}
