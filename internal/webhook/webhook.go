// Package webhook sends events to addresses that tenants name: signed, in order, at least once, also after a restart, and
// never to where only this host can reach.
package webhook

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/event"
)

// Webhook is who wants to be told of what. It never shows its secret.
type Webhook struct {
	ID      string       `json:"id"`
	Tenant  string       `json:"tenant"` // whose events it gets; empty: the operator's hook, which gets all
	Name    string       `json:"name"`
	URL     string       `json:"url"`
	Enabled bool         `json:"enabled"`
	Events  []event.Type `json:"events"`
	Created time.Time    `json:"created"`
}

// Secret signs what is sent. It prints as nothing.
type Secret string

func (Secret) String() string { return "(secret)" }

// GoString implements fmt.GoStringer.
func (Secret) GoString() string { return "(secret)" }

// LogValue implements slog.LogValuer.
func (Secret) LogValue() slog.Value { return slog.StringValue("(secret)") }

// MarshalText implements encoding.TextMarshaler.
func (Secret) MarshalText() ([]byte, error) { return []byte("(secret)"), nil }

// Record is all that is kept of a webhook.
type Record struct {
	Webhook
	Secret Secret
	Cursor int64 // Seq of the last event that it was sent, or that was given up
}

// Storage keeps webhooks. Its methods may be called concurrently.
type Storage interface {
	// InsertWebhook saves a new one.
	InsertWebhook(ctx context.Context, r Record) error
	// ListWebhooks returns all, the oldest first.
	ListWebhooks(ctx context.Context) ([]Record, error)
	// PutWebhook replaces all that is kept of one. fs.ErrNotExist if it is not there.
	PutWebhook(ctx context.Context, r Record) error
	// DeleteWebhook removes one; nil if it is not there.
	DeleteWebhook(ctx context.Context, id string) error
	// MoveWebhook sets a cursor, never back; nil if there is no such webhook.
	MoveWebhook(ctx context.Context, id string, cursor int64) error
}

// Config is what webhooks are made of. Storage, Events and Log are needed.
type Config struct {
	Storage Storage
	Events  *event.Log
	Log     *slog.Logger

	// AllowPrivate lets them go to loopback and private addresses too. They never go to link-local ones, where clouds
	// answer what a host's secrets are.
	AllowPrivate bool

	// Sent, if not nil, is told of each attempt: "sent", "failed" when it is to be tried again, or "dropped". Several at
	// once.
	Sent func(outcome string)
}

// Webhooks keeps and serves the webhooks of one state directory. One process at a time should: two send everything
// twice. It may be used concurrently.
type Webhooks struct {
	cfg    Config
	pace   pace
	client *http.Client
	ctx    context.Context // of all deliveries
	cancel context.CancelFunc

	mu     sync.Mutex
	closed bool             // guarded by mu
	hooks  map[string]*hook // guarded by mu
}

// hook is one webhook at work.
type hook struct {
	record Record // never changed, its cursor is the one that it began with
	cursor atomic.Int64
	cancel context.CancelFunc
	done   chan struct{} // closed when its deliveries have ended; they may never have begun
}

// New starts the webhooks that storage keeps, each where it stopped. Close ends them.
func New(ctx context.Context, cfg Config) (*Webhooks, error) {
	return newWebhooks(ctx, cfg, usualPace())
}

func newWebhooks(ctx context.Context, cfg Config, p pace) (*Webhooks, error) {
	all, err := cfg.Storage.ListWebhooks(ctx)
	if err != nil {
		return nil, fmt.Errorf("read webhooks: %w", err)
	}
	if cfg.Sent == nil {
		cfg.Sent = func(string) {}
	}
	w := &Webhooks{cfg: cfg, pace: p, client: newClient(cfg.AllowPrivate, p.timeout), hooks: map[string]*hook{}}
	w.ctx, w.cancel = context.WithCancel(auth.WithCaller(context.Background(), auth.Caller{Operator: true}))
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range all {
		w.startLocked(r)
	}
	return w, nil
}

// Close returns when all deliveries have ended. One that it interrupts is made anew after the next New.
func (w *Webhooks) Close() {
	if w == nil {
		return
	}
	w.mu.Lock()
	w.closed = true
	hooks := w.hooks
	w.mu.Unlock()
	w.cancel()
	for _, h := range hooks {
		<-h.done
	}
	w.client.CloseIdleConnections()
}

// startLocked has a webhook served from its cursor on.
func (w *Webhooks) startLocked(r Record) {
	ctx, cancel := context.WithCancel(w.ctx)
	h := &hook{record: r, cancel: cancel, done: make(chan struct{})}
	h.cursor.Store(r.Cursor)
	w.hooks[r.ID] = h
	go func() {
		defer close(h.done)
		defer cancel()
		if r.Enabled {
			w.serve(ctx, h)
		}
	}()
}

// stop ends a webhook's deliveries, and returns when they have.
func (h *hook) stop() {
	h.cancel()
	<-h.done
}
