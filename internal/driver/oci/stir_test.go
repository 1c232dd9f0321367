package oci

import (
	"os"
	"strings"
	"testing"
)

func TestOwnCgroup1(t *testing.T) {
	const mounts = `30 24 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro
31 30 0:27 /docker/abc /sys/fs/cgroup/pids rw,nosuid - cgroup cgroup rw,pids
32 30 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
`
	for name, c := range map[string]struct{ mounts, own, want string }{
		"own cgroup":              {mounts, "5:pids:/docker/abc\n0::/\n", "/sys/fs/cgroup/pids"},
		"below it":                {mounts, "5:pids:/docker/abc/x\n", "/sys/fs/cgroup/pids/x"},
		"out of sight":            {mounts, "5:pids:/other\n", ""},
		"beside it":               {mounts, "5:pids:/docker/abcd\n", ""},
		"above the namespace":     {mounts, "5:pids:/docker/abc/../x\n", ""},
		"another controller":      {strings.ReplaceAll(mounts, "rw,pids", "rw,cpuset"), "4:cpu:/docker/abc\n", ""},
		"two at once":             {strings.ReplaceAll(mounts, "rw,pids", "rw,cpu,cpuacct"), "4:cpu,cpuacct:/docker/abc/x\n", "/sys/fs/cgroup/pids/x"},
		"version 2":               {"32 30 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", "0::/user\n", ""},
		"neither":                 {"", "", ""},
		"lines that are no lines": {"x - cgroup\n\n", "a:b\n:\n", ""},
	} {
		if got := ownCgroup1(c.mounts, c.own); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// TestStir: whatever hierarchy this host has, the process stays where it is.
func TestStir(t *testing.T) {
	before, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	Stir()()
	after, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	if string(before) != string(after) {
		t.Errorf("moved from %q to %q", before, after)
	}
}
