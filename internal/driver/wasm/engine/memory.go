package engine

import (
	"sync"
	"sync/atomic"

	"github.com/tetratelabs/wazero/experimental"
	"golang.org/x/sys/unix"
)

// Memory is how much all modules of one sandbox have together, and have taken.
type Memory struct {
	max    int64
	used   atomic.Int64
	peak   atomic.Int64
	denied atomic.Int64
}

// NewMemory allows so many bytes.
func NewMemory(bytes int64) *Memory { return &Memory{max: bytes} }

// Used is how many bytes the modules that run have now: not all of it may have been touched.
func (m *Memory) Used() int64 { return m.used.Load() }

// Peak is the most that Used ever was.
func (m *Memory) Peak() int64 { return m.peak.Load() }

// Denied is how often a module was refused more.
func (m *Memory) Denied() int64 { return m.denied.Load() }

// take grants bytes more, or less if negative, unless there are too many.
func (m *Memory) take(bytes int64) bool {
	now := m.used.Add(bytes)
	if now > m.max && bytes > 0 {
		m.used.Add(-bytes)
		m.denied.Add(1)
		return false
	}
	for peak := m.peak.Load(); now > peak && !m.peak.CompareAndSwap(peak, now); peak = m.peak.Load() {
	}
	return true
}

// Allocate implements experimental.MemoryAllocator.
func (m *Memory) Allocate(_, most uint64) experimental.LinearMemory {
	return &linear{quota: m, most: min(most, uint64(max(m.max, 0)))}
}

// linear is the memory of one module: address space up to what it may have, of which the kernel gives pages as they are
// touched, so that growing copies nothing.
type linear struct {
	quota *Memory
	most  uint64
	space []byte
	size  uint64
	once  sync.Once
}

// Reallocate implements experimental.LinearMemory.
func (l *linear) Reallocate(size uint64) []byte {
	if size > l.most {
		l.quota.denied.Add(1)
		return nil
	}
	if l.space == nil {
		space, err := unix.Mmap(-1, 0, int(max(l.most, 1)), unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE)
		if err != nil {
			return nil
		}
		l.space = space
	}
	if !l.quota.take(int64(size - l.size)) {
		return nil
	}
	if size > l.size {
		if err := unix.Mprotect(l.space[l.size:size], unix.PROT_READ|unix.PROT_WRITE); err != nil {
			l.quota.take(int64(l.size) - int64(size))
			return nil
		}
		l.size = size
	}
	return l.space[:size:size]
}

// Free implements experimental.LinearMemory.
func (l *linear) Free() {
	l.once.Do(func() {
		l.quota.take(-int64(l.size))
		if l.space != nil {
			_ = unix.Munmap(l.space) // of what Mmap gave it cannot fail
		}
	})
}
