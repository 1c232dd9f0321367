package host

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// userNamespaces tries to make one as we are and, if we are root, as an ordinary user too: distributions forbid it to
// those only.
func (l *looker) userNamespaces() {
	const mend = "sysctl -w user.max_user_namespaces=15000; where these exist also kernel.unprivileged_userns_clone=1 and kernel.apparmor_restrict_unprivileged_userns=0"
	mapped := &syscall.SysProcAttr{
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}},
	}
	if err := tryUserNamespace(mapped); err != nil {
		l.problem("user namespaces", err, mend)
		return
	}
	l.facts.UserNamespaces = true
	if os.Geteuid() != 0 || !ownsAllUsers() { // who is root of his own ids only is an ordinary user already
		return
	}
	if err := asNobody(func() error { return tryUserNamespace(&syscall.SysProcAttr{}) }); err != nil {
		l.problem("user namespaces as an ordinary user", err, mend)
	}
}

// ownsAllUsers reports whether this process is in the host's own user namespace, or in one that maps all of it.
func ownsAllUsers() bool {
	text, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && strings.Join(strings.Fields(string(text)), " ") == "0 0 4294967295"
}

// tryUserNamespace has a child make a user namespace, and in it a mount namespace whose mounts it changes: where AppArmor
// restricts user namespaces they can be made, but give no right to do anything. No program runs: what the child is
// to become cannot exist, and the error says that it got that far.
func tryUserNamespace(attr *syscall.SysProcAttr) error {
	attr.Cloneflags = syscall.CLONE_NEWUSER
	attr.Unshareflags = syscall.CLONE_NEWNS // with which package syscall makes all mounts private
	_, err := syscall.ForkExec("/dev/null/none", []string{"none"}, &syscall.ProcAttr{Sys: attr})
	if errors.Is(err, syscall.ENOTDIR) {
		return nil
	}
	if err == nil {
		return errors.New("the child ran a program that cannot exist")
	}
	return fmt.Errorf("make one: %w", err)
}

// asNobody calls f on a thread that has the rights of an ordinary user; the caller is root. The thread ends with it.
func asNobody(f func() error) error {
	// A change of user has the kernel close the whole process to debuggers and core dumps. While a thread is nobody's
	// that is what we want; afterwards it is undone.
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil {
		return os.NewSyscallError("prctl", err)
	}
	got := onOwnThread(func() error {
		if err := becomeNobody(); err != nil {
			return err
		}
		return f()
	})
	for deadline := time.Now().Add(time.Second); unix.Tgkill(os.Getpid(), got.thread, 0) == nil; {
		if time.Now().After(deadline) {
			return got.err // better without core dumps than with an open door
		}
		time.Sleep(time.Millisecond)
	}
	return errors.Join(got.err, os.NewSyscallError("prctl", unix.Prctl(unix.PR_SET_DUMPABLE, uintptr(dumpable&1), 0, 0, 0)))
}

type outcome struct {
	thread int
	err    error
}

// onOwnThread calls f on a thread that ends afterwards.
func onOwnThread(f func() error) outcome {
	result := make(chan outcome)
	go func() {
		runtime.LockOSThread() // and never unlocked, so that nothing else runs on this thread
		if unix.Gettid() != os.Getpid() {
			result <- outcome{unix.Gettid(), f()}
			return
		}
		// The main thread never ends. While it is held, others get another one.
		defer runtime.UnlockOSThread()
		result <- onOwnThread(f)
	}()
	return <-result
}

// becomeNobody takes all rights from this thread alone: the functions of package syscall would change all threads.
func becomeNobody() error {
	const nobody = 65534
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); errno != 0 {
		return os.NewSyscallError("setgroups", errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, nobody, nobody, nobody); errno != 0 {
		return os.NewSyscallError("setresgid", errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, nobody, nobody, nobody); errno != 0 {
		return os.NewSyscallError("setresuid", errno)
	}
	return nil
}
