package e2b_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/fake"
	"github.com/firebreak-dev/firebreak/internal/e2b"
	"github.com/firebreak-dev/firebreak/internal/image"
	"github.com/firebreak-dev/firebreak/internal/manager"
	"github.com/firebreak-dev/firebreak/internal/store"
)

// templates is a set of names.
type templates struct {
	mu    sync.Mutex
	names []string // guarded by mu
}

func (s *templates) Has(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Contains(s.names, name)
}

func (s *templates) Get(name string) (image.Template, error) {
	if !s.Has(name) {
		return image.Template{}, &firebreak.Error{Kind: firebreak.KindNotFound, Err: fmt.Errorf("template %q: %w", name, fs.ErrNotExist)}
	}
	return image.Template{Name: name, Digest: "sha256:" + strings.Repeat("ab", 32)}, nil
}

func (s *templates) List() ([]image.Template, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []image.Template
	for _, name := range s.names {
		all = append(all, image.Template{Name: name})
	}
	return all, nil
}

func (s *templates) Delete(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.names = slices.DeleteFunc(s.names, func(n string) bool { return n == name })
	return nil
}

func (s *templates) RootOf(_ context.Context, t image.Template, _ []driver.Form) (driver.Root, error) {
	_, err := s.Get(t.Name)
	return driver.Root{Form: driver.FormDirectory, Path: "/"}, err
}

// oneDriver is a set of one.
type oneDriver struct {
	name string
	driver.Driver
}

func (d oneDriver) Names() []string { return []string{d.name} }

func (d oneDriver) Keeper(name string) (driver.Driver, error) {
	if name != d.name {
		return nil, fs.ErrNotExist
	}
	return d.Driver, nil
}

func (d oneDriver) Maker(_ context.Context, name string) (driver.Driver, error) {
	return d.Keeper(name)
}

// anything is a policy that accepts the driver of a test for all.
const anything = `
name: anything
technologies:
  - {name: fake, boundary: language, start: 1ms, warm: 1ms, get: use another test}
  - {name: process, boundary: none, linux: true, start: 1ms, warm: 1ms, get: use another test}
rules:
  - {id: all, when: true, boundaries: [language, none], reason: It is a test., source: this file}
`

// sandboxes is the real manager, which a test may have fail.
type sandboxes struct {
	*manager.Manager
	driver string // which no policy chooses unless it is named
	mu     sync.Mutex
	create func(manager.Request) error // guarded by mu; asked before each
}

func (s *sandboxes) Create(ctx context.Context, req manager.Request) (store.Record, manager.Timings, error) {
	s.mu.Lock()
	ask := s.create
	s.mu.Unlock()
	if ask != nil {
		if err := ask(req); err != nil {
			return store.Record{}, manager.Timings{}, err
		}
	}
	req.Driver = s.driver
	return s.Manager.Create(ctx, req)
}

func (s *sandboxes) onCreate(f func(manager.Request) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.create = f
}

// world is a door on the real manager, with a driver that holds nothing but agents.
type world struct {
	t         *testing.T
	sandboxes *sandboxes
	store     *store.Store
	templates *templates
	door      *e2b.Door
	cfg       e2b.Config
	server    *httptest.Server

	close  func() // ends the manager, and leaves the sandboxes
	closed bool   // by the test
}

// newWorld makes one. Requests are on behalf of the tenant in their header X-Tenant: "operator" is the operator, and
// nobody is nobody.
func newWorld(t *testing.T, change func(*e2b.Config)) *world {
	t.Helper()
	return newWorldOn(t, t.TempDir(), oneDriver{"fake", fake.New()}, change)
}

// newWorldOn makes one on a state directory, where there may have been one before.
func newWorldOn(t *testing.T, dir string, drivers oneDriver, change func(*e2b.Config)) *world {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	s, err := store.Open(t.Context(), dir, log)
	if err != nil {
		t.Fatal(err)
	}
	policy := filepath.Join(t.TempDir(), "policy.yaml")
	if err := os.WriteFile(policy, []byte(anything), 0o600); err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, store: s, templates: &templates{names: []string{"host", "python:3.13", "acme/own:default", "other/secret:default"}}}
	m, err := manager.New(manager.Config{StateDir: dir, Store: s, Images: w.templates, Drivers: drivers, Policy: policy, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	w.close = sync.OnceFunc(func() {
		if err := errors.Join(m.Close(), s.Close()); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(w.close)
	t.Cleanup(func() {
		if w.closed {
			return
		}
		all, err := m.List(auth.WithCaller(context.Background(), auth.Caller{Operator: true}))
		for _, rec := range all {
			_, lost := m.Delete(auth.WithCaller(context.Background(), auth.Caller{Operator: true}), string(rec.ID))
			err = errors.Join(err, lost)
		}
		if err != nil {
			t.Error(err)
		}
	})
	w.sandboxes = &sandboxes{Manager: m, driver: drivers.name}
	w.cfg = e2b.Config{Sandboxes: w.sandboxes, Lives: m, Guests: m, Templates: w.templates, Attempts: s, Log: log, Domain: "box.test:7443"}
	if change != nil {
		change(&w.cfg)
	}
	w.door = e2b.New(w.cfg)
	w.server = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.door.ServeHTTP(rw, r.WithContext(as(r.Context(), r.Header.Get("X-Tenant"))))
	}))
	t.Cleanup(w.server.Close)
	return w
}

func as(ctx context.Context, tenant string) context.Context {
	switch tenant {
	case "nobody":
		return ctx
	case "operator":
		return auth.WithCaller(ctx, auth.Caller{Operator: true})
	}
	return auth.WithCaller(ctx, auth.Caller{Tenant: auth.Tenant{ID: tenant}})
}

// response is an answer, read.
type response struct {
	*http.Response
	body []byte
}

// ask sends a request of a tenant; body is JSON, or text of it.
func (w *world) ask(tenant, method, path string, body any, header ...string) response {
	w.t.Helper()
	text, ok := body.(string)
	if !ok && body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			w.t.Fatal(err)
		}
		text = string(b)
	}
	// No length: clients send their bodies in chunks.
	req, err := http.NewRequestWithContext(w.t.Context(), method, w.server.URL+path, io.MultiReader(strings.NewReader(text)))
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set("X-Tenant", tenant)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := w.server.Client().Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	if len(b) == 0 && res.StatusCode != http.StatusNoContent {
		w.t.Errorf("%s %s: %d with nothing", method, path, res.StatusCode)
	}
	return response{res, b}
}

// want fails the test unless the answer has a status, and if that is an error's, its form.
func (r response) want(t *testing.T, what string, status int, parts ...string) {
	t.Helper()
	if r.StatusCode != status {
		t.Errorf("%s: %d, want %d: %s", what, r.StatusCode, status, r.body)
		return
	}
	for _, part := range parts {
		if !bytes.Contains(r.body, []byte(part)) {
			t.Errorf("%s: %s does not tell of %q", what, r.body, part)
		}
	}
	if status < 400 {
		return
	}
	var e struct {
		Code    int
		Message string
	}
	if err := json.Unmarshal(r.body, &e); err != nil || e.Code != status || e.Message == "" || r.Header.Get("Content-Type") != "application/json" {
		t.Errorf("%s: an error in the form %s, %v", what, r.body, err)
	}
}

// into reads the answer.
func (r response) into(t *testing.T, v any) {
	t.Helper()
	if err := json.Unmarshal(r.body, v); err != nil {
		t.Fatalf("%d %s: %v", r.StatusCode, r.body, err)
	}
}

// sandbox is what a create answers.
type sandbox struct {
	SandboxID, TemplateID, ClientID, Alias, EnvdVersion string
	EnvdAccessToken, TrafficAccessToken, Domain         string
	Warnings                                            []string
}

// make makes a sandbox of a tenant, with the fields of body.
func (w *world) make(tenant string, body map[string]any) sandbox {
	w.t.Helper()
	if body == nil {
		body = map[string]any{}
	}
	if body["templateID"] == nil {
		body["templateID"] = "host"
	}
	res := w.ask(tenant, "POST", "/v2/sandboxes", body)
	res.want(w.t, "create", 201)
	var sb sandbox
	res.into(w.t, &sb)
	return sb
}

// record is what the manager knows of a sandbox.
func (w *world) record(id string) store.Record {
	w.t.Helper()
	rec, err := w.sandboxes.Get(as(w.t.Context(), "operator"), id)
	if err != nil {
		w.t.Fatal(err)
	}
	return rec
}

type object = map[string]any

func marshal(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
