package e2b

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"net/http"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/dataplane"
	"github.com/firebreak-dev/firebreak/internal/manager"
	"github.com/firebreak-dev/firebreak/internal/store"
)

const (
	maxPairs    = 256      // of metadata
	maxMetadata = 32 << 10 // bytes of metadata, keys and values together
	maxTag      = 255      // bytes of a template's name
)

// creation is the body of a create.
type creation struct {
	TemplateID          string            `json:"templateID"`
	Timeout             *int64            `json:"timeout"` // seconds
	Metadata            map[string]string `json:"metadata"`
	EnvVars             map[string]string `json:"envVars"`
	Secure              *bool             `json:"secure"` // every sandbox is
	AllowInternetAccess *bool             `json:"allow_internet_access"`
	AutoPause           bool              `json:"autoPause"`
	AutoPauseMemory     *bool             `json:"autoPauseMemory"`
	AutoResume          *struct {
		Enabled bool `json:"enabled"`
	} `json:"autoResume"`
	Network      *network          `json:"network"`
	IAM          json.RawMessage   `json:"iam"`
	VolumeMounts []json.RawMessage `json:"volumeMounts"`
}

// serveCreate makes a sandbox. Its field mcp is for clients, who set up what it says by themselves.
func (d *Door) serveCreate(v version) handler {
	return func(w http.ResponseWriter, r *http.Request, by auth.Caller) error {
		var c creation
		if err := readBody(w, r, maxCreate, &c); err != nil {
			return err
		}
		do := func(ctx context.Context, attempt string) (store.Record, error) {
			return d.create(ctx, by, v, c, attempt)
		}
		key, sent := r.Header["Idempotency-Key"]
		if sent {
			return d.once(w, r, by, attempt{key: key[0], asked: fingerprint(v, c), do: do})
		}
		rec, err := do(r.Context(), "")
		if err != nil {
			return err
		}
		return answerJSON(w, http.StatusCreated, d.sandboxView(by, rec))
	}
}

func (d *Door) create(ctx context.Context, by auth.Caller, v version, c creation, attempt string) (store.Record, error) {
	if err := c.check(); err != nil {
		return store.Record{}, err
	}
	timeout, err := d.timeoutOf(c.Timeout, v.timeout)
	if err != nil {
		return store.Record{}, err
	}
	template, err := d.resolve(ctx, by, c.TemplateID)
	if err != nil {
		return store.Record{}, err
	}
	req := manager.Request{
		Template: template.name, Lent: true, Envs: c.EnvVars, Timeout: timeout, Detached: true, Metadata: c.Metadata,
		Annotations: c.notes(), TrafficToken: rand.Text(), AutoResume: c.AutoResume != nil && c.AutoResume.Enabled,
	}
	if c.AutoPause {
		req.OnTimeout = firebreak.TimeoutPause
	}
	if template.note != "" {
		req.Annotations[noteTemplate] = c.TemplateID
	}
	if attempt != "" {
		req.Annotations[noteAttempt] = attempt
	}
	rec, _, err := d.cfg.Sandboxes.Create(ctx, req)
	return rec, err
}

// check refuses what is wrong with c itself, and what is not built.
func (c creation) check() error {
	private := c.Network != nil && c.Network.AllowPublicTraffic != nil && !*c.Network.AllowPublicTraffic
	switch {
	case len(c.TemplateID) > maxTag:
		return badRequest("templateID is longer than %d bytes", maxTag)
	case c.AutoPauseMemory != nil && !*c.AutoPauseMemory && !c.AutoPause:
		return badRequest("autoPauseMemory needs autoPause")
	case c.AutoPauseMemory != nil && !*c.AutoPauseMemory && c.AutoResume != nil && c.AutoResume.Enabled:
		return badRequest("autoResume needs the memory, which autoPauseMemory gives up")
	case c.AutoPauseMemory != nil && !*c.AutoPauseMemory:
		return noMemoryLess()
	case isSet(c.IAM):
		return notBuilt("identity tokens are not built: this version of firebreak has nothing to use them for")
	case len(c.VolumeMounts) > 0:
		return notBuilt("volumes are not built in this version of firebreak")
	case private && c.Secure != nil && !*c.Secure:
		return badRequest("allowPublicTraffic can be false only of a sandbox that is secure")
	}
	size := 0
	for k, v := range c.Metadata {
		size += len(k) + len(v)
	}
	if len(c.Metadata) > maxPairs || size > maxMetadata {
		return badRequest("%d pairs of metadata, %d bytes, are more than %d of %d", len(c.Metadata), size, maxPairs, maxMetadata)
	}
	if c.Network == nil {
		return nil
	}
	return c.Network.check()
}

func noMemoryLess() error {
	return notBuilt("a pause that gives up the memory is not built: a sandbox that is paused keeps it")
}

// notes is what is kept of c beside what the manager keeps anyway.
func (c creation) notes() map[string]string {
	notes := map[string]string{}
	if c.AllowInternetAccess != nil {
		notes[noteInternet] = boolNote(c.AllowInternetAccess)
	}
	n := c.Network
	if n == nil {
		return notes
	}
	if text := n.note(); text != "" {
		notes[noteNetwork] = text
	}
	if n.AllowPublicTraffic != nil && !*n.AllowPublicTraffic {
		notes[dataplane.AnnotationPrivate] = "true"
	}
	if n.MaskRequestHost != "" {
		notes[dataplane.AnnotationMaskHost] = n.MaskRequestHost
	}
	return notes
}

// timeoutOf reads a timeout in seconds.
func (d *Door) timeoutOf(asked *int64, absent time.Duration) (time.Duration, error) {
	most := int64(d.cfg.MaxTimeout / time.Second)
	switch {
	case asked == nil:
		return min(absent, d.cfg.MaxTimeout), nil
	case *asked <= 0:
		return 0, badRequest("a timeout of %d seconds is not greater than 0", *asked)
	case *asked > most:
		return 0, badRequest("a timeout of %d seconds is greater than %d, the most that this server gives at once", *asked, most)
	}
	return time.Duration(*asked) * time.Second, nil
}
