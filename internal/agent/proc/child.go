package proc

import (
	"context"
	"fmt"
	"os"
	"syscall"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/agent/account"
	processv1 "github.com/firebreak-dev/firebreak/internal/api/process"
)

// Child is a program that works for the agent, as the kernel of a code context does: it is no process of the protocol
// and is not listed, but it is started, limited, reaped and ended like one. Its input is empty; its output belongs to
// whatever it runs; with the agent it talks on two pipes of their own.
type Child struct {
	Stdout, Stderr *os.File // what it prints
	Requests       *os.File // what it reads as the descriptor that Spawn was told, from the agent
	Answers        *os.File // what it writes to the other one

	linux  *Linux
	pid    int
	exited chan struct{}
	status unix.WaitStatus // valid once exited is closed
}

// Channels are the child's descriptors for Requests and Answers: any of 0 to 4 that are not 1, 2 or each other. Without a
// pipe there, descriptor 0 is empty input.
type Channels struct{ Requests, Answers int }

// Spawn starts a child. Whoever starts it closes it.
func (l *Linux) Spawn(u account.User, config *processv1.ProcessConfig, ch Channels) (c *Child, err error) {
	prep, err := l.prepare(u, config)
	if err != nil {
		return nil, err
	}
	c = &Child{linux: l, exited: make(chan struct{})}
	theirs := []int{-1, -1, -1, -1, -1}
	defer func() {
		closeAll(theirs)
		if err != nil {
			c.closeFiles()
		}
	}()
	if err := c.open(theirs, ch); err != nil {
		return nil, connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("open input and output: %w", err))
	}
	err = l.fork(u, prep, &syscall.SysProcAttr{Setsid: true}, theirs, func(pid int) { c.pid = pid }, func(status unix.WaitStatus) {
		c.status = status
		close(c.exited)
	})
	if err != nil {
		return nil, err
	}
	return c, nil
}

func (c *Child) open(theirs []int, ch Channels) (err error) {
	if ch.Requests != 0 {
		if theirs[0], err = unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
			return err
		}
	}
	for _, p := range []struct {
		fd, end int
		ours    **os.File
	}{{1, 1, &c.Stdout}, {2, 1, &c.Stderr}, {ch.Requests, 0, &c.Requests}, {ch.Answers, 1, &c.Answers}} {
		if theirs[p.fd], *p.ours, err = openPipe(p.end); err != nil {
			return err
		}
	}
	return nil
}

func (c *Child) closeFiles() {
	for _, f := range []*os.File{c.Stdout, c.Stderr, c.Requests, c.Answers} {
		if f != nil {
			_ = f.Close()
		}
	}
}

// PID is the child's process id.
func (c *Child) PID() int { return c.pid }

// Signal sends sig to the child and to those of its own children that stayed in its group.
func (c *Child) Signal(sig unix.Signal) error { return c.linux.Signal(c.pid, sig) }

// Exited is closed once the child was reaped.
func (c *Child) Exited() <-chan struct{} { return c.exited }

// End says how the child ended. It must have been reaped.
func (c *Child) End() string {
	if c.status.Signaled() {
		return "was ended by " + unix.SignalName(c.status.Signal())
	}
	return fmt.Sprintf("ended with exit status %d", c.status.ExitStatus())
}

// Close kills the child, if it lives, with its group, waits for it and closes the pipes.
func (c *Child) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_ = c.Signal(unix.SIGKILL) // ESRCH: it ended by itself
	select {
	case <-c.exited:
	case <-ctx.Done(): // stuck in the kernel: the reaper gets it later
	}
	c.closeFiles()
}

// LookPath finds the first of the programs that is installed, as u would.
func (l *Linux) LookPath(u account.User, names ...string) (string, error) {
	env, err := l.environ(u, nil)
	if err != nil {
		return "", err
	}
	var path string
	err = l.Session.Do(u, func() (err error) {
		for _, name := range names {
			if path, err = lookPath(name, "/", env["PATH"]); err == nil {
				return nil
			}
		}
		return err
	})
	if err != nil && len(names) > 0 {
		return "", fmt.Errorf("%s is not installed in this sandbox", names[0])
	}
	return path, err
}
