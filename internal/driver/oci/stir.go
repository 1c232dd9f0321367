package oci

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/moby/sys/mountinfo"
)

// Stir has the kernel get ready to move processes between cgroups of version 1. The first move after a while waits until
// all processors have taken notice, some 10 ms; those that follow soon wait no more. Stir begins a move that changes
// nothing, and the function that it returns waits for its end. With version 2, where processes are born in their cgroup,
// it does nothing.
func Stir() (wait func()) {
	var work sync.WaitGroup
	work.Go(func() {
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			return
		}
		own, err := os.ReadFile("/proc/self/cgroup")
		if err != nil {
			return
		}
		if dir := ownCgroup1(string(mounts), string(own)); dir != "" {
			_ = writeFile(dir, "cgroup.procs", strconv.Itoa(os.Getpid())) // else the next move waits
		}
	})
	return work.Wait
}

// ownCgroup1 is the directory of a process's own cgroup in some hierarchy of version 1; "" if there is none in sight.
func ownCgroup1(mounts, own string) string {
	hierarchies, err := mountinfo.GetMountsFromReader(strings.NewReader(mounts), mountinfo.FSTypeFilter("cgroup"))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(own) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) < 3 || f[1] == "" || filepath.Clean(f[2]) != f[2] { // /.. is above the root of a cgroup namespace
			continue
		}
		for _, m := range hierarchies {
			below, err := filepath.Rel(m.Root, f[2])
			if err == nil && filepath.IsLocal(below) && hasControllers(m.VFSOptions, f[1]) {
				return filepath.Join(m.Mountpoint, below)
			}
		}
	}
	return ""
}

// hasControllers reports whether a mount with these options has all controllers of a list: as words, since cpu is not
// cpuset.
func hasControllers(options, controllers string) bool {
	have := strings.Split(options, ",")
	return !slices.ContainsFunc(strings.Split(controllers, ","), func(c string) bool { return !slices.Contains(have, c) })
}
