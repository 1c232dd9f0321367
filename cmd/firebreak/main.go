// Command firebreak runs the code of AI agents behind the isolation that its risk demands.
package main

import (
	"context"
	"os"
	"runtime/debug"

	"github.com/firebreak-dev/firebreak/internal/driver/gvisor"
)

func main() {
	debug.SetGCPercent(400) // the heap is small, and most runs are over before it matters
	gvisor.MaybeMain()      // never returns in the processes of gVisor, which are this program too
	os.Exit(run(context.Background(), os.Args[1:]))
}
