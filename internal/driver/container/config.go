package container

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/oci"
)

// agentPort is where the agent listens, on the loopback interface of the sandbox.
const agentPort = 49983

// agentThreads are those of the agent, beside the processes that a sandbox may have: programs that use up all of these
// leave the agent alive to tell.
const agentThreads = 16

// agentCapabilities are what the agent itself keeps, within the user namespace of its sandbox. Its programs get none.
var agentCapabilities = []string{
	"CAP_SETUID", "CAP_SETGID", // to start programs as the account that the caller names
	"CAP_SETPCAP",      // to empty the bounding set of its programs
	"CAP_KILL",         // to signal programs of other accounts
	"CAP_CHOWN",        // to give uploaded files to the account that the caller names
	"CAP_DAC_OVERRIDE", // to read and write files on behalf of any account
	"CAP_FOWNER",       // to set modes and times of such files
}

// config is the specification of the container. What lies in the root file system is mounted already.
func config(spec driver.Spec, at string, base uint32) (*specs.Spec, error) {
	bare := spec
	bare.Root.Binds, bare.Mounts = nil, nil
	s := oci.Base(bare, []string{oci.AgentPath, "--listen", fmt.Sprintf("tcp:127.0.0.1:%d", agentPort),
		"--drop-capabilities", "--threads", strconv.Itoa(agentThreads), "--mark", string(spec.ID)})
	seccomp, err := oci.Seccomp()
	if err != nil {
		return nil, err
	}
	s.Root = &specs.Root{Path: filepath.Join(at, "root")}
	oom := 300 // programs of a sandbox go before those of the host
	s.Process.OOMScoreAdj = &oom
	s.Process.Capabilities = &specs.LinuxCapabilities{
		Bounding: agentCapabilities, Effective: agentCapabilities, Permitted: agentCapabilities,
	}
	s.Process.Rlimits = []specs.POSIXRlimit{
		{Type: "RLIMIT_NOFILE", Soft: min(1024, fileLimit()), Hard: fileLimit()},
		{Type: "RLIMIT_CORE", Soft: 1, Hard: 1}, // 1, not 0: it keeps the host's core dump program from being run
	}
	if appArmor() {
		s.Process.ApparmorProfile = "docker-default"
	}
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: base, Size: rangeSize}}
	s.Linux.UIDMappings, s.Linux.GIDMappings = ids, ids
	s.Linux.Namespaces = append(s.Linux.Namespaces,
		specs.LinuxNamespace{Type: specs.UserNamespace}, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	s.Linux.Seccomp = seccomp
	s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = oci.MaskedPaths(), oci.ReadonlyPaths()
	// Programs without capabilities may then serve on any port of their own network.
	s.Linux.Sysctl = map[string]string{"net.ipv4.ip_unprivileged_port_start": "0"}
	s.Linux.CgroupsPath = cgroupPath(spec.ID)
	s.Linux.Resources = resources(spec)
	return s, nil
}

func resources(spec driver.Spec) *specs.LinuxResources {
	const period = 100 * time.Millisecond
	r := &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}}
	l := spec.Limits
	if l.Memory > 0 {
		r.Memory = &specs.LinuxMemory{Limit: &l.Memory}
		if swapCounted() {
			r.Memory.Swap = &l.Memory // memory and swap together: no way out into swap
		}
	}
	if l.PIDs > 0 {
		r.Pids = &specs.LinuxPids{Limit: l.PIDs + agentThreads}
	}
	if l.CPUs > 0 {
		quota := max(int64(l.CPUs*float64(period.Microseconds())), time.Millisecond.Microseconds())
		per := uint64(period.Microseconds())
		r.CPU = &specs.LinuxCPU{Quota: &quota, Period: &per}
	}
	return r
}

// fileLimit is how many files a process of a sandbox may have open. Within its user namespace none can be allowed more
// than we are.
func fileLimit() uint64 {
	const most = 65536
	var own unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &own); err != nil {
		return most
	}
	return min(most, own.Max)
}

// swapCounted reports whether the kernel can limit swap; version 1 hierarchies may lack it, and runtimes then fail.
func swapCounted() bool {
	if _, err := os.Stat("/sys/fs/cgroup/memory"); err != nil {
		return true
	}
	_, err := os.Stat("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes")
	return err == nil
}

// appArmor reports whether the host has AppArmor and Docker's profile is loaded.
func appArmor() bool {
	on, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	if err != nil || !strings.HasPrefix(string(on), "Y") {
		return false
	}
	loaded, err := os.ReadFile("/sys/kernel/security/apparmor/profiles")
	return err == nil && strings.Contains("\n"+string(loaded), "\ndocker-default (")
}

// writeConfig writes the bundle's specification, and returns where the filter of system calls for it is kept.
func (d *Driver) writeConfig(spec driver.Spec, t tool, at string, base uint32) (filter string, err error) {
	s, err := config(spec, at, base)
	if err != nil {
		return "", err
	}
	filter = d.filterPath(t, s.Linux.Seccomp)
	addFilter(s, filter)
	data, err := json.Marshal(s)
	if err != nil {
		return "", fmt.Errorf("write container config: %w", err)
	}
	if err := os.WriteFile(filepath.Join(ownDir(spec), "config.json"), data, 0o600); err != nil {
		return "", fmt.Errorf("write container config: %w", err)
	}
	return filter, nil
}
