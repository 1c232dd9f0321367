// Package e2b is the door for E2B's clients: the REST API by which they make, find, pause and end sandboxes. It answers as
// E2B does, and where this version lacks something, says so in one sentence. It translates; what a caller may do is
// decided below.
package e2b

import (
	"context"
	"crypto/rand"
	"log/slog"
	"net/http"
	"time"

	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/image"
	"github.com/firebreak-dev/firebreak/internal/manager"
	"github.com/firebreak-dev/firebreak/internal/store"
)

// Sandboxes makes, finds and ends sandboxes, on behalf of the caller in the context.
type Sandboxes interface {
	Create(ctx context.Context, req manager.Request) (store.Record, manager.Timings, error)
	Find(ctx context.Context, ref string) (store.Record, error)
	Get(ctx context.Context, ref string) (store.Record, error)
	List(ctx context.Context) ([]store.Record, error)
	Delete(ctx context.Context, ref string) (store.Record, error)
}

// Lives changes them.
type Lives interface {
	SetTimeout(ctx context.Context, ref string, d time.Duration, extendOnly bool) (store.Record, error)
	Pause(ctx context.Context, ref string) (store.Record, error)
	Resume(ctx context.Context, ref string, d time.Duration) (rec store.Record, resumed bool, err error)
	Annotate(ctx context.Context, ref string, notes map[string]string) (store.Record, error)
}

// Guests reaches into them.
type Guests interface {
	Guest(ctx context.Context, ref string) (*guest.Guest, error)
}

// Templates knows what sandboxes start from.
type Templates interface {
	Has(name string) bool
	Get(name string) (image.Template, error)
	List() ([]image.Template, error)
	Delete(name string) error
}

// Builds knows the templates that clients have built.
type Builds interface {
	// Resolve returns what the template that the caller calls ref, by name or ID, is called among Templates. fs.ErrNotExist if
	// there is none that he may use.
	Resolve(ctx context.Context, ref string) (string, error)
}

// Attempts remembers the requests that have a key.
type Attempts interface {
	BeginAttempt(ctx context.Context, a store.Attempt) (saved store.Attempt, first bool, err error)
	FinishAttempt(ctx context.Context, a store.Attempt) error
	DropAttempt(ctx context.Context, a store.Attempt) error
}

// EnvdVersion is the version of E2B's own agent whose abilities ours has, as clients ask for them: the last one that
// brought something which they can tell is 0.6.7, the end of an upload that stalls.
const EnvdVersion = "0.6.7"

const (
	defaultMaxTimeout = 24 * time.Hour
	clientID          = "firebreak" // of no use any more, but required
)

// Config is what the door is made of. The first block is needed.
type Config struct {
	Sandboxes Sandboxes
	Lives     Lives
	Guests    Guests
	Templates Templates
	Attempts  Attempts
	Log       *slog.Logger

	// These four are package build's engine. nil: clients build no templates.
	Builds  Builds
	Builder Builder
	Built   Built
	Tags    Tagger

	Events   Events   // nil: there are none, and no logs
	Webhooks Webhooks // nil: there are none

	PublicURL   string            // where clients reach this server, for what they upload; empty: where their requests came
	Domain      string            // below which sandboxes have host names, as clients are told it; empty: none
	EnvdVersion string            // that clients are told; empty: EnvdVersion
	MaxTimeout  time.Duration     // the longest that may be asked for at once; 0: a day
	Aliases     map[string]string // what a template's name stands for where there is none of that name; nil: DefaultAliases
}

// DefaultAliases has the names that E2B's clients ask for by themselves mean what every host has, until somebody builds
// templates of those names.
func DefaultAliases() map[string]string {
	return map[string]string{"base": "host", "code-interpreter-v1": "code-interpreter", "code-interpreter": "base"}
}

// Door answers E2B's clients. It may be used concurrently.
type Door struct {
	cfg     Config
	mux     *http.ServeMux
	process string // stands for this process in Attempts
	metrics histories
}

// New makes the door. Who calls is in the requests' contexts (package auth).
func New(cfg Config) *Door {
	if cfg.EnvdVersion == "" {
		cfg.EnvdVersion = EnvdVersion
	}
	if cfg.MaxTimeout == 0 {
		cfg.MaxTimeout = defaultMaxTimeout
	}
	if cfg.Aliases == nil {
		cfg.Aliases = DefaultAliases()
	}
	d := &Door{cfg: cfg, mux: http.NewServeMux(), process: rand.Text(), metrics: histories{of: map[string]*history{}}}
	d.routes()
	return d
}

// ServeHTTP implements http.Handler.
func (d *Door) ServeHTTP(w http.ResponseWriter, r *http.Request) { d.mux.ServeHTTP(w, r) }

// Public reports whether the door answers a request of nobody.
func Public(r *http.Request) bool {
	return r.URL.Path == "/health" && r.Method == http.MethodGet || IsUpload(r)
}

// handler answers a request of a caller. An error is answered in the one form that errors have.
type handler func(w http.ResponseWriter, r *http.Request, by auth.Caller) error

func (d *Door) handle(pattern string, h handler) {
	d.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		by, err := auth.CallerOf(r.Context())
		if err != nil {
			d.fail(w, r, apiError{status: http.StatusUnauthorized, message: "an API key is needed: send it as X-API-KEY"})
			return
		}
		if err := h(w, r, by); err != nil {
			d.fail(w, r, err)
		}
	})
}

func (d *Door) routes() {
	d.mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	for _, v := range versions() {
		d.handle("POST "+v.prefix+"/sandboxes", d.serveCreate(v))
		d.handle("GET "+v.prefix+"/sandboxes", d.serveList(v))
		d.handle("POST "+v.prefix+"/sandboxes/{id}/connect", d.serveConnect(v))
	}
	d.handle("GET /sandboxes/{id}", d.serveGet)
	d.handle("DELETE /sandboxes/{id}", d.serveKill)
	d.handle("POST /sandboxes/{id}/resume", d.serveResume)
	d.handle("POST /sandboxes/{id}/pause", d.servePause)
	d.handle("POST /sandboxes/{id}/timeout", d.serveTimeout)
	d.handle("POST /sandboxes/{id}/refreshes", d.serveRefresh)
	d.handle("PUT /sandboxes/{id}/network", d.serveNetwork)
	d.handle("GET /sandboxes/{id}/metrics", d.serveMetrics)
	d.handle("GET /sandboxes/metrics", d.serveAllMetrics)
	d.handle("GET /sandboxes/{id}/logs", d.serveLogsV1)
	d.handle("GET /v2/sandboxes/{id}/logs", d.serveLogsV2)
	d.templateRoutes()
	d.buildRoutes()
	d.tagRoutes()
	d.eventRoutes()
	d.missingRoutes()
}

// version is what differs between the two versions of the API.
type version struct {
	prefix         string
	timeout        time.Duration // of a sandbox, where the request says none
	connectTimeout bool          // a connect may leave it out
	states         bool          // lists have sandboxes of more states than running, on pages
}

func versions() []version {
	return []version{
		{timeout: 15 * time.Second},
		{prefix: "/v2", timeout: 300 * time.Second, connectTimeout: true, states: true},
	}
}
