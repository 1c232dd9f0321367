// Package oci is what the drivers behind an OCI runtime specification have in common: the base of the specification,
// the seccomp list, the checks of what a caller asks for, and the cgroup of a sandbox.
package oci

import (
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
)

// AgentPath is where the agent's executable lies in every sandbox.
const AgentPath = "/.firebreak/agent"

// searchPath is what programs find in PATH before any template or caller says otherwise.
const searchPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Base is the specification that every driver starts from: the agent as pid 1, the kernel's own file systems, the
// template's binds and the caller's mounts (in this order, so that a caller's mount may lie on a bind), and the
// namespaces that need no privilege of the host. It sets neither root, capabilities, identity maps nor limits.
func Base(spec driver.Spec, agent []string) *specs.Spec {
	mounts := kernelMounts()
	for _, m := range slices.Concat(spec.Root.Binds, spec.Mounts) {
		mounts = append(mounts, Bind(m))
	}
	return &specs.Spec{
		Version:  "1.0.2", // the oldest that has all that is used here: Debian's runtimes refuse newer ones
		Hostname: driver.Hostname,
		Process: &specs.Process{
			Args:            agent,
			Cwd:             "/",
			Env:             []string{searchPath},
			NoNewPrivileges: true,
			Capabilities:    &specs.LinuxCapabilities{},
		},
		Mounts: mounts,
		Linux: &specs.Linux{
			RootfsPropagation: "private",
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace},
				{Type: specs.MountNamespace}, {Type: specs.NetworkNamespace},
			},
		},
	}
}

// Bind is the bind mount of m: nothing in it can be a device or raise privileges, and no mount travels either way.
func Bind(m driver.Mount) specs.Mount {
	access := "rw"
	if m.ReadOnly {
		access = "ro"
	}
	return specs.Mount{
		Destination: m.Target, Type: "bind", Source: m.Source,
		Options: []string{"rbind", "rprivate", "nosuid", "nodev", access},
	}
}

func kernelMounts() []specs.Mount {
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs",
			Options: []string{"nosuid", "noexec", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts",
			Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm",
			Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
	}
}

// reserved are the places of the sandbox that no caller may cover: the kernel's and our own.
var reserved = []string{"/proc", "/sys", "/dev", path.Dir(AgentPath)}

// Check refuses a specification that no driver of this family can serve as asked: a malformed id, paths that are not
// absolute and plain, mounts over reserved places, and options other than known.
func Check(spec driver.Spec, known ...string) error {
	if err := spec.ID.Check(); err != nil {
		return err
	}
	if err := plain("directory of the sandbox", spec.Dir); err != nil {
		return err
	}
	if err := plain("root file system", spec.Root.Path); err != nil {
		return err
	}
	if spec.Root.Form == driver.FormDisk && len(spec.Root.Binds) > 0 {
		return invalid("a disk image takes no binds")
	}
	for option := range spec.Options {
		if !slices.Contains(known, option) {
			return invalid("option %q is unknown", option)
		}
	}
	for _, m := range slices.Concat(spec.Root.Binds, spec.Mounts) {
		if err := checkMount(m); err != nil {
			return err
		}
	}
	return checkLimits(spec.Limits)
}

func checkMount(m driver.Mount) error {
	if err := plain("source of a mount", m.Source); err != nil {
		return err
	}
	if err := plain("target of a mount", m.Target); err != nil {
		return err
	}
	if m.Target == "/" {
		return invalid("a mount cannot cover /")
	}
	for _, dir := range reserved {
		if m.Target == dir || strings.HasPrefix(m.Target, dir+"/") {
			return invalid("a mount cannot cover %s", m.Target)
		}
	}
	return nil
}

func checkLimits(l firebreak.Limits) error {
	if l.CPUs < 0 || l.Memory < 0 || l.Disk < 0 || l.PIDs < 0 {
		return invalid("a limit is negative")
	}
	return nil
}

func plain(what, name string) error {
	if !filepath.IsAbs(name) || filepath.Clean(name) != name || strings.ContainsRune(name, 0) {
		return invalid("%s: %q is not an absolute, clean path", what, name)
	}
	return nil
}

func invalid(format string, args ...any) error {
	return &firebreak.Error{Kind: firebreak.KindInvalid, Op: "read specification", Err: fmt.Errorf(format, args...)}
}
