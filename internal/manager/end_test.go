package manager

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/metrics"
	"github.com/firebreak-dev/firebreak/internal/store"
)

func TestDeadline(t *testing.T) {
	h := newHost(t)
	m := h.process(t)
	rec := mustCreate(t, m, Request{Timeout: 500 * time.Millisecond})
	got, err := m.Wait(operator(t.Context()), string(rec.ID))
	if err != nil || got.Exit.Reason != firebreak.EndDeadline || got.Exit.Code != 124 || got.State != firebreak.StateEnded {
		t.Errorf("%+v, %v", got, err)
	}
	h.holds(t)
	if last, err := m.Delete(operator(t.Context()), string(rec.ID)); err != nil || last.Exit.Reason != firebreak.EndDeadline {
		t.Errorf("delete after the deadline: %+v, %v", last.Exit, err)
	}
}

// exitAfter ends sandboxes by themselves, with the exit that it holds.
type exitAfter struct {
	driver.Driver
	after time.Duration
	exit  driver.Exit
	usage driver.Usage
}

func (d exitAfter) Create(ctx context.Context, spec driver.Spec) (driver.Sandbox, error) {
	sb, err := d.Driver.Create(ctx, spec)
	return exiting{sb, time.Now().Add(d.after), d}, err
}

type exiting struct {
	driver.Sandbox
	at time.Time
	d  exitAfter
}

func (s exiting) Wait(ctx context.Context) (driver.Exit, error) {
	select {
	case <-time.After(time.Until(s.at)):
		return s.d.exit, nil
	case <-ctx.Done():
		return driver.Exit{}, ctx.Err()
	}
}

func (s exiting) Usage(context.Context) (driver.Usage, error) { return s.d.usage, nil }

func TestEndByItselfIsTold(t *testing.T) {
	h := newHost(t)
	exit := driver.Exit{Reason: firebreak.EndOutOfMemory, Code: -1, Detail: "at its limit of 1 GiB"}
	m := h.process(t, func(c *Config) {
		c.Drivers = drivers{"fake": exitAfter{h.fake, 20 * time.Millisecond, exit, driver.Usage{OOMKills: 3}}}
	})
	short, long := mustCreate(t, m, Request{}), mustCreate(t, m, Request{Detached: true, Name: "job"})
	for _, rec := range []store.Record{short, long} {
		got, err := m.Wait(operator(t.Context()), string(rec.ID))
		if err != nil || got.Exit != exit || got.Usage.OOMKills != 3 || got.State != firebreak.StateEnded || got.Ended.IsZero() {
			t.Errorf("waited for %+v, %v", got, err)
		}
	}
	h.holds(t)
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	next := h.process(t)
	if got := records(t, next); len(got) != 1 || got[long.ID].Exit != exit {
		t.Errorf("the next process knows %+v, want how the detached one ended", got)
	}
	if got, err := next.Delete(operator(t.Context()), "job"); err != nil || got.Exit != exit {
		t.Errorf("delete of an ended sandbox: %+v, %v", got.Exit, err)
	}
	if got := records(t, next); len(got) != 0 {
		t.Errorf("records after delete: %v", got)
	}
}

// gathering holds each destroy back until so many are under way.
type gathering struct {
	driver.Driver
	left *atomic.Int32
	all  chan struct{}
}

func (d gathering) Destroy(ctx context.Context, spec driver.Spec) error {
	if d.left.Add(-1) == 0 {
		close(d.all)
	}
	select {
	case <-d.all:
	case <-ctx.Done():
		return ctx.Err()
	}
	return d.Driver.Destroy(ctx, spec)
}

type fleetingGathering struct{ gathering }

func (fleetingGathering) Fleeting() {}

// However many end a sandbox at the same time, and it by itself too, it is counted as one end.
func TestEndIsCountedOnce(t *testing.T) {
	const deletes = 8
	for _, fleets := range []bool{false, true} {
		for _, itself := range []bool{false, true} {
			h := newHost(t)
			counted := metrics.New(metrics.Config{})
			d := gathering{h.fake, &atomic.Int32{}, make(chan struct{})}
			d.left.Store(deletes)
			m := h.process(t, func(c *Config) {
				c.Metrics, c.Drivers = counted, drivers{"fake": d}
				if fleets {
					d.Driver = fleeting{h.fake, "fake", t.TempDir()}
					c.Drivers = drivers{"fake": fleetingGathering{d}}
				}
			})
			rec := mustCreate(t, m, Request{})
			var wg sync.WaitGroup
			for range deletes {
				wg.Go(func() {
					if _, err := m.Delete(operator(context.Background()), string(rec.ID)); err != nil {
						t.Error(err)
					}
				})
			}
			if itself {
				if err := h.fake.End(rec.ID, driver.Exit{Reason: firebreak.EndExited}); err != nil {
					t.Error(err)
				}
			}
			wg.Wait()
			for m.handles() > 0 {
				time.Sleep(time.Millisecond)
			}
			if n := endings(t, counted); n != 1 {
				t.Errorf("fleeting %v, by itself %v: counted %v ends", fleets, itself, n)
			}
			h.holds(t)
		}
	}
}

// endings is how many ends were counted, of whatever reason.
func endings(t *testing.T, m *metrics.Metrics) (n float64) {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for line := range strings.Lines(w.Body.String()) {
		if !strings.HasPrefix(line, "firebreak_ended_total{") {
			continue
		}
		v, err := strconv.ParseFloat(line[strings.LastIndexByte(line, ' ')+1:len(line)-1], 64)
		if err != nil {
			t.Error(err)
		}
		n += v
	}
	return n
}
