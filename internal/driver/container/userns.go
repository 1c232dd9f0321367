package container

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
)

// userNamespace returns a user namespace with the same map as that of the sandbox whose ids begin at base: the kernel
// takes the map of a mount's owners from one. The program that is started for it is stopped before its first
// instruction and killed.
func userNamespace(base uint32) (*os.File, error) {
	// The thread must outlive the process that it traces: otherwise the kernel lets that process go on.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(base), Size: rangeSize}}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids,
		Ptrace: true, Pdeathsig: syscall.SIGKILL,
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("make user namespace: %w", err)
	}
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", cmd.Process.Pid))
	_ = cmd.Process.Kill() // it cannot have ended: it is stopped
	_ = cmd.Wait()         // says that it was killed
	if err != nil {
		return nil, fmt.Errorf("open user namespace: %w", err)
	}
	return ns, nil
}
