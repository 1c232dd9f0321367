package manager

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
)

func TestBadRequests(t *testing.T) {
	h := newHost(t)
	info, err := h.fake.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	info.Caps &^= driver.CapPause
	m := h.process(t, func(c *Config) { c.Drivers = drivers{"fake": &posing{Driver: h.fake, info: info}} })
	dir := t.TempDir()
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	mount := func(source, target string) Request {
		return Request{Mounts: []driver.Mount{{Source: source, Target: target}}}
	}
	for name, c := range map[string]struct {
		req  Request
		want string
		kind firebreak.Kind
	}{
		"name":            {Request{Name: "-x"}, "the name", firebreak.KindInvalid},
		"long name":       {Request{Name: strings.Repeat("a", 64)}, "the name", firebreak.KindInvalid},
		"timeout":         {Request{Timeout: -1}, "timeout", firebreak.KindInvalid},
		"cpus":            {Request{Limits: firebreak.Limits{CPUs: -1}}, "processors", firebreak.KindInvalid},
		"memory":          {Request{Limits: firebreak.Limits{Memory: 4096}}, "memory limit", firebreak.KindInvalid},
		"disk":            {Request{Limits: firebreak.Limits{Disk: -4096}}, "disk limit", firebreak.KindInvalid},
		"pids":            {Request{Limits: firebreak.Limits{PIDs: -1}}, "processes", firebreak.KindInvalid},
		"user":            {Request{User: "a\nb"}, "the user", firebreak.KindInvalid},
		"work directory":  {Request{Workdir: "x"}, "the work directory", firebreak.KindInvalid},
		"env":             {Request{Envs: map[string]string{"A=B": ""}}, "environment variable", firebreak.KindInvalid},
		"env with nul":    {Request{Envs: map[string]string{"A": "\x00"}}, "environment variable", firebreak.KindInvalid},
		"large env":       {Request{Envs: map[string]string{"A": strings.Repeat("a", 1<<20)}}, "environment variables", firebreak.KindInvalid},
		"driver":          {Request{Driver: "zen"}, `no driver "zen"`, firebreak.KindInvalid},
		"template":        {Request{Template: "zen"}, `template "zen"`, firebreak.KindNotFound},
		"unable limit":    {Request{Limits: firebreak.Limits{Memory: 1 << 30}}, "fake cannot limit memory on this host", firebreak.KindHost},
		"unable pause":    {Request{OnTimeout: firebreak.TimeoutPause}, "fake cannot pause a sandbox here", firebreak.KindUnsupported},
		"unable mount":    {mount(dir, "/x"), "fake has no mounts", firebreak.KindUnsupported},
		"relative source": {mount("x", "/x"), "absolute", firebreak.KindInvalid},
		"missing source":  {mount(dir+"/missing", "/x"), "no such file", firebreak.KindInvalid},
		"socket":          {mount(socket, "/x"), "a way out of the sandbox", firebreak.KindInvalid},
		"own state":       {mount(h.dir+"/sandboxes", "/x"), "own state", firebreak.KindDenied},
		"relative target": {mount(dir, "x"), "absolute", firebreak.KindInvalid},
		"root":            {mount(dir, "/"), "below /", firebreak.KindInvalid},
		"proc":            {mount(dir, "/proc/../proc/1"), "own /proc", firebreak.KindInvalid},
		"twice": {Request{Mounts: []driver.Mount{{Source: dir, Target: "/x"}, {Source: dir, Target: "/x/"}}},
			"two mounts", firebreak.KindInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := m.Create(operator(t.Context()), c.req)
			if err == nil || !strings.Contains(err.Error(), c.want) || firebreak.KindOf(err) != c.kind {
				t.Errorf("%v (%s), want %q (%s)", err, firebreak.KindOf(err), c.want, c.kind)
			}
		})
	}
	h.holds(t)
}

func TestMountsAreResolvedAndSorted(t *testing.T) {
	dir, state := t.TempDir(), t.TempDir()
	if err := os.Symlink(dir, filepath.Join(state, "link")); err != nil {
		t.Fatal(err)
	}
	got, warnings, err := checkMounts([]driver.Mount{
		{Source: dir, Target: "/b/c/"}, {Source: filepath.Join(state, "link"), Target: "/b", ReadOnly: true},
		{Source: filepath.Dir(state), Target: "/a"},
	}, state)
	if err != nil || len(got) != 3 || got[0].Target != "/a" || got[1] != (driver.Mount{Source: dir, Target: "/b", ReadOnly: true}) || got[2].Target != "/b/c" {
		t.Errorf("%+v, %v", got, err)
	}
	if len(warnings) != 1 || !strings.Contains(warnings[0], "firebreak's own state") {
		t.Errorf("warnings %v", warnings)
	}
}

func TestDefaultLimitsAreThoseThatCanBeEnforced(t *testing.T) {
	all := driver.Info{Caps: driver.CapLimitCPU | driver.CapLimitMemory | driver.CapLimitDisk | driver.CapLimitPIDs}
	got, err := limits(firebreak.Limits{Memory: 64 << 20}, firebreak.Limits{Memory: 32 << 20, Disk: 5 << 20}, all)
	if err != nil || got.Memory != 64<<20 || got.Disk != 5<<20 || got.PIDs != 512 || got.CPUs < 1 || got.CPUs > 2 {
		t.Errorf("%+v, %v", got, err)
	}
	got, err = limits(firebreak.Limits{}, firebreak.Limits{Memory: 32 << 20}, driver.Info{Caps: driver.CapLimitDisk})
	if err != nil || got != (firebreak.Limits{Disk: 2 << 30}) {
		t.Errorf("%+v, %v, want only what can be enforced", got, err)
	}
	all.Usual = firebreak.Limits{Memory: 3 << 20, Disk: 4 << 20, PIDs: 5}
	got, err = limits(firebreak.Limits{PIDs: 6}, firebreak.Limits{Memory: 32 << 20}, all)
	if err != nil || got.Memory != 32<<20 || got.Disk != 4<<20 || got.PIDs != 6 {
		t.Errorf("%+v, %v, want the driver's own", got, err)
	}
}

func TestProcessDriverWarns(t *testing.T) {
	for want, given := range map[string][]driver.Problem{"nothing isolates this sandbox": nil, "no isolation": {{Text: "no isolation"}}} {
		got := warningsOf(driver.Info{Boundary: firebreak.BoundaryNone, Warnings: given})
		if len(got) != 1 || !strings.Contains(got[0], want) {
			t.Errorf("%v", got)
		}
	}
}

func TestUndoGoesOnWithoutItsCaller(t *testing.T) {
	ctx, cancel := context.WithCancel(operator(t.Context()))
	cancel()
	var undo undoList
	order := ""
	for _, name := range []string{"a", "b", "c"} {
		undo.add(func(ctx context.Context) error {
			order += name
			if _, ok := ctx.Deadline(); !ok {
				t.Error("undoing has no bound")
			}
			if name == "b" {
				return os.ErrInvalid
			}
			return ctx.Err()
		})
	}
	if err := undo.run(ctx); err == nil || order != "cb" {
		t.Errorf("undone %q, %v, want the last first until one fails", order, err)
	}
}

func TestOwners(t *testing.T) {
	dir := t.TempDir()
	a, err := newOwner(dir)
	if err != nil {
		t.Fatal(err)
	}
	b, err := newOwner(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{a.name, b.name} {
		if !a.alive(name) || !b.alive(name) {
			t.Errorf("%s is dead", name)
		}
	}
	if err := b.release(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{b.name, "", "../x", "never"} {
		if a.alive(name) {
			t.Errorf("%q is alive", name)
		}
	}
	if err := os.WriteFile(lockPath(dir, "dead"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := a.sweep(); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 || !a.alive(a.name) {
		t.Errorf("%d files after a sweep, %v, want the living one's", len(entries), err)
	}
	if err := a.release(); err != nil {
		t.Fatal(err)
	}
}

func TestDirWithMountsIsNotRemoved(t *testing.T) {
	if err := removeDir("/proc"); err == nil || !strings.Contains(err.Error(), "still mounted") {
		t.Errorf("remove a mount point: %v", err)
	}
	if err := removeDir(filepath.Join(t.TempDir(), "missing")); err != nil {
		t.Errorf("remove what is not there: %v", err)
	}
}

func TestListWaitsForRecovery(t *testing.T) {
	h := newHost(t)
	m := h.process(t)
	ctx, cancel := context.WithTimeout(operator(t.Context()), time.Minute)
	defer cancel()
	if _, err := m.List(ctx); err != nil {
		t.Fatal(err)
	}
	select {
	case <-m.recovered:
	default:
		t.Error("listed before what earlier processes left was seen to")
	}
}
