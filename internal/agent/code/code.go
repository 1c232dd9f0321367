// Package code runs code in contexts for the agent: interpreters that keep their state from one run to the next, served
// over E2B's code interpreter protocol.
package code

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/firebreak-dev/firebreak/internal/agent/account"
)

// Port is where clients of the protocol expect it.
const Port = 49999

// What a client, or code that runs, can make the agent hold or do at most.
const (
	maxContexts = 32
	maxWaiting  = 64       // runs in one context's queue
	maxBody     = 4 << 20  // of a request
	maxCode     = 1 << 20  // of one run
	maxFrame    = 8 << 20  // from a kernel: one result with all its forms
	maxText     = 32 << 10 // of one line of the stream that tells of output
	maxStream   = 64 << 20 // of all lines of one run
	maxIdle     = 64 << 10 // of output between two runs
)

// Config is what a Service needs.
type Config struct {
	Session *account.Session
	Place   Place
	Stat    func(path string) (fs.FileInfo, error) // of the sandbox's files, to find where a context can begin
}

// Service holds the contexts of a sandbox.
type Service struct {
	Config

	mu       sync.Mutex
	contexts []*Context          // in the order in which they were made
	defaults map[string]*Context // by language
	closed   bool
}

// New returns a service without contexts.
func New(c Config) *Service {
	return &Service{Config: c, defaults: map[string]*Context{}}
}

// Handler answers what comes to Port.
func (s *Service) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { answer(w, "OK") })
	mux.HandleFunc("POST /execute", s.serveExecute)
	mux.HandleFunc("GET /contexts", s.serveList)
	mux.HandleFunc("POST /contexts", s.serveCreate)
	mux.HandleFunc("DELETE /contexts/{id}", s.serveDelete)
	mux.HandleFunc("POST /contexts/{id}/restart", s.serveRestart)
	return mux
}

// Close ends all contexts and waits for their kernels.
func (s *Service) Close() {
	s.mu.Lock()
	s.closed = true
	contexts := s.contexts
	s.contexts = nil
	s.mu.Unlock()
	for _, c := range contexts {
		c.end("the sandbox ends")
	}
	s.Place.Close()
}

func fail(status int, format string, args ...any) error {
	return Fail(status, fmt.Errorf(format, args...))
}

// Create makes a context and starts its kernel, so that it is ready when the first code comes. An empty language is
// python, an empty directory where the user begins.
func (s *Service) Create(language, dir string) (*Context, error) {
	c, err := s.add(language, dir, false)
	if err != nil {
		return nil, err
	}
	if _, err := c.live(); err != nil {
		s.Delete(c.ID) //nolint:errcheck // somebody else did
		return nil, err
	}
	return c, nil
}

// Default is the context of those runs in a language that name none. It is made with the first.
func (s *Service) Default(language string) (*Context, error) { return s.add(language, "", true) }

func (s *Service) add(name, dir string, byDefault bool) (*Context, error) {
	l, err := s.Place.Language(strings.ToLower(name))
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.defaults[l.Name]; byDefault && c != nil {
		return c, nil
	}
	user, err := s.Session.User("")
	switch {
	case err != nil:
		return nil, fail(http.StatusInternalServerError, "find the sandbox's user: %w", err)
	case s.closed:
		return nil, fail(http.StatusServiceUnavailable, "the sandbox ends")
	case len(s.contexts) >= maxContexts:
		return nil, fail(http.StatusTooManyRequests, "there are %d contexts already, and no more are allowed: delete one", maxContexts)
	case strings.Contains(dir, "\x00"):
		return nil, fail(http.StatusBadRequest, "cwd %q holds a zero byte", dir)
	}
	where := s.begin(user, dir)
	switch info, err := s.Stat(where); {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fail(http.StatusBadRequest, "cwd '%s' does not exist", where)
	case err == nil && !info.IsDir():
		return nil, fail(http.StatusBadRequest, "cwd '%s' is not a directory", where)
	}
	c := &Context{ID: newID(), Language: l.Name, Dir: where, service: s, language: l, user: user, turn: make(chan struct{}, 1)}
	s.contexts = append(s.contexts, c)
	if byDefault {
		s.defaults[l.Name] = c
	}
	return c, nil
}

// begin is where a context begins: in the root if nobody asked for a directory and the user's own does not exist.
func (s *Service) begin(u account.User, dir string) string {
	path := s.Session.Path(u, dir)
	if info, err := s.Stat(path); dir == "" && (err != nil || !info.IsDir()) {
		return "/"
	}
	return path
}

func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// Find returns the context with this id.
func (s *Service) Find(id string) (*Context, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.IndexFunc(s.contexts, func(c *Context) bool { return c.ID == id }); i >= 0 {
		return s.contexts[i], nil
	}
	return nil, fail(http.StatusNotFound, "Context %s not found", id)
}

// List returns the contexts. The default ones of python and javascript are among them before they are used, because
// clients look for them there.
func (s *Service) List() []*Context {
	for _, language := range []string{"javascript", "python"} {
		if l, err := s.Place.Language(language); err == nil && s.Place.Offers(l) {
			_, _ = s.Default(language) // not without a user, nor beyond the limit
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.contexts)
}

// Delete ends a context, and what runs in it.
func (s *Service) Delete(id string) error {
	c, err := s.Find(id)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.contexts = slices.DeleteFunc(s.contexts, func(other *Context) bool { return other == c })
	if s.defaults[c.Language] == c {
		delete(s.defaults, c.Language)
	}
	s.mu.Unlock()
	c.end("the context was deleted")
	return nil
}

// statusOf is the HTTP status of an error; what is not a failure is ours.
func statusOf(err error) int {
	if f := (failure{}); errors.As(err, &f) {
		return f.status
	}
	return http.StatusInternalServerError
}

// Warm starts the kernel of a language's default context and returns when it is ready, so that the first run need not wait
// for that.
func (s *Service) Warm(ctx context.Context, language string) error {
	c, err := s.Default(language)
	if err != nil {
		return err
	}
	k, err := c.live()
	if err != nil {
		return err
	}
	return k.Ready(ctx)
}

// ServeWarm is Warm for the sandbox's host, with the language in the path.
func (s *Service) ServeWarm(w http.ResponseWriter, r *http.Request) {
	if err := s.Warm(r.Context(), r.PathValue("language")); err != nil {
		refuse(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}
