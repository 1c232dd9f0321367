package e2b_test

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/e2b"
	"github.com/firebreak-dev/firebreak/internal/manager"
	"github.com/firebreak-dev/firebreak/internal/store"
)

// creations counts what reaches the manager.
func (w *world) creations() func() int {
	var mu sync.Mutex
	n := 0
	w.sandboxes.onCreate(func(manager.Request) error {
		mu.Lock()
		defer mu.Unlock()
		n++
		return nil
	})
	return func() int {
		mu.Lock()
		defer mu.Unlock()
		return n
	}
}

func TestWhatIsSentTwiceIsDoneOnce(t *testing.T) {
	w := newWorld(t, nil)
	made := w.creations()
	const key, path = "Idempotency-Key", "/v2/sandboxes"
	first := w.ask("acme", "POST", path, `{"templateID":"host","metadata":{"a":"1","b":"2"}}`, key, "k-1")
	first.want(t, "first", 201)
	again := w.ask("acme", "POST", path, `{ "metadata":{"b":"2","a":"1"}, "templateID":"host", "unknown": 1 }`, key, "k-1")
	again.want(t, "again", 201)
	if string(first.body) != string(again.body) || made() != 1 || again.Header.Get("Content-Type") != "application/json" {
		t.Errorf("%d made\n%s\n%s", made(), first.body, again.body)
	}
	w.ask("acme", "POST", path, `{"templateID":"host"}`, key, "k-1").want(t, "another request", 409, "idempotency_request_mismatch")
	w.ask("acme", "POST", "/sandboxes", `{"templateID":"host","metadata":{"a":"1","b":"2"}}`, key, "k-1").want(t, "by the other version", 409, "idempotency_request_mismatch")
	w.ask("other", "POST", path, `{"templateID":"host","metadata":{"a":"1","b":"2"}}`, key, "k-1").want(t, "another tenant", 201)
	if made() != 2 {
		t.Errorf("%d made", made())
	}
	for _, bad := range []string{"", "K", "a_b", strings.Repeat("k", 256)} {
		w.ask("acme", "POST", path, `{"templateID":"host"}`, key, bad).want(t, bad, 400, key)
	}
	w.ask("acme", "POST", path, `{"templateID":"nowhere"}`, key, "k-2").want(t, "what is wrong", 404)
	w.templates.names = append(w.templates.names, "nowhere")
	w.ask("acme", "POST", path, `{"templateID":"nowhere"}`, key, "k-2").want(t, "is answered so again", 404)
}

func TestAnswersThatMayChangeAreNotKept(t *testing.T) {
	w := newWorld(t, nil)
	const key, path = "Idempotency-Key", "/v2/sandboxes"
	for _, err := range []error{errors.New("ours"), &firebreak.Error{Kind: firebreak.KindExhausted, Err: errors.New("full")}, &firebreak.Error{Kind: firebreak.KindUnavailable, Err: errors.New("x")}} {
		w.sandboxes.onCreate(func(manager.Request) error { return err })
		if res := w.ask("acme", "POST", path, `{"templateID":"host"}`, key, "k"); res.StatusCode < 500 {
			t.Errorf("%v: %d", err, res.StatusCode)
		}
	}
	w.sandboxes.onCreate(nil)
	w.ask("acme", "POST", path, `{"templateID":"host"}`, key, "k").want(t, "then", 201)
}

func TestAttemptsUnderWay(t *testing.T) {
	w := newWorld(t, nil)
	began, end := make(chan struct{}), make(chan struct{})
	w.sandboxes.onCreate(func(manager.Request) error { began <- struct{}{}; <-end; return nil })
	const body = `{"templateID":"host"}`
	answered := make(chan response)
	go func() { answered <- w.ask("acme", "POST", "/v2/sandboxes", body, "Idempotency-Key", "k") }()
	<-began
	w.ask("acme", "POST", "/v2/sandboxes", body, "Idempotency-Key", "k").want(t, "meanwhile", 409, "idempotency_in_progress")
	close(end)
	first := <-answered
	first.want(t, "first", 201)
	if again := w.ask("acme", "POST", "/v2/sandboxes", body, "Idempotency-Key", "k"); string(again.body) != string(first.body) {
		t.Errorf("%s\n%s", first.body, again.body)
	}
}

// TestAttemptsOutliveAProcess is about what a process leaves that dies before it has written its answer down.
func TestAttemptsOutliveAProcess(t *testing.T) {
	w := newWorld(t, nil)
	const body = `{"templateID":"host"}`
	restart := func() { w.door = e2b.New(w.cfg) }
	first := w.ask("acme", "POST", "/v2/sandboxes", body, "Idempotency-Key", "k")
	first.want(t, "first", 201)
	restart()
	if again := w.ask("acme", "POST", "/v2/sandboxes", body, "Idempotency-Key", "k"); string(again.body) != string(first.body) {
		t.Errorf("after a restart:\n%s\n%s", first.body, again.body)
	}
	forget := func(began time.Time) {
		t.Helper()
		a := store.Attempt{Tenant: "acme", Key: "k"}
		saved, found, err := w.store.BeginAttempt(t.Context(), a)
		if err == nil {
			err = w.store.DropAttempt(t.Context(), a)
		}
		saved.Status, saved.Answer, saved.Began = 0, nil, began
		if err == nil {
			_, _, err = w.store.BeginAttempt(t.Context(), saved)
		}
		if err != nil || found {
			t.Fatal(err)
		}
	}
	forget(time.Now())
	restart()
	again := w.ask("acme", "POST", "/v2/sandboxes", body, "Idempotency-Key", "k")
	again.want(t, "the sandbox is there", 201)
	if string(again.body) != string(first.body) {
		t.Errorf("%s\n%s", first.body, again.body)
	}
	var sb sandbox
	first.into(t, &sb)
	w.ask("acme", "DELETE", "/sandboxes/"+sb.SandboxID, nil).want(t, "kill", 204)
	forget(time.Now())
	restart()
	w.ask("acme", "POST", "/v2/sandboxes", body, "Idempotency-Key", "k").want(t, "another process may be at it", 409, "idempotency_in_progress")
	forget(time.Now().Add(-time.Hour))
	w.ask("acme", "POST", "/v2/sandboxes", body, "Idempotency-Key", "k").want(t, "nobody can be", 422, "idempotency_outcome_unknown")
}
