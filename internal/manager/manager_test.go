package manager

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/fake"
	"github.com/firebreak-dev/firebreak/internal/image"
	"github.com/firebreak-dev/firebreak/internal/store"
)

// images has one template.
type images struct{}

func (images) Get(name string) (image.Template, error) {
	if name != "host" {
		return image.Template{}, fmt.Errorf("template %q: %w", name, fs.ErrNotExist)
	}
	return image.Template{Name: "host", Digest: "sha256:1", User: "user", Workdir: "/home/user"}, nil
}

func (images) Has(name string) bool { return name == "host" }

func (images) RootOf(context.Context, image.Template, []driver.Form) (driver.Root, error) {
	return driver.Root{Form: driver.FormDirectory, Path: "/"}, nil
}

// drivers is a set of drivers that are there already.
type drivers map[string]driver.Driver

func (d drivers) Names() []string { return slices.Sorted(maps.Keys(d)) }

func (d drivers) Keeper(name string) (driver.Driver, error) {
	if found, ok := d[name]; ok {
		return found, nil
	}
	return nil, fs.ErrNotExist
}

func (d drivers) Maker(_ context.Context, name string) (driver.Driver, error) { return d.Keeper(name) }

// anything is a policy that knows the fake driver and accepts it for all.
const anything = `
name: anything
technologies:
  - {name: fake, boundary: language, start: 1ms, warm: 1ms, get: use another test}
rules:
  - {id: all, when: true, boundaries: [language], reason: It is a test., source: this file}
`

// writePolicy makes a file of it.
func writePolicy(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "policy.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// testHost is a state directory and a driver on which several managers, as of several processes, can be.
type testHost struct {
	dir  string
	fake *fake.Driver
}

func newHost(t testing.TB) *testHost {
	t.Helper()
	return &testHost{dir: t.TempDir(), fake: fake.New()}
}

// process opens a manager on the host, with its own store; set changes what it is made of.
func (h *testHost) process(t testing.TB, set ...func(*Config)) *Manager {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	s, err := store.Open(operator(t.Context()), h.dir, log)
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{StateDir: h.dir, Store: s, Images: images{}, Drivers: drivers{"fake": h.fake.Again()}, Policy: writePolicy(t, anything), Log: log}
	for _, f := range set {
		f(&cfg)
	}
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(m.Close(), s.Close()); err != nil {
			t.Error(err)
		}
	})
	return m
}

// holds fails the test unless the driver and the state directory hold just these sandboxes.
func (h *testHost) holds(t testing.TB, want ...driver.ID) {
	t.Helper()
	ids, err := h.fake.List(operator(context.Background()))
	if err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(filepath.Join(h.dir, "sandboxes"))
	if err != nil {
		t.Fatal(err)
	}
	var dirs []driver.ID
	for _, e := range entries {
		dirs = append(dirs, driver.ID(e.Name()))
	}
	if !sameSet(ids, want) || !sameSet(dirs, want) {
		t.Errorf("the driver holds %v, the directories are %v, want %v", ids, dirs, want)
	}
}

func sameSet(a, b []driver.ID) bool {
	set := map[driver.ID]bool{}
	for _, id := range a {
		set[id] = true
	}
	for _, id := range b {
		if !set[id] {
			return false
		}
		delete(set, id)
	}
	return len(set) == 0
}

func mustCreate(t testing.TB, m *Manager, req Request) store.Record {
	t.Helper()
	rec, _, err := m.Create(operator(t.Context()), req)
	if err != nil {
		t.Fatal(err)
	}
	return rec
}

func records(t testing.TB, m *Manager) map[driver.ID]store.Record {
	t.Helper()
	all, err := m.List(operator(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	found := map[driver.ID]store.Record{}
	for _, r := range all {
		found[r.ID] = r
	}
	return found
}

func TestCreateUseDelete(t *testing.T) {
	h := newHost(t)
	m := h.process(t)
	rec, timings, err := m.Create(operator(t.Context()), Request{Name: "web", Command: "python3", Timeout: time.Hour, Envs: map[string]string{"A": "1"}})
	if err != nil {
		t.Fatal(err)
	}
	if rec.State != firebreak.StateRunning || rec.Driver != "fake" || rec.Template != "host" || rec.Boundary != firebreak.BoundaryLanguage {
		t.Errorf("created %+v", rec)
	}
	if left := time.Until(rec.Deadline); left > time.Hour || left < time.Hour-time.Minute {
		t.Errorf("%s left of a timeout of an hour", left)
	}
	if len(rec.Token) != 64 || len(rec.Warnings) == 0 || timings.Create <= 0 || timings.Agent <= 0 {
		t.Errorf("token %q, warnings %v, timings %+v", rec.Token, rec.Warnings, timings)
	}
	h.holds(t, rec.ID)
	for _, ref := range []string{string(rec.ID), "web", string(rec.ID[:6])} {
		if got, err := m.Get(operator(t.Context()), ref); err != nil || got.ID != rec.ID {
			t.Errorf("get %q: %s, %v", ref, got.ID, err)
		}
		if g, err := m.Guest(operator(t.Context()), ref); err != nil || g == nil {
			t.Errorf("guest %q: %v", ref, err)
		}
	}
	last, err := m.Delete(operator(t.Context()), "web")
	if err != nil || last.State != firebreak.StateEnded || last.Exit.Reason != firebreak.EndDestroyed {
		t.Errorf("deleted %+v, %v", last, err)
	}
	h.holds(t)
	if got := records(t, m); len(got) != 0 {
		t.Errorf("records after delete: %v", got)
	}
	for name, err := range map[string]error{
		"get":    second(m.Get(operator(t.Context()), "web")),
		"delete": second(m.Delete(operator(t.Context()), "web")),
		"wait":   second(m.Wait(operator(t.Context()), "web")),
		"guest":  second(m.Guest(operator(t.Context()), "web")),
	} {
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s after delete: %v", name, err)
		}
	}
}

func operator(ctx context.Context) context.Context {
	return auth.WithCaller(ctx, auth.Caller{Operator: true})
}

func second[T any](_ T, err error) error { return err }

func TestNameIsTaken(t *testing.T) {
	h := newHost(t)
	m := h.process(t)
	rec := mustCreate(t, m, Request{Name: "web"})
	if _, _, err := m.Create(operator(t.Context()), Request{Name: "web"}); firebreak.KindOf(err) != firebreak.KindExists {
		t.Errorf("a second web: %v", err)
	}
	h.holds(t, rec.ID)
}

func TestAmbiguousBeginning(t *testing.T) {
	h := newHost(t)
	m := h.process(t)
	for range 2 {
		mustCreate(t, m, Request{})
	}
	_, err := m.Get(operator(t.Context()), "f") // all IDs begin with it
	if firebreak.KindOf(err) != firebreak.KindInvalid || !strings.Contains(err.Error(), "may mean any of") {
		t.Errorf("an ambiguous beginning: %v", err)
	}
}

func TestCloseEndsWhatIsNotDetached(t *testing.T) {
	h := newHost(t)
	m := h.process(t)
	mustCreate(t, m, Request{})
	kept := mustCreate(t, m, Request{Detached: true})
	waiting := make(chan error, 1)
	go func() {
		_, err := m.Wait(operator(context.Background()), string(kept.ID))
		waiting <- err
	}()
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	h.holds(t, kept.ID)
	if err := <-waiting; err == nil {
		t.Error("a wait that Close broke off has no error")
	}
	if _, _, err := m.Create(operator(t.Context()), Request{}); firebreak.KindOf(err) != firebreak.KindUnavailable {
		t.Errorf("create after close: %v", err)
	}
	next := h.process(t)
	if got, err := next.Get(operator(t.Context()), string(kept.ID)); err != nil || got.State != firebreak.StateRunning {
		t.Errorf("the next process finds %s, %v", got.State, err)
	}
	if _, err := next.Guest(operator(t.Context()), string(kept.ID)); err != nil {
		t.Errorf("the next process does not reach the detached one: %v", err)
	}
	if entries, err := os.ReadDir(filepath.Join(h.dir, "owners")); err != nil || len(entries) != 1 {
		t.Errorf("%d owners, %v, want the living one", len(entries), err)
	}
}

// brokenDriver fails to create, and tells why only when it is probed.
type brokenDriver struct {
	driver.Driver
	create error
	info   driver.Info
	probes *int
}

func (d brokenDriver) Probe(context.Context) (driver.Info, error) {
	*d.probes++
	return d.info, nil
}

func (d brokenDriver) Create(context.Context, driver.Spec) (driver.Sandbox, error) {
	return nil, d.create
}

func TestFailedCreateIsDiagnosedAndLeavesNothing(t *testing.T) {
	h := newHost(t)
	good := driver.Info{Name: "fake", Boundary: firebreak.BoundaryLanguage, Caps: driver.CapLimitMemory}
	probes := 0
	d := brokenDriver{h.fake, errors.New("out of luck"), good, &probes}
	m := h.process(t, func(c *Config) { c.Drivers = drivers{"fake": &d} })
	if _, _, err := m.Create(operator(t.Context()), Request{}); err == nil || !strings.Contains(err.Error(), "out of luck") {
		t.Errorf("create: %v", err)
	}
	d.info.Problems = []driver.Problem{{Text: "no user namespaces", Mend: "sysctl x=1"}}
	_, _, err := m.Create(operator(t.Context()), Request{})
	var e *firebreak.Error
	if !errors.As(err, &e) || e.Kind != firebreak.KindHost || e.Mend != "sysctl x=1" {
		t.Errorf("create on a host that lacks something: %v", err)
	}
	d.info, d.Driver = good, h.fake
	if probes != 3 {
		t.Errorf("%d probes, want one at first and one after each failure", probes)
	}
	h.holds(t)
	if got := records(t, m); len(got) != 0 {
		t.Errorf("records %v", got)
	}
}

func TestProbeIsKeptForTheNextProcess(t *testing.T) {
	h := newHost(t)
	probes := 0
	info := driver.Info{Name: "fake", Version: "7", Boundary: firebreak.BoundaryUserKernel, Forms: []driver.Form{driver.FormDisk},
		Caps: driver.CapLimitMemory | driver.CapMounts, Warnings: []driver.Problem{{Text: "no cgroups"}}}
	set := func(c *Config) {
		c.Drivers = drivers{"fake": brokenDriver{h.fake, fs.ErrInvalid, info, &probes}}
	}
	for range 3 {
		m := h.process(t, set)
		all, err := m.probes(operator(t.Context()), none)
		if err != nil {
			t.Fatal(err)
		}
		got := all[0].info
		if got.Caps != info.Caps || got.Forms[0] != driver.FormDisk || got.Boundary != info.Boundary || len(got.Warnings) != 1 {
			t.Errorf("%+v, %v", got, err)
		}
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if probes != 1 {
		t.Errorf("%d probes by three processes of one boot, want 1", probes)
	}
	if err := os.WriteFile(filepath.Join(h.dir, "probes", "fake.json"), []byte("{broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	m := h.process(t, set)
	if _, err := m.probes(operator(t.Context()), none); err != nil || probes != 2 {
		t.Errorf("%d probes, %v, after the file was damaged", probes, err)
	}
}

func TestMuteAgentLeavesNothing(t *testing.T) {
	h := newHost(t)
	m := h.process(t, func(c *Config) { c.Drivers = drivers{"fake": h.fake.Mute()} })
	ctx, cancel := context.WithTimeout(operator(t.Context()), 100*time.Millisecond)
	defer cancel()
	_, _, err := m.Create(ctx, Request{})
	if !errors.Is(err, context.DeadlineExceeded) || firebreak.KindOf(err) != firebreak.KindDeadline {
		t.Errorf("create with a mute agent: %v", err)
	}
	h.holds(t)
	if got := records(t, m); len(got) != 0 {
		t.Errorf("records %v", got)
	}
}

func TestCloseBreaksOffCreates(t *testing.T) {
	h := newHost(t)
	m := h.process(t, func(c *Config) { c.Drivers = drivers{"fake": h.fake.Mute()} })
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if _, _, err := m.Create(operator(context.Background()), Request{Detached: true}); err == nil {
				t.Error("created although the agent is mute")
			}
		})
	}
	for {
		if ids, err := h.fake.List(operator(t.Context())); err != nil || len(ids) == 4 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	wg.Wait()
	h.holds(t)
}

func TestHammer(t *testing.T) {
	h := newHost(t)
	managers := []*Manager{h.process(t), h.process(t), h.process(t)}
	var wg sync.WaitGroup
	rounds := 15
	if testing.Short() {
		rounds = 4
	}
	for w := range 9 {
		wg.Go(func() {
			for i := range rounds {
				hammer(t, managers[w%3], managers[(w+i)%3], w+i)
			}
		})
	}
	wg.Wait()
	h.holds(t)
	for _, m := range managers {
		if got := records(t, m); len(got) != 0 {
			t.Errorf("left: %v", got)
		}
		for m.handles() > 0 { // what another process ended is dropped by its watch
			time.Sleep(time.Millisecond)
		}
	}
}

func (m *Manager) handles() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.boxes)
}

// hammer makes a sandbox in one process and ends it in another, in one of several ways, while others look at it.
func hammer(t *testing.T, maker, ender *Manager, way int) {
	ctx := operator(context.Background())
	req := Request{Detached: way%2 == 0}
	if way%5 == 0 {
		req.Timeout = time.Duration(1+way%3) * time.Millisecond
	}
	rec, _, err := maker.Create(ctx, req)
	if req.Timeout > 0 && errors.Is(err, fs.ErrNotExist) {
		return // its time was up before it was made
	}
	if err != nil {
		t.Errorf("create: %v", err)
		return
	}
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = ender.Get(ctx, string(rec.ID)) }) // whatever it finds, it must not disturb
	wg.Go(func() { _, _ = ender.Guest(ctx, string(rec.ID)) })
	wg.Go(func() {
		if got, err := ender.Wait(ctx, string(rec.ID)); err == nil && got.State != firebreak.StateEnded {
			t.Errorf("waited for %s", got.State)
		}
	})
	for range 2 {
		wg.Go(func() {
			if _, err := ender.Delete(ctx, string(rec.ID)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("delete: %v", err)
			}
		})
	}
	wg.Wait()
}

// A create whose caller goes away, at whatever moment, leaves nothing behind or has made the sandbox.
func TestCancelledCreate(t *testing.T) {
	h := newHost(t)
	m := h.process(t)
	mustCreate(t, m, Request{Name: "first"}) // later ones take less long
	var made []driver.ID
	for id := range records(t, m) {
		made = append(made, id)
	}
	for i := range 200 {
		ctx, cancel := context.WithCancel(operator(t.Context()))
		time.AfterFunc(time.Duration(i)*20*time.Microsecond, cancel)
		if rec, _, err := m.Create(ctx, Request{}); err == nil {
			made = append(made, rec.ID)
		}
		cancel()
	}
	h.holds(t, made...)
	if got := records(t, m); len(got) != len(made) {
		t.Errorf("%d records of %d sandboxes", len(got), len(made))
	}
}
