package webhook_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/event"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/internal/webhook"
)

func TestDeliveriesComeSignedAndInOrder(t *testing.T) {
	before := runtime.NumGoroutine()
	r := receive(t, nil)
	w := newWorld(t, t.TempDir())
	hooks := w.webhooks(usual(), nil)
	w.publish("acme", "early", event.TypeCreated) // before there is a hook
	hook := create(t, hooks, "acme", r.URL)
	var want []string
	for i := range 100 {
		w.publish("umbra", "other", event.TypeCreated)
		w.publish("acme", fmt.Sprint(i), event.TypeUpdated)
		w.publish("acme", "", event.TypeRefused) // E2B has none
		want = append(want, fmt.Sprint(i))
	}
	got := r.wait(atLeast(100))
	if s := sandboxes(got); s != strings.Join(want, " ") {
		t.Errorf("got %s", s)
	}
	ids := map[string]bool{}
	for _, d := range got {
		if d.webhook != hook.ID || d.event.Type != "sandbox.lifecycle.updated" || d.event.Team != "acme" || ids[d.id] || ids[d.event.ID] {
			t.Errorf("%+v", d)
		}
		ids[d.id], ids[d.event.ID] = true, true
	}
	hooks.Close()
	r.Close()
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	for end := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before+2 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if n := runtime.NumGoroutine(); n > before+2 { // the store has two
		t.Errorf("%d goroutines are left of %d", n, before)
	}
}

// outcomes counts what a hook of the operator is told.
type outcomes struct {
	mu sync.Mutex
	n  map[string]int
}

func (o *outcomes) count(outcome string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.n[outcome]++
}

// becomes waits until the counts are as wanted: an answer takes a moment to come back.
func (o *outcomes) becomes(t *testing.T, want string) {
	t.Helper()
	got := ""
	for end := time.Now().Add(20 * time.Second); got != want && time.Now().Before(end); time.Sleep(time.Millisecond) {
		o.mu.Lock()
		got = fmt.Sprint(o.n)
		o.mu.Unlock()
	}
	if got != want {
		t.Errorf("told %s, want %s", got, want)
	}
}

func TestWhatFailsIsTriedAgain(t *testing.T) {
	hang := make(chan struct{})
	r := receive(t, func(n int, w http.ResponseWriter, _ event.E2BEvent) {
		switch n {
		case 1:
			w.WriteHeader(http.StatusInternalServerError)
		case 2:
			w.Header().Set("Retry-After", "0")
			w.WriteHeader(http.StatusTooManyRequests)
		case 3:
			<-hang // longer than an attempt may take
		case 4:
			panic(http.ErrAbortHandler)
		case 5, 6, 7, 8, 9:
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	w := newWorld(t, t.TempDir())
	told := outcomes{n: map[string]int{}}
	p := usual()
	p.Timeout = 3 * time.Second // only the third attempt takes it
	hooks := w.webhooks(p, func(c *webhook.Config) { c.Sent = told.count })
	create(t, hooks, "acme", r.URL)
	w.publish("acme", "a", event.TypeCreated)
	w.publish("acme", "b", event.TypeCreated)
	got := r.wait(func(got []delivery) bool { return strings.HasSuffix(sandboxes(got), "b") })
	close(hang)
	if s := sandboxes(got); s != strings.Repeat("a ", 10)+"b" {
		t.Errorf("got %s", s)
	}
	told.becomes(t, "map[failed:9 sent:2]")
}

// An endpoint that says no to one event is believed in the end, and gets the next one.
func TestRefusedEventIsDropped(t *testing.T) {
	elsewhere := receive(t, nil)
	for status, header := range map[int]string{http.StatusBadRequest: "", http.StatusFound: elsewhere.URL, http.StatusPermanentRedirect: elsewhere.URL} {
		r := receive(t, func(_ int, w http.ResponseWriter, e event.E2BEvent) {
			if e.Sandbox == "bad" {
				if header != "" {
					w.Header().Set("Location", header)
				}
				w.WriteHeader(status)
			}
		})
		w := newWorld(t, t.TempDir())
		told := outcomes{n: map[string]int{}}
		hooks := w.webhooks(usual(), func(c *webhook.Config) { c.Sent = told.count })
		create(t, hooks, "acme", r.URL)
		w.publish("acme", "bad", event.TypeCreated)
		w.publish("acme", "good", event.TypeCreated)
		if s := sandboxes(r.wait(atLeast(4))); s != "bad bad bad good" {
			t.Errorf("%d: %s", status, s)
		}
		told.becomes(t, "map[dropped:1 failed:2 sent:1]")
		hooks.Close()
	}
	if len(elsewhere.got) > 0 {
		t.Error("a redirect was followed")
	}
}

// Nobody takes an event until it is old. Then it goes, and what is young still comes.
func TestOldEventIsDropped(t *testing.T) {
	w := newWorld(t, t.TempDir())
	r := receive(t, func(_ int, rw http.ResponseWriter, e event.E2BEvent) {
		if e.Sandbox == "old" {
			rw.WriteHeader(http.StatusInternalServerError)
		}
	})
	hooks := w.webhooks(usual(), nil)
	create(t, hooks, "acme", r.URL)
	old := event.Event{Type: event.TypeCreated, Tenant: "acme", Sandbox: "old", Time: time.Now().Add(-2 * time.Hour)}
	if err := w.log.Publish(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	w.publish("acme", "young", event.TypeCreated)
	if s := sandboxes(r.wait(atLeast(2))); s != "old young" {
		t.Errorf("got %s", s)
	}
}

func TestEndlessAnswerIsNotRead(t *testing.T) {
	ends := make(chan struct{})
	r := receive(t, func(_ int, w http.ResponseWriter, _ event.E2BEvent) {
		defer close(ends)
		for {
			if _, err := w.Write(make([]byte, 32<<10)); err != nil {
				return
			}
		}
	})
	w := newWorld(t, t.TempDir())
	hooks := w.webhooks(usual(), nil)
	create(t, hooks, "acme", r.URL)
	w.publish("acme", "a", event.TypeCreated)
	<-ends // the sender hung up
}

// What could not be sent is sent by the next process.
func TestDeliveryGoesOnAfterARestart(t *testing.T) {
	dir := t.TempDir()
	w := newWorld(t, dir)
	var mu sync.Mutex
	up := false
	r := receive(t, func(_ int, rw http.ResponseWriter, e event.E2BEvent) {
		mu.Lock()
		defer mu.Unlock()
		if !up && e.Sandbox != "first" {
			rw.WriteHeader(http.StatusBadGateway)
		}
	})
	hooks := w.webhooks(usual(), nil)
	create(t, hooks, "acme", r.URL)
	w.publish("acme", "first", event.TypeCreated)
	w.publish("acme", "second", event.TypeCreated)
	r.wait(atLeast(3))
	hooks.Close()
	w.publish("acme", "third", event.TypeCreated)
	mu.Lock()
	up = true
	mu.Unlock()
	r.mu.Lock()
	before := len(r.got)
	r.mu.Unlock()
	again := newWorld(t, dir)
	again.webhooks(usual(), nil)
	again.publish("acme", "fourth", event.TypeCreated)
	got := r.wait(func(got []delivery) bool { return strings.HasSuffix(sandboxes(got), "fourth") })
	// What was under way when the first was closed may come twice.
	if s := sandboxes(got[before:]); strings.Join(slices.Compact(strings.Fields(s)), " ") != "second third fourth" {
		t.Errorf("after the restart came %s", s)
	}
}

// child serves the webhooks of a state directory until it is killed.
func child(dir string) {
	ctx := context.Background()
	s, err := store.Open(ctx, dir, slog.New(slog.DiscardHandler))
	if err != nil {
		panic(err)
	}
	cfg := webhook.Config{Storage: s, Events: event.New(s), AllowPrivate: true, Log: slog.New(slog.DiscardHandler)}
	if _, err := webhook.NewPaced(ctx, cfg, usual()); err != nil {
		panic(err)
	}
	select {}
}

// The sender is killed again and again. Each event comes, and the first time in its order.
func TestDeliveryAtLeastOnceWhenKilled(t *testing.T) {
	dir := t.TempDir()
	r := receive(t, nil)
	w := newWorld(t, dir)
	hooks := w.webhooks(usual(), nil)
	create(t, hooks, "acme", r.URL)
	hooks.Close()
	const events, kills = 400, 8
	var all sync.WaitGroup
	all.Go(func() {
		for i := range events {
			w.publish("acme", fmt.Sprint(i), event.TypeUpdated)
		}
	})
	for kill := range kills + 1 {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), "WEBHOOK_TEST_CHILD="+dir)
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		r.wait(atLeast((kill + 1) * events / (kills + 2))) // it is at work
		if kill == kills {
			all.Wait()
			r.wait(func(got []delivery) bool {
				return len(got) > 0 && got[len(got)-1].event.Sandbox == fmt.Sprint(events-1)
			})
		}
		if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // it was killed
	}
	next, again := 0, 0
	for _, d := range r.got {
		switch d.event.Sandbox {
		case fmt.Sprint(next):
			next++
		default:
			again++
		}
	}
	if next != events || again > kills {
		t.Errorf("%d of %d events came in order, %d again after %d kills", next, events, again, kills)
	}
}
