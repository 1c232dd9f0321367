package manager

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/fake"
	"github.com/firebreak-dev/firebreak/internal/image"
)

// catalogue is templates by name, and what was asked of it.
type catalogue struct {
	all map[string]image.Template

	mu    sync.Mutex
	asked []string // guarded by mu
}

func (c *catalogue) note(call, name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked = append(c.asked, call+" "+name)
}

func (c *catalogue) Get(name string) (image.Template, error) {
	c.note("get", name)
	t, ok := c.all[name]
	if !ok {
		return t, fmt.Errorf("template %q: %w", name, fs.ErrNotExist)
	}
	t.Name = name
	return t, nil
}

func (c *catalogue) Has(name string) bool {
	c.note("has", name)
	_, ok := c.all[name]
	return ok
}

func (c *catalogue) RootOf(_ context.Context, t image.Template, forms []driver.Form) (driver.Root, error) {
	for _, form := range forms {
		if slices.Contains(t.Forms(), form) {
			return driver.Root{Form: form, Path: "/" + t.Name, Language: t.Language}, nil
		}
	}
	return driver.Root{}, errors.ErrUnsupported
}

// spy is the fake driver that keeps what it was told to make, and takes all options.
type spy struct {
	*posing
	mu   sync.Mutex
	last driver.Spec // guarded by mu
}

func (s *spy) Create(ctx context.Context, spec driver.Spec) (driver.Sandbox, error) {
	s.mu.Lock()
	s.last = spec
	s.mu.Unlock()
	spec.Options, spec.Mounts = nil, nil
	return s.posing.Create(ctx, spec)
}

func (s *spy) made() driver.Spec {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last
}

// linguists are fakes that pose as the drivers of languages, beside those of Linux.
type linguists struct {
	*testHost
	drivers drivers
	images  *catalogue
}

func (h *testHost) linguists() *linguists {
	pose := func(name string, b firebreak.Boundary, caps driver.Caps, forms ...driver.Form) *spy {
		return &spy{posing: &posing{Driver: fake.New(), info: driver.Info{Name: name, Boundary: b, Caps: caps, Forms: forms}}}
	}
	linux := []driver.Form{driver.FormDirectory, driver.FormDisk}
	return &linguists{testHost: h, drivers: drivers{
		"wasm":      pose("wasm", firebreak.BoundaryLanguage, driver.CapMounts, driver.FormModule),
		"v8":        pose("v8", firebreak.BoundaryLanguage, 0, driver.FormScript),
		"gvisor":    pose("gvisor", firebreak.BoundaryUserKernel, driver.CapDetach|driver.CapMounts, linux...),
		"container": pose("container", firebreak.BoundarySharedKernel, driver.CapDetach, linux...),
	}, images: &catalogue{all: map[string]image.Template{
		"host":   {Digest: "sha256:0"},
		"debian": {Digest: "sha256:1"},
		"filter": {Digest: "sha256:2", Form: image.FormModule, Command: []string{"filter"}},
		"hooks":  {Digest: "sha256:3", Form: image.FormScript, Language: "javascript"},
	}}}
}

// setUp adds what firebreak setup would.
func (l *linguists) setUp(names ...string) *linguists {
	for _, name := range names {
		form, language := image.FormModule, name[strings.Index(name, "-")+1:]
		if strings.HasPrefix(name, "v8-") {
			form = image.FormScript
		}
		l.images.all[name] = image.Template{Digest: "sha256:" + name, Form: form, Language: language}
	}
	return l
}

func (l *linguists) manager(t testing.TB, set ...func(*Config)) *Manager {
	return l.process(t, append([]func(*Config){func(c *Config) {
		c.Policy, c.Drivers, c.Images = "", l.drivers, l.images
	}}, set...)...)
}

func TestFit(t *testing.T) {
	compute := firebreak.Workload{Needs: firebreak.NeedCompute}
	plugin, shell := firebreak.Workload{Plugin: true}, firebreak.Workload{Needs: firebreak.NeedLinux}
	fetches := map[string]string{"fetch": "api.example.com"}
	for name, c := range map[string]struct {
		there            []string
		req              Request
		driver, template string // what is made
		text, mend       string // of the refusal, or of why not the first that the policy accepts
	}{
		"python computes":          {[]string{"wasm-python"}, Request{Language: "python", Workload: compute}, "wasm", "wasm-python", "", ""},
		"python is not set up":     {nil, Request{Language: "python", Workload: compute}, "gvisor", "host", "there is no template wasm-python", "firebreak setup wasm"},
		"javascript, both there":   {[]string{"wasm-javascript", "v8-javascript"}, Request{Language: "javascript", Workload: compute}, "wasm", "wasm-javascript", "", ""},
		"javascript, V8 there":     {[]string{"v8-javascript"}, Request{Language: "javascript", Workload: compute}, "v8", "v8-javascript", "there is no template wasm-javascript", "firebreak setup wasm"},
		"typescript":               {[]string{"v8-typescript"}, Request{Language: "typescript", Workload: plugin}, "v8", "v8-typescript", "there is no template wasm-typescript", "--name wasm-typescript --language typescript"},
		"another's own language":   {[]string{"wasm-lua"}, Request{Language: "lua", Workload: compute}, "wasm", "wasm-lua", "", ""},
		"a shell is needed":        {[]string{"wasm-python"}, Request{Language: "python", Workload: shell}, "gvisor", "host", "", ""},
		"nothing is said":          {[]string{"wasm-python"}, Request{Language: "python"}, "gvisor", "host", "", ""},
		"no language":              {[]string{"wasm-python"}, Request{Workload: compute}, "gvisor", "host", "nobody says what is to run", "--lang"},
		"host":                     {[]string{"wasm-python"}, Request{Workload: compute, Language: "python", Template: "host"}, "gvisor", "host", "template host has programs of Linux", ""},
		"a root file system":       {[]string{"wasm-python"}, Request{Workload: compute, Language: "python", Template: "debian"}, "gvisor", "debian", "template debian holds programs of Linux, and wasm runs WebAssembly modules", ""},
		"a module":                 {nil, Request{Template: "filter"}, "wasm", "filter", "", ""},
		"a plugin":                 {nil, Request{Template: "filter", Workload: plugin}, "wasm", "filter", "", ""},
		"scripts":                  {nil, Request{Template: "hooks"}, "v8", "hooks", "template hooks holds JavaScript modules, and wasm runs WebAssembly modules", ""},
		"named":                    {[]string{"wasm-ruby"}, Request{Driver: "wasm", Language: "ruby", Workload: compute}, "wasm", "wasm-ruby", "", ""},
		"named, not set up":        {nil, Request{Driver: "wasm", Language: "ruby", Workload: compute}, "", "", "wasm cannot run here: there is no template wasm-ruby", "firebreak setup wasm"},
		"named, no such language":  {nil, Request{Driver: "v8", Language: "python", Workload: compute}, "", "", "v8 cannot run here: it runs javascript and typescript, and not python", ""},
		"named, no language":       {nil, Request{Driver: "wasm", Workload: compute}, "", "", "nobody says what is to run", "--template"},
		"named, another's module":  {nil, Request{Driver: "gvisor", Template: "filter"}, "", "", "template filter is a WebAssembly module, and gvisor runs programs of Linux", "--isolation wasm"},
		"named, whole program":     {[]string{"wasm-python"}, Request{Driver: "wasm", Language: "python"}, "", "", "rule whole-program", ""},
		"a module for a container": {nil, Request{Driver: "container", Template: "hooks", Workload: firebreak.Workload{Origin: firebreak.OriginTrusted}}, "", "", "template hooks holds JavaScript modules, and container runs programs of Linux", "--isolation v8"},
		"a module that asks more":  {nil, Request{Template: "filter", Workload: shell}, "", "", "gvisor: template filter is a WebAssembly module", ""},
		"detached":                 {[]string{"wasm-python"}, Request{Language: "python", Workload: compute, Detached: true}, "gvisor", "host", "its sandboxes end with the program that makes them", "firebreak serve"},
		"detached, a module":       {nil, Request{Template: "filter", Detached: true}, "", "", "its sandboxes end with the program that makes them", "firebreak serve"},
		"a mount":                  {[]string{"wasm-python"}, Request{Language: "python", Workload: compute, Mounts: []driver.Mount{{Source: "/usr", Target: "/x", ReadOnly: true}}}, "wasm", "wasm-python", "", ""},
		"a mount, V8":              {[]string{"v8-javascript"}, Request{Language: "javascript", Workload: compute, Mounts: []driver.Mount{{Source: "/usr", Target: "/x", ReadOnly: true}}}, "gvisor", "host", "v8 has no mounts", "leave it out"},
		"a mount to write":         {[]string{"wasm-python"}, Request{Language: "python", Workload: compute, Mounts: []driver.Mount{{Source: "/usr", Target: "/x"}}}, "gvisor", "host", "wasm only reads what is mounted", ":ro"},
		"a limit":                  {nil, Request{Template: "filter", Limits: firebreak.Limits{CPUs: 1}}, "", "", "wasm has no limit-cpu", ""},
		"a module fetches":         {nil, Request{Template: "filter", Options: fetches}, "wasm", "filter", "", ""},
		"a command fetches":        {nil, Request{Options: fetches}, "", "", "gvisor: it cannot allow fetch", "only a WebAssembly module"},
		"a container fetches":      {nil, Request{Driver: "container", Options: fetches, Workload: firebreak.Workload{Origin: firebreak.OriginTrusted}}, "", "", "container cannot run here: it cannot allow fetch", "MODULE.wasm"},
		"an isolate fetches":       {nil, Request{Template: "hooks", Options: fetches}, "", "", "v8: it cannot allow fetch", ""},
		"no such template":         {nil, Request{Template: "nowhere"}, "", "", `template "nowhere"`, ""},
		"no name of a language":    {nil, Request{Language: "../python"}, "", "", "no name of a language", ""},
	} {
		t.Run(name, func(t *testing.T) {
			l := newHost(t).linguists().setUp(c.there...)
			m := l.manager(t)
			rec, _, err := m.Create(operator(t.Context()), c.req)
			if c.driver == "" {
				e := new(firebreak.Error)
				if err == nil || !strings.Contains(err.Error(), c.text) || c.mend != "" && (!errors.As(err, &e) || !strings.Contains(e.Mend, c.mend)) {
					t.Errorf("%v, want %q; to mend it: %q", err, c.text, c.mend)
				}
				return
			}
			if err != nil || rec.Driver != c.driver || rec.Template != c.template {
				t.Fatalf("%s from %s, %v; want %s from %s", rec.Driver, rec.Template, err, c.driver, c.template)
			}
			if spec := l.drivers[c.driver].(*spy).made(); spec.Root.Path != "/"+c.template || spec.Root.Language != l.images.all[c.template].Language {
				t.Errorf("it starts from %+v", spec.Root)
			}
			if c.text == "" {
				return
			}
			for _, o := range rec.Decision.Others {
				if o.Problem != nil && strings.Contains(o.Problem.Text, c.text) && strings.Contains(o.Problem.Mend, c.mend) {
					return
				}
			}
			t.Errorf("no other driver says %q and %q: %+v", c.text, c.mend, rec.Decision.Others)
		})
	}
}

// TestFitIsAskedAnew: what was decided without a language's template does not hold once it is there, nor the other way
// round, in this process and in the next.
func TestFitIsAskedAnew(t *testing.T) {
	l := newHost(t).linguists()
	q := Question{Language: "python", Workload: firebreak.Workload{Needs: firebreak.NeedCompute}}
	first, second := l.manager(t), l.manager(t)
	for round, want := range []string{"gvisor", "wasm", "gvisor", "wasm"} {
		if delete(l.images.all, "wasm-python"); want == "wasm" {
			l.setUp("wasm-python")
		}
		for i, m := range []*Manager{first, second} {
			if d, err := m.Advise(operator(t.Context()), q); err != nil || d.Driver != want {
				t.Errorf("round %d, process %d: %s, %v, want %s", round, i, d.Driver, err, want)
			}
		}
	}
}

// TestFitReadsNothing for those who say nothing of a language, and one record for those who name a template.
func TestFitReadsNothing(t *testing.T) {
	for want, req := range map[string]Request{
		"get host":                               {},
		"get debian":                             {Template: "debian"},
		"has v8-python,has wasm-python,get host": {Language: "python"},
	} {
		l := newHost(t).linguists()
		mustCreate(t, l.manager(t), req)
		if got := strings.Join(l.images.asked, ","); got != want {
			t.Errorf("%+v asked for %s, want %s", req, got, want)
		}
	}
}

func TestOptionsReachTheDriver(t *testing.T) {
	l := newHost(t).linguists()
	m := l.manager(t, func(c *Config) { c.Adopt = true })
	options := map[string]string{"fuel": "1000", "fetch": "api.example.com"}
	rec := mustCreate(t, m, Request{Template: "filter", Options: options, Detached: true})
	if text := strings.Join(rec.Warnings, "\n"); !strings.Contains(text, "may fetch from api.example.com") {
		t.Errorf("warnings %q", text)
	}
	if got := l.drivers["wasm"].(*spy).made().Options; !maps.Equal(got, options) {
		t.Errorf("the driver was told %v", got)
	}
	if _, _, err := m.Create(operator(t.Context()), Request{Options: map[string]string{"x": strings.Repeat("y", maxOptions)}}); firebreak.KindOf(err) != firebreak.KindInvalid {
		t.Errorf("many options: %v", err)
	}
	ask := func(key string) error {
		_, _, err := m.Create(tenant(t.Context(), "a", auth.Limits{}), Request{Template: "filter", Options: map[string]string{key: "1"}})
		return err
	}
	if err := ask("fuel"); err != nil {
		t.Errorf("a tenant's own limit: %v", err)
	}
	if err := ask("fetch"); firebreak.KindOf(err) != firebreak.KindDenied {
		t.Errorf("a tenant's way to the host: %v", err)
	}
}

// TestPoolsAreOfOptions: what was made with other options is not handed out.
func TestPoolsAreOfOptions(t *testing.T) {
	l := newHost(t).linguists()
	m := l.manager(t, func(c *Config) { c.Adopt = true })
	if err := m.SetPools(operator(t.Context()), []Pool{{Template: "filter", Min: 1, Max: 1}}); err != nil {
		t.Fatal(err)
	}
	for m.Pools()[0].Ready == 0 {
		time.Sleep(time.Millisecond)
	}
	_, asked, err := m.Create(operator(t.Context()), Request{Template: "filter", Options: map[string]string{"fuel": "1"}})
	_, plain, err2 := m.Create(operator(t.Context()), Request{Template: "filter"})
	if err := errors.Join(err, err2); err != nil || asked.Pool != "" || plain.Pool == "" {
		t.Errorf("with options from pool %q, without from %q, %v", asked.Pool, plain.Pool, err)
	}
}

// TestBoundSandboxesEndWithTheirMaker, and whoever asks later is told so.
func TestBoundSandboxesEndWithTheirMaker(t *testing.T) {
	l := newHost(t).linguists()
	maker := l.manager(t, func(c *Config) { c.Adopt = true })
	rec := mustCreate(t, maker, Request{Template: "filter", Detached: true})
	other := mustCreate(t, maker, Request{Detached: true})

	if got, err := maker.Get(operator(t.Context()), string(rec.ID)); err != nil || got.Elsewhere {
		t.Errorf("the maker gets %+v, %v", got, err)
	}

	// Another process does not reach it while its maker lives, and takes it for nothing else.
	l.drivers = maps.Clone(l.drivers)
	l.drivers["wasm"] = &spy{posing: &posing{Driver: fake.New(), info: l.drivers["wasm"].(*spy).info}}
	beside := l.manager(t)
	if got := records(t, beside)[rec.ID]; got.State != firebreak.StateRunning {
		t.Errorf("beside its maker: %+v", got)
	}
	_, guestErr := beside.Guest(operator(t.Context()), string(rec.ID))
	_, deleteErr := beside.Delete(operator(t.Context()), string(rec.ID))
	for what, err := range map[string]error{"reach": guestErr, "delete": deleteErr} {
		if !errors.Is(err, errElsewhere) || firebreak.KindOf(err) != firebreak.KindState {
			t.Errorf("%s: %v", what, err)
		}
	}
	if got, err := beside.Get(operator(t.Context()), string(rec.ID)); err != nil || got.State != firebreak.StateRunning || !got.Elsewhere {
		t.Errorf("get: %+v, %v", got, err)
	}

	if err := maker.Close(); err != nil {
		t.Fatal(err)
	}
	next := l.manager(t, func(c *Config) { c.Adopt = true })
	got := records(t, next)
	if e := got[rec.ID].Exit; got[rec.ID].State != firebreak.StateEnded || e.Reason != firebreak.EndLost || !strings.Contains(e.Detail, "process of firebreak, which ended") {
		t.Errorf("after its maker: %+v", got[rec.ID])
	}
	if got[other.ID].State != firebreak.StateRunning {
		t.Errorf("one that outlives its maker: %+v", got[other.ID])
	}
	if ended := got[rec.ID].Ended; ended.IsZero() || time.Since(ended) < 0 {
		t.Errorf("it ended at %s", ended)
	}
}
