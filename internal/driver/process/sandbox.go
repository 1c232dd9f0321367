package process

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/hostproc"
)

var _ driver.Sandbox = (*sandbox)(nil)

// ticks is the kernel's unit of CPU time in /proc: USER_HZ, which is 100 on every architecture that Go runs on.
const ticks = time.Second / 100

// sandbox is a handle; it holds nothing that would have to be closed.
type sandbox struct {
	d     *Driver
	spec  driver.Spec
	agent identity
	child *child // nil if another process started the agent
}

func (d *Driver) handle(spec driver.Spec, agent identity, c *child) *sandbox {
	return &sandbox{d: d, spec: spec, agent: agent, child: c}
}

// Dial implements driver.Sandbox.
func (s *sandbox) Dial(ctx context.Context) (net.Conn, error) {
	conn, err := dialAgent(ctx, s.spec.Dir)
	if err == nil && s.agent.alive() {
		return conn, nil
	}
	if ctx.Err() != nil {
		return nil, errors.Join(ctx.Err(), closeConn(conn))
	}
	if !s.agent.alive() { // its socket may outlive it for a moment, in a child that it was just making
		_ = closeConn(conn)
		return nil, fmt.Errorf("dial sandbox %s: its agent has ended: %w", s.spec.ID, fs.ErrNotExist)
	}
	return nil, fmt.Errorf("dial sandbox %s: %w", s.spec.ID, err)
}

func closeConn(conn net.Conn) error {
	if conn == nil {
		return nil
	}
	return conn.Close()
}

// dialAgent goes through a descriptor of the directory, because a socket's name is limited to 108 bytes.
func dialAgent(ctx context.Context, dir string) (net.Conn, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(fd)
	var dialer net.Dialer
	return dialer.DialContext(ctx, "unix", "/proc/self/fd/"+strconv.Itoa(fd)+"/"+socketName)
}

// Wait implements driver.Sandbox.
func (s *sandbox) Wait(ctx context.Context) (driver.Exit, error) {
	if err := ctx.Err(); err != nil {
		return driver.Exit{}, err
	}
	if s.child != nil {
		select {
		case <-s.child.done:
			return s.exit(s.child.code), nil
		case <-ctx.Done():
			return driver.Exit{}, ctx.Err()
		}
	}
	if err := s.agent.wait(ctx); err != nil {
		return driver.Exit{}, fmt.Errorf("wait for sandbox %s: %w", s.spec.ID, err)
	}
	return s.exit(-1), nil
}

func (s *sandbox) exit(code int) driver.Exit {
	switch {
	case s.d.ending(s.spec.ID):
		return driver.Exit{Reason: firebreak.EndDestroyed, Code: -1, Detail: "destroyed"}
	case code == 124:
		return driver.Exit{Reason: firebreak.EndDeadline, Code: code, Detail: "its time was up"}
	case code >= 0:
		return driver.Exit{Reason: firebreak.EndExited, Code: code, Detail: fmt.Sprintf("its agent exited with status %d", code)}
	}
	return driver.Exit{Reason: firebreak.EndLost, Code: -1, Detail: "its agent was killed from outside, or ended while nobody watched"}
}

// wait returns when the process has ended, whoever its parent is.
func (i identity) wait(ctx context.Context) error {
	if !i.alive() {
		return nil
	}
	pidfd, err := hostproc.Open(i.PID, i.Start)
	if err != nil {
		return ignoreGone(err)
	}
	defer pidfd.Close()
	return hostproc.Wait(ctx, pidfd)
}

// Usage implements driver.Sandbox: the sum over the processes that live, with the children they have waited for.
func (s *sandbox) Usage(ctx context.Context) (driver.Usage, error) {
	if err := ctx.Err(); err != nil {
		return driver.Usage{}, err
	}
	if !s.agent.alive() {
		return driver.Usage{}, fmt.Errorf("usage of sandbox %s: %w", s.spec.ID, fs.ErrNotExist)
	}
	all, err := processes()
	if err != nil {
		return driver.Usage{}, fmt.Errorf("usage of sandbox %s: %w", s.spec.ID, err)
	}
	var u driver.Usage
	for _, m := range s.d.members(all, s.spec.ID, s.agent) {
		u.CPU += time.Duration(m.CPU) * ticks
		u.Memory += m.Pages * int64(os.Getpagesize())
		u.PIDs += m.Threads
	}
	return u, nil
}
