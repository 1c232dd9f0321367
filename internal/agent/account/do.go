package account

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Do runs work with u's permissions on files and returns its error. Work must stay on its goroutine: what it starts
// elsewhere runs as the agent. The agent's own rights come back before Do returns.
//
// The thread's effective ids are changed and not setfsuid's, which gVisor lacks: effective ids carry the ids for files
// along and drop the effective capabilities, while the saved root id brings both back.
func (d *Database) Do(u User, work func() error) error {
	if !d.switches || u.UID == d.self.UID && u.GID == d.self.GID {
		return work()
	}
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := d.become(u.UID, u.GID, u.Groups); err != nil {
			_ = d.become(d.self.UID, d.self.GID, d.groups0) // the thread dies below, whatever this does
			result <- fmt.Errorf("become user '%s': %w", u.Name, err)
			return
		}
		result <- work()
		if d.become(d.self.UID, d.self.GID, d.groups0) == nil {
			runtime.UnlockOSThread()
		}
		// Otherwise the goroutine ends locked, and the runtime ends the thread with it: nobody else runs as u.
	}()
	return <-result
}

// become changes the effective ids of the calling thread only, which is why it goes below package syscall: that one
// changes all threads. Root is left last and regained first, because the other two changes need it.
func (d *Database) become(uid, gid uint32, groups []uint32) error {
	const keep = ^uintptr(0)
	if uid == 0 {
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, keep, 0, keep); errno != 0 {
			return errno
		}
	}
	var list uintptr
	if len(groups) > 0 {
		list = uintptr(unsafe.Pointer(&groups[0]))
	}
	_, _, errno := syscall.RawSyscall(syscall.SYS_SETGROUPS, uintptr(len(groups)), list, 0)
	runtime.KeepAlive(groups)
	if errno != 0 && !d.noGroups {
		return errno
	}
	if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESGID, keep, uintptr(gid), keep); errno != 0 {
		return errno
	}
	if uid != 0 {
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, keep, uintptr(uid), keep); errno != 0 {
			return errno
		}
	}
	return nil
}

// Credential is what a child is started with to be u; nil if that is what the agent is.
func (d *Database) Credential(u User) *syscall.Credential {
	if !d.switches || u.UID == d.self.UID && u.GID == d.self.GID {
		return nil
	}
	return &syscall.Credential{Uid: u.UID, Gid: u.GID, Groups: u.Groups, NoSetGroups: d.noGroups}
}

// setgroupsDenied tells a user namespace that an ordinary user made without help: groups stay as they are there.
func setgroupsDenied() bool {
	text, err := os.ReadFile("/proc/self/setgroups")
	return err == nil && strings.TrimSpace(string(text)) == "deny"
}

// canSwitch looks for the capabilities rather than for uid 0: a container may have root without them.
func canSwitch() bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return os.Geteuid() == 0
	}
	const need = 1<<unix.CAP_SETUID | 1<<unix.CAP_SETGID
	return os.Geteuid() == 0 && data[0].Effective&need == need
}
