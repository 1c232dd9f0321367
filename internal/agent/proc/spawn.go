package proc

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Spawner forks children from a thread of its own that was deprived of something: capability bounding set, privileges,
// cgroup and the like belong to a thread, children inherit them, and the rest of the agent keeps what it has.
type Spawner struct {
	jobs chan func()
	done chan struct{}
}

// NewSpawner runs each of prepare once on the thread. Without any there is no such thread, and Do runs things where it
// is called.
func NewSpawner(prepare ...func() error) (*Spawner, error) {
	s := &Spawner{}
	if len(prepare) == 0 {
		return s, nil
	}
	s.jobs, s.done = make(chan func()), make(chan struct{})
	ready := make(chan error, 1)
	go s.run(prepare, ready)
	if err := <-ready; err != nil {
		<-s.done
		return nil, err
	}
	return s, nil
}

func (s *Spawner) run(prepare []func() error, ready chan<- error) {
	defer close(s.done)
	runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
	for _, step := range prepare {
		if err := step(); err != nil {
			ready <- err
			return
		}
	}
	ready <- nil
	for job := range s.jobs {
		job()
	}
}

// Do runs fork on the thread.
func (s *Spawner) Do(fork func()) {
	if s.jobs == nil {
		fork()
		return
	}
	finished := make(chan struct{})
	s.jobs <- func() {
		defer close(finished)
		fork()
	}
	<-finished
}

// Close ends the thread.
func (s *Spawner) Close() {
	if s.jobs != nil {
		close(s.jobs)
		<-s.done
	}
}

// DropCapabilities leaves the calling thread's children no capability, also as root, and none to gain by executing
// anything. The thread's own ones stay: the child needs them until its exec, to become its user.
func DropCapabilities() error {
	last := capabilityLast()
	for c := uintptr(0); c <= last; c++ {
		have, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0)
		if err != nil || have == 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
			return fmt.Errorf("drop capability %d from the bounding set: %w", c, err)
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("clear ambient capabilities: %w", err)
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	data[0].Inheritable, data[1].Inheritable = 0, 0
	if err := unix.Capset(&hdr, &data[0]); err != nil {
		return fmt.Errorf("clear inheritable capabilities: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	return nil
}

// capabilityLast is the highest capability the kernel knows; a newer kernel may know more than unix.CAP_LAST_CAP.
func capabilityLast() uintptr {
	text, err := os.ReadFile("/proc/sys/kernel/cap_last_cap")
	if n, err2 := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 6); err == nil && err2 == nil {
		return uintptr(n)
	}
	return 63
}

// LimitPIDs mounts a pids controller at dir, which must not exist, and returns a step for NewSpawner that puts the
// thread's children under a limit of n. gVisor offers it to the sandbox's root; an ordinary kernel does not. The
// agent's other threads stay outside: a Go program that gets no new thread dies.
func LimitPIDs(dir string, n int64) (func() error, error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make a place for the pids controller: %w", err)
	}
	if err := unix.Mount("none", dir, "cgroup", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "pids"); err != nil {
		_ = os.Remove(dir)
		return nil, fmt.Errorf("mount the pids controller: %w", err)
	}
	box := filepath.Join(dir, "children")
	if err := os.Mkdir(box, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("make a pids group: %w", err)
	}
	if err := os.WriteFile(filepath.Join(box, "pids.max"), strconv.AppendInt(nil, n, 10), 0o600); err != nil {
		return nil, fmt.Errorf("limit processes: %w", err)
	}
	return func() error {
		if err := os.WriteFile(filepath.Join(box, "tasks"), []byte("0"), 0o600); err != nil {
			return fmt.Errorf("enter the pids group: %w", err)
		}
		return nil
	}, nil
}
