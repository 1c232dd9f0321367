package gvisor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/driver/hostproc"
)

// process is a process that can be told from a later one with the same pid.
type process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks since boot
}

// findProcess returns the process that has pid now.
func findProcess(pid int) (process, error) {
	s, err := hostproc.ReadStat(pid)
	return process{PID: pid, Start: s.Start}, err
}

// open returns a pidfd of p, or unix.ESRCH if it has been reaped.
func (p process) open() (*os.File, error) { return hostproc.Open(p.PID, p.Start) }

// alive reports whether p runs; a zombie does not.
func (p process) alive() bool {
	file, err := p.open()
	if err != nil {
		return false
	}
	defer file.Close()
	return !hostproc.Ended(file)
}

// stopped reports whether p was stopped by a signal, and not told to continue since.
func (p process) stopped() bool {
	s, err := hostproc.ReadStat(p.PID)
	return err == nil && s.Start == p.Start && s.State == 'T'
}

// wait returns when p has ended.
func (p process) wait(ctx context.Context) error {
	file, err := p.open()
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer file.Close()
	err = hostproc.Wait(ctx, file)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	// Those that we have started are ours to reap, and where we are the first process of a container, so are those of
	// others. Elsewhere this does nothing.
	_, _ = unix.Wait4(p.PID, nil, unix.WNOHANG, nil)
	return err
}

// signal sends p a signal, if it is still there.
func (p process) signal(sig unix.Signal) error {
	file, err := p.open()
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer file.Close()
	if err := unix.PidfdSendSignal(int(file.Fd()), sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal process %d: %w", p.PID, err)
	}
	return nil
}

// kill ends p and returns when it has ended.
func (p process) kill(ctx context.Context) error {
	if err := p.signal(unix.SIGKILL); err != nil {
		return err
	}
	if err := p.wait(ctx); err != nil {
		return fmt.Errorf("wait for the end of process %d: %w", p.PID, err)
	}
	return nil
}

// killMarked ends every process that has mark as one of its arguments, or as the value of one. They may be starting others,
// so the search is repeated until it finds nothing.
func killMarked(ctx context.Context, mark string) error {
	for {
		found, err := marked(mark)
		if err != nil || len(found) == 0 {
			return err
		}
		for _, p := range found {
			if err := p.kill(ctx); err != nil {
				return err
			}
		}
	}
}

func marked(mark string) ([]process, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var found []process
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil || pid == os.Getpid() {
			continue
		}
		args, err := os.ReadFile("/proc/" + name + "/cmdline") // empty for a zombie
		if err != nil || !hasArgument(args, mark) {
			continue
		}
		if p, err := findProcess(pid); err == nil {
			found = append(found, p)
		}
	}
	return found, nil
}

func hasArgument(args []byte, mark string) bool {
	for arg := range bytes.SplitSeq(args, []byte{0}) {
		if string(arg) == mark || strings.HasSuffix(string(arg), "="+mark) {
			return true
		}
	}
	return false
}
