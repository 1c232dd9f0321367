package webhook_test

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/event"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/internal/webhook"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("WEBHOOK_TEST_CHILD"); dir != "" {
		child(dir)
	}
	os.Exit(m.Run())
}

const secret = "not-to-be-seen"

// delivery is one request that a receiver got.
type delivery struct {
	webhook, id string
	event       event.E2BEvent
}

// receiver is an endpoint that checks what it gets, as E2B tells receivers to.
type receiver struct {
	*httptest.Server
	t      *testing.T
	answer func(n int, w http.ResponseWriter, e event.E2BEvent) // n counts requests from 1

	mu  sync.Mutex
	got []delivery    // guarded by mu
	new chan struct{} // holds one message: there is more in got
}

func receive(t *testing.T, answer func(n int, w http.ResponseWriter, e event.E2BEvent)) *receiver {
	r := &receiver{t: t, answer: answer, new: make(chan struct{}, 1)}
	r.Server = httptest.NewServer(r)
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		r.t.Error(err)
	}
	sum := sha256.Sum256([]byte(secret + string(body)))
	plain := strings.TrimRight(base64.StdEncoding.EncodeToString(sum[:]), "=")
	forURL := strings.NewReplacer("+", "-", "/", "_").Replace(plain)
	h := req.Header
	if got := h.Get("e2b-signature"); got != plain || got != forURL {
		r.t.Errorf("signature %s, want %s and %s", got, plain, forURL)
	}
	if req.Method != http.MethodPost || h.Get("content-type") != "application/json" || h.Get("e2b-signature-version") != "v1" {
		r.t.Errorf("%s with %v", req.Method, h)
	}
	var e event.E2BEvent
	if err := json.Unmarshal(body, &e); err != nil {
		r.t.Errorf("%v: %s", err, body)
	}
	r.mu.Lock()
	r.got = append(r.got, delivery{h.Get("e2b-webhook-id"), h.Get("e2b-delivery-id"), e})
	n := len(r.got)
	r.mu.Unlock()
	select {
	case r.new <- struct{}{}:
	default:
	}
	if r.answer != nil {
		r.answer(n, w, e)
	}
}

// wait returns all deliveries once enough says that these are enough.
func (r *receiver) wait(enough func([]delivery) bool) []delivery {
	r.t.Helper()
	for end := time.After(30 * time.Second); ; {
		r.mu.Lock()
		got := append([]delivery(nil), r.got...)
		r.mu.Unlock()
		if enough(got) {
			return got
		}
		select {
		case <-r.new:
		case <-end:
			r.t.Fatalf("not enough came: %d deliveries, %s", len(got), sandboxes(got))
		}
	}
}

func atLeast(n int) func([]delivery) bool { return func(got []delivery) bool { return len(got) >= n } }

// sandboxes lists whose events came, in their order.
func sandboxes(got []delivery) string {
	var all []string
	for _, d := range got {
		all = append(all, d.event.Sandbox)
	}
	return strings.Join(all, " ")
}

// world is a state directory with its events.
type world struct {
	t     *testing.T
	store *store.Store
	log   *event.Log
	lines strings.Builder // of the log
}

func newWorld(t *testing.T, dir string) *world {
	t.Helper()
	w := &world{t: t}
	var err error
	if w.store, err = store.Open(t.Context(), dir, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.store.Close(); err != nil {
			t.Error(err)
		}
		if strings.Contains(w.lines.String(), secret) {
			t.Errorf("the log tells the secret: %s", w.lines.String())
		}
	})
	w.log = event.New(w.store)
	return w
}

func (w *world) publish(tenant, sandbox string, typ event.Type) {
	w.t.Helper()
	if err := w.log.Publish(w.t.Context(), event.Event{Type: typ, Tenant: tenant, Sandbox: sandbox}); err != nil {
		w.t.Error(err)
	}
}

func usual() webhook.Pace {
	return webhook.Pace{Timeout: 10 * time.Second, Patience: time.Hour, Refusals: 3}
}

func (w *world) webhooks(p webhook.Pace, change func(*webhook.Config)) *webhook.Webhooks {
	w.t.Helper()
	cfg := webhook.Config{Storage: w.store, Events: w.log, AllowPrivate: true,
		Log: slog.New(slog.NewTextHandler(&w.lines, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	if change != nil {
		change(&cfg)
	}
	hooks, err := webhook.NewPaced(w.t.Context(), cfg, p)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(hooks.Close)
	return hooks
}

func as(t testing.TB, tenant string) context.Context {
	return auth.WithCaller(t.Context(), auth.Caller{Tenant: auth.Tenant{ID: tenant}})
}

func spec(url string) webhook.Spec {
	return webhook.Spec{Name: "mine", URL: url, Enabled: true, Events: event.E2BTypes(), Secret: secret}
}

func create(t testing.TB, hooks *webhook.Webhooks, tenant, url string) webhook.Webhook {
	t.Helper()
	hook, err := hooks.Create(as(t, tenant), spec(url))
	if err != nil {
		t.Fatal(err)
	}
	return hook
}
