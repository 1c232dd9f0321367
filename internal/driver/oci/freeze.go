package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/firebreak-dev/firebreak"
)

// freezeLimit bounds how long processes may take to stop. None can refuse, but one may be deep in the kernel.
const freezeLimit = 10 * time.Second

// toggle is what freezes one cgroup: version 1 has a hierarchy for it, version 2 has it in every cgroup. The first is
// preferred, since runtimes make containers there on hosts that have both.
type toggle struct {
	dir      string // "" if there is none
	name     string // of the file that is written
	on, off  string
	asked    [2]string // a file, and what it says as long as the switch is on
	finished [2]string // a file, and a line of it once all have stopped
}

func (g *Cgroup) toggle() toggle {
	if g.freezer != "" {
		return toggle{dir: g.freezer, name: "freezer.state", on: "FROZEN", off: "THAWED",
			asked: [2]string{"freezer.self_freezing", "1"}, finished: [2]string{"freezer.state", "FROZEN"}}
	}
	return toggle{dir: g.v2, name: "cgroup.freeze", on: "1", off: "0",
		asked: [2]string{"cgroup.freeze", "1"}, finished: [2]string{"cgroup.events", "frozen 1"}}
}

func (f toggle) says(what [2]string) bool {
	text, err := os.ReadFile(filepath.Join(f.dir, what[0]))
	return err == nil && slices.Contains(strings.Split(string(text), "\n"), what[1])
}

func (g *Cgroup) canFreeze() bool {
	f := g.toggle()
	_, err := os.Stat(filepath.Join(f.dir, f.name)) // that of version 2 is there since Linux 5.2
	return f.dir != "" && err == nil
}

// Freezes reports whether g can be frozen, with this process in it.
func (g *Cgroup) Freezes(pid int) bool {
	if !g.canFreeze() {
		return false
	}
	pids, err := processesIn(g.toggle().dir)
	return err == nil && slices.Contains(pids, pid)
}

// Freeze stops all processes of g where they are, and returns when the last has stopped. With an error they go on: if
// ctx ends meanwhile, or one does not stop in time.
func (g *Cgroup) Freeze(ctx context.Context) error {
	f := g.toggle()
	if f.dir == "" {
		return fmt.Errorf("freeze cgroup: it has no freezer: %w", errors.ErrUnsupported)
	}
	limit := time.NewTimer(freezeLimit)
	defer limit.Stop()
	for pause := 20 * time.Microsecond; ; pause = min(2*pause, 10*time.Millisecond) {
		if err := ctx.Err(); err != nil {
			return errors.Join(err, g.Thaw())
		}
		// Written again and again: in version 1, one write can miss a process that is just changing what it waits for.
		if err := writeFile(f.dir, f.name, f.on); err != nil {
			return errors.Join(fmt.Errorf("freeze cgroup: %w", err), g.Thaw())
		}
		if f.says(f.finished) {
			return nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		case <-limit.C:
			err := fmt.Errorf("a process is deep in the kernel and has not stopped within %v", freezeLimit)
			return errors.Join(&firebreak.Error{Kind: firebreak.KindUnavailable, Op: "freeze cgroup", Err: err}, g.Thaw())
		}
	}
}

// Thaw lets the processes of g go on. Nil if they do already, and if g is gone.
func (g *Cgroup) Thaw() error {
	f := g.toggle()
	if f.dir == "" {
		return nil
	}
	if err := writeFile(f.dir, f.name, f.off); err != nil && !gone(err) {
		return fmt.Errorf("thaw cgroup: %w", err)
	}
	return nil
}

// Frozen reports whether somebody has begun to freeze g, and nobody has thawed it since.
func (g *Cgroup) Frozen() bool {
	f := g.toggle()
	return f.dir != "" && f.says(f.asked)
}

// EndFrozen ends all processes of g, if it is frozen. It must come before any wait for their end: in version 1 even
// those that were killed stay until they are thawed.
func (g *Cgroup) EndFrozen() error {
	if !g.Frozen() {
		return nil
	}
	pids, err := processesIn(g.toggle().dir)
	if err != nil {
		return err
	}
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended, if not all have stopped yet
	}
	return g.Thaw()
}
