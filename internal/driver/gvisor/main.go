package gvisor

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"

	"gvisor.dev/gvisor/pkg/log"
	"gvisor.dev/gvisor/runsc/cli/maincli"
)

// makerName is argv[0] of the process that makes one sandbox and ends.
const makerName = "firebreak-maker"

// MaybeMain returns at once in an ordinary start of the program, having silenced gVisor's own log. In a re-execution as
// a part of gVisor it does that part's work and never returns. Call it first thing in main.
func MaybeMain() {
	switch filepath.Base(os.Args[0]) {
	case makerName:
		os.Exit(makerMain())
	case "runsc-sandbox", "runsc-gofer":
		useCompiledFilters()
		maincli.Main()
		os.Exit(1)
	}
	if os.Args[0] == "/proc/self/exe" && len(os.Args) == 4 && os.Args[1] == "umount" { // as a sandbox seals itself
		maincli.Main()
		os.Exit(1)
	}
	// What gVisor's library would write to standard error its caller is told too.
	log.SetTarget(log.GoogleEmitter{Writer: &log.Writer{Next: io.Discard}})
}

// makerMain answers the one request on standard input on standard output. The exit status says no more than the answer.
func makerMain() int {
	out := os.Stdout
	var req request
	answer := answer{}
	err := json.NewDecoder(os.Stdin).Decode(&req)
	if err == nil {
		err = hideStdio()
	}
	if err == nil {
		answer.State, err = req.make()
	}
	if err != nil {
		answer.Error = err.Error()
	}
	if err := json.NewEncoder(out).Encode(answer); err != nil || answer.Error != "" {
		return 1
	}
	return 0
}

// hideStdio makes the null device our standard streams: gVisor hands them to the agent, and changes their owner.
func hideStdio() error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	os.Stdin, os.Stdout, os.Stderr = null, null, null
	return nil
}
