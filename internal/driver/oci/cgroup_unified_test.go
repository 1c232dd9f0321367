package oci

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
)

// cgroupFiles writes the files of a cgroup as a kernel has them.
func cgroupFiles(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func wantFiles(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, want := range files {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s = %q, %v; want %q", name, got, err, want)
		}
	}
}

// TestEnable hands on what we need and what is there, and touches nothing that is on already: to write needs rights that
// we may not have then.
func TestEnable(t *testing.T) {
	for _, c := range []struct{ have, on, want string }{
		{"cpuset memory\n", "", "+memory"},
		{"memory pids\n", "memory\n", "+pids"},
		{"cpuset cpu io\n", "cpu\n", "cpu\n"},
		{"cpuset io hugetlb\n", "", ""},
	} {
		dir := t.TempDir()
		cgroupFiles(t, dir, map[string]string{"cgroup.controllers": c.have, "cgroup.subtree_control": c.on})
		if err := enable(dir); err != nil {
			t.Errorf("%+v: %v", c, err)
		}
		wantFiles(t, dir, map[string]string{"cgroup.subtree_control": c.want})
	}
	if err := enable(t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no cgroup: %v", err)
	}
}

// TestUnifiedRootThatRefuses is the root of a container's cgroup namespace: it holds processes, so the kernel lets it hand
// nothing on. Then the place beside our own cgroup is tried, and without one there is none.
func TestUnifiedRootThatRefuses(t *testing.T) {
	root := t.TempDir()
	all := map[string]string{"cgroup.controllers": "cpu memory pids\n", "cgroup.subtree_control": "cpu memory pids\n"}
	cgroupFiles(t, root, map[string]string{"cgroup.controllers": "cpu memory pids\n"})
	if err := os.Mkdir(filepath.Join(root, "cgroup.subtree_control"), 0o755); err != nil { // what nobody can write
		t.Fatal(err)
	}
	mounts := fmt.Sprintf("30 23 0:26 / %s rw - cgroup2 cgroup2 rw\n", root)
	if c := findCgroups(mounts, "0::/\n"); c.Caps() != 0 || len(c.Open("a").dirs()) != 0 {
		t.Errorf("caps %v in %v", c.Caps().Names(), c.Open("a").dirs())
	}
	cgroupFiles(t, filepath.Join(root, "system.slice"), all)
	cgroupFiles(t, filepath.Join(root, "system.slice/firebreak"), all)
	c := findCgroups(mounts, "0::/system.slice/app.service\n")
	if want := filepath.Join(root, "system.slice/firebreak"); c.v2 != want {
		t.Errorf("cgroups are made in %q, want %q", c.v2, want)
	}
}

// TestUnifiedCreate makes one cgroup with all its limits, once.
func TestUnifiedCreate(t *testing.T) {
	host, _ := unified(t, "cpu memory pids", "")
	limits := firebreak.Limits{CPUs: 0.00001, Memory: 64 << 20, PIDs: 5}
	g, err := host.Create("abc", limits)
	if err != nil {
		t.Fatal(err)
	}
	wantFiles(t, filepath.Join(host.v2, "abc"), map[string]string{"memory.max": "67108864", "memory.swap.max": "0", "memory.oom.group": "1",
		"pids.max": "5", "cpu.max": "1000 100000"})
	if _, err := host.Create("abc", limits); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second time: %v", err)
	}
	if err := g.Join(4321); err != nil {
		t.Fatal(err)
	}
	cgroupFiles(t, g.v2, map[string]string{"cgroup.procs": "0\n4321\n17\n"})
	if pids, err := host.Open("abc").Processes(); err != nil || fmt.Sprint(pids) != "[17 4321]" {
		t.Errorf("processes %v, %v", pids, err)
	}
	if pids, err := host.Open("other").Processes(); err != nil || len(pids) != 0 {
		t.Errorf("processes of one that is not there: %v, %v", pids, err)
	}
	if err := host.Open("other").Remove(t.Context()); err != nil {
		t.Errorf("remove one that is not there: %v", err)
	}
	unlimited, err := host.Create("def", firebreak.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if files, err := os.ReadDir(unlimited.v2); err != nil || len(files) != 0 {
		t.Errorf("without limits %v was written, %v", files, err)
	}
}

// TestMixedVersions has memory under version 1 and the rest under version 2, which systemd calls hybrid.
func TestMixedVersions(t *testing.T) {
	root, memory := t.TempDir(), t.TempDir()
	for _, dir := range []string{root, filepath.Join(root, "firebreak")} {
		cgroupFiles(t, dir, map[string]string{"cgroup.controllers": "cpu pids\n", "cgroup.subtree_control": "cpu pids\n"})
	}
	c := findCgroups(fmt.Sprintf("30 23 0:26 / %s rw - cgroup2 cgroup2 rw\n31 23 0:27 / %s rw shared:1 - cgroup cgroup rw,memory\n", root, memory), "0::/\n")
	if want := driver.CapLimitCPU | driver.CapLimitMemory | driver.CapLimitPIDs; c.Caps() != want {
		t.Fatalf("caps %v, want %v", c.Caps().Names(), want.Names())
	}
	g, err := c.Create("abc", firebreak.Limits{CPUs: 2, Memory: 32 << 20, PIDs: 9})
	if err != nil {
		t.Fatal(err)
	}
	one, two := filepath.Join(memory, "firebreak/abc"), filepath.Join(root, "firebreak/abc")
	wantFiles(t, one, map[string]string{"memory.limit_in_bytes": "33554432"})
	wantFiles(t, two, map[string]string{"pids.max": "9", "cpu.max": "200000 100000"})
	if _, err := os.Stat(filepath.Join(two, "memory.max")); err == nil {
		t.Error("memory is limited where it is not counted")
	}
	cgroupFiles(t, one, map[string]string{"memory.usage_in_bytes": "1\n", "memory.max_usage_in_bytes": "2\n",
		"memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"})
	cgroupFiles(t, two, map[string]string{"cpu.stat": "usage_usec 4\n", "pids.current": "5\n", "pids.events": "max 6\nmax.imposed 7\n"})
	want := driver.Usage{CPU: 4 * time.Microsecond, Memory: 1, MemoryPeak: 2, PIDs: 5, OOMKills: 3, PIDsDenied: 6}
	if got := g.Usage(); got != want {
		t.Errorf("usage %+v, want %+v", got, want)
	}
	if into, err := g.Directory(); into != nil || err != nil {
		t.Errorf("one directory of two: %v, %v", into, err)
	}
}
