package webhook

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/event"
)

// The bounds of webhooks.
const (
	maxOfTenant = 20
	maxOfAll    = 1000
	maxName     = 128  // bytes
	maxSecret   = 1024 // bytes
)

// Spec is what a caller says of a new webhook.
type Spec struct {
	Name    string
	URL     string
	Enabled bool
	Events  []event.Type
	Secret  Secret
}

// Create makes a webhook of the caller's tenant, which gets what happens from now on.
func (w *Webhooks) Create(ctx context.Context, s Spec) (Webhook, error) {
	c, err := auth.CallerOf(ctx)
	if err == nil && !c.Operator && c.Tenant.ID == "" {
		err = &firebreak.Error{Kind: firebreak.KindDenied, Op: "create webhook", Err: errors.New("the caller is nobody")}
	}
	if err != nil {
		return Webhook{}, err
	}
	r := Record{Secret: s.Secret, Webhook: Webhook{ID: event.NewID(), Tenant: c.Tenant.ID, Name: s.Name, URL: s.URL, Enabled: s.Enabled,
		Events: compact(s.Events), Created: time.Now().UTC().Truncate(time.Millisecond)}}
	if err := w.check(r); err != nil {
		return Webhook{}, err
	}
	if r.Cursor, err = w.cfg.Events.Last(ctx); err != nil {
		return Webhook{}, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.roomLocked(r.Tenant); err != nil {
		return Webhook{}, err
	}
	if err := w.cfg.Storage.InsertWebhook(ctx, r); err != nil {
		return Webhook{}, fmt.Errorf("create webhook: %w", err)
	}
	w.startLocked(r)
	return r.Webhook, nil
}

func (w *Webhooks) roomLocked(tenant string) error {
	if w.closed {
		return &firebreak.Error{Kind: firebreak.KindUnavailable, Op: "create webhook", Err: errors.New("firebreak is shutting down")}
	}
	n := 0
	for _, h := range w.hooks {
		if h.record.Tenant == tenant {
			n++
		}
	}
	if n >= maxOfTenant || len(w.hooks) >= maxOfAll {
		return &firebreak.Error{Kind: firebreak.KindExhausted, Op: "create webhook",
			Err: fmt.Errorf("there may be %d of one tenant, and %d of all", maxOfTenant, maxOfAll), Mend: "delete one"}
	}
	return nil
}

// List returns the webhooks that the caller may see, the oldest first.
func (w *Webhooks) List(ctx context.Context) ([]Webhook, error) {
	c, err := auth.CallerOf(ctx)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []Webhook
	for _, h := range w.hooks {
		if c.May(h.record.Tenant) {
			all = append(all, h.record.Webhook)
		}
	}
	slices.SortFunc(all, func(a, b Webhook) int {
		if n := a.Created.Compare(b.Created); n != 0 {
			return n
		}
		return strings.Compare(a.ID, b.ID)
	})
	return all, nil
}

// Get returns one webhook. fs.ErrNotExist if there is none that the caller may see.
func (w *Webhooks) Get(ctx context.Context, id string) (Webhook, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	h, err := w.findLocked(ctx, id)
	if err != nil {
		return Webhook{}, err
	}
	return h.record.Webhook, nil
}

func (w *Webhooks) findLocked(ctx context.Context, id string) (*hook, error) {
	c, err := auth.CallerOf(ctx)
	if err != nil {
		return nil, err
	}
	h := w.hooks[id]
	if h == nil || !c.May(h.record.Tenant) || w.closed {
		return nil, &firebreak.Error{Kind: firebreak.KindNotFound, Op: "find webhook", Err: fmt.Errorf("there is no webhook %.60q: %w", id, fs.ErrNotExist)}
	}
	return h, nil
}

// Change says what of a webhook is to be otherwise; nil leaves it.
type Change struct {
	Name    *string
	URL     *string
	Enabled *bool
	Events  []event.Type
	Secret  *Secret
}

// Update changes a webhook. One that was disabled gets what happens from now on. fs.ErrNotExist as with Get.
func (w *Webhooks) Update(ctx context.Context, id string, c Change) (Webhook, error) {
	last, err := w.cfg.Events.Last(ctx)
	if err != nil {
		return Webhook{}, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	h, err := w.findLocked(ctx, id)
	if err != nil {
		return Webhook{}, err
	}
	r := h.record
	set(&r.Name, c.Name)
	set(&r.URL, c.URL)
	set(&r.Secret, c.Secret)
	set(&r.Enabled, c.Enabled)
	if c.Events != nil {
		r.Events = compact(c.Events)
	}
	if err := w.check(r); err != nil {
		return Webhook{}, err
	}
	h.stop() // what it delivers now is delivered anew, to where it shall go
	if r.Cursor = h.cursor.Load(); r.Enabled && !h.record.Enabled {
		r.Cursor = last
	}
	err = w.cfg.Storage.PutWebhook(ctx, r)
	if err != nil {
		r, err = h.record, fmt.Errorf("update webhook: %w", err)
	}
	w.startLocked(r)
	return r.Webhook, err
}

func set[T any](to, from *T) {
	if from != nil {
		*to = *from
	}
}

// Delete removes a webhook. fs.ErrNotExist as with Get.
func (w *Webhooks) Delete(ctx context.Context, id string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	h, err := w.findLocked(ctx, id)
	if err != nil {
		return err
	}
	if err := w.cfg.Storage.DeleteWebhook(ctx, id); err != nil {
		return fmt.Errorf("delete webhook: %w", err)
	}
	h.stop()
	delete(w.hooks, id)
	return nil
}

func (w *Webhooks) check(r Record) error {
	err := checkURL(r.URL, w.cfg.AllowPrivate)
	switch {
	case err != nil:
	case len(r.Name) > maxName || !printable(r.Name):
		err = fmt.Errorf("its name is longer than %d bytes, or cannot be shown", maxName)
	case r.Secret == "" || len(r.Secret) > maxSecret || !utf8.ValidString(string(r.Secret)):
		err = fmt.Errorf("its secret is not from 1 to %d bytes of text", maxSecret)
	case len(r.Events) == 0:
		err = errors.New("it names no events")
	}
	for _, t := range r.Events {
		if t.E2B() == "" && err == nil {
			err = fmt.Errorf("there are no events %.60q to be sent", t)
		}
	}
	if err != nil {
		return &firebreak.Error{Kind: firebreak.KindInvalid, Op: "check webhook", Err: err}
	}
	return nil
}

func printable(text string) bool {
	return utf8.ValidString(text) && !strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) })
}

// compact returns the types in order and each once.
func compact(types []event.Type) []event.Type {
	types = slices.Clone(types)
	slices.Sort(types)
	return slices.Compact(types)
}
