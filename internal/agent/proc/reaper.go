package proc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Reaper waits for processes: it alone, and for all of them.
//
// As pid 1 or as a subreaper the agent inherits orphans, which only wait(-1) finds; but wait(-1) also takes the status
// of the agent's own children away from whoever waits for them by pid (exec.Cmd does). So nobody else waits: children
// are started with syscall.ForkExec and known here by pid before any wait can see them, their status is handed to
// whoever started them, and a status of nobody's child is an orphan's and is dropped. That costs no thread per process
// either, as a blocking wait would.
//
// The one who may signal a pid is the one who knows that it was not reaped: Signal holds the same lock.
type Reaper struct {
	adopt bool // take orphans too; off where others in this process wait for children of their own, as tests do
	log   *slog.Logger

	mu       sync.Mutex
	children map[int]func(unix.WaitStatus)
	idle     chan struct{} // closed and replaced whenever a child was reaped
}

// NewReaper returns a reaper; Run does the work.
func NewReaper(adopt bool, log *slog.Logger) *Reaper {
	return &Reaper{adopt: adopt, log: log, children: map[int]func(unix.WaitStatus){}, idle: make(chan struct{})}
}

// Run reaps until ctx is done.
func (r *Reaper) Run(ctx context.Context) {
	// One slot is enough: a signal says that there may be something to reap, not what.
	died := make(chan os.Signal, 1)
	signal.Notify(died, unix.SIGCHLD)
	defer signal.Stop(died)
	for {
		r.reap()
		select {
		case <-died:
		case <-ctx.Done():
			return
		}
	}
}

// Start runs fork, which returns the pid of a new child, and has done called once when that child ended. Done must not
// block nor call the reaper.
func (r *Reaper) Start(fork func() (int, error), done func(unix.WaitStatus)) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	pid, err := fork()
	if err != nil {
		return 0, err
	}
	r.children[pid] = done
	return pid, nil
}

// Signal sends sig to the group of a child that leads one. unix.ESRCH if the child was reaped already.
func (r *Reaper) Signal(pid int, sig unix.Signal) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.children[pid]; !ok {
		return unix.ESRCH
	}
	if err := unix.Kill(-pid, sig); !errors.Is(err, unix.ESRCH) {
		return err
	}
	return unix.Kill(pid, sig) // it left its group
}

// SignalAll sends sig to all children and what comes of them, once to each: a handler must not run twice, nor what it
// starts be hit. As pid 1 it sends it to every process there is. It reports whether there was anybody.
func (r *Reaper) SignalAll(sig unix.Signal) bool {
	if r.adopt && os.Getpid() == 1 {
		return unix.Kill(-1, sig) == nil
	}
	r.mu.Lock() // nobody that is found is reaped, and its pid given away, before it is signalled
	defer r.mu.Unlock()
	found := len(r.children) > 0
	for pid := range r.children {
		_ = unix.Kill(-pid, sig)
		if group, err := unix.Getpgid(pid); err == nil && group != pid { // it left its group
			_ = unix.Kill(pid, sig)
		}
	}
	if r.adopt { // otherwise this process has other children, who are not ours to signal
		for _, d := range descendants(os.Getpid()) {
			if r.children[d.pid] == nil && r.children[d.group] == nil {
				found = unix.Kill(d.pid, sig) == nil || found
			}
		}
	}
	return found
}

type descendant struct{ pid, group int }

// descendants finds all, also those who left their group or lost their parent. The agent is their subreaper: they are
// below it.
func descendants(of int) []descendant {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	below := map[int][]descendant{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		text, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue // it is gone
		}
		rest := text[bytes.LastIndexByte(text, ')')+1:] // a name may hold anything
		var state string
		var parent, group int
		if _, err := fmt.Sscan(string(rest), &state, &parent, &group); err == nil && state != "Z" {
			below[parent] = append(below[parent], descendant{pid, group})
		}
	}
	found := below[of]
	for i := 0; i < len(found); i++ {
		found = append(found, below[found[i].pid]...)
	}
	return found
}

// Wait returns once nobody is left whom SignalAll would reach, or with ctx's error.
func (r *Reaper) Wait(ctx context.Context) error {
	for {
		if r.adopt && !r.SignalAll(0) {
			return nil
		}
		r.mu.Lock()
		left, idle := len(r.children), r.idle
		r.mu.Unlock()
		if !r.adopt && left == 0 {
			return nil
		}
		select {
		case <-idle:
		case <-time.After(5 * time.Millisecond): // nobody tells of orphans
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// reap takes every status that is there. The lock is held meanwhile, so that no pid is signalled between its reaping
// and its removal, when it may belong to somebody else.
func (r *Reaper) reap() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.adopt {
		for pid := range r.children {
			r.take(pid)
		}
		return
	}
	for r.take(-1) {
	}
}

// take waits for one process without blocking and reports whether there was one. r.mu is held.
func (r *Reaper) take(which int) bool {
	var status unix.WaitStatus
	pid, err := unix.Wait4(which, &status, unix.WNOHANG, nil)
	for errors.Is(err, unix.EINTR) {
		pid, err = unix.Wait4(which, &status, unix.WNOHANG, nil)
	}
	if err != nil && !errors.Is(err, unix.ECHILD) {
		r.log.Error("wait for children", "error", err)
	}
	if err != nil || pid <= 0 {
		return false
	}
	if done := r.children[pid]; done != nil {
		delete(r.children, pid)
		done(status)
		close(r.idle)
		r.idle = make(chan struct{})
	}
	return true
}
