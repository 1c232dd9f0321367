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

// Later gives the memory back a moment from now, and sets the collector's percentage (see debug.SetGCPercent) from then
// on. Call it at the start of a program.
func Later(gcPercent int) {
	debug.SetGCPercent(busyPercent)
	time.AfterFunc(settled, func() {
		debug.SetGCPercent(gcPercent)
		debug.FreeOSMemory()
		dropCode()
	})
}

// dropCode has the kernel forget which pages of the program are mapped here. Those that are used again come back from
// the page cache, as they were: nobody can write to them.
func dropCode() {
	for _, part := range code() {
		_ = unix.Madvise(part, unix.MADV_DONTNEED) // or they stay
	}
}
