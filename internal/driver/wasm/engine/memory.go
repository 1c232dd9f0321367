package engine

import (
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

// Max is what NewMemory was given.
func (m *Memory) Max() int64 { return m.max }

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

// linear is the memory of one instance: address space up to what it may have, of which the kernel gives pages as they are
// touched, so that growing copies nothing.
type linear struct {
	quota *Memory
	most  uint64
	space []byte
	size  uint64
}

// Allocate implements experimental.MemoryAllocator: a module has one memory.
func (l *linear) Allocate(_, most uint64) experimental.LinearMemory {
	l.most = min(most, uint64(max(l.quota.max, 0)))
	return l
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

// Free implements experimental.LinearMemory, and does nothing: wazero calls it as soon as a module exits or is closed,
// when code or a host function may still be at work with the memory, and a fault there would end this process.
func (l *linear) Free() {}

// release gives the memory back. Nothing may use it any more.
func (l *linear) release() {
	l.quota.take(-int64(l.size))
	if l.space != nil {
		_ = unix.Munmap(l.space) // of what Mmap gave it cannot fail
	}
	l.size, l.space = 0, nil
}
