package server

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"time"

	"github.com/firebreak-dev/firebreak/internal/answer"
	"github.com/firebreak-dev/firebreak/internal/auth"
)

const (
	headerID = "X-Request-Id"
	maxPath  = 200 // bytes of a path in the log
)

// entry is the line of the log about one request.
type entry struct {
	server  *Server
	w       *answer.Writer
	request *http.Request
	door    door
	id      string
	began   time.Time
	tenant  *string
}

type tenantKey struct{}

// startEntry gives a request an identity, which the answer of a control request carries too.
func (s *Server) startEntry(w *answer.Writer, r *http.Request, d door) (context.Context, *entry) {
	e := &entry{server: s, w: w, request: r, door: d, id: requestID(r), began: time.Now(), tenant: new(string)}
	if d != doorData { // there, headers are the sandbox's
		w.Header().Set(headerID, e.id)
	}
	return context.WithValue(r.Context(), tenantKey{}, e.tenant), e
}

// noteCaller tells the log on whose behalf a request is.
func noteCaller(ctx context.Context, c auth.Caller) {
	if tenant, ok := ctx.Value(tenantKey{}).(*string); ok {
		*tenant = c.Tenant.ID
		if c.Operator {
			*tenant = "operator"
		}
	}
}

// requestID is the client's own, if it can be shown, or a new one.
func requestID(r *http.Request) string {
	id := r.Header.Get(headerID)
	ok := id != "" && len(id) <= 64
	for _, c := range []byte(id) {
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.')
	}
	if !ok {
		id = rand.Text()
	}
	return id
}

// end writes the line, once the request is answered. Queries are left out: they may hold signatures.
func (e *entry) end() {
	level := slog.LevelInfo
	if e.door == doorData || e.door == doorOwn {
		level = slog.LevelDebug
	}
	if !e.server.log.Enabled(context.Background(), level) {
		return
	}
	e.w.End()
	path := e.request.URL.Path
	args := []any{"method", e.request.Method, "path", path[:min(len(path), maxPath)], "status", e.w.Status(),
		"duration", time.Since(e.began).Round(time.Microsecond), "id", e.id, "remote", e.request.RemoteAddr}
	if *e.tenant != "" {
		args = append(args, "tenant", *e.tenant)
	}
	e.server.log.Log(context.Background(), level, "request", args...)
}

// recoverPanic turns a handler's panic into an answer, if there is none yet, and a line in the log.
func (s *Server) recoverPanic(w *answer.Writer, r *http.Request) {
	p := recover()
	if p == nil {
		return
	}
	if p == http.ErrAbortHandler {
		panic(p) // net/http then breaks the answer off, which is what is meant
	}
	s.log.Error("a handler panicked", "panic", fmt.Sprint(p), "method", r.Method, "path", r.URL.Path, "stack", string(debug.Stack()))
	if w.Status() != 0 { // what was begun must not look whole
		panic(http.ErrAbortHandler)
	}
	writeError(w, http.StatusInternalServerError, "internal server error")
}
