package cli

import (
	"errors"
	"os"
	"sync"

	"golang.org/x/term"

	"github.com/firebreak-dev/firebreak/internal/api/process"
)

// rawTerminal is the caller's terminal while it passes every key to the sandbox.
type rawTerminal struct {
	fd      int
	before  *term.State
	restore sync.Once
}

// makeRaw makes the terminal on standard input raw. restoreTerminal undoes it, on every way out of the process.
func (a *app) makeRaw() error {
	fd := int(a.in.Fd())
	before, err := term.MakeRaw(fd)
	if err != nil {
		return err
	}
	a.terminal.Store(&rawTerminal{fd: fd, before: before})
	return nil
}

// makeRawAgain follows SIGCONT: the shell has put its own settings in force while this process was stopped.
func (a *app) makeRawAgain() {
	if t := a.terminal.Load(); t != nil {
		_, _ = term.MakeRaw(t.fd) // a terminal that is gone shows at the next read
	}
}

func (a *app) restoreTerminal() {
	if t := a.terminal.Swap(nil); t != nil {
		t.restore.Do(func() { _ = term.Restore(t.fd, t.before) }) // a terminal that is gone needs no restoring
	}
}

// restoreOnPanic is deferred in every goroutine that runs while the terminal may be raw: an unrecovered panic ends the
// process without running the deferred calls of the others.
func (a *app) restoreOnPanic() {
	if p := recover(); p != nil {
		a.restoreTerminal()
		panic(p)
	}
}

// terminalSize is that of standard input, or the usual one where it has none.
func terminalSize(f *os.File) *process.PTY {
	cols, rows, err := term.GetSize(int(f.Fd()))
	if err != nil || cols <= 0 || rows <= 0 {
		cols, rows = 80, 24
	}
	return &process.PTY{Size: &process.PTY_Size{Cols: uint32(cols), Rows: uint32(rows)}}
}

var errNoTerminal = errors.New("--tty needs a terminal on standard input")
