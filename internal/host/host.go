// Package host finds out what this machine is and what it lets us do: the facts that decide which sandboxes can run here.
// What can be tried is tried, because a device that opens or a setting that is on proves little.
package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/driver"
)

// Facts are what Look and ProbeKVM found.
type Facts struct {
	Kernel         string           `json:"kernel"`          // its release
	Arch           string           `json:"arch"`            // as uname(2) calls the machine: x86_64, aarch64
	CPUs           int              `json:"cpus"`            // that this process may use
	Memory         int64            `json:"memory"`          // bytes
	MemoryFree     int64            `json:"memory_free"`     // bytes that can be had without swapping
	Cgroups        string           `json:"cgroups"`         // v1, v2, hybrid (version 1 with an empty version 2 beside it), none
	UserNamespaces bool             `json:"user_namespaces"` // this process can make one and mount in it
	LSMs           []string         `json:"lsms,omitempty"`  // Linux security modules, in the order in which they are asked
	GPUs           []string         `json:"gpus,omitempty"`
	StateDisk      Disk             `json:"state_disk"`
	KVM            KVM              `json:"kvm"`
	Problems       []driver.Problem `json:"problems,omitempty"` // what could not be found out, or does not work
}

// Disk is a file system that holds Path.
type Disk struct {
	Path  string `json:"path"`
	Total int64  `json:"total"` // bytes
	Free  int64  `json:"free"`  // bytes that this process may still write
}

// KVM says whether virtual machines run here.
type KVM struct {
	Present bool   `json:"present"` // there is a /dev/kvm
	Usable  bool   `json:"usable"`  // a guest ran to its end
	Detail  string `json:"detail,omitempty"`
	Mend    string `json:"mend,omitempty"`
}

// Look finds out all but Facts.KVM. It always returns; what it could not find out stays zero and is in Facts.Problems.
func Look(ctx context.Context, stateDir string) Facts {
	l := looker{root: "/"}
	l.facts.StateDisk.Path = stateDir
	for _, step := range []func(){l.kernel, l.memory, l.cgroups, l.lsms, l.gpus, l.disk, l.userNamespaces} {
		if err := ctx.Err(); err != nil {
			l.problem("look at the host", err, "")
			break
		}
		step()
	}
	return l.facts
}

// looker collects facts. Files are looked up below root, which tests choose.
type looker struct {
	root  string
	facts Facts
}

func (l *looker) path(name string) string { return filepath.Join(l.root, name) }

func (l *looker) problem(what string, err error, mend string) {
	reason := strings.ReplaceAll(err.Error(), "\n", "; ") // joined errors, on one line
	l.facts.Problems = append(l.facts.Problems, driver.Problem{Text: what + ": " + reason, Mend: mend})
}

func (l *looker) kernel() {
	l.facts.CPUs = runtime.NumCPU()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		l.problem("ask for the kernel's release", err, "")
		return
	}
	l.facts.Kernel, l.facts.Arch = unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Machine[:])
}

func (l *looker) memory() {
	text, err := os.ReadFile(l.path("proc/meminfo"))
	if err == nil {
		l.facts.Memory, l.facts.MemoryFree, err = parseMeminfo(string(text))
	}
	if err != nil {
		l.problem("read how much memory there is", err, "mount proc on /proc")
	}
}

// FreeMemory returns how many bytes of memory can be had without swapping.
func FreeMemory() (int64, error) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	_, free, err := parseMeminfo(string(text))
	return free, err
}

// parseMeminfo reads the total and the available memory in bytes; see proc_meminfo(5).
func parseMeminfo(text string) (total, free int64, err error) {
	kib := func(name string) int64 {
		for line := range strings.Lines(text) {
			if f := strings.Fields(line); len(f) == 3 && f[0] == name && f[2] == "kB" {
				if n, parseErr := strconv.ParseInt(f[1], 10, 64); parseErr == nil && n >= 0 && n < 1<<53 {
					return n << 10
				}
			}
		}
		err = errors.Join(err, fmt.Errorf("/proc/meminfo has no good line %s", name))
		return 0
	}
	return kib("MemTotal:"), kib("MemAvailable:"), err
}

func (l *looker) cgroups() {
	text, err := os.ReadFile(l.path("proc/self/mountinfo"))
	if err != nil {
		l.problem("read which cgroups are mounted", err, "mount proc on /proc")
		return
	}
	l.facts.Cgroups = parseCgroups(string(text))
}

// parseCgroups says which versions of cgroups a mountinfo shows; see proc_pid_mountinfo(5). Hierarchies of version 1
// without a controller, which only name processes, limit nothing and do not count.
func parseCgroups(mountinfo string) string {
	var v1, v2 bool
	for line := range strings.Lines(mountinfo) {
		_, after, _ := strings.Cut(line, " - ")
		f := strings.Fields(after)
		if len(f) < 3 {
			continue
		}
		switch f[0] {
		case "cgroup2":
			v2 = true
		case "cgroup":
			for option := range strings.SplitSeq(f[2], ",") {
				switch option {
				case "cpu", "memory", "pids":
					v1 = true
				}
			}
		}
	}
	switch {
	case v1 && v2:
		return "hybrid"
	case v1:
		return "v1"
	case v2:
		return "v2"
	}
	return "none"
}

// disk looks at the file system that holds the state directory, or will hold it once it is made.
func (l *looker) disk() {
	path, err := filepath.Abs(l.facts.StateDisk.Path)
	if err != nil {
		l.problem("find the state directory", err, "")
		return
	}
	l.facts.StateDisk.Path = path
	var s unix.Statfs_t
	for {
		err = unix.Statfs(path, &s)
		if !errors.Is(err, fs.ErrNotExist) || path == filepath.Dir(path) {
			break
		}
		path = filepath.Dir(path)
	}
	if err != nil {
		l.problem("look at the disk of "+path, err, "")
		return
	}
	l.facts.StateDisk.Total, l.facts.StateDisk.Free = int64(s.Blocks)*s.Frsize, int64(s.Bavail)*s.Frsize
}
