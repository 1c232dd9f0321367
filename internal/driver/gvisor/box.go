package gvisor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/unet"
	"gvisor.dev/gvisor/pkg/urpc"
	"gvisor.dev/gvisor/runsc/boot"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/oci"
)

// deadlineStatus is with what an agent ends whose time was up.
const deadlineStatus = 124

type box struct {
	id     driver.ID
	record string
	limits firebreak.Limits
	state  state
}

func (d *Driver) handle(spec driver.Spec, st state) *box {
	return &box{id: spec.ID, record: d.path(spec.ID), limits: spec.Limits, state: st}
}

// await returns when the agent listens: a connection waits in its socket until it does, or ends with the sandbox.
func (s *box) await(ctx context.Context) error {
	conn, err := s.Dial(ctx)
	if err == nil {
		return conn.Close()
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return fmt.Errorf("%w%s", err, lastWords(s.record))
}

// call makes one call to gVisor's control socket. fs.ErrNotExist if the socket is not this sandbox's: it has ended, and
// another may have taken the name.
func (s *box) call(ctx context.Context, method string, arg, result any) error {
	conn, err := dialControl(ctx, s.record)
	if err != nil {
		return err
	}
	defer conn.Close()
	if !s.current() {
		return fs.ErrNotExist
	}
	return callOn(ctx, conn, method, arg, result)
}

func callOn(ctx context.Context, conn *urpc.Client, method string, arg, result any) error {
	stop := context.AfterFunc(ctx, func() { _ = conn.Socket.Shutdown() }) // which ends the call
	defer stop()
	return conn.Call(method, arg, result)
}

func dialControl(ctx context.Context, record string) (*urpc.Client, error) {
	fd, err := connect(ctx, record, controlSocket)
	if err != nil {
		return nil, err
	}
	return newClient(fd)
}

func newClient(fd int) (*urpc.Client, error) {
	socket, err := unet.NewSocket(fd)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return urpc.NewClient(socket), nil
}

// connect connects to a socket of the sentry, waiting while too many wait there already, as they do while it is paused. It
// goes through a descriptor of the socket, because its path may be too long for an address.
func connect(ctx context.Context, record, name string) (int, error) {
	at, err := unix.Open(filepath.Join(record, name), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", name, err)
	}
	defer unix.Close(at)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	for {
		err := unix.Connect(fd, &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d", at)})
		if err == nil {
			return fd, nil
		}
		if errors.Is(err, unix.EAGAIN) {
			err = sleep(ctx, 20*time.Millisecond)
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			unix.Close(fd)
			return -1, fmt.Errorf("connect to %s: %w", name, err)
		}
	}
}

// current reports whether the record still is of this sandbox.
func (s *box) current() bool {
	st, err := readState(s.record)
	return err == nil && st == s.state
}

// Wait implements driver.Sandbox.
func (s *box) Wait(ctx context.Context) (driver.Exit, error) {
	var status unix.WaitStatus
	id := string(s.id)
	err := s.call(ctx, boot.ContMgrWait, &id, &status)
	if ctx.Err() != nil {
		return driver.Exit{}, ctx.Err()
	}
	code := -1
	if err == nil && status.Exited() {
		code = status.ExitStatus()
	}
	if err := s.state.Sandbox.wait(ctx); err != nil {
		if ctx.Err() != nil {
			return driver.Exit{}, ctx.Err()
		}
		return driver.Exit{}, fmt.Errorf("wait for sandbox: %w", err)
	}
	s.settle(ctx, s.state.Gofer) // it has nobody to serve any more
	return s.exit(code, err == nil), nil
}

// exit says why the sandbox ended; code is its agent's if known.
func (s *box) exit(code int, known bool) driver.Exit {
	usage := s.cgroupUsage() // read before the record is looked at: until then it is of no other sandbox
	switch {
	case ended(s.record) || !s.current():
		return driver.Exit{Reason: firebreak.EndDestroyed, Code: -1, Detail: "it was destroyed"}
	case usage.OOMKills > 0 && code != 0:
		return driver.Exit{Reason: firebreak.EndOutOfMemory, Code: -1,
			Detail: fmt.Sprintf("the kernel killed it at its limit of %d MiB", s.limits.Memory>>20)}
	case code == deadlineStatus:
		return driver.Exit{Reason: firebreak.EndDeadline, Code: code, Detail: "its time was up"}
	case known:
		return driver.Exit{Reason: firebreak.EndExited, Code: code, Detail: fmt.Sprintf("its agent ended with status %d", code)}
	}
	return driver.Exit{Reason: firebreak.EndLost, Code: -1, Detail: "it was gone when we looked" + lastWords(s.record)}
}

func (s *box) cgroupUsage() driver.Usage {
	host, err := oci.FindCgroups()
	if err != nil {
		return driver.Usage{}
	}
	return host.Open(s.id).Usage()
}

// dyingLimit is how long a sandbox may take to end.
const dyingLimit = 5 * time.Second

// settle gives a process that must be ending the time to do so.
func (s *box) settle(ctx context.Context, p process) {
	ctx, cancel := context.WithTimeout(ctx, dyingLimit)
	defer cancel()
	_ = p.wait(ctx) // the caller looks whether it has ended
}

// Usage implements driver.Sandbox.
func (s *box) Usage(ctx context.Context) (driver.Usage, error) {
	if err := ctx.Err(); err != nil {
		return driver.Usage{}, err
	}
	usage := s.cgroupUsage()
	if usage.OOMKills > 0 {
		s.settle(ctx, s.state.Sandbox) // the kernel counts before the one that it has killed, which is always the sandbox, is gone
	}
	if !s.state.Sandbox.alive() {
		return driver.Usage{}, fmt.Errorf("read usage: the sandbox has ended: %w", fs.ErrNotExist)
	}
	if counted(usage) {
		return usage, nil
	}
	return s.awakeUsage(ctx)
}

// counted reports whether a cgroup has counted this.
func counted(u driver.Usage) bool { return u.CPU != 0 || u.Memory != 0 }

// awakeUsage is gVisor's own account, or what it was when the sandbox was paused, since then gVisor cannot be asked.
func (s *box) awakeUsage(ctx context.Context) (driver.Usage, error) {
	for {
		if s.state.Sandbox.stopped() {
			return s.keptUsage()
		}
		try, cancel := context.WithTimeout(ctx, tryTime)
		usage, err := s.ownUsage(try)
		late := try.Err() != nil && ctx.Err() == nil
		cancel()
		if err == nil || !late {
			return usage, err
		}
	}
}

// ownUsage is for hosts without cgroups. It leaves out what gVisor itself takes.
func (s *box) ownUsage(ctx context.Context) (driver.Usage, error) {
	var event boot.EventOut
	id := string(s.id)
	if err := s.call(ctx, boot.ContMgrEvent, &id, &event); err != nil {
		switch {
		case ctx.Err() != nil:
			return driver.Usage{}, ctx.Err()
		case errors.Is(err, fs.ErrNotExist) || !s.state.Sandbox.alive():
			return driver.Usage{}, fmt.Errorf("read usage: the sandbox has ended: %w", fs.ErrNotExist)
		}
		return driver.Usage{}, fmt.Errorf("read usage: %w", err)
	}
	data := event.Event.Data
	return driver.Usage{
		CPU: time.Duration(event.ContainerUsage[id]), Memory: int64(data.Memory.Usage.Usage),
		MemoryPeak: int64(data.Memory.Usage.Max), PIDs: int64(data.Pids.Current),
	}, nil
}
