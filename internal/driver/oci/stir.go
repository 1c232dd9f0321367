package oci

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
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

// ownCgroup1 is the directory of a process's own cgroup in some hierarchy of version 1; "" if there is none.
func ownCgroup1(mountinfo, own string) string {
	paths := map[string]string{} // by the list of controllers
	for line := range strings.Lines(own) {
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); len(f) == 3 {
			paths[f[1]] = f[2]
		}
	}
	for line := range strings.Lines(mountinfo) {
		before, after, _ := strings.Cut(line, " - ")
		fields, kind := strings.Fields(before), strings.Fields(after)
		if len(fields) < 5 || len(kind) < 3 || kind[0] != "cgroup" {
			continue
		}
		for controllers, path := range paths {
			if controllers != "" && strings.Contains(kind[2], controllers) && strings.HasPrefix(path, fields[3]) {
				return filepath.Join(fields[4], strings.TrimPrefix(path, fields[3]))
			}
		}
	}
	return ""
}
