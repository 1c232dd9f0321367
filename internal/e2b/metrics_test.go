package e2b

import (
	"context"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/store"
)

// counted is sandboxes whose use a test sets, with an agent that tells of its disk.
type counted struct {
	Sandboxes
	guest *guest.Guest

	mu      sync.Mutex
	records []store.Record
	asked   int // of the agents
}

func (c *counted) List(context.Context) ([]store.Record, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]store.Record(nil), c.records...), nil
}

func (c *counted) Get(_ context.Context, id string) (store.Record, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.records {
		if string(r.ID) == id {
			return r, nil
		}
	}
	return store.Record{}, fs.ErrNotExist
}

func (c *counted) Find(ctx context.Context, id string) (store.Record, error) { return c.Get(ctx, id) }

func (c *counted) Guest(context.Context, string) (*guest.Guest, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked++
	return c.guest, nil
}

func newCounted(t *testing.T, records ...store.Record) (*counted, *Door) {
	t.Helper()
	agent := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`{"mem_total":9,"mem_used":8,"mem_cache":7,"disk_used":6,"disk_total":5}`))
	}))
	t.Cleanup(agent.Close)
	g := guest.New(func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", agent.Listener.Addr().String())
	}, "")
	t.Cleanup(g.Close)
	c := &counted{guest: g, records: records}
	return c, New(Config{Sandboxes: c, Guests: c, Log: slog.New(slog.DiscardHandler)})
}

func running(id string) store.Record {
	return store.Record{ID: driver.ID(id), Tenant: "acme", State: firebreak.StateRunning,
		Spec: driver.Spec{Limits: firebreak.Limits{CPUs: 2, Memory: 100}}, Usage: driver.Usage{Memory: 50}}
}

func TestSamples(t *testing.T) {
	paused, resumed := running("paused"), running("resumed")
	paused.State, resumed.AutoResume = firebreak.StatePaused, true
	c, d := newCounted(t, running("one"), paused, resumed)
	for range 3 {
		if err := d.sampleAll(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	all := d.metrics.between("one", time.Time{}, time.Now())
	want := sample{CPUCount: 2, MemUsed: 50, MemTotal: 100, MemCache: 7, DiskUsed: 6, DiskTotal: 5}
	for _, s := range all {
		s.Timestamp, s.TimestampUnix = time.Time{}, 0
		if s != want {
			t.Errorf("%+v, want %+v", s, want)
		}
	}
	if len(all) != 3 || len(d.metrics.between("paused", time.Time{}, time.Now())) != 0 || len(d.metrics.between("resumed", time.Time{}, time.Now())) != 3 {
		t.Errorf("%d samples, %v", len(all), d.metrics.of)
	}
	if c.asked != 1 {
		t.Errorf("the agents were asked %d times: one a minute is enough, and one that is resumed by that not at all", c.asked)
	}
	c.mu.Lock()
	c.records = c.records[1:]
	c.mu.Unlock()
	if err := d.sampleAll(t.Context()); err != nil || d.metrics.of["one"] != nil || d.metrics.of["resumed"] == nil {
		t.Errorf("what is gone is kept, %v", err)
	}
}

func TestProcessorTime(t *testing.T) {
	h := histories{of: map[string]*history{}}
	rec, now := running("x"), time.Unix(1000, 0)
	for i, c := range []struct {
		cpu  time.Duration
		want float64
	}{{time.Hour, 0}, {time.Hour + 5*time.Second, 50}, {time.Hour + 15*time.Second, 100}, {time.Hour + 60*time.Second, 100}, {time.Second, 0}, {2 * time.Second, 10}} {
		rec.Usage.CPU = c.cpu
		h.add(rec, now.Add(time.Duration(i)*5*time.Second), guest.Metrics{}, now)
		if s, _ := h.last("x"); s.CPUUsedPct != c.want {
			t.Errorf("sample %d: %v%%, want %v", i, s.CPUUsedPct, c.want)
		}
	}
}

func TestHistoriesAreBounded(t *testing.T) {
	h := histories{of: map[string]*history{}}
	start := time.Unix(1000, 0)
	for i := range maxSamples + 10 {
		h.add(running("x"), start.Add(time.Duration(i)*time.Second), guest.Metrics{}, start)
	}
	all := h.between("x", time.Time{}, start.Add(time.Hour))
	last, ok := h.last("x")
	if len(all) != maxSamples || all[0].TimestampUnix != 1010 || !ok || all[maxSamples-1] != last || last.TimestampUnix != 1000+maxSamples+9 {
		t.Errorf("%d from %d, the last %+v", len(all), all[0].TimestampUnix, last)
	}
	for i := 1; i < len(all); i++ {
		if all[i].TimestampUnix != all[i-1].TimestampUnix+1 {
			t.Fatalf("sample %d is out of order", i)
		}
	}
	if some := h.between("x", start.Add(20*time.Second), start.Add(22*time.Second)); len(some) != 3 {
		t.Errorf("%d in three seconds", len(some))
	}
}

func TestMetricsQueries(t *testing.T) {
	c, d := newCounted(t, running("one"), running("two"))
	ask := func(target string) *httptest.ResponseRecorder {
		rec := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodGet, target, nil)
		d.ServeHTTP(rec, r.WithContext(auth.WithCaller(r.Context(), auth.Caller{Tenant: auth.Tenant{ID: "acme"}})))
		return rec
	}
	for target, want := range map[string]int{
		"/sandboxes/one/metrics": 200, "/sandboxes/one/metrics?start=0&end=1": 200, "/sandboxes/one/metrics?start=2&end=1": 400,
		"/sandboxes/one/metrics?start=x": 400, "/sandboxes/one/metrics?end=-1": 400, "/sandboxes/none/metrics": 404,
		"/sandboxes/metrics": 400, "/sandboxes/metrics?sandbox_ids=": 400, "/sandboxes/metrics?sandbox_ids=" + strings.Repeat("x,", 101): 400,
	} {
		if got := ask(target); got.Code != want {
			t.Errorf("%s: %d %s", target, got.Code, got.Body)
		}
	}
	if body := ask("/sandboxes/one/metrics?start=0&end=1").Body.String(); body != "[]" {
		t.Errorf("long ago: %s", body)
	}
	before := c.asked
	body := ask("/sandboxes/metrics?sandbox_ids=two,none").Body.String()
	if !strings.HasPrefix(body, `{"sandboxes":{"two":{"timestamp":`) || strings.Contains(body, "none") || c.asked != before {
		t.Errorf("several at once: %s, agents asked %d times", body, c.asked-before)
	}
}

func TestRunEnds(t *testing.T) {
	_, d := newCounted(t, running("one"))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); d.Run(ctx) }()
	for { // or the test's time is up
		if _, ok := d.metrics.last("one"); ok {
			break
		}
		time.Sleep(time.Millisecond)
	}
	cancel()
	<-ended
}
