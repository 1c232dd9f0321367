package oci

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
)

// unified returns the host of a test: a directory that looks like a version 2 hierarchy.
func unified(t *testing.T, controllers, own string) (*Cgroups, string) {
	t.Helper()
	root := t.TempDir()
	for _, dir := range []string{root, filepath.Join(root, "user/app"), filepath.Join(root, "user")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{root, filepath.Join(root, "firebreak"), filepath.Join(root, "user"), filepath.Join(root, "user/firebreak")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		have := controllers
		if dir == root && own != "" {
			have = "" // the root delegates nothing to us
		}
		for name, text := range map[string]string{"cgroup.controllers": have, "cgroup.subtree_control": have} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	return findCgroups(fmt.Sprintf("30 23 0:26 / %s rw,nosuid shared:9 - cgroup2 cgroup2 rw\n", root), "0::"+own+"\n"), root
}

func TestUnifiedCaps(t *testing.T) {
	all := driver.CapLimitCPU | driver.CapLimitMemory | driver.CapLimitPIDs
	for _, tt := range []struct {
		name, controllers, own string
		want                   driver.Caps
		parent                 string
	}{
		{"root", "cpuset cpu io memory pids", "", all, "firebreak"},
		{"delegated to a service", "cpu memory pids", "/user/app", all, "user/firebreak"},
		{"no processor", "memory pids", "", all &^ driver.CapLimitCPU, "firebreak"},
		{"no controllers, as beside version 1", "", "", 0, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			host, root := unified(t, tt.controllers, tt.own)
			if got := host.Caps(); got != tt.want {
				t.Errorf("caps = %v, want %v", got.Names(), tt.want.Names())
			}
			if tt.parent != "" && host.v2 != filepath.Join(root, tt.parent) {
				t.Errorf("parent = %q, want %q", host.v2, tt.parent)
			}
		})
	}
}

func TestUnifiedLimitsAndUsage(t *testing.T) {
	host, _ := unified(t, "cpu memory pids", "")
	g := host.Open("abc")
	if err := os.Mkdir(g.v2, 0o755); err != nil {
		t.Fatal(err)
	}
	files := map[string]string{"memory.max": "", "memory.swap.max": "", "memory.oom.group": "", "pids.max": "", "cpu.max": "",
		"memory.current": "4096\n", "memory.peak": "8192\n", "memory.events": "low 0\noom 3\noom_kill 2\n",
		"cpu.stat": "usage_usec 1500\nuser_usec 7\n", "pids.current": "5\n", "pids.events": "max 9\n"}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(g.v2, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.limit(firebreak.Limits{CPUs: 1.5, Memory: 1 << 20, PIDs: 7}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"memory.max": "1048576", "memory.swap.max": "0", "memory.oom.group": "1",
		"pids.max": "7", "cpu.max": "150000 100000"} {
		if got, _ := os.ReadFile(filepath.Join(g.v2, name)); string(got) != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
	want := driver.Usage{CPU: 1500 * time.Microsecond, Memory: 4096, MemoryPeak: 8192, PIDs: 5, OOMKills: 2, PIDsDenied: 9}
	if got := g.Usage(); got != want {
		t.Errorf("usage = %+v, want %+v", got, want)
	}
}

func TestLimitWithoutController(t *testing.T) {
	g := &Cgroup{}
	if err := g.limit(firebreak.Limits{PIDs: 1}); err == nil {
		t.Error("a limit that nothing can enforce was accepted")
	}
}

// host returns the cgroups of this host, with a private name for the test's own.
func host(t *testing.T) (*Cgroups, driver.ID) {
	t.Helper()
	c, err := FindCgroups()
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Open("x").dirs()) == 0 {
		if strings.Contains(os.Getenv("FIREBREAK_REQUIRE"), "gvisor") {
			t.Fatal("FIREBREAK_REQUIRE names gvisor, but no cgroup can be made here")
		}
		t.Skip("no cgroup can be made here")
	}
	id := driver.ID(fmt.Sprintf("t%d", os.Getpid()))
	t.Cleanup(func() {
		if err := c.Open(id).Remove(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return c, id
}

func TestCgroupOfThisHost(t *testing.T) {
	c, id := host(t)
	g, err := c.Create(id, firebreak.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Create(id, firebreak.Limits{}); err == nil {
		t.Error("the same cgroup was made twice")
	}
	cmd := exec.Command("sleep", "600")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := g.Join(cmd.Process.Pid); err != nil {
		t.Error(err)
	}
	if pids, err := g.Processes(); err != nil || len(pids) != 1 || pids[0] != cmd.Process.Pid {
		t.Errorf("processes = %v, %v; want [%d]", pids, err, cmd.Process.Pid)
	}
	if c.Caps().Has(driver.CapLimitPIDs) && g.Usage().PIDs != 1 {
		t.Errorf("usage counts %d processes, want 1", g.Usage().PIDs)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := g.Remove(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil {
		t.Error("the process ended by itself")
	}
	if err := g.Remove(ctx); err != nil {
		t.Errorf("remove again: %v", err)
	}
	for _, dir := range g.dirs() {
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s is left", dir)
		}
	}
}

func TestBornIntoCgroup(t *testing.T) {
	root := ""
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); f[2] == "cgroup2" {
			root = f[1]
		}
	}
	dir := filepath.Join(root, fmt.Sprintf("firebreak-test%d", os.Getpid()))
	if err := os.Mkdir(dir, 0o755); root == "" || err != nil {
		t.Skipf("no cgroup of version 2 can be made here: %v", err)
	}
	g := &Cgroup{v2: dir}
	t.Cleanup(func() {
		if err := g.Remove(context.Background()); err != nil {
			t.Error(err)
		}
	})
	into, err := g.Directory()
	if err != nil || into == nil {
		t.Fatalf("Directory: %v, %v", into, err)
	}
	defer into.Close()
	cmd := exec.Command("sleep", "600")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(into.Fd())}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if pids, err := g.Processes(); err != nil || len(pids) != 1 || pids[0] != cmd.Process.Pid {
		t.Errorf("processes = %v, %v; want [%d]", pids, err, cmd.Process.Pid)
	}
	if err := g.Remove(context.Background()); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait() // it was killed
	both := &Cgroup{v2: dir, v1: map[string]string{"cpu": "/x"}}
	if into, err := both.Directory(); into != nil || err != nil {
		t.Errorf("beside version 1: %v, %v; want none", into, err)
	}
}

func TestMemoryLimitBites(t *testing.T) {
	c, id := host(t)
	if !c.Caps().Has(driver.CapLimitMemory) {
		t.Skip("no memory controller")
	}
	g, err := c.Create(id, firebreak.Limits{Memory: 16 << 20})
	if err != nil {
		t.Fatal(err)
	}
	// The shell waits for a line, so that it takes nothing before it is in the cgroup; tail keeps all that it reads.
	cmd := exec.Command("sh", "-c", "read go; head -c 64m /dev/zero | tail -c 64m | wc -c")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := g.Join(cmd.Process.Pid); err != nil {
		t.Error(err)
	}
	fmt.Fprintln(in, "go")
	_ = cmd.Wait() // its status says nothing: the shell may outlive the one that was killed
	if u := g.Usage(); u.OOMKills == 0 || u.MemoryPeak > 17<<20 {
		t.Errorf("usage = %+v, want a kill below 17 MiB", u)
	}
}
