// Package dataplane passes on what is addressed into a sandbox: to its agent, to the code interpreter, and to the
// servers that its code opens. It finds out which sandbox a request is for, and lets in who may.
//
// What may come from anybody is answered in the form that E2B's clients understand. A sandbox's own servers are public
// unless its record says otherwise, as the clients expect; all else needs a token, a signature or an API key.
package dataplane

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"

	"github.com/rs/cors"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/store"
)

// CodePort is where the code interpreter answers inside.
const CodePort = 49999

// What the door of a sandbox notes for the data plane in Record.Annotations.
const (
	// AnnotationPrivate, if "true", has everybody who reaches the sandbox's ports show its traffic token.
	AnnotationPrivate = "dataplane/private"
	// AnnotationMaskHost is what the sandbox's servers are told as Host. ${PORT} in it is the port.
	AnnotationMaskHost = "dataplane/mask-host"
)

// Sandboxes finds sandboxes, whoever they belong to.
type Sandboxes interface {
	// Find returns the sandbox of this ID, or another one that the text may mean. fs.ErrNotExist if there is none.
	Find(ctx context.Context, id string) (store.Record, error)
	// Signed returns the running or paused sandbox for whose agent's token match is true. fs.ErrNotExist if there is none.
	Signed(ctx context.Context, match func(token string) bool) (store.Record, error)
	// Guest returns the host's end of a sandbox's agent. One that is paused is resumed first if its record says so, else
	// that is an error of firebreak.KindState.
	Guest(ctx context.Context, id string) (*guest.Guest, error)
}

// Config is what a data plane is made of. All but Sandboxes and Log may be left out.
type Config struct {
	Sandboxes Sandboxes
	Log       *slog.Logger

	Domain     string   // hosts <port>-<id>.<Domain> are sandboxes; empty: below any domain
	Origins    []string // of web pages that may call: "*" is all, as a page needs a token like everybody else
	PerSandbox int      // requests to one sandbox at once; 0: 1000
}

const defaultPerSandbox = 1000

// Plane is a data plane. It may be used concurrently.
type Plane struct {
	cfg      Config
	domain   string // without its port
	ports    *httputil.ReverseProxy
	cors     *cors.Cors
	crowds   crowds
	searches chan struct{} // held by the one who tries a signature on all tokens
}

// New makes a data plane.
func New(cfg Config) *Plane {
	if cfg.PerSandbox == 0 {
		cfg.PerSandbox = defaultPerSandbox
	}
	domain := strings.ToLower(cfg.Domain)
	if host, _, err := net.SplitHostPort(domain); err == nil {
		domain = host
	}
	return &Plane{
		cfg: cfg, domain: strings.Trim(domain, "."), ports: newPorts(), cors: newCORS(cfg.Origins),
		crowds: crowds{most: cfg.PerSandbox, now: map[string]int{}}, searches: make(chan struct{}, 1),
	}
}

func newCORS(origins []string) *cors.Cors {
	return cors.New(cors.Options{
		AllowedOrigins: origins, // not empty: that would be all
		AllowedMethods: []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete},
		AllowedHeaders: []string{"*"},
		ExposedHeaders: []string{"*"},
		MaxAge:         7200, // seconds: the most that a browser takes
	})
}

// Or returns a handler that sends what is for a sandbox there, and all else to next.
func (p *Plane) Or(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p.Addressed(r) {
			p.ServeHTTP(w, r)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// Addressed reports whether a request is for a sandbox, though perhaps for one that is not there.
func (p *Plane) Addressed(r *http.Request) bool {
	to, err := p.route(r)
	return err != nil || to.way != wayNone
}

// ServeHTTP implements http.Handler, for requests that Addressed is true of.
func (p *Plane) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	to, err := p.route(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	serve := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { p.serve(w, r, to) })
	if len(p.cfg.Origins) == 0 || to.port != guest.AgentPort && to.port != CodePort {
		serve(w, r) // what pages may call a sandbox's own server is for that server to say
		return
	}
	p.cors.ServeHTTP(w, r, serve)
}

func (p *Plane) serve(w http.ResponseWriter, r *http.Request, to address) {
	rec, err := p.find(r, to)
	if err == nil {
		to.id = string(rec.ID)
		err = authorize(r, to, rec)
	}
	if err == nil {
		err = awake(r, to, rec)
	}
	if err != nil {
		p.refuse(w, r, to, err)
		return
	}
	if !p.crowds.enter(to.id) {
		p.refuse(w, r, to, refusal{http.StatusTooManyRequests, "Too many requests to this sandbox are under way"})
		return
	}
	defer p.crowds.leave(to.id)
	g, err := p.cfg.Sandboxes.Guest(operator(r.Context()), to.id)
	if firebreak.KindOf(err) == firebreak.KindState { // perhaps because it has ended just now
		if _, lost := p.find(r, address{way: wayHeader, id: to.id}); lost != nil {
			err = lost
		}
	}
	if err != nil {
		p.refuse(w, r, to, err)
		return
	}
	p.pass(w, r, passage{to: to, rec: rec, guest: g})
}
