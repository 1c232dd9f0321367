package e2b

import (
	"cmp"
	"context"
	"math"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/store"
)

const (
	sampleEvery  = 5 * time.Second
	sampleFresh  = time.Second // a sample as young as that is good enough for who asks now
	sampleInside = time.Minute // how often the agent is asked: it costs the sandbox something
	sampleAtOnce = 4
	maxSamples   = 720 // of one sandbox: an hour, 60 KB
	maxIDs       = 100 // of one request for many sandboxes
)

// sample is what a sandbox used at one moment, as clients are told it. Sizes are in bytes.
type sample struct {
	Timestamp     time.Time `json:"timestamp"`
	TimestampUnix int64     `json:"timestampUnix"`
	CPUCount      int       `json:"cpuCount"`
	CPUUsedPct    float64   `json:"cpuUsedPct"` // of all its processors
	MemUsed       int64     `json:"memUsed"`
	MemTotal      int64     `json:"memTotal"`
	MemCache      int64     `json:"memCache"`
	DiskUsed      int64     `json:"diskUsed"`
	DiskTotal     int64     `json:"diskTotal"`
}

// history is the samples of one sandbox, in memory only.
type history struct {
	samples []sample // a ring once it is full
	next    int      // where the oldest is, in a full ring
	cpu     time.Duration
	at      time.Time // of cpu
	inside  guest.Metrics
	asked   time.Time // when inside was got
}

type histories struct {
	mu sync.Mutex
	of map[string]*history // guarded by mu, with all in it
}

// Run samples the sandboxes of all tenants until ctx is done. Without it, those are sampled for which somebody asks, and
// when.
func (d *Door) Run(ctx context.Context) {
	ctx = auth.WithCaller(ctx, auth.Caller{Operator: true})
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	for {
		if err := d.sampleAll(ctx); err != nil && ctx.Err() == nil {
			d.cfg.Log.Warn("sandboxes cannot be sampled", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (d *Door) sampleAll(ctx context.Context) error {
	all, err := d.cfg.Sandboxes.List(ctx)
	if err != nil {
		return err
	}
	living := map[string]bool{}
	var group errgroup.Group
	group.SetLimit(sampleAtOnce)
	for _, rec := range all {
		if rec.State != firebreak.StateRunning {
			living[string(rec.ID)] = rec.State == firebreak.StatePaused
			continue
		}
		living[string(rec.ID)] = true
		group.Go(func() error {
			d.sample(ctx, string(rec.ID), sampleInside)
			return nil
		})
	}
	_ = group.Wait() // a sandbox that cannot be sampled is ending
	d.metrics.keep(living)
	return nil
}

// keep forgets the histories of all others.
func (h *histories) keep(living map[string]bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for id := range h.of {
		if !living[id] {
			delete(h.of, id)
		}
	}
}

// sample adds a sample of a running sandbox to its history. What the agent said is used for as long as inside; it is not
// asked at all if that is less than 0.
func (d *Door) sample(ctx context.Context, id string, inside time.Duration) {
	rec, err := d.cfg.Sandboxes.Get(ctx, id)
	if err != nil || rec.State != firebreak.StateRunning {
		return
	}
	now := time.Now()
	said, asked := d.metrics.inside(id)
	// Asking the agent of one that traffic resumes could undo a pause that comes in between.
	if inside >= 0 && now.Sub(asked) >= inside && !rec.AutoResume {
		asked = now
		if g, err := d.cfg.Guests.Guest(ctx, id); err == nil {
			if m, err := g.Metrics(ctx); err == nil {
				said = m
			}
		}
	}
	d.metrics.add(rec, now, said, asked)
}

func (h *histories) inside(id string) (guest.Metrics, time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if one := h.of[id]; one != nil {
		return one.inside, one.asked
	}
	return guest.Metrics{}, time.Time{}
}

// add makes a sample of what the driver and the agent say. Time and memory are the driver's where it knows them: the
// agent of a sandbox that shares its host's kernel sees the host's.
func (h *histories) add(rec store.Record, now time.Time, said guest.Metrics, asked time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	one := h.of[string(rec.ID)]
	if one == nil {
		one = &history{}
		h.of[string(rec.ID)] = one
	}
	s := sample{Timestamp: now.UTC(), TimestampUnix: now.Unix(), CPUCount: cpusOf(rec),
		MemUsed: cmp.Or(rec.Usage.Memory, said.MemUsed), MemTotal: cmp.Or(rec.Spec.Limits.Memory, said.MemTotal), MemCache: said.MemCache,
		DiskUsed: said.DiskUsed, DiskTotal: said.DiskTotal}
	if passed := now.Sub(one.at); !one.at.IsZero() && passed > 0 && rec.Usage.CPU > one.cpu {
		used := 100 * float64(rec.Usage.CPU-one.cpu) / float64(passed) / float64(s.CPUCount)
		s.CPUUsedPct = math.Round(100*min(used, 100)) / 100
	}
	one.cpu, one.at, one.inside, one.asked = rec.Usage.CPU, now, said, asked
	one.put(s)
}

func (o *history) put(s sample) {
	if len(o.samples) < maxSamples {
		o.samples = append(o.samples, s)
		return
	}
	o.samples[o.next] = s
	o.next = (o.next + 1) % maxSamples
}

// between returns the samples of a time, the oldest first.
func (h *histories) between(id string, start, end time.Time) []sample {
	h.mu.Lock()
	defer h.mu.Unlock()
	found := []sample{}
	one := h.of[id]
	if one == nil {
		return found
	}
	for i := range one.samples {
		s := one.samples[(one.next+i)%len(one.samples)]
		if !s.Timestamp.Before(start) && !s.Timestamp.After(end) {
			found = append(found, s)
		}
	}
	return found
}

func (h *histories) last(id string) (sample, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	one := h.of[id]
	if one == nil || len(one.samples) == 0 {
		return sample{}, false
	}
	return one.samples[(one.next+len(one.samples)-1)%len(one.samples)], true
}

// freshen samples a sandbox now, unless that was done just before.
func (d *Door) freshen(ctx context.Context, rec store.Record, inside time.Duration) {
	s, ok := d.metrics.last(string(rec.ID))
	if rec.State == firebreak.StateRunning && (!ok || time.Since(s.Timestamp) > sampleFresh) {
		d.sample(ctx, string(rec.ID), inside)
	}
}

func (d *Door) serveMetrics(w http.ResponseWriter, r *http.Request, _ auth.Caller) error {
	rec, err := d.living(r)
	if err != nil {
		return err
	}
	const latest = 1 << 40 // seconds: far beyond any clock, and within what a time can be
	start, err := queryInt(r, "start", 0, 0, latest)
	if err != nil {
		return err
	}
	end, err := queryInt(r, "end", latest, 0, latest)
	if err != nil {
		return err
	}
	if start > end {
		return badRequest("start=%d is after end=%d", start, end)
	}
	d.freshen(r.Context(), rec, sampleFresh)
	until := time.Unix(end, 0).Add(time.Second - 1) // the whole second
	return answerJSON(w, http.StatusOK, d.metrics.between(string(rec.ID), time.Unix(start, 0), until))
}

// serveAllMetrics tells the last sample of several sandboxes. Those that the caller has not are left out.
func (d *Door) serveAllMetrics(w http.ResponseWriter, r *http.Request, _ auth.Caller) error {
	var ids []string
	for id := range strings.SplitSeq(strings.Join(r.URL.Query()["sandbox_ids"], ","), ",") {
		if id != "" {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 || len(ids) > maxIDs {
		return badRequest("sandbox_ids names %d sandboxes, not 1 to %d", len(ids), maxIDs)
	}
	all, err := d.cfg.Sandboxes.List(r.Context())
	if err != nil {
		return err
	}
	found := map[string]sample{}
	for _, rec := range all {
		for _, id := range ids {
			if id != string(rec.ID) {
				continue
			}
			d.freshen(r.Context(), rec, -1)
			if s, ok := d.metrics.last(id); ok && (rec.State == firebreak.StateRunning || rec.State == firebreak.StatePaused) {
				found[id] = s
			}
		}
	}
	return answerJSON(w, http.StatusOK, map[string]any{"sandboxes": found})
}
