package dataplane_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/agent"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/dataplane"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/store"
)

// sandboxes stands in for the manager, by its contract. The agents behind it are real.
type sandboxes struct {
	mu      sync.Mutex
	records map[string]*store.Record
	guests  map[string]*guest.Guest
	resumed []string
	tried   int   // tokens that a match was asked about
	broken  error // of Guest
}

func (s *sandboxes) asOperator(ctx context.Context) error {
	if c, err := auth.CallerOf(ctx); err != nil || !c.Operator {
		return errors.Join(errors.New("not asked as the operator"), err)
	}
	return nil
}

func (s *sandboxes) Find(ctx context.Context, id string) (store.Record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.asOperator(ctx); err != nil {
		return store.Record{}, err
	}
	for full, rec := range s.records {
		if strings.HasPrefix(full, id) { // as the manager, which is asked by people too
			return *rec, nil
		}
	}
	return store.Record{}, &firebreak.Error{Kind: firebreak.KindNotFound, Err: fs.ErrNotExist}
}

func (s *sandboxes) Signed(ctx context.Context, match func(string) bool) (store.Record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.asOperator(ctx); err != nil {
		return store.Record{}, err
	}
	for _, rec := range s.records {
		s.tried++
		if match(rec.Token) {
			return *rec, nil
		}
	}
	return store.Record{}, fs.ErrNotExist
}

func (s *sandboxes) Guest(ctx context.Context, id string) (*guest.Guest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rec := s.records[id]
	switch {
	case s.broken != nil:
		return nil, s.broken
	case rec == nil:
		return nil, fs.ErrNotExist
	case rec.State == firebreak.StatePaused && !rec.AutoResume:
		return nil, &firebreak.Error{Kind: firebreak.KindState, Err: errors.New("it is paused")}
	case rec.State == firebreak.StatePaused:
		rec.State = firebreak.StateRunning
		s.resumed = append(s.resumed, id)
	}
	return s.guests[id], nil
}

// add makes a sandbox of tenant acme with a real agent in this process.
func (s *sandboxes) add(t testing.TB, id string) *store.Record {
	t.Helper()
	a, err := agent.New(agent.Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	address := filepath.Join(t.TempDir(), "a")
	l, err := net.Listen("unix", address)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- a.Serve(ctx, l) }()
	rec := &store.Record{ID: driver.ID(id), Tenant: "acme", State: firebreak.StateRunning, Token: "token-of-" + id,
		TrafficToken: "traffic-of-" + id, Annotations: map[string]string{}}
	g := guest.New(func(ctx context.Context) (net.Conn, error) { return new(net.Dialer).DialContext(ctx, "unix", address) }, rec.Token)
	t.Cleanup(func() {
		g.Close()
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
		a.Close()
	})
	me, err := user.Current()
	if err == nil {
		err = g.Init(t.Context(), guest.Config{User: me.Username})
	}
	if err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.records[id], s.guests[id] = rec, g
	return rec
}

func newSandboxes() *sandboxes {
	return &sandboxes{records: map[string]*store.Record{}, guests: map[string]*guest.Guest{}}
}

// world is a server with a data plane, and sandbox sb behind it.
type world struct {
	*sandboxes
	t      testing.TB
	plane  *dataplane.Plane
	server *httptest.Server
	rec    *store.Record
	caller auth.Caller // of all requests, if it is somebody
}

func newWorld(t testing.TB, change func(*dataplane.Config)) *world {
	t.Helper()
	w := &world{sandboxes: newSandboxes(), t: t}
	w.rec = w.add(t, "sb1")
	cfg := dataplane.Config{Sandboxes: w.sandboxes, Domain: "box.test:7070", Origins: []string{"*"}, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	if change != nil {
		change(&cfg)
	}
	w.plane = dataplane.New(cfg)
	next := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "not of the data plane", http.StatusTeapot)
	})
	h := w.plane.Or(next)
	w.server = httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if w.caller != (auth.Caller{}) {
			r = r.WithContext(auth.WithCaller(r.Context(), w.caller))
		}
		h.ServeHTTP(rw, r)
	}))
	w.server.EnableHTTP2 = true
	w.server.StartTLS()
	t.Cleanup(w.server.Close)
	return w
}

// ask sends a request; header "Host" is its host.
func (w *world) ask(method, target string, header http.Header) *http.Response {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), method, w.server.URL+target, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header = header.Clone()
	if req.Header == nil {
		req.Header = http.Header{}
	}
	req.Host = req.Header.Get("Host")
	req.Header.Del("Host")
	res, err := w.server.Client().Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { res.Body.Close() })
	return res
}

// inside starts a server on the loopback that the sandbox shares with this test.
func inside(t testing.TB, h http.HandlerFunc) (port string) {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	_, port, err := net.SplitHostPort(s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func to(id, port string) http.Header {
	return http.Header{"E2b-Sandbox-Id": {id}, "E2b-Sandbox-Port": {port}}
}

func with(h http.Header, pairs ...string) http.Header {
	h = h.Clone()
	for i := 0; i < len(pairs); i += 2 {
		h.Set(pairs[i], pairs[i+1])
	}
	return h
}

func hostOf(port, id string) string { return fmt.Sprintf("%s-%s.box.test:7070", port, id) }

func closedPort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}
