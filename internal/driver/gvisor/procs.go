package gvisor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// process is a process that can be told from a later one with the same pid.
type process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks since boot
}

// findProcess returns the process that has pid now.
func findProcess(pid int) (process, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return process{}, err
	}
	// The second field is a name that may hold anything, so fields are counted from its last parenthesis.
	end := bytes.LastIndexByte(data, ')')
	f := strings.Fields(string(data[end+1:]))
	if end < 0 || len(f) < 20 {
		return process{}, fmt.Errorf("read /proc/%d/stat: malformed", pid)
	}
	start, err := strconv.ParseUint(f[19], 10, 64)
	return process{PID: pid, Start: start}, err
}

// open returns a pidfd of p, or unix.ESRCH if it has been reaped. A pid file descriptor is readable when p has ended.
func (p process) open() (*os.File, error) {
	if p.PID <= 1 {
		return nil, unix.ESRCH
	}
	fd, err := unix.PidfdOpen(p.PID, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "pidfd")
	if now, err := findProcess(p.PID); err != nil || now != p {
		file.Close()
		return nil, unix.ESRCH
	}
	return file, nil
}

// alive reports whether p runs; a zombie does not.
func (p process) alive() bool {
	file, err := p.open()
	if err != nil {
		return false
	}
	defer file.Close()
	return !hasEnded(int(file.Fd()))
}

func hasEnded(pidfd int) bool {
	poll := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(poll, 0)
		if !errors.Is(err, unix.EINTR) {
			return err == nil && n > 0
		}
	}
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
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	err = raw.Read(func(fd uintptr) bool { return hasEnded(int(fd)) })
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// kill ends p and returns when it has ended; its entry in the process table is for its parent to clear.
func (p process) kill(ctx context.Context) error {
	file, err := p.open()
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer file.Close()
	if err := unix.PidfdSendSignal(int(file.Fd()), unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", p.PID, err)
	}
	if err := p.wait(ctx); err != nil {
		return fmt.Errorf("wait for the end of process %d: %w", p.PID, err)
	}
	// Where we are the first process of a container, orphans are ours to take note of. Elsewhere this does nothing.
	_, _ = unix.Wait4(p.PID, nil, unix.WNOHANG, nil)
	return nil
}

// killMarked ends every process that has mark as one of its arguments, or as the value of one. A maker starts others,
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

func bootID() string {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}
