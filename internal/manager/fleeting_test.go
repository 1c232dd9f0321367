package manager

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/fake"
	"github.com/firebreak-dev/firebreak/internal/event"
)

// fleeting is a driver whose sandboxes end with the process; what the fake one keeps beside them is none of the host's.
type fleeting struct {
	*fake.Driver
	name, dir string
}

var _ driver.Fleeting = fleeting{}

func (fleeting) Fleeting() {}

func (d fleeting) Probe(context.Context) (driver.Info, error) {
	return driver.Info{Name: d.name, Boundary: firebreak.BoundaryLanguage, Forms: []driver.Form{driver.FormDirectory}}, nil
}

func (d fleeting) Create(ctx context.Context, spec driver.Spec) (driver.Sandbox, error) {
	if _, err := os.Stat(spec.Dir); !errors.Is(err, fs.ErrNotExist) {
		return nil, errors.New("there is a directory that nobody needs")
	}
	spec.Dir = d.dir
	return d.Driver.Create(ctx, spec)
}

func (d fleeting) Destroy(ctx context.Context, spec driver.Spec) error {
	spec.Dir = d.dir
	return d.Driver.Destroy(ctx, spec)
}

func (h *testHost) fleeting(t *testing.T) *Manager {
	return h.process(t, func(c *Config) {
		c.Drivers, c.Adopt = drivers{"fake": fleeting{h.fake, "fake", t.TempDir()}}, true
	})
}

// told lists the events of a sandbox.
func told(t *testing.T, m *Manager, id driver.ID) []event.Event {
	t.Helper()
	all, err := m.cfg.Store.ListEvents(t.Context(), event.Filter{Sandbox: string(id), Asc: true})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestFleeting: what leaves nothing on the host is recorded once it runs, is ended once, and all of that is told.
func TestFleeting(t *testing.T) {
	h := newHost(t)
	m := h.fleeting(t)
	rec := mustCreate(t, m, Request{Name: "one", Detached: true})
	if rec.State != firebreak.StateRunning || records(t, m)[rec.ID].State != firebreak.StateRunning || !rec.Bound {
		t.Errorf("%+v", rec)
	}
	if _, _, err := m.Create(operator(t.Context()), Request{Name: "one"}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second one of its name: %v", err)
	}
	if held, _ := h.fake.List(t.Context()); len(held) != 1 {
		t.Errorf("held %v", held)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			last, err := m.Delete(operator(context.Background()), string(rec.ID))
			if err != nil && !errors.Is(err, fs.ErrNotExist) || err == nil && (last.State != firebreak.StateEnded || last.Exit.Reason != firebreak.EndDestroyed) {
				t.Errorf("%+v, %v", last, err)
			}
		})
	}
	wg.Wait()
	h.holds(t)
	if left := records(t, m); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	events := told(t, m, rec.ID)
	if len(events) != 2 || events[0].Type != event.TypeCreated || events[1].Type != event.TypeKilled || events[1].Data.Reason != string(firebreak.EndDestroyed) {
		t.Errorf("told: %+v", events)
	}
}

// TestFleetingEndsByItself: somebody may ask why.
func TestFleetingEndsByItself(t *testing.T) {
	h := newHost(t)
	m := h.fleeting(t)
	rec := mustCreate(t, m, Request{Detached: true})
	if err := h.fake.End(rec.ID, driver.Exit{Reason: firebreak.EndExited, Code: 3}); err != nil {
		t.Fatal(err)
	}
	last, err := m.Wait(operator(t.Context()), string(rec.ID))
	if err != nil || last.Exit.Reason != firebreak.EndExited || last.Exit.Code != 3 {
		t.Errorf("%+v, %v", last, err)
	}
	if _, err := m.Delete(operator(t.Context()), string(rec.ID)); err != nil {
		t.Error(err)
	}
	h.holds(t)
}

// TestFleetingIsNoWreck: recovery leaves alone what this process is making and has no record of yet.
func TestFleetingIsNoWreck(t *testing.T) {
	h := newHost(t)
	d := fleeting{h.fake, "fake", t.TempDir()}
	if _, err := d.Create(t.Context(), driver.Spec{ID: "young", Dir: filepath.Join(h.dir, "none")}); err != nil {
		t.Fatal(err)
	}
	m := h.process(t, func(c *Config) { c.Drivers = drivers{"fake": d} })
	<-m.recovered
	if held, err := d.List(t.Context()); err != nil || len(held) != 1 {
		t.Errorf("held %v, %v", held, err)
	}
}

// TestFleetingCrash: whenever the process dies, nothing of them is left but the word that one that ran is lost.
func TestFleetingCrash(t *testing.T) {
	for _, step := range []string{"created", "answered", "running"} {
		for _, detached := range []string{"", "yes"} {
			t.Run(step+detached, func(t *testing.T) {
				dir := t.TempDir()
				cmd, out := startChild(t, dir, "MANAGER_TEST_STEP="+step, "MANAGER_TEST_DETACHED="+detached, "MANAGER_TEST_FLEETING="+t.TempDir())
				waitKilled(t, cmd, out)
				held, rows, _ := after(t, dir)
				want := 0
				if step == "running" && detached != "" {
					want = 1
				}
				if len(held) != 0 || len(rows) != want {
					t.Errorf("held %v, records %v", held, rows)
				}
				for _, r := range rows {
					if r.State != firebreak.StateEnded || r.Exit.Reason != firebreak.EndLost {
						t.Errorf("%+v", r)
					}
				}
			})
		}
	}
}
