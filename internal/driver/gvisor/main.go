package gvisor

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/log"
	"gvisor.dev/gvisor/runsc/cli/maincli"

	"github.com/firebreak-dev/firebreak/internal/idle"
)

// What argv[0] says that a process of this program is. The last two are gVisor's own names.
const (
	sentryName = "runsc-sandbox"
	goferName  = "runsc-gofer"
)

// MaybeMain returns at once in an ordinary start of the program, having silenced gVisor's own log. In a re-execution as
// a part of gVisor it does that part's work and never returns. Call it first thing in main.
func MaybeMain() {
	switch filepath.Base(os.Args[0]) {
	case sentryName:
		be(servePauser)
	case goferName:
		be(putRootTogether)
	}
	if os.Args[0] == "/proc/self/exe" && len(os.Args) == 4 && os.Args[1] == "umount" { // as a sandbox seals itself
		be(func() error { return nil })
	}
	// What gVisor's library would write to standard error its caller is told too.
	log.SetTarget(log.GoogleEmitter{Writer: &log.Writer{Next: io.Discard}})
}

// be is a process of gVisor from its gate to its end.
func be(prepare func() error) {
	if !awaitGate() {
		os.Exit(1)
	}
	closeStrays()
	idle.Later(100, idle.DropText)
	// Its log goes nowhere: writing less of it saves time.
	log.SetLevel(log.Warning)
	useCompiledFilters()
	if err := prepare(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	maincli.Main()
	os.Exit(1)
}

// closeStrays closes what another child of the same parent had open when this one began: package syscall opens the files
// in which it maps a child's ids so that all that is started in this moment has them, too. In a parent with many
// descriptors they lie where gVisor wants its standard streams; what it is given itself lies below.
func closeStrays() {
	const streams = 253
	_ = unix.CloseRange(streams, math.MaxInt32, 0) // if it cannot, gVisor says what is in its way
}

// putRootTogether does what the gofer's request asks for.
func putRootTogether() error {
	file := os.NewFile(requestFD, "request")
	defer file.Close()
	var req request
	if err := json.NewDecoder(file).Decode(&req); err != nil {
		return fmt.Errorf("read request: %w", err)
	}
	return req.mount()
}
