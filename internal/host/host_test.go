package host

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestLookHere looks at this host for real.
func TestLookHere(t *testing.T) {
	f := Look(context.Background(), t.TempDir()+"/not/yet")
	text, err := json.MarshalIndent(f, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", text)
	if f.Kernel == "" || f.Arch == "" || f.CPUs < 1 || f.Memory <= 0 || f.MemoryFree > f.Memory || f.StateDisk.Total < f.StateDisk.Free {
		t.Error("these facts cannot be")
	}
	if f.KVM != (KVM{}) {
		t.Errorf("KVM was looked at: %+v", f.KVM)
	}
}

// write makes a file below a false root.
func write(t *testing.T, root, name, text string) {
	t.Helper()
	path := filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestLookWithoutTime(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if f := Look(ctx, t.TempDir()); len(f.Problems) != 1 || !strings.Contains(f.Problems[0].Text, "canceled") {
		t.Errorf("%+v", f)
	}
}

func TestMeminfo(t *testing.T) {
	const good = "MemTotal:       24683656 kB\nMemFree:          200 kB\nMemAvailable:   23931688 kB\nHugePages_Total:       0\n"
	total, free, err := parseMeminfo(good)
	if total != 24683656<<10 || free != 23931688<<10 || err != nil {
		t.Errorf("%d, %d, %v", total, free, err)
	}
	for _, bad := range []string{
		"", "MemTotal: 5 kB\n", "MemTotal: x kB\nMemAvailable: 5 kB\n", "MemTotal: 5 MB\nMemAvailable: 5 kB\n",
		"MemTotal: -5 kB\nMemAvailable: 5 kB\n", "MemTotal: 9223372036854775807 kB\nMemAvailable: 5 kB\n",
	} {
		if total, _, err := parseMeminfo(bad); err == nil || total < 0 {
			t.Errorf("%q gives %d, %v", bad, total, err)
		}
	}
}

func TestCgroups(t *testing.T) {
	const (
		tmpfs  = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n"
		memory = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n"
		cpu    = "35 31 0:32 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
		named  = "40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd\n"
		second = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
	)
	for _, test := range []struct{ mounts, want string }{
		{"", "none"},
		{tmpfs, "none"},
		{"garbage - cgroup\n - \n", "none"},
		{second, "v2"},
		{tmpfs + named + second, "v2"},
		{tmpfs + memory + named, "v1"},
		{tmpfs + cpu, "v1"},
		{tmpfs + memory + named + second, "hybrid"},
	} {
		if got := parseCgroups(test.mounts); got != test.want {
			t.Errorf("%q: %s, want %s", test.mounts, got, test.want)
		}
	}
}

func TestLSMs(t *testing.T) {
	l := looker{root: t.TempDir()}
	write(t, l.root, "sys/kernel/security/lsm", "lockdown,capability,landlock,yama,apparmor\n")
	l.lsms()
	if want := []string{"lockdown", "capability", "landlock", "yama", "apparmor"}; !slices.Equal(l.facts.LSMs, want) {
		t.Errorf("%q, want %q", l.facts.LSMs, want)
	}
	hidden := looker{root: t.TempDir()}
	hidden.lsms()
	if len(hidden.facts.LSMs) == 0 && len(hidden.facts.Problems) != 1 {
		t.Errorf("neither modules nor a problem: %+v", hidden.facts)
	}
	for id, want := range map[uint64]string{0: "lsm-0", 99: "lsm-99", 100: "capability", 110: "landlock", 113: "ipe", 114: "lsm-114", 1 << 63: "lsm-9223372036854775808"} {
		if got := lsmName(id); got != want {
			t.Errorf("%d: %s, want %s", id, got, want)
		}
	}
}

func TestEmptyHost(t *testing.T) {
	l := looker{root: t.TempDir()}
	l.memory()
	l.cgroups()
	l.gpus()
	write(t, l.root, "proc/meminfo", "")
	l.memory()
	if len(l.facts.Problems) != 3 || l.facts.Memory != 0 || l.facts.Cgroups != "" || l.facts.GPUs != nil {
		t.Errorf("%+v", l.facts)
	}
	for _, p := range l.facts.Problems {
		if p.Text == "" || strings.Contains(p.Text, "\n") || p.Mend == "" {
			t.Errorf("not one line, or no way out: %+v", p)
		}
	}
}

func TestDisk(t *testing.T) {
	dir := t.TempDir()
	for _, path := range []string{dir, dir + "/not/yet"} {
		l := looker{root: "/", facts: Facts{StateDisk: Disk{Path: path}}}
		l.disk()
		if d := l.facts.StateDisk; d.Path != path || d.Total <= 0 || d.Free > d.Total || l.facts.Problems != nil {
			t.Errorf("%+v", l.facts)
		}
	}
	write(t, dir, "file", "")
	l := looker{root: "/", facts: Facts{StateDisk: Disk{Path: dir + "/file/below"}}}
	l.disk()
	if len(l.facts.Problems) != 1 {
		t.Errorf("a file for a directory: %+v", l.facts)
	}
}
