package e2b

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"strings"
	"time"

	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/event"
	"github.com/firebreak-dev/firebreak/internal/webhook"
)

// Events tells what happened to the sandboxes of the caller.
type Events interface {
	List(ctx context.Context, f event.Filter) ([]event.Event, error)
}

// Webhooks keeps the caller's.
type Webhooks interface {
	Create(ctx context.Context, s webhook.Spec) (webhook.Webhook, error)
	List(ctx context.Context) ([]webhook.Webhook, error)
	Get(ctx context.Context, id string) (webhook.Webhook, error)
	Update(ctx context.Context, id string, c webhook.Change) (webhook.Webhook, error)
	Delete(ctx context.Context, id string) error
}

const (
	eventPage    = 10
	maxEventPage = 100
)

func (d *Door) eventRoutes() {
	d.handle("GET /events/sandboxes", d.serveEvents)
	d.handle("GET /events/sandboxes/{id}", d.serveEvents)
	for pattern, h := range map[string]handler{
		"POST /events/webhooks":        d.serveCreateWebhook,
		"GET /events/webhooks":         d.serveWebhooks,
		"GET /events/webhooks/{id}":    d.serveWebhook,
		"PATCH /events/webhooks/{id}":  d.serveUpdateWebhook,
		"DELETE /events/webhooks/{id}": d.serveDeleteWebhook,
	} {
		d.handle(pattern, func(w http.ResponseWriter, r *http.Request, by auth.Caller) error {
			if d.cfg.Webhooks == nil {
				return notBuilt("this server sends no events: webhooks are not built into it")
			}
			return h(w, r, by)
		})
	}
}

// serveEvents lists the events of one sandbox, or of all, the newest first.
func (d *Door) serveEvents(w http.ResponseWriter, r *http.Request, _ auth.Caller) error {
	q := r.URL.Query()
	offset, err := queryInt(r, "offset", 0, 0, event.MaxOffset)
	if err != nil {
		return err
	}
	limit, err := queryInt(r, "limit", eventPage, 1, maxEventPage)
	if err != nil {
		return err
	}
	f := event.Filter{Sandbox: r.PathValue("id"), Types: event.E2BTypes(), Offset: int(offset), Limit: int(limit)}
	switch asc := q.Get("orderAsc"); asc {
	case "", "false":
	case "true":
		f.Asc = true
	default:
		return badRequest("orderAsc=%.50s is neither true nor false", asc)
	}
	if types := strings.Join(q["types"], ","); types != "" {
		if f.Types, err = parseTypes(strings.Split(types, ",")); err != nil {
			return err
		}
	}
	found, err := d.eventsOf(r.Context(), f)
	if err != nil {
		return err
	}
	if len(found) == 0 && f.Sandbox != "" {
		if err := d.known(r, f.Sandbox); err != nil {
			return err
		}
	}
	views := make([]event.E2BEvent, len(found))
	for i, e := range found {
		views[i] = e.ToE2B()
	}
	return answerJSON(w, http.StatusOK, views)
}

const maxTypes = 32

func parseTypes(names []string) ([]event.Type, error) {
	if len(names) > maxTypes {
		return nil, badRequest("%d types of events are more than %d", len(names), maxTypes)
	}
	types := []event.Type{} // not nil: none at all are none
	for _, name := range names {
		t, ok := event.TypeOfE2B(name)
		if !ok {
			return nil, badRequest("%.100q is no type of event", name)
		}
		types = append(types, t)
	}
	return types, nil
}

// webhookView is a webhook without its secret.
type webhookView struct {
	ID        string    `json:"id"`
	TeamID    string    `json:"teamId"`
	Name      string    `json:"name"`
	URL       string    `json:"url"`
	Enabled   bool      `json:"enabled"`
	Events    []string  `json:"events"`
	CreatedAt time.Time `json:"createdAt"`
}

func viewWebhook(h webhook.Webhook) webhookView {
	v := webhookView{ID: h.ID, TeamID: h.Tenant, Name: h.Name, URL: h.URL, Enabled: h.Enabled, Events: []string{}, CreatedAt: h.Created}
	for _, t := range h.Events {
		v.Events = append(v.Events, t.E2B())
	}
	return v
}

// webhookBody is what a client says of one.
type webhookBody struct {
	Name            *string  `json:"name"`
	URL             *string  `json:"url"`
	Enabled         *bool    `json:"enabled"`
	Events          []string `json:"events"`
	SignatureSecret *string  `json:"signatureSecret"`
}

func (d *Door) serveCreateWebhook(w http.ResponseWriter, r *http.Request, _ auth.Caller) error {
	var b webhookBody
	if err := readBody(w, r, maxBody, &b); err != nil {
		return err
	}
	types, err := parseTypes(b.Events)
	if err != nil {
		return err
	}
	if b.Name == nil || b.URL == nil || b.SignatureSecret == nil {
		return badRequest("a webhook needs a name, a url and a signatureSecret")
	}
	made, err := d.cfg.Webhooks.Create(r.Context(), webhook.Spec{Name: *b.Name, URL: *b.URL, Enabled: b.Enabled == nil || *b.Enabled,
		Events: types, Secret: webhook.Secret(*b.SignatureSecret)})
	if err != nil {
		return err
	}
	return answerJSON(w, http.StatusCreated, viewWebhook(made))
}

func (d *Door) serveWebhooks(w http.ResponseWriter, r *http.Request, _ auth.Caller) error {
	all, err := d.cfg.Webhooks.List(r.Context())
	if err != nil {
		return err
	}
	views := make([]webhookView, len(all))
	for i, h := range all {
		views[i] = viewWebhook(h)
	}
	return answerJSON(w, http.StatusOK, views)
}

func (d *Door) serveWebhook(w http.ResponseWriter, r *http.Request, _ auth.Caller) error {
	found, err := d.cfg.Webhooks.Get(r.Context(), r.PathValue("id"))
	if err != nil {
		return noWebhook(r, err)
	}
	return answerJSON(w, http.StatusOK, viewWebhook(found))
}

func noWebhook(r *http.Request, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return notFound("webhook", r.PathValue("id"))
	}
	return err
}

func (d *Door) serveUpdateWebhook(w http.ResponseWriter, r *http.Request, _ auth.Caller) error {
	var b webhookBody
	if err := readBody(w, r, maxBody, &b); err != nil {
		return err
	}
	change := webhook.Change{Name: b.Name, URL: b.URL, Enabled: b.Enabled}
	if b.SignatureSecret != nil {
		secret := webhook.Secret(*b.SignatureSecret)
		change.Secret = &secret
	}
	if b.Events != nil {
		var err error
		if change.Events, err = parseTypes(b.Events); err != nil {
			return err
		}
	}
	changed, err := d.cfg.Webhooks.Update(r.Context(), r.PathValue("id"), change)
	if err != nil {
		return noWebhook(r, err)
	}
	return answerJSON(w, http.StatusOK, viewWebhook(changed))
}

func (d *Door) serveDeleteWebhook(w http.ResponseWriter, r *http.Request, _ auth.Caller) error {
	if err := d.cfg.Webhooks.Delete(r.Context(), r.PathValue("id")); err != nil {
		return noWebhook(r, err)
	}
	return answerJSON(w, http.StatusOK, struct{}{}) // with a body: clients take an empty one for broken
}
