// Package idle gives back the memory that only the start of a program needed. Sandboxes are idle most of the time, and
// there are many on a host.
package idle

import (
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"
)

// settled is how long after its start a program has done what it does only once.
const settled = time.Second

// busyPercent keeps the collector from work while a program starts: most of what it would look at is in use.
const busyPercent = 400

// Text is what becomes of a program's machine code that is in memory.
type Text int

const (
	// DropText has what is used again come back from the page cache. It is for programs that run on Linux itself.
	DropText Text = iota
	// KeepCalls does so but for the pages with system calls in them. It is for programs that gVisor may run, which makes jumps
	// of the calls: it forgets those with the pages, and a thread that returns from one, or is about to make one, meets half
	// an instruction.
	KeepCalls
)

// Later gives the memory back a moment from now, and sets the collector's percentage (see debug.SetGCPercent) from then
// on. Call it at the start of a program.
func Later(gcPercent int, text Text) {
	debug.SetGCPercent(busyPercent)
	time.AfterFunc(settled, func() {
		debug.SetGCPercent(gcPercent)
		debug.FreeOSMemory()
		drop(text)
	})
}

// drop has the kernel forget which pages of the program are mapped here, but for those that may be written. Those that are
// used again come back as they were.
func drop(text Text) {
	for _, p := range readOnly() {
		if !p.text || text == DropText {
			forget(p.memory)
			continue
		}
		withoutCalls(p.memory, forget)
	}
}

func forget(pages []byte) {
	_ = unix.Madvise(pages, unix.MADV_DONTNEED) // or they stay
}
