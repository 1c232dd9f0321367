package gvisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/urpc"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
)

var _ driver.Pauser = (*box)(nil)

// A sandbox is paused in two steps: gVisor stops all programs, as its pauser asks it to, and then sentry and gofer are
// stopped by a signal, so that timers of programs, which the first serves, take no processor time either. Both last beyond
// this process, and the second can be seen by others.
//
// Its cgroup cannot be frozen instead: that interrupts the system calls in which gVisor's helper processes wait for it, and
// after some tens of pauses gVisor takes them for broken and ends the sandbox.
//
// The host's clocks go on, and gVisor's with them: after a pause, programs see that time has passed, and timers that were
// due meanwhile fire at once.

const (
	pauseLimit = 10 * time.Second // for programs to stop
	stopLimit  = time.Second      // for the sentry to
	tryTime    = time.Second      // for an answer, after which it may be that the sandbox was paused just before
)

// Pause implements driver.Pauser.
func (s *box) Pause(ctx context.Context) error {
	err := s.alone(ctx, func() error {
		if s.state.Sandbox.stopped() {
			return nil
		}
		if err := s.stopPrograms(ctx); err != nil {
			return err
		}
		s.keepUsage(ctx)
		return s.stop()
	})
	if err != nil {
		return fmt.Errorf("pause sandbox %s: %w", s.id, err)
	}
	return nil
}

// Resume implements driver.Pauser.
func (s *box) Resume(ctx context.Context) error {
	err := s.alone(ctx, func() error {
		if err := errors.Join(s.state.Gofer.signal(unix.SIGCONT), s.state.Sandbox.signal(unix.SIGCONT)); err != nil {
			return err
		}
		return s.callPauser(ctx, pauserResume)
	})
	if err != nil {
		return fmt.Errorf("resume sandbox %s: %w", s.id, err)
	}
	return nil
}

// alone does something to the sandbox while nobody else pauses, resumes or destroys it. fs.ErrNotExist if it has ended.
func (s *box) alone(ctx context.Context, do func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	rec, err := openRecord(ctx, s.record)
	if err != nil {
		return err
	}
	defer rec.close()
	if s.current() && !ended(s.record) {
		if err = do(); s.state.Sandbox.alive() {
			return err
		}
	}
	return fmt.Errorf("it has ended: %w", errors.Join(err, fs.ErrNotExist))
}

// stopPrograms has gVisor stop all programs; they go on if ctx ends before they have stopped.
func (s *box) stopPrograms(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, pauseLimit)
	defer cancel()
	err := s.callPauser(limited, pauserPause)
	if err == nil || errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	undo, stop := context.WithTimeout(context.WithoutCancel(ctx), cleanupLimit)
	defer stop()
	undone := s.callPauser(undo, pauserResume)
	switch {
	case ctx.Err() != nil:
		err = ctx.Err()
	case limited.Err() != nil:
		err = &firebreak.Error{Kind: firebreak.KindUnavailable, Op: "stop programs", Err: fmt.Errorf("one has not stopped within %v", pauseLimit)}
	}
	return errors.Join(err, undone)
}

// stop returns when the sentry has stopped, which it cannot refuse.
func (s *box) stop() error {
	if err := errors.Join(s.state.Sandbox.signal(unix.SIGSTOP), s.state.Gofer.signal(unix.SIGSTOP)); err != nil {
		return err
	}
	for end := time.Now().Add(stopLimit); !s.state.Sandbox.stopped() && time.Now().Before(end); {
		time.Sleep(20 * time.Microsecond)
	}
	return nil // programs have stopped, and a sentry that is deep in the kernel yet stops when it comes back
}

// callPauser gives one order to the sandbox's pauser. Orders are numbered by the clock of this boot.
func (s *box) callPauser(ctx context.Context, method string) error {
	conn, err := s.dialPauser(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	fd, err := connect(ctx, s.record, controlSocket)
	if err != nil {
		return err
	}
	control := os.NewFile(uintptr(fd), controlSocket)
	defer control.Close()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return err
	}
	o := &order{FilePayload: urpc.FilePayload{Files: []*os.File{control}}, Number: now.Nano()}
	return callOn(ctx, conn, method, o, nil)
}

// dialPauser connects to the sandbox's pauser. errors.ErrUnsupported if it has none.
func (s *box) dialPauser(ctx context.Context) (*urpc.Client, error) {
	if _, err := os.Stat(filepath.Join(s.record, pauserSocket)); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("it was made by a firebreak that could not pause: %w", errors.ErrUnsupported)
	}
	file, err := s.send(ctx, pauserSocket)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	fd, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return newClient(fd)
}

// reach returns when the agent answers, or need not because the sandbox is paused.
func (s *box) reach(ctx context.Context) error {
	for {
		if s.state.Sandbox.stopped() && !ended(s.record) {
			return nil
		}
		try, cancel := context.WithTimeout(ctx, tryTime)
		conn, err := s.Dial(try)
		late := try.Err() != nil && ctx.Err() == nil
		cancel()
		if err == nil {
			return conn.Close()
		}
		if !late {
			return err
		}
		if paused, err := s.programsStopped(ctx); err == nil && paused {
			return nil // whoever paused it was killed before the sentry was stopped
		}
	}
}

// programsStopped asks the pauser.
func (s *box) programsStopped(ctx context.Context) (paused bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, tryTime)
	defer cancel()
	conn, err := s.dialPauser(ctx)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	err = callOn(ctx, conn, pauserPaused, nil, &paused)
	return paused, err
}

// keepUsage writes down what the sandbox has taken, if nothing but gVisor counts it. Without it, what is paused seems to
// have taken nothing.
func (s *box) keepUsage(ctx context.Context) {
	if counted(s.cgroupUsage()) {
		return
	}
	if usage, err := s.ownUsage(ctx); err == nil {
		_ = save(filepath.Join(s.record, usageName), usage)
	}
}

func (s *box) keptUsage() (driver.Usage, error) {
	var usage driver.Usage
	data, err := os.ReadFile(filepath.Join(s.record, usageName))
	if err == nil {
		err = json.Unmarshal(data, &usage)
	}
	if errors.Is(err, fs.ErrNotExist) && s.current() {
		return driver.Usage{}, nil
	}
	if err != nil {
		return driver.Usage{}, fmt.Errorf("read usage of a paused sandbox: %w", err)
	}
	return usage, nil
}
