package container

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/hostproc"
	"github.com/firebreak-dev/firebreak/internal/driver/oci"
)

// deadlineStatus is the exit status of an agent that has ended at its deadline.
const deadlineStatus = 124

// sandbox is a handle: plain data, from which every call opens what it needs.
type sandbox struct {
	spec  driver.Spec
	rec   record
	claim string // path of the claim on it
}

// Dial implements driver.Sandbox.
func (s *sandbox) Dial(ctx context.Context) (net.Conn, error) {
	pidfd, err := s.rec.open()
	if err != nil {
		return nil, err
	}
	defer pidfd.Close()
	conn, err := dial(ctx, pidfd)
	if err != nil && hostproc.Ended(pidfd) {
		return nil, fmt.Errorf("the agent has ended: %w", fs.ErrNotExist)
	}
	return conn, err
}

// Usage implements driver.Sandbox.
func (s *sandbox) Usage(ctx context.Context) (driver.Usage, error) {
	if err := ctx.Err(); err != nil {
		return driver.Usage{}, err
	}
	groups, err := oci.FindCgroups()
	if err != nil {
		return driver.Usage{}, fmt.Errorf("read usage: %w", err)
	}
	return groups.Open(s.spec.ID).Usage(), nil
}

// Wait implements driver.Sandbox.
func (s *sandbox) Wait(ctx context.Context) (driver.Exit, error) {
	if err := ctx.Err(); err != nil {
		return driver.Exit{}, err
	}
	pidfd, err := s.rec.open()
	if errors.Is(err, fs.ErrNotExist) {
		return s.reason(-1), nil
	}
	if err != nil {
		return driver.Exit{}, err
	}
	defer pidfd.Close()
	if err := hostproc.Wait(ctx, pidfd); err != nil {
		return driver.Exit{}, err
	}
	return s.reason(s.exitStatus(pidfd)), nil
}

// reason finds out why the agent, which has ended, did so. Status is as of wait(2), -1 if unknown.
func (s *sandbox) reason(status int) driver.Exit {
	exit := driver.Exit{Reason: firebreak.EndExited, Code: -1}
	ws := unix.WaitStatus(status)
	if status >= 0 && ws.Exited() {
		exit.Code = ws.ExitStatus()
	}
	now, err := readRecord(s.spec)
	boot, bootErr := hostproc.BootID()
	killed := status >= 0 && ws.Signaled()
	switch {
	case errors.Is(err, fs.ErrNotExist), err == nil && now != s.rec, destroying(s.spec):
		return driver.Exit{Reason: firebreak.EndDestroyed, Code: -1}
	case bootErr == nil && boot != s.rec.Boot:
		exit.Reason, exit.Detail = firebreak.EndLost, "the host was started anew"
	case exit.Code == deadlineStatus:
		exit.Reason, exit.Detail = firebreak.EndDeadline, "its time was up"
	case exit.Code < 0 && s.outOfMemory():
		exit.Reason = firebreak.EndOutOfMemory
		exit.Detail = fmt.Sprintf("the kernel killed it at its limit of %d MiB", s.spec.Limits.Memory>>20)
	case killed:
		exit.Reason, exit.Detail = firebreak.EndLost, fmt.Sprintf("its agent was killed from outside (%v)", ws.Signal())
	case status < 0:
		exit.Detail = "its agent's exit status is not known"
	}
	return exit
}

func (s *sandbox) outOfMemory() bool {
	groups, err := oci.FindCgroups()
	return err == nil && s.spec.Limits.Memory > 0 && groups.Open(s.spec.ID).Usage().OOMKills > 0
}

// exitStatus finds out the status of a process that has ended and is nobody's child here: /proc tells it while its
// parent has not taken note of the end, and since Linux 6.15 the pidfd tells it afterwards. -1 if neither does.
func (s *sandbox) exitStatus(pidfd *os.File) int {
	for range 3 { // between the two, neither tells
		if f, err := hostproc.ReadStat(s.rec.PID); err == nil && f.Start == s.rec.Start && f.State == 'Z' {
			return f.Status
		}
		info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
		err := unix.IoctlPidfdInfo(int(pidfd.Fd()), &info)
		if err == nil && info.Mask&unix.PIDFD_INFO_EXIT != 0 {
			return int(info.Exit_code)
		}
		time.Sleep(time.Millisecond)
	}
	return -1
}
