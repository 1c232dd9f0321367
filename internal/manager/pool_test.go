package manager

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/image"
)

// ready waits until the only pool of m has n sandboxes ready.
func ready(t *testing.T, m *Manager, n int) PoolStatus {
	t.Helper()
	for {
		p := m.Pools()
		if len(p) == 1 && p[0].Ready == n && p[0].Making == 0 {
			return p[0]
		}
		if t.Context().Err() != nil {
			t.Fatalf("%+v", p)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func TestClaim(t *testing.T) {
	h := newHost(t)
	m := h.process(t)
	ctx := operator(t.Context())
	if err := m.SetPools(ctx, []Pool{{Min: 2, Max: 2}}); err != nil {
		t.Fatal(err)
	}
	ready(t, m, 2)
	if got := records(t, m); len(got) != 0 {
		t.Errorf("what lies in a pool is listed: %v", got)
	}
	one := tenant(t.Context(), "one", auth.Limits{Sandboxes: 2})
	ask := Request{Name: "web", Envs: map[string]string{"A": "1"}, Metadata: map[string]string{"k": "v"}, Timeout: time.Hour, Detached: true,
		TrafficToken: "traffic", OnTimeout: firebreak.TimeoutPause, AutoResume: true, Command: "python3"}
	rec, timings, err := m.Create(one, ask)
	if err != nil || timings.Pool != "host" {
		t.Fatalf("%+v, %v", timings, err)
	}
	if rec.Tenant != "one" || rec.Name != "web" || rec.Pool != "" || !rec.Detached || rec.Metadata["k"] != "v" || rec.Agent.Envs["A"] != "1" ||
		rec.TrafficToken != "traffic" || rec.OnTimeout != firebreak.TimeoutPause || !rec.AutoResume || rec.Timeout != time.Hour || rec.Command != "python3" {
		t.Errorf("claimed %+v", rec)
	}
	if left := time.Until(rec.Deadline); left < 50*time.Minute || left > time.Hour {
		t.Errorf("%s left of an hour", left)
	}
	got, err := m.Get(one, string(rec.ID))
	if err != nil || got.Decision == nil || got.Decision.Driver != "fake" {
		t.Errorf("%+v, %v", got.Decision, err)
	}
	if _, timings, err := m.Create(one, Request{Limits: firebreak.Limits{}, Name: "web"}); firebreak.KindOf(err) != firebreak.KindExists {
		t.Errorf("its name again: %+v, %v", timings, err)
	}
	ready(t, m, 2)
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	h.holds(t, rec.ID)
}

// What is asked for at once is handed out once each, and the rest is made.
func TestClaimsAtOnce(t *testing.T) {
	h := newHost(t)
	m := h.process(t)
	ctx := operator(t.Context())
	if err := m.SetPools(ctx, []Pool{{Min: 4, Max: 8}}); err != nil {
		t.Fatal(err)
	}
	ready(t, m, 4)
	var mu sync.Mutex
	ids, claimed := map[driver.ID]bool{}, 0
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			rec, timings, err := m.Create(ctx, Request{})
			mu.Lock()
			defer mu.Unlock()
			if err != nil || ids[rec.ID] {
				t.Errorf("%s: %v", rec.ID, err)
			}
			ids[rec.ID] = true
			if timings.Pool != "" {
				claimed++
			}
		})
	}
	wg.Wait()
	if claimed < 4 || len(ids) != 32 {
		t.Errorf("%d of %d came from the pool", claimed, len(ids))
	}
	if err := m.SetPools(ctx, nil); err != nil {
		t.Fatal(err)
	}
	var want []driver.ID
	for id := range ids {
		want = append(want, id)
	}
	h.holds(t, want...)
}

func TestWhatAPoolIsNotFor(t *testing.T) {
	h := newHost(t)
	m := h.process(t, func(c *Config) { c.Drivers = drivers{"fake": withMounts{h.fake}} })
	ctx := operator(t.Context())
	if err := m.SetPools(ctx, []Pool{{Min: 1, Max: 1}}); err != nil {
		t.Fatal(err)
	}
	ready(t, m, 1)
	if _, timings, err := m.Create(ctx, Request{Mounts: []driver.Mount{{Source: t.TempDir(), Target: "/x"}}}); err == nil && timings.Pool != "" {
		t.Errorf("one with a mount came from the pool")
	}
	for what, pools := range map[string][]Pool{
		"one name twice":  {{Max: 1}, {Max: 2}},
		"max below min":   {{Min: 2, Max: 1}},
		"max is negative": {{Max: -1}},
	} {
		if err := m.SetPools(ctx, pools); firebreak.KindOf(err) != firebreak.KindInvalid {
			t.Errorf("%s: %v", what, err)
		}
	}
	if got := m.Pools(); len(got) != 1 || got[0].Name != "host" {
		t.Errorf("after refusals there are %+v", got)
	}
	if err := m.DrainPool(ctx, "nothing"); firebreak.KindOf(err) != firebreak.KindNotFound {
		t.Errorf("drain nothing: %v", err)
	}
}

type withMounts struct{ driver.Driver }

func TestAPoolsSandboxesGoWithTheirProcess(t *testing.T) {
	h := newHost(t)
	m := h.process(t)
	ctx := operator(t.Context())
	if err := m.SetPools(ctx, []Pool{{Min: 2, Max: 2}}); err != nil {
		t.Fatal(err)
	}
	ready(t, m, 2)
	// One ends by itself: nobody is told of it, and the pool fills up.
	ids, err := h.fake.List(ctx)
	if err == nil {
		err = h.fake.End(ids[0], driver.Exit{Reason: firebreak.EndExited})
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := m.DrainPool(ctx, "host"); err != nil {
		t.Fatal(err)
	}
	ready(t, m, 2)
	if again, err := h.fake.List(ctx); err != nil || len(again) != 2 || slices.Contains(again, ids[0]) || slices.Contains(again, ids[1]) {
		t.Errorf("after draining there are %v, before %v; %v", again, ids, err)
	}
	// As after a kill: the next process takes the owner for dead, and nothing was closed.
	if err := m.owner.file.Close(); err != nil {
		t.Fatal(err)
	}
	next := h.process(t, func(c *Config) { c.Adopt = true })
	if got := records(t, next); len(got) != 0 {
		t.Errorf("after a kill there are %v", got)
	}
	all, err := next.cfg.Store.List(ctx, everybody())
	if err != nil || len(all) != 0 {
		t.Errorf("the records hold %v, %v", all, err)
	}
	if m.owner, err = newOwner(m.owner.dir); err != nil { // for it to give up when the test ends
		t.Fatal(err)
	}
}

// changing are images whose digest changes.
type changing struct {
	images
	mu     sync.Mutex
	digest string
}

func (c *changing) Get(name string) (image.Template, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	tpl, err := c.images.Get(name)
	tpl.Digest = c.digest
	return tpl, err
}

func TestATemplateThatWasMadeAnew(t *testing.T) {
	h := newHost(t)
	tpl := &changing{digest: "sha256:a"}
	m := h.process(t, func(c *Config) { c.Images = tpl })
	ctx := operator(t.Context())
	if err := m.SetPools(ctx, []Pool{{Min: 1, Max: 1}}); err != nil {
		t.Fatal(err)
	}
	ready(t, m, 1)
	tpl.mu.Lock()
	tpl.digest = "sha256:b"
	tpl.mu.Unlock()
	if rec, timings, err := m.Create(ctx, Request{}); err != nil || timings.Pool != "" || rec.Digest != "sha256:b" {
		t.Errorf("handed out %s from pool %q, %v", rec.Digest, timings.Pool, err)
	}
	if err := m.DrainPool(ctx, "host"); err != nil {
		t.Fatal(err)
	}
	ready(t, m, 1)
	if rec, timings, err := m.Create(ctx, Request{}); err != nil || timings.Pool == "" || rec.Digest != "sha256:b" {
		t.Errorf("handed out %s from pool %q, %v", rec.Digest, timings.Pool, err)
	}
}

// A claim counts for its tenant until the sandbox is gone; what lies in the pool counts for nobody.
func TestClaimsCount(t *testing.T) {
	h := newHost(t)
	m := h.process(t)
	if err := m.SetPools(operator(t.Context()), []Pool{{Min: 2, Max: 2}}); err != nil {
		t.Fatal(err)
	}
	ready(t, m, 2)
	one := tenant(t.Context(), "one", auth.Limits{Sandboxes: 1})
	for range 2 {
		rec, timings, err := m.Create(one, Request{})
		if err != nil || timings.Pool == "" {
			t.Fatalf("%+v, %v", timings, err)
		}
		var limit *auth.LimitError
		if _, _, err := m.Create(one, Request{}); !errors.As(err, &limit) {
			t.Errorf("one more than the limit: %v", err)
		}
		if _, err := m.Delete(one, string(rec.ID)); err != nil {
			t.Fatal(err)
		}
		ready(t, m, 2)
	}
}

// cutOff makes sandboxes whose agents cannot be reached any more once that is said.
type cutOff struct {
	driver.Driver
	cut *atomic.Bool
}

type cutOffBox struct {
	driver.Sandbox
	cut func() bool
}

func (d cutOff) Create(ctx context.Context, spec driver.Spec) (driver.Sandbox, error) {
	sb, err := d.Driver.Create(ctx, spec)
	born := d.cut.Load() // what is made later can be reached
	return cutOffBox{sb, func() bool { return !born && d.cut.Load() }}, err
}

func (b cutOffBox) Dial(ctx context.Context) (net.Conn, error) {
	if b.cut() {
		return nil, fs.ErrNotExist
	}
	return b.Sandbox.Dial(ctx)
}

func (b cutOffBox) Unwrap() driver.Sandbox { return b.Sandbox }

// A sandbox that does not answer when it is claimed is replaced by one that is made, which counts for its tenant.
func TestAClaimThatFails(t *testing.T) {
	h := newHost(t)
	d := cutOff{h.fake, &atomic.Bool{}}
	m := h.process(t, func(c *Config) { c.Drivers = drivers{"fake": d} })
	if err := m.SetPools(operator(t.Context()), []Pool{{Min: 1, Max: 1}}); err != nil {
		t.Fatal(err)
	}
	ready(t, m, 1)
	d.cut.Store(true)
	m.mu.Lock()
	for _, b := range m.boxes {
		b.guest.Close() // it would go on with the stream that it has
	}
	m.mu.Unlock()
	one := tenant(t.Context(), "one", auth.Limits{Sandboxes: 1})
	news := map[string]string{"A": "1"} // which the agent must know before anybody uses it
	rec, timings, err := m.Create(one, Request{Envs: news})
	if err != nil || timings.Pool != "" || rec.Tenant != "one" {
		t.Fatalf("%+v, %+v, %v", rec, timings, err)
	}
	var limit *auth.LimitError
	if _, _, err := m.Create(one, Request{}); !errors.As(err, &limit) {
		t.Errorf("one more than the limit: %v", err)
	}
	if _, err := m.Delete(one, string(rec.ID)); err != nil {
		t.Fatal(err)
	}
	if u := m.limiter.Usage("one"); u.Sandboxes != 0 {
		t.Errorf("after its end the tenant has %+v", u)
	}
}

// overheard is a driver whose agents' connections are listened to.
type overheard struct {
	driver.Driver
	heard *sync.Map // the deadlines that agents were told, as text
}

type overheardBox struct {
	driver.Sandbox
	heard *sync.Map
}

type overheardConn struct {
	net.Conn
	heard *sync.Map
}

func (d overheard) Create(ctx context.Context, spec driver.Spec) (driver.Sandbox, error) {
	sb, err := d.Driver.Create(ctx, spec)
	return overheardBox{sb, d.heard}, err
}

func (b overheardBox) Unwrap() driver.Sandbox { return b.Sandbox }

func (b overheardBox) Dial(ctx context.Context) (net.Conn, error) {
	c, err := b.Sandbox.Dial(ctx)
	return overheardConn{c, b.heard}, err
}

func (c overheardConn) Write(p []byte) (int, error) {
	if _, after, ok := bytes.Cut(p, []byte(`"deadline":"`)); ok {
		if text, _, ok := bytes.Cut(after, []byte(`"`)); ok {
			c.heard.Store(string(text), true)
		}
	}
	return c.Conn.Write(p)
}

// A claim that has nothing else to tell the agent does not wait for it to hear of the deadline, which it does hear of.
func TestAClaimTellsTheDeadline(t *testing.T) {
	h := newHost(t)
	d := overheard{h.fake, &sync.Map{}}
	m := h.process(t, func(c *Config) { c.Drivers = drivers{"fake": d} })
	if err := m.SetPools(operator(t.Context()), []Pool{{Min: 1, Max: 1}}); err != nil {
		t.Fatal(err)
	}
	ready(t, m, 1)
	rec, timings, err := m.Create(operator(t.Context()), Request{Timeout: time.Hour})
	if err != nil || timings.Pool == "" {
		t.Fatalf("%+v, %v", timings, err)
	}
	want := rec.Deadline.Format(time.RFC3339Nano)
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, ok := d.heard.Load(want); ok {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("no agent heard of %s", want)
		}
	}
}
