package manager

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/event"
	"github.com/firebreak-dev/firebreak/internal/store"
)

// frozen reports whether the agent of a sandbox does not answer.
func frozen(t *testing.T, m *Manager, id driver.ID) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	return m.box(id).guest.Health(ctx) != nil
}

// answers reports whether it does, however slow the host is.
func answers(t *testing.T, m *Manager, id driver.ID) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	return m.box(id).guest.Health(ctx) == nil
}

func TestPauseAndResume(t *testing.T) {
	h := newHost(t)
	m := h.process(t)
	ctx := operator(t.Context())
	rec := mustCreate(t, m, Request{Timeout: time.Hour})
	id := string(rec.ID)
	paused, err := m.Pause(ctx, id)
	if err != nil || paused.State != firebreak.StatePaused || paused.Paused.IsZero() || !frozen(t, m, rec.ID) {
		t.Fatalf("%+v, %v", paused, err)
	}
	for what, err := range map[string]error{
		"pause again":  second(m.Pause(ctx, id)),
		"give it time": second(m.SetTimeout(ctx, id, time.Minute, false)),
		"reach it":     second(m.Guest(ctx, id)),
	} {
		if firebreak.KindOf(err) != firebreak.KindState {
			t.Errorf("%s: %v", what, err)
		}
	}
	if got := records(t, m)[rec.ID]; got.State != firebreak.StatePaused {
		t.Errorf("listed as %s", got.State)
	}
	back, resumed, err := m.Resume(ctx, id, time.Minute)
	if err != nil || !resumed || back.State != firebreak.StateRunning || !back.Paused.IsZero() || !answers(t, m, rec.ID) {
		t.Fatalf("%+v, %v, %v", back, resumed, err)
	}
	if left := time.Until(back.Deadline); left > time.Minute || left < 50*time.Second {
		t.Errorf("%s left of a minute", left)
	}
	if _, resumed, err := m.Resume(ctx, id, time.Hour); err != nil || resumed {
		t.Errorf("resume one that runs: %v, %v", resumed, err)
	}
	if again, _, err := m.Resume(ctx, id, time.Minute); err != nil || time.Until(again.Deadline) < 50*time.Minute {
		t.Errorf("resume took time away: %v, %v", again.Deadline, err)
	}
	if _, err := m.Pause(ctx, id); err != nil {
		t.Fatal(err)
	}
	if last, err := m.Delete(ctx, id); err != nil || last.State != firebreak.StateEnded {
		t.Errorf("delete a paused one: %+v, %v", last, err)
	}
	h.holds(t)
}

func TestTimeIsGivenAndTaken(t *testing.T) {
	h := newHost(t)
	m := h.process(t)
	ctx := operator(t.Context())
	rec := mustCreate(t, m, Request{Timeout: 2 * time.Second})
	id := string(rec.ID)
	if got, err := m.SetTimeout(ctx, id, time.Hour, true); err != nil || time.Until(got.Deadline) < 50*time.Minute {
		t.Fatalf("%v, %v", got.Deadline, err)
	}
	if got, err := m.SetTimeout(ctx, id, time.Minute, true); err != nil || time.Until(got.Deadline) < 50*time.Minute {
		t.Errorf("extending took time away: %v, %v", got.Deadline, err)
	}
	for _, d := range []time.Duration{0, -1, maxTimeout + 1} {
		if _, err := m.SetTimeout(ctx, id, d, false); firebreak.KindOf(err) != firebreak.KindInvalid {
			t.Errorf("a timeout of %s: %v", d, err)
		}
	}
	time.Sleep(time.Until(rec.Deadline) + 50*time.Millisecond) // its first deadline passes
	if got, err := m.Get(ctx, id); err != nil || got.State != firebreak.StateRunning {
		t.Fatalf("%+v, %v", got, err)
	}
	if _, err := m.SetTimeout(ctx, id, 20*time.Millisecond, false); err != nil {
		t.Fatal(err)
	}
	if got, err := m.Wait(ctx, id); err != nil || got.Exit.Reason != firebreak.EndDeadline {
		t.Errorf("%+v, %v", got, err)
	}
	for range 20 { // it may have ended before its agent is told
		if _, err := m.SetTimeout(ctx, string(mustCreate(t, m, Request{}).ID), time.Nanosecond, false); err != nil {
			t.Errorf("next to no time: %v", err)
		}
	}
	for m.handles() > 0 {
		time.Sleep(time.Millisecond)
	}
	h.holds(t)
}

// What is to be paused when its time is up is paused by this process, or by the next one that takes it over; traffic
// brings it back where that was asked for.
func TestPauseAtTheDeadline(t *testing.T) {
	h := newHost(t)
	m := h.process(t)
	ctx := operator(t.Context())
	const life = 2 * time.Second // for what is to be seen before it is up
	until := func(m *Manager, id driver.ID, want firebreak.State) store.Record {
		t.Helper()
		for begun := time.Now(); time.Since(begun) < time.Minute; time.Sleep(5 * time.Millisecond) {
			rec, err := m.cfg.Store.Find(ctx, everybody(), string(id))
			if err != nil {
				t.Fatal(err)
			}
			if rec.State == want {
				return rec
			}
		}
		t.Fatalf("it is not %s", want)
		return store.Record{}
	}
	rec := mustCreate(t, m, Request{Timeout: life, OnTimeout: firebreak.TimeoutPause, AutoResume: true, Detached: true})
	until(m, rec.ID, firebreak.StatePaused)
	if _, err := m.Guest(ctx, string(rec.ID)); err != nil {
		t.Fatal(err)
	}
	if got := until(m, rec.ID, firebreak.StateRunning); got.Timeout != life {
		t.Errorf("resumed with a timeout of %s", got.Timeout)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(life)
	next := h.process(t, func(c *Config) { c.Adopt = true })
	records(t, next) // its recovery is through: the process before may have paused it already
	if got := until(next, rec.ID, firebreak.StatePaused); got.Owner != next.owner.name {
		t.Errorf("it was not taken over: %+v", got)
	}
	h.holds(t, rec.ID)
}

// halfPaused makes sandboxes that say when they are frozen, and then wait before their pause goes on.
type halfPaused struct {
	driver.Driver
	frozen, on chan struct{}
}

type halfPausedBox struct {
	driver.Sandbox
	d halfPaused
}

func (d halfPaused) Create(ctx context.Context, spec driver.Spec) (driver.Sandbox, error) {
	sb, err := d.Driver.Create(ctx, spec)
	return halfPausedBox{sb, d}, err
}

func (b halfPausedBox) Pause(ctx context.Context) error {
	err := b.Sandbox.(driver.Pauser).Pause(ctx)
	b.d.frozen <- struct{}{}
	<-b.d.on
	return err
}

func (b halfPausedBox) Resume(ctx context.Context) error {
	return b.Sandbox.(driver.Pauser).Resume(ctx)
}

// Who reaches for a sandbox while it is being paused does not get one that will never answer.
func TestTrafficDuringAPause(t *testing.T) {
	for _, wakes := range []bool{true, false} {
		h := newHost(t)
		d := halfPaused{h.fake, make(chan struct{}), make(chan struct{})}
		m := h.process(t, func(c *Config) { c.Drivers = drivers{"fake": d} })
		ctx := operator(t.Context())
		rec := mustCreate(t, m, Request{Timeout: time.Hour, OnTimeout: firebreak.TimeoutPause, AutoResume: wakes})
		paused, reached := make(chan error, 1), make(chan error, 1)
		go func() { paused <- second(m.Pause(ctx, string(rec.ID))) }()
		<-d.frozen
		go func() { reached <- second(m.Guest(ctx, string(rec.ID))) }()
		time.Sleep(50 * time.Millisecond)
		early := len(reached)
		d.on <- struct{}{}
		if err := <-paused; err != nil || early != 0 {
			t.Fatalf("reached while it was frozen: %d times; %v", early, err)
		}
		err := <-reached
		if wakes && (err != nil || !answers(t, m, rec.ID)) || !wakes && firebreak.KindOf(err) != firebreak.KindState {
			t.Errorf("woken by traffic: %v; %v", wakes, err)
		}
	}
}

// A process that dies between freezing and writing it down, or the other way round, leaves a record that holds.
func TestTheNextProcessMakesTheRecordTrue(t *testing.T) {
	h := newHost(t)
	m := h.process(t)
	ctx := operator(t.Context())
	runs, sleeps := mustCreate(t, m, Request{Detached: true, Timeout: time.Hour}), mustCreate(t, m, Request{Detached: true})
	if _, err := m.Pause(ctx, string(sleeps.ID)); err != nil {
		t.Fatal(err)
	}
	for id, turn := range map[driver.ID]func(driver.Pauser) error{
		runs.ID:   func(p driver.Pauser) error { return p.Pause(ctx) },
		sleeps.ID: func(p driver.Pauser) error { return p.Resume(ctx) },
	} {
		p, err := driver.As[driver.Pauser](m.box(id).sb)
		if err == nil {
			err = turn(p)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	next := h.process(t, func(c *Config) { c.Adopt = true })
	records(t, next) // its recovery is through
	if !answers(t, next, runs.ID) {
		t.Error("what ran is frozen")
	}
	if !frozen(t, next, sleeps.ID) {
		t.Error("what slept is not")
	}
}

func tenant(ctx context.Context, id string, limits auth.Limits) context.Context {
	return auth.WithCaller(ctx, auth.Caller{Tenant: auth.Tenant{ID: id, Limits: limits}})
}

func TestTenantsDoNotMeet(t *testing.T) {
	h := newHost(t)
	m := h.process(t)
	one, two := tenant(t.Context(), "one", auth.Limits{}), tenant(t.Context(), "two", auth.Limits{})
	rec, _, err := m.Create(one, Request{Name: "web", Metadata: map[string]string{"a": "b"}})
	if err != nil || rec.Tenant != "one" || rec.Metadata["a"] != "b" {
		t.Fatalf("%+v, %v", rec, err)
	}
	for _, ref := range []string{string(rec.ID), "web", string(rec.ID[:5])} {
		for what, err := range map[string]error{
			"get": second(m.Get(two, ref)), "find": second(m.Find(two, ref)), "wait": second(m.Wait(two, ref)),
			"guest": second(m.Guest(two, ref)), "pause": second(m.Pause(two, ref)), "delete": second(m.Delete(two, ref)),
			"timeout": second(m.SetTimeout(two, ref, time.Hour, false)), "resume": third(m.Resume(two, ref, time.Hour)),
		} {
			if !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s of another's %q: %v", what, ref, err)
			}
			if got, want := err.Error(), second(m.Get(two, "nothing")).Error(); len(got)-len(ref) != len(want)-len("nothing") {
				t.Errorf("%s tells another's %q from nothing: %q, %q", what, ref, got, want)
			}
		}
	}
	if _, err := m.Signed(two, func(token string) bool { return token == rec.Token }); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("another's by its token: %v", err)
	}
	if got, err := m.Signed(one, func(token string) bool { return token == rec.Token }); err != nil || got.ID != rec.ID {
		t.Errorf("one's own by its token: %v", err)
	}
	if all, err := m.List(two); err != nil || len(all) != 0 {
		t.Errorf("another lists %v, %v", all, err)
	}
	if _, _, err := m.Create(two, Request{Name: "web"}); err != nil {
		t.Errorf("the name of another's: %v", err)
	}
	if _, _, err := m.Create(two, Request{Mounts: []driver.Mount{{Source: "/etc", Target: "/x"}}}); firebreak.KindOf(err) != firebreak.KindDenied {
		t.Errorf("a tenant mounts: %v", err)
	}
	if _, _, err := m.Create(two, Request{Template: "one/secret:default"}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a tenant starts from another's template: %v", err)
	}
	if _, _, err := m.Create(two, Request{Driver: "fake", AcceptWeaker: "why not"}); firebreak.KindOf(err) != firebreak.KindDenied {
		t.Errorf("a tenant accepts a weaker boundary: %v", err)
	}
	if _, _, err := m.Create(t.Context(), Request{}); firebreak.KindOf(err) != firebreak.KindDenied {
		t.Errorf("nobody creates: %v", err)
	}
}

func third[T, U any](_ T, _ U, err error) error { return err }

func TestTenantsLimits(t *testing.T) {
	h := newHost(t)
	m := h.process(t)
	ctx := tenant(t.Context(), "one", auth.Limits{Sandboxes: 1})
	rec, _, err := m.Create(ctx, Request{Detached: true})
	if err != nil {
		t.Fatal(err)
	}
	full := func(m *Manager) {
		t.Helper()
		_, _, err := m.Create(ctx, Request{})
		var limit *auth.LimitError
		if firebreak.KindOf(err) != firebreak.KindExhausted || !errors.As(err, &limit) || limit.RetryAfter <= 0 {
			t.Errorf("one more than the limit: %v", err)
		}
	}
	full(m)
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	next := h.process(t, func(c *Config) { c.Adopt = true })
	records(t, next)
	full(next) // what was taken over counts
	if _, err := next.Delete(ctx, string(rec.ID)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := next.Create(ctx, Request{}); err != nil {
		t.Errorf("after the only one is gone: %v", err)
	}
	if _, _, err := next.Create(ctx, Request{}); err == nil {
		t.Error("its end was counted twice")
	}
}

// What happens to a sandbox is told in order, once, and to its tenant alone; of what lies in a pool nobody hears.
func TestEvents(t *testing.T) {
	h := newHost(t)
	var log *event.Log
	m := h.process(t, func(c *Config) {
		log = event.New(c.Store)
		c.Events, c.Policy = log, writePolicy(t, anything+`
  - {id: regulated, when: 'data == "regulated"', require: tech.hardware, reason: It is regulated., source: this file}
`)
	})
	if err := m.SetPools(operator(t.Context()), []Pool{{Min: 1, Max: 1}}); err != nil {
		t.Fatal(err)
	}
	ready(t, m, 1)
	ctx := tenant(t.Context(), "one", auth.Limits{})
	rec := mustCreateAs(t, m, ctx, Request{Detached: true, Timeout: time.Hour})
	id := string(rec.ID)
	steps := []error{second(m.SetTimeout(ctx, id, time.Hour, false)), second(m.Pause(ctx, id)), third(m.Resume(ctx, id, 0)), second(m.Delete(ctx, id))}
	short := mustCreateAs(t, m, ctx, Request{Timeout: 500 * time.Millisecond})
	steps = append(steps, second(m.Wait(ctx, string(short.ID))), second(m.Delete(ctx, string(short.ID))))
	if err := errors.Join(steps...); err != nil {
		t.Fatal(err)
	}
	if _, _, err := m.Create(ctx, Request{Workload: firebreak.Workload{Data: firebreak.DataRegulated}}); err == nil {
		t.Fatal("regulated data were not refused")
	}
	all, err := log.List(ctx, event.Filter{Asc: true})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range all {
		got = append(got, string(e.Type)+" "+e.Data.Reason)
	}
	want := []string{"created ", "updated ", "paused ", "resumed ", "killed destroyed", "created ", "killed deadline"}
	if len(got) != len(want)+1 || !slices.Equal(got[:len(want)], want) || all[len(want)].Type != event.TypeRefused {
		t.Errorf("told %q, want %q and a refusal", got, want)
	}
	if others, err := log.List(tenant(t.Context(), "two", auth.Limits{}), event.Filter{}); err != nil || len(others) != 0 {
		t.Errorf("another hears %v, %v", others, err)
	}
}

func mustCreateAs(t *testing.T, m *Manager, ctx context.Context, req Request) store.Record {
	t.Helper()
	rec, _, err := m.Create(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	return rec
}
