package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/server"
)

// userVariable tells the program inside the namespace who it is outside, and that it need not go inside once more.
const userVariable = "FIREBREAK_OUTER_UID"

// userID is who runs this program, as the host knows him.
func userID() int {
	if uid, err := strconv.Atoi(os.Getenv(userVariable)); err == nil {
		return uid
	}
	return os.Getuid()
}

func needsNamespace() bool {
	return os.Geteuid() != 0 && os.Getenv(userVariable) == ""
}

// runInNamespace runs this command line once more, as root of a user and a mount namespace of its own, and returns its
// exit status.
func runInNamespace() (int, error) {
	// The child is told when the thread that made it ends, so that must not happen before the process does.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", userVariable, os.Getuid()))
	if cmd.ExtraFiles = passedFiles(); len(cmd.ExtraFiles) > 0 {
		cmd.Env = append(cmd.Env, fmt.Sprintf("%s=%d", server.PassedVariable, os.Getpid()))
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   syscall.SIGTERM, // it then destroys its sandboxes
	}
	// Caught, not ignored: what is ignored stays ignored in the child. Taken before the start, so that none is lost.
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		return 0, namespaceError(err)
	}
	for _, f := range cmd.ExtraFiles {
		_ = f.Close() // the child's copies are what counts
	}
	done := make(chan struct{})
	passed := make(chan struct{})
	go func() {
		defer close(passed)
		passSignals(signals, done, cmd.Process)
	}()
	err := cmd.Wait()
	close(done)
	<-passed
	return exitStatus(cmd.ProcessState, err)
}

// passedFiles are those that the service manager passed on to this process, which begin where the child's will.
func passedFiles() []*os.File {
	n, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if err != nil || n > maxPassed || os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		return nil
	}
	var files []*os.File
	for fd := 3; fd < 3+n; fd++ {
		files = append(files, os.NewFile(uintptr(fd), "socket"))
	}
	return files
}

const maxPassed = 64

// passSignals passes on what was sent to this process alone. What a terminal sends by its keys, it sends to the child
// too, which is of the same group.
func passSignals(signals <-chan os.Signal, done <-chan struct{}, child *os.Process) {
	for {
		select {
		case s := <-signals:
			if (s == syscall.SIGINT || s == syscall.SIGQUIT) && inForeground() {
				continue
			}
			_ = child.Signal(s) // it may have ended meanwhile
		case <-done:
			return
		}
	}
}

// inForeground reports whether the keys of a terminal reach this process's group.
func inForeground() bool {
	tty, err := os.Open("/dev/tty")
	if err != nil {
		return false
	}
	defer tty.Close()
	group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && group == syscall.Getpgrp()
}

func exitStatus(state *os.ProcessState, err error) (int, error) {
	var failed *exec.ExitError
	if err != nil && !errors.As(err, &failed) {
		return 0, fmt.Errorf("run in a user namespace: %w", err)
	}
	if s, ok := state.Sys().(syscall.WaitStatus); ok && s.Signaled() {
		return 128 + int(s.Signal()), nil
	}
	return state.ExitCode(), nil
}

// namespaceError says which of the several switches of distributions forbids user namespaces.
func namespaceError(err error) error {
	e := &firebreak.Error{Kind: firebreak.KindHost, Op: "make a user namespace", Err: err, Mend: "run firebreak as root"}
	for _, s := range []struct{ path, forbidden, mend string }{
		{"/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"},
		{"/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"},
		{"/proc/sys/user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=10000"},
	} {
		if text, err := os.ReadFile(s.path); err == nil && string(text) == s.forbidden+"\n" {
			e.Mend = fmt.Sprintf("have root run %q (%s forbids it), or run firebreak as root", s.mend, s.path)
			break
		}
	}
	if _, err := os.Stat("/proc/self/ns/user"); err != nil {
		e.Mend = "run firebreak as root: this kernel has no user namespaces"
	}
	return e
}
