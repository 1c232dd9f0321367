package agent

import (
	"context"
	"net/http"

	"connectrpc.com/connect"

	"github.com/firebreak-dev/firebreak/internal/agent/archive"
	"github.com/firebreak-dev/firebreak/internal/agent/files"
	"github.com/firebreak-dev/firebreak/internal/agent/proc"
)

// Protocol is all that agents answer, for the agent that is in a request's context. To make it takes longer than all else
// of an agent, so those of one process share it.
type Protocol struct{ mux *http.ServeMux }

type agentKey struct{}

func agentOf(ctx context.Context) *Agent { return ctx.Value(agentKey{}).(*Agent) }

// NewProtocol returns a protocol. What needs no token is named in claim.admits.
func NewProtocol() *Protocol {
	mux := http.NewServeMux()
	// Most messages are small, and a compressor costs more than it saves on them.
	limits := []connect.HandlerOption{connect.WithReadMaxBytes(maxMessage), connect.WithCompressMinBytes(minCompressed)}
	mux.Handle(proc.Handler(func(ctx context.Context) *proc.Manager { return agentOf(ctx).procs }, limits...))
	filesOf := func(ctx context.Context) *files.Service { return agentOf(ctx).files }
	mux.Handle(files.Handler(filesOf, limits...))
	files.Routes(mux, filesOf, func(r *http.Request, operation string) error { return agentOf(r.Context()).claim.signed(r, operation) })
	archive.Routes(mux, func(ctx context.Context) *archive.Service { return agentOf(ctx).archive })
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	for pattern, serve := range map[string]func(*Agent, http.ResponseWriter, *http.Request){
		"GET /metrics":          (*Agent).serveMetrics,
		"GET /envs":             (*Agent).serveEnvs,
		"POST /init":            (*Agent).serveInit,
		"POST /ports/{port}":    (*Agent).servePort,
		"POST /warm/{language}": func(a *Agent, w http.ResponseWriter, r *http.Request) { a.code.ServeWarm(w, r) },
	} {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { serve(agentOf(r.Context()), w, r) })
	}
	return &Protocol{mux}
}

// ServeHTTP answers one request. A caller of this process needs no stream to the agent for it; the request's context ends
// with Live.
func (a *Agent) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.requests.add(1)
	defer a.requests.add(-1)
	if a.live.Err() != nil { // nobody waits for it any more
		panic(http.ErrAbortHandler)
	}
	if !a.claim.admits(r) {
		files.Error(w, http.StatusUnauthorized, errUnauthorized)
		return
	}
	a.protocol.mux.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), agentKey{}, a)))
}

// Live is done when the agent begins to end: then requests are cut.
func (a *Agent) Live() context.Context { return a.live }
