package container

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/hostproc"
)

func TestVersions(t *testing.T) {
	for _, c := range []struct {
		out, name, version string
		bad                bool
	}{
		{"runc version 1.1.5+ds1\ncommit: 1.1.5\nspec: 1.0.2-dev\n", "runc", "1.1.5", true},
		{"runc version 1.0.0-rc93\n", "runc", "1.0.0-rc93", true},
		{"runc version 1.2.7\n", "runc", "1.2.7", true},
		{"runc version 1.2.8\n", "runc", "1.2.8", false},
		{"runc version 1.2.9-0ubuntu1~22.04.1\n", "runc", "1.2.9", false},
		{"runc version 1.3.0-rc.1\n", "runc", "1.3.0-rc.1", true},
		{"runc version 1.3.0\n", "runc", "1.3.0", true},
		{"runc version 1.3.2\n", "runc", "1.3.2", true},
		{"runc version 1.3.3-0ubuntu1~24.04.2\n", "runc", "1.3.3", false},
		{"runc version 1.3.4\n", "runc", "1.3.4", false},
		{"runc version 1.4.0-rc.1\n", "runc", "1.4.0-rc.1", true},
		{"runc version 1.4.0-rc.2+dev\n", "runc", "1.4.0-rc.2", true},
		{"runc version 1.4.0-rc.3\n", "runc", "1.4.0-rc.3", false},
		{"runc version 1.4.0\n", "runc", "1.4.0", false},
		{"runc version 1.5.2\nspec: 1.3.0\n", "runc", "1.5.2", false},
		{"crun version 1.8.1\ncommit: f8a0\n", "crun", "1.8.1", false},
		{"crun version 1.20\n", "crun", "1.20", false},
		{"youki version: 0.5.6\n", "youki", "0.5.6", true},
		{"youki version 0.5.7\n", "youki", "0.5.7", false},
		{"GNU bash, version 5.2\n", "", "", false},
		{"", "", "", false},
	} {
		name, version := parseVersion(c.out)
		if name != c.name || version != c.version {
			t.Errorf("%q is read as %s %s", c.out, name, version)
		}
		err := tool{Name: name, Path: "/usr/bin/" + name, Version: version}.flaw()
		if (err != nil) != c.bad {
			t.Errorf("%q: %v", c.out, err)
		}
		if err == nil {
			continue
		}
		if p := problem(err); !strings.Contains(p.Text, "CVE-2025-") || p.Mend == "" || strings.Contains(p.Text, "mend") {
			t.Errorf("%q becomes the problem %+v", c.out, p)
		}
	}
}

// fakeRuntime is a program that only tells a version.
func fakeRuntime(t *testing.T, dir, name, version string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte("#!/bin/sh\necho "+version+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFindRuntime(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	d := New(Config{StateDir: t.TempDir()})
	_, err := d.findRuntime(t.Context())
	if err == nil {
		t.Fatal("one was found where none is")
	}
	if p := problem(err); p.Mend != "apt-get install crun" || firebreak.KindOf(err) != firebreak.KindHost {
		t.Errorf("with none: %v", err)
	}
	fakeRuntime(t, dir, "runc", "runc version 1.1.5")
	if _, err = d.findRuntime(t.Context()); err == nil || !strings.Contains(err.Error(), "CVE-2025-31133") {
		t.Errorf("with only an old runc: %v", err)
	}
	fakeRuntime(t, dir, "youki", "youki version 0.6.0")
	if got, err := d.findRuntime(t.Context()); err != nil || got.Name != "youki" {
		t.Errorf("with a good youki too: %+v, %v", got, err)
	}
	fakeRuntime(t, dir, "runc", "runc version 1.4.0, of another size")
	if got, err := d.findRuntime(t.Context()); err != nil || got.Name != "runc" || got.Version != "1.4.0" {
		t.Errorf("after runc was brought up to date: %+v, %v", got, err)
	}
	fakeRuntime(t, dir, "crun", "no runtime at all")
	if got, err := d.findRuntime(t.Context()); err != nil || got.Name != "runc" {
		t.Errorf("beside a crun that is none: %+v, %v", got, err)
	}
	if _, err := New(Config{StateDir: t.TempDir(), Runtime: "crun"}).findRuntime(t.Context()); err == nil {
		t.Error("a crun that is none was taken because it was asked for")
	}
}

func TestProbeNamesTheProblem(t *testing.T) {
	dir := t.TempDir()
	old := fakeRuntime(t, dir, "runc", "runc version 1.1.5")
	info, err := New(Config{StateDir: filepath.Join(dir, "state"), Runtime: old}).Probe(t.Context())
	if err != nil || info.Healthy() {
		t.Fatalf("an old runc: %+v, %v", info, err)
	}
	if p := info.Problems[len(info.Problems)-1]; !strings.Contains(p.Text, "runc 1.1.5") || !strings.Contains(p.Text, "CVE-2025-52881") || !strings.Contains(p.Mend, "1.2.8") {
		t.Errorf("the problem is %+v", p)
	}
}

func TestHostProblems(t *testing.T) {
	proc := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(proc, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	has := func(text string) bool {
		return slices.ContainsFunc(hostProblems(proc), func(p driver.Problem) bool { return strings.Contains(p.Text, text) && p.Mend != "" })
	}
	write("self/uid_map", "         0       1000          1\n")
	write("self/ns/user", "")
	write("sys/user/max_user_namespaces", "0\n")
	if !has("needs root") || !has("switched off") {
		t.Errorf("as root of a user namespace, with none allowed: %+v", hostProblems(proc))
	}
	write("self/uid_map", "         0          0 4294967295\n")
	write("sys/user/max_user_namespaces", "100\n")
	if has("needs root") != (os.Geteuid() != 0) || has("switched off") {
		t.Errorf("as root: %+v", hostProblems(proc))
	}
	if err := os.Remove(filepath.Join(proc, "self/ns/user")); err != nil {
		t.Fatal(err)
	}
	if !has("no user namespaces") {
		t.Errorf("without user namespaces: %+v", hostProblems(proc))
	}
}

func TestRangesAreNeverShared(t *testing.T) {
	dir := t.TempDir()
	var (
		all   sync.WaitGroup
		mu    sync.Mutex
		taken = map[uint32]driver.ID{}
	)
	for i := range 64 {
		all.Go(func() {
			id := driver.ID("s" + strings.Repeat("a", i/26+1) + string(rune('a'+i%26)))
			base, err := ranges{dir}.take(id)
			mu.Lock()
			defer mu.Unlock()
			if err != nil || taken[base] != "" || base < rangeFirst || base%rangeSize != 0 || base > 0x7FFDFFFF {
				t.Errorf("%s gets %d, %v; %q has it", id, base, err, taken[base])
			}
			taken[base] = id
		})
	}
	all.Wait()
	for base, id := range taken {
		if got, err := (ranges{dir}).of(id); err != nil || !slices.Equal(got, []uint32{base}) {
			t.Errorf("%s has %v, %v; want %d", id, got, err, base)
		}
		if err := (ranges{dir}).free(id); err != nil {
			t.Error(err)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left after all were freed: %v, %v", left, err)
	}
}

func TestSubordinate(t *testing.T) {
	name := filepath.Join(t.TempDir(), "subuid")
	if err := os.WriteFile(name, []byte("a:100000:65536\n\n# b:1:2:3\nc:x:1\nd:5:-1\ne:1879048192:131072\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := subordinate(name); !slices.Equal(got, [][2]uint64{{100000, 65536}, {1879048192, 131072}}) {
		t.Errorf("read %v", got)
	}
	taken := map[int]bool{}
	for _, p := range [][2]uint64{{0, 1000}, {rangeFirst - 10, 11}, {rangeFirst + 2*rangeSize + 5, rangeSize}, {0x7FFE0000, 10}, {1 << 32, 1 << 32}} {
		markRange(taken, p[0], p[1])
	}
	if len(taken) != 3 || !taken[0] || !taken[2] || !taken[3] {
		t.Errorf("ranges in conflict: %v", taken)
	}
}

func TestClaimHasOneHolder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "id")
	first, err := newClaim(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer first.close()
	if _, err := newClaim(t.Context(), path); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second claim: %v", err)
	}
	second, err := openClaim(path)
	if err != nil {
		t.Fatal(err)
	}
	defer second.close()
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := second.lock(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a second lock: %v", err)
	}
	first.unlock()
	if err := second.lock(t.Context()); err != nil {
		t.Errorf("after unlock: %v", err)
	}
	if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o700)); err != nil {
		t.Fatal(err)
	}
	second.unlock()
	if err := first.lock(t.Context()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a lock on a claim that another sandbox has now: %v", err)
	}
}

func TestRecordIsOfOneProcess(t *testing.T) {
	sleep := exec.Command("sleep", "100")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	spec := driver.Spec{ID: "a", Dir: t.TempDir()}
	pid := []byte(" " + itoa(sleep.Process.Pid) + "\n")
	if err := errors.Join(os.Mkdir(ownDir(spec), 0o700), os.WriteFile(filepath.Join(ownDir(spec), pidName), pid, 0o600)); err != nil {
		t.Fatal(err)
	}
	rec, err := newRecord(spec)
	if err != nil {
		t.Fatal(err)
	}
	f, err := rec.open()
	if err != nil || hostproc.Ended(f) {
		t.Fatalf("the living process: %v", err)
	}
	f.Close()
	for what, other := range map[string]record{
		"another start": {rec.PID, rec.Start + 1, rec.Boot}, "another boot": {rec.PID, rec.Start, "x"}, "no such pid": {1 << 30, rec.Start, rec.Boot},
	} {
		if _, err := other.open(); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := rec.write(spec); err != nil {
		t.Fatal(err)
	}
	if got, err := readRecord(spec); err != nil || got != rec {
		t.Errorf("read back: %+v, %v", got, err)
	}
	if err := os.WriteFile(filepath.Join(ownDir(spec), recordName), []byte(`{"pid":`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readRecord(spec); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a damaged record: %v", err)
	}
	if err := sleep.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := sleep.Wait(); err == nil {
		t.Error("it was not killed")
	}
	if _, err := rec.open(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the dead process: %v", err)
	}
}

func itoa(n int) string {
	data, _ := json.Marshal(n) // a number cannot fail
	return string(data)
}

func TestCopySparse(t *testing.T) {
	from, to := filepath.Join(t.TempDir(), "from"), filepath.Join(t.TempDir(), "to")
	f, err := os.Create(from)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{0, 1 << 20, 63 << 20} {
		if _, err := f.WriteAt([]byte("data at this place"), at); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(f.Truncate(64<<20), f.Close()); err != nil {
		t.Fatal(err)
	}
	if err := copySparse(from, to); err != nil {
		t.Fatal(err)
	}
	a, err1 := os.ReadFile(from)
	b, err2 := os.ReadFile(to)
	if err1 != nil || err2 != nil || !bytes.Equal(a, b) {
		t.Errorf("the copy differs: %d and %d bytes, %v, %v", len(a), len(b), err1, err2)
	}
	p := &place{t: t}
	if taken := p.taken(to); taken > 1<<20 {
		t.Errorf("the copy takes %d bytes of the disk", taken)
	}
	if err := copySparse(from, to); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over a file that is there: %v", err)
	}
}

func TestConfig(t *testing.T) {
	spec := driver.Spec{ID: "abc", Dir: "/d", Root: driver.Root{Form: driver.FormDirectory, Path: "/r",
		Binds: []driver.Mount{{Source: "/usr", Target: "/usr"}}}, Limits: firebreak.Limits{CPUs: 0.25, Memory: 1 << 28, PIDs: 9}}
	s, err := config(spec, "/mnt", rangeFirst)
	if err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(s.Mounts, func(m specs.Mount) bool { return m.Type == "bind" }) {
		t.Errorf("the runtime is asked to bind: %+v", s.Mounts)
	}
	for _, kind := range []specs.LinuxNamespaceType{"pid", "ipc", "uts", "mount", "network", "user", "cgroup"} {
		if !slices.ContainsFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == kind && n.Path == "" }) {
			t.Errorf("no own namespace %s", kind)
		}
	}
	r := s.Linux.Resources
	if *r.Memory.Limit != 1<<28 || r.Pids.Limit != 9+agentThreads || *r.CPU.Quota != 25000 || *r.CPU.Period != 100000 || r.Devices[0].Allow {
		t.Errorf("resources: %+v %+v %+v", r.Memory, r.Pids, r.CPU)
	}
	if r.Memory.Swap != nil && *r.Memory.Swap != *r.Memory.Limit {
		t.Errorf("%d bytes of swap", *r.Memory.Swap-*r.Memory.Limit)
	}
	if len(s.Linux.MaskedPaths) == 0 || len(s.Linux.ReadonlyPaths) == 0 || s.Linux.Seccomp == nil || !s.Process.NoNewPrivileges {
		t.Error("a wall is missing")
	}
}
