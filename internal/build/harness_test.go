package build

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/agentbin"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/container"
	"github.com/firebreak-dev/firebreak/internal/driver/gvisor"
	"github.com/firebreak-dev/firebreak/internal/driver/process"
	"github.com/firebreak-dev/firebreak/internal/image"
	"github.com/firebreak-dev/firebreak/internal/manager"
	"github.com/firebreak-dev/firebreak/internal/store"
)

func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// drivers is one driver, which is then what every policy chooses.
type drivers struct {
	name string
	driver.Driver
}

func (d drivers) Names() []string { return []string{d.name} }

func (d drivers) Keeper(name string) (driver.Driver, error) {
	if name != d.name {
		return nil, fs.ErrNotExist
	}
	return d.Driver, nil
}

func (d drivers) Maker(_ context.Context, name string) (driver.Driver, error) { return d.Keeper(name) }

// policyOf accepts one driver.
const policyOf = `
name: test
technologies:
  - {name: %[1]s, boundary: %[2]s, linux: true, start: 1ms, warm: 1ms, get: use another test}
rules:
  - {id: all, when: true, boundaries: [%[2]s], reason: It is a test., source: this file}
`

// gvisorProgram is what is re-executed as gVisor: a static one, whatever the test itself is.
var gvisorProgram = sync.OnceValues(func() (string, error) {
	if bin := os.Getenv("FIREBREAK_BIN"); bin != "" {
		return bin, nil
	}
	dir, err := os.MkdirTemp("", "build-test")
	if err != nil {
		return "", err
	}
	if err := os.Chmod(dir, 0o755); err != nil { // a sentry that needs no files is started as nobody
		return "", err
	}
	program := filepath.Join(dir, "program")
	build := exec.Command("go", "build", "-o", program, "../driver/gvisor/testdata/program")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, out)
	}
	return program, err
})

func TestMain(m *testing.M) {
	gvisor.MaybeMain()
	code := m.Run()
	if program, err := gvisorProgram(); err == nil && os.Getenv("FIREBREAK_BIN") == "" {
		_ = os.RemoveAll(filepath.Dir(program))
	}
	os.Exit(code)
}

// newDrivers makes the driver that a test is about, and skips the test where this host cannot serve it.
func newDrivers(t testing.TB, name, dir string) drivers {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	agent, err := agentbin.Path(t.Context(), filepath.Join(dir, "agent"), log)
	must(t, err)
	dir = filepath.Join(dir, "drivers", name)
	must(t, os.MkdirAll(dir, 0o700), os.Chmod(filepath.Dir(dir), 0o755), os.Chmod(dir, 0o755))
	var d driver.Driver
	switch name {
	case "gvisor":
		program, err := gvisorProgram()
		must(t, err)
		d = gvisor.New(gvisor.Config{StateDir: dir, Agent: agent, Exe: program, Log: log})
	case "container":
		d = container.New(container.Config{StateDir: dir, Agent: agent, Log: log})
	default:
		d = process.New(process.Config{StateDir: dir, Agent: agent, Log: log})
	}
	info, err := d.Probe(t.Context())
	if err == nil {
		err = info.Err()
	}
	if err == nil && name != "process" && os.Geteuid() != 0 {
		err = errors.New("only root has all owners of files")
	}
	if err != nil {
		if slices.Contains(strings.Split(os.Getenv("FIREBREAK_REQUIRE"), ","), name) {
			t.Fatalf("%s is required: %v", name, err)
		}
		t.Skipf("%s cannot serve here: %v", name, err)
	}
	return drivers{name, d}
}

// lab is an engine with all that it needs, for real.
type lab struct {
	*Engine
	t       testing.TB
	manager *manager.Manager
	images  *image.Store
	store   *store.Store
	driver  driver.Driver
	dir     string
}

// newLab opens an engine over a driver. Change may change its configuration.
func newLab(t testing.TB, name string, change func(*Config)) *lab {
	t.Helper()
	dir, err := os.MkdirTemp("", "lab") // not the test's own, which nobody else may enter
	must(t, err, os.Chmod(dir, 0o755))
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return newLabIn(t, name, dir, change)
}

// newLabIn opens an engine on a directory, where there may have been one before.
func newLabIn(t testing.TB, name, dir string, change func(*Config)) *lab {
	t.Helper()
	l := &lab{t: t, dir: dir}
	d := newDrivers(t, name, dir)
	l.driver = d.Driver
	info, err := d.Probe(t.Context())
	must(t, err)
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	policy := filepath.Join(dir, "policy.yaml")
	must(t, os.WriteFile(policy, fmt.Appendf(nil, policyOf, name, info.Boundary), 0o600))
	l.store, err = store.Open(t.Context(), dir, log)
	must(t, err)
	l.images, err = image.Open(filepath.Join(dir, "images"), log)
	must(t, err)
	l.manager, err = manager.New(manager.Config{StateDir: dir, Store: l.store, Images: l.images, Drivers: d, Policy: policy, Log: log})
	must(t, err)
	l.open(change)
	t.Cleanup(func() {
		must(t, l.Engine.Close())
		all, err := l.manager.List(operator(context.Background()))
		must(t, err)
		for _, r := range all {
			if r.Ended.IsZero() {
				t.Errorf("the sandbox %s is left", r.ID)
			}
		}
		must(t, l.manager.Close(), l.store.Close())
	})
	return l
}

// open makes the engine, as a process would that starts.
func (l *lab) open(change func(*Config)) {
	l.t.Helper()
	cfg := Config{Dir: filepath.Join(l.dir, "builds"), Sandboxes: l.manager, Images: l.images, Store: l.store,
		Log: slog.New(slog.NewTextHandler(l.t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))}
	if change != nil {
		change(&cfg)
	}
	e, err := New(cfg)
	must(l.t, err)
	e.readyPause = time.Millisecond
	l.Engine = e
}

// as returns a context of a tenant.
func as(t testing.TB, tenant string) context.Context {
	return auth.WithCaller(t.Context(), auth.Caller{Tenant: auth.Tenant{ID: tenant}})
}

// small makes the template small of a few of this host's programs.
func (l *lab) small() {
	l.t.Helper()
	root := filepath.Join(l.dir, "small")
	must(l.t, os.MkdirAll(root+"/usr/bin", 0o755), os.MkdirAll(root+"/etc", 0o755), os.Symlink("usr/bin", root+"/bin"),
		os.Symlink("usr/lib", root+"/lib"), os.Symlink("usr/lib64", root+"/lib64"), os.MkdirAll(root+"/tmp", 0o755), os.Chmod(root+"/tmp", 0o1777),
		os.WriteFile(root+"/etc/passwd", []byte("root:x:0:0::/root:/bin/bash\nuser:x:1000:1000::/home/user:/bin/bash\nweb:x:33:33::/srv:/bin/bash\n"), 0o644))
	for _, name := range []string{"bash", "cat", "chmod", "grep", "id", "ls", "mkdir", "rm", "sleep", "stat", "touch"} {
		path, err := exec.LookPath(name)
		must(l.t, err)
		copyProgram(l.t, path, root+"/usr/bin/"+name, root)
	}
	_, err := l.images.Make(l.t.Context(), image.Source{Path: root}, image.MakeOptions{Name: "small"})
	must(l.t, err)
}

// copyProgram copies a program and the libraries that it needs.
func copyProgram(t testing.TB, from, to, root string) {
	t.Helper()
	copyFile := func(from, to string) {
		data, err := os.ReadFile(from)
		must(t, err, os.MkdirAll(filepath.Dir(to), 0o755), os.WriteFile(to, data, 0o755))
	}
	copyFile(from, to)
	out, err := exec.Command("ldd", from).Output()
	must(t, err)
	for _, field := range strings.Fields(string(out)) {
		if filepath.IsAbs(field) {
			copyFile(field, root+"/usr"+strings.TrimPrefix(field, "/usr"))
		}
	}
}

// built is what came of a build.
type built struct {
	store.Build
	template store.Template
	log      []LogEntry
}

func (b built) text() string {
	var lines []string
	for _, e := range b.log {
		lines = append(lines, e.Text)
	}
	return strings.Join(lines, "\n")
}

// begin asks for a build and starts it.
func (l *lab) begin(ctx context.Context, name string, spec Spec) (store.Template, store.Build) {
	l.t.Helper()
	tpl, b, err := l.Request(ctx, Request{Name: name})
	must(l.t, err)
	must(l.t, l.Start(ctx, tpl.ID, b.ID, spec))
	return tpl, b
}

// wait returns a build when it has ended.
func (l *lab) wait(ctx context.Context, tpl store.Template, b store.Build) built {
	l.t.Helper()
	for {
		now, log, err := l.Status(ctx, tpl.ID, b.ID)
		must(l.t, err)
		if now.State == store.BuildReady || now.State == store.BuildFailed {
			tpl, err = l.store.Template(ctx, tpl.ID)
			must(l.t, err)
			return built{now, tpl, log}
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (l *lab) run(ctx context.Context, name string, spec Spec) built {
	l.t.Helper()
	tpl, b := l.begin(ctx, name, spec)
	return l.wait(ctx, tpl, b)
}

// mustBuild is run for what is to succeed.
func (l *lab) mustBuild(ctx context.Context, name string, spec Spec) built {
	l.t.Helper()
	b := l.run(ctx, name, spec)
	if b.State != store.BuildReady {
		l.t.Fatalf("the build failed at step %q: %s\n%s", b.Step, b.Reason, b.text())
	}
	return b
}

// inside runs a command in a new sandbox of a template, as the template's user, and returns what it prints.
func (l *lab) inside(ctx context.Context, ref, text string) string {
	l.t.Helper()
	name, err := l.Resolve(ctx, ref)
	must(l.t, err)
	rec, _, err := l.manager.Create(ctx, manager.Request{Template: name})
	must(l.t, err)
	defer func() {
		_, err := l.manager.Delete(ctx, string(rec.ID))
		must(l.t, err)
	}()
	g, err := l.manager.Guest(ctx, string(rec.ID))
	must(l.t, err)
	var out []string
	err = run(ctx, g, command{text: text, line: func(_ Level, line string) { out = append(out, line) }})
	if err != nil {
		out = append(out, err.Error())
	}
	return strings.Join(out, "\n")
}

// upload sends files, "name" and text by turns, for a COPY step, and returns their hash.
func (l *lab) upload(ctx context.Context, template string, pairs ...string) string {
	l.t.Helper()
	return l.uploadRaw(ctx, template, packed(l.t, pairs...))
}

func (l *lab) uploadRaw(ctx context.Context, template string, archive []byte) string {
	l.t.Helper()
	sum := sha256.Sum256(archive)
	u, err := l.Upload(ctx, template, hex.EncodeToString(sum[:]))
	must(l.t, err, l.Receive(context.Background(), u.Token, u.Template, u.Hash, bytes.NewReader(archive)))
	return u.Hash
}

// packed is a compressed archive: names that end in a slash are directories.
func packed(t testing.TB, pairs ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for i := 0; i < len(pairs); i += 2 {
		h := &tar.Header{Name: pairs[i], Mode: 0o644, Size: int64(len(pairs[i+1])), ModTime: time.Unix(1e9, 0)}
		if strings.HasSuffix(h.Name, "/") {
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		}
		must(t, w.WriteHeader(h))
		_, err := io.WriteString(w, pairs[i+1])
		must(t, err)
	}
	must(t, w.Close(), z.Close())
	return b.Bytes()
}

// tarDirectory writes a directory as an archive.
func tarDirectory(w io.Writer, dir string) error {
	out := tar.NewWriter(w)
	return errors.Join(out.AddFS(os.DirFS(dir)), out.Close())
}
