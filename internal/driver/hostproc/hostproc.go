// Package hostproc tells a process of the host from a later one with the same number, and waits for the end of a process
// whoever its parent is: what drivers need to find again, and to end, what an earlier daemon started.
package hostproc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Stat is what /proc/<pid>/stat says of a process; see proc(5).
type Stat struct {
	PID, Parent, Session int
	State                byte
	Start                uint64 // clock ticks since boot: a number and its start name one process of a boot
	CPU                  uint64 // clock ticks, with the children that it has waited for
	Threads, Pages       int64
	Code                 uint64 // where its code begins: 0 in the midst of an exec, at its end, and where the caller may not know
	Status               int    // of a process that has ended, as of wait(2)
}

// Running reports whether the process had not ended; a zombie has.
func (s Stat) Running() bool { return s.State != 'Z' && s.State != 'X' && s.State != 'x' }

// ReadStat looks at the process that has pid now. fs.ErrNotExist or unix.ESRCH if none has.
func ReadStat(pid int) (Stat, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return Stat{}, fmt.Errorf("look at process %d: %w", pid, err)
	}
	s, err := parseStat(data)
	if err != nil {
		return Stat{}, fmt.Errorf("look at process %d: %w", pid, err)
	}
	s.PID = pid
	return s, nil
}

// parseStat reads all but the number.
func parseStat(data []byte) (Stat, error) {
	const first, last = 3, 52 // as proc(5) counts
	// The second field is a name that may hold anything, so fields are counted from its last parenthesis.
	end := bytes.LastIndexByte(data, ')')
	f := strings.Fields(string(data[end+1:]))
	if end < 0 || len(f) <= last-first {
		return Stat{}, fmt.Errorf("%d fields: %w", len(f), fs.ErrInvalid)
	}
	var errs []error
	n := func(field int) int64 {
		v, err := strconv.ParseInt(f[field-first], 10, 64)
		errs = append(errs, err)
		return v
	}
	s := Stat{
		State: f[0][0], Parent: int(n(4)), Session: int(n(6)), Start: uint64(n(22)),
		CPU: uint64(n(14) + n(15) + n(16) + n(17)), Threads: n(20), Pages: n(24), Code: uint64(n(26)), Status: int(n(last)),
	}
	return s, errors.Join(errs...)
}

// Stopped reports whether no thread of the process that has pid now can run before SIGCONT: all are stopped or ended.
// State is that of the first thread only, and a signal reaches the others when the kernel gets to it.
func Stopped(pid int) bool {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return true // ended
	}
	for _, task := range tasks {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/stat", pid, task.Name()))
		if err != nil {
			continue // ended since
		}
		if s, err := parseStat(data); err != nil || s.State != 'T' && s.Running() {
			return false
		}
	}
	return true
}

// Open returns a pidfd of the process that had pid and began at start. unix.ESRCH if it is gone, whoever has its number
// now. The descriptor is readable when the process has ended.
func Open(pid int, start uint64) (*os.File, error) {
	if pid <= 1 {
		return nil, unix.ESRCH
	}
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.EINVAL) { // a thread's number by now
		return nil, unix.ESRCH
	}
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "pidfd")
	// Read after the pidfd was opened: if it still is the process that began then, so is what the pidfd holds.
	if now, err := ReadStat(pid); err != nil || now.Start != start {
		file.Close()
		return nil, unix.ESRCH
	}
	return file, nil
}

// Ended reports whether the process of a pidfd has ended.
func Ended(pidfd *os.File) bool { return readable(int(pidfd.Fd())) }

func readable(fd int) bool {
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(poll, 0)
		if !errors.Is(err, unix.EINTR) {
			return err == nil && n > 0
		}
	}
}

// Wait returns when the process of a pidfd that Open returned has ended, or with ctx.Err(). It can be called once only
// for a pidfd, if ctx ends.
func Wait(ctx context.Context, pidfd *os.File) error {
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return fmt.Errorf("wait for process: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = pidfd.SetReadDeadline(time.Unix(1, 0)) }) // it may be closed by then
	defer stop()
	err = raw.Read(func(fd uintptr) bool { return readable(int(fd)) })
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("wait for process: %w", err)
	}
	return nil
}

// BootID names this boot of the host: numbers and starts of processes mean nothing in another.
func BootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	return strings.TrimSpace(string(id)), nil
}
