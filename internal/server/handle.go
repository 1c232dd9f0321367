package server

import (
	"context"
	"net/http"
	"strings"

	"github.com/firebreak-dev/firebreak/internal/answer"
)

// door is where a request goes.
type door int

const (
	doorOwn  door = iota // what the server answers itself
	doorData             // into a sandbox
	doorRPC
	doorMCP
	doorE2B
)

// doorOf decides by what cannot be mistaken: a request into a sandbox says so, and all paths there are the sandbox's.
func (s *Server) doorOf(r *http.Request) door {
	switch {
	case s.cfg.DataPlane != nil && s.cfg.DataPlane.Addressed(r):
		return doorData
	case s.own(r.URL.Path) != nil:
		return doorOwn
	case strings.HasPrefix(r.URL.Path, "/firebreak.v1."), isPublicRPC(r.URL.Path):
		return doorRPC
	case r.URL.Path == "/mcp" && s.cfg.MCP != nil:
		return doorMCP
	}
	return doorE2B
}

// isPublicRPC reports whether a path is of a service of gRPC itself: health and reflection tell nothing of anybody.
func isPublicRPC(path string) bool { return strings.HasPrefix(path, "/grpc.") }

// handler is the way of every request, from the outside in.
func (s *Server) handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d, wr := s.doorOf(r), &answer.Writer{ResponseWriter: w}
		ctx, entry := s.startEntry(wr, r, d)
		defer entry.end()
		r = r.WithContext(ctx)
		defer s.limitRest(wr, r)
		defer s.recoverPanic(wr, r)
		s.enter(wr, r, d)
	})
}

// enter takes a request to its door. What goes into a sandbox is the data plane's from here on, and may be called from web
// pages as that says.
func (s *Server) enter(w *answer.Writer, r *http.Request, d door) {
	switch {
	case d == doorOwn:
		s.own(r.URL.Path)(w, r)
	case d == doorData || len(s.cfg.Origins) == 0:
		s.pass(w, r, d)
	default:
		s.cors.ServeHTTP(w, r, func(_ http.ResponseWriter, r *http.Request) { s.pass(w, r, d) })
	}
}

// pass lets a request through its door, or refuses it.
func (s *Server) pass(w *answer.Writer, r *http.Request, d door) {
	ctx, err := s.identify(r, d)
	if err != nil {
		refuse(w, r, d, err)
		return
	}
	if isLong(r, d) || d == doorMCP { // whose requests arrive at once, but may be answered for long
		var done func()
		ctx, done = s.withEnd(ctx)
		defer done()
	}
	r = r.WithContext(ctx)
	h := s.handlerOf(d)
	switch {
	case h == nil:
		writeError(w, http.StatusNotFound, "there is nothing at this path")
	case d == doorData, d == doorE2B && s.cfg.Upload != nil && s.cfg.Upload(r):
		h.ServeHTTP(w, r)
	case s.limitBody(w, r, d):
		h.ServeHTTP(w, r)
	}
}

func (s *Server) handlerOf(d door) http.Handler {
	switch d {
	case doorData:
		return s.cfg.DataPlane
	case doorRPC:
		return s.cfg.RPC
	case doorMCP:
		return s.cfg.MCP
	}
	return s.cfg.E2B
}

// withEnd has a context end, because of ErrClosing, when the server begins to.
func (s *Server) withEnd(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(s.streams, func() { cancel(ErrClosing) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}

// isLong reports whether a request may go on for as long as its client likes.
func isLong(r *http.Request, d door) bool {
	method := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
	if d == doorRPC {
		switch method {
		case "WaitSandbox", "WatchSandboxes", "MakeTemplate", "Doctor", "Watch", "ServerReflectionInfo":
			return true
		}
		return false
	}
	if d != doorData {
		return false
	}
	switch r.URL.Path {
	case "/process.Process/Start", "/process.Process/Connect", "/process.Process/StreamInput", "/filesystem.Filesystem/WatchDir", "/execute":
		return true
	}
	kind := r.Header.Get("Content-Type")
	return r.Header.Get("Upgrade") != "" || strings.HasPrefix(kind, "application/connect+") || strings.HasPrefix(kind, "application/grpc") ||
		strings.Contains(r.Header.Get("Accept"), "text/event-stream")
}
