package main

import (
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// thread is one from which contenders are started that must not see all mounts. Nil is any thread.
type thread struct{ jobs chan func() }

const unified = "/sys/fs/cgroup/unified"

// withoutUnified is a thread that does not see the second version of cgroups where it lies beside the first: older crun
// refuses such hosts. It lives as long as the program.
func withoutUnified() (*thread, error) {
	t := &thread{jobs: make(chan func())}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := errors.Join(unix.Unshare(unix.CLONE_NEWNS), unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
		if err == nil && unix.Unmount(unified, unix.MNT_DETACH) == nil {
			err = unix.Mount("none", unified, "tmpfs", 0, "")
		}
		ready <- err
		for job := range t.jobs {
			job()
		}
	}()
	if err := <-ready; err != nil {
		return nil, fmt.Errorf("hide %s: %w", unified, err)
	}
	return t, nil
}

// do runs f on the thread and returns when it has.
func (t *thread) do(f func()) {
	if t == nil {
		f()
		return
	}
	done := make(chan struct{})
	t.jobs <- func() {
		defer close(done)
		f()
	}
	<-done
}
