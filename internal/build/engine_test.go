package build

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/image"
	"github.com/firebreak-dev/firebreak/internal/store"
)

func runs(commands ...string) []Step {
	var steps []Step
	for _, c := range commands {
		steps = append(steps, Step{Type: "RUN", Args: []string{c}})
	}
	return steps
}

// cached counts the steps that a build took from what was kept.
func cached(b built) int { return strings.Count(b.text(), "CACHED [") }

func TestCache(t *testing.T) {
	l := newLab(t, "gvisor", nil)
	l.small()
	l.worth = 0 // every step is worth keeping
	ctx := as(t, "acme")
	spec := Spec{FromTemplate: "small", Steps: runs("echo 1 >>~/x", "echo 2 >>~/x", "echo 3 >>~/x")}
	l.mustBuild(ctx, "app", spec)
	for _, c := range []struct {
		about  string
		tenant string
		change func(*Spec)
		cached int
		want   string
	}{
		{"nothing", "acme", func(*Spec) {}, 3, "1\n2\n3"},
		{"the last step", "acme", func(s *Spec) { s.Steps[2].Args = []string{"echo 4 >>~/x"} }, 2, "1\n2\n4"},
		{"the first step", "acme", func(s *Spec) { s.Steps[0].Args = []string{"echo 0 >>~/x"} }, 0, "0\n2\n3"},
		{"one more", "acme", func(s *Spec) { s.Steps = append(s.Steps, runs("echo 5 >>~/x")...) }, 3, "1\n2\n3\n5"},
		{"one less", "acme", func(s *Spec) { s.Steps = s.Steps[:2] }, 2, "1\n2"},
		{"the second forced", "acme", func(s *Spec) { s.Steps[1].Force = true }, 1, "1\n2\n3"},
		{"all forced", "acme", func(s *Spec) { s.Force = true }, 0, "1\n2\n3"},
		{"as another tenant", "other", func(*Spec) {}, 0, "1\n2\n3"},
	} {
		s := spec
		s.Steps = slices.Clone(spec.Steps)
		c.change(&s)
		b := l.mustBuild(as(t, c.tenant), "app", s)
		if got := l.inside(as(t, c.tenant), "app", "cat ~/x"); cached(b) != c.cached || got != c.want {
			t.Errorf("%s changed: %d steps were kept, want %d; it holds %q", c.about, cached(b), c.cached, got)
		}
	}
	again := l.mustBuild(ctx, "copy", Spec{FromTemplate: "app", Steps: runs("echo 6 >>~/x")})
	if got := l.inside(ctx, "copy", "cat ~/x"); got != "1\n2\n3\n6" || again.template.Name != "copy" {
		t.Errorf("on top of another template: %q", got)
	}
}

func TestCacheIsBounded(t *testing.T) {
	l := newLab(t, "gvisor", func(c *Config) { c.Cache = 1 })
	l.small()
	ctx := as(t, "acme")
	l.mustBuild(ctx, "app", Spec{FromTemplate: "small", Steps: runs("echo 1 >~/x")})
	l.mustBuild(ctx, "app", Spec{FromTemplate: "small", Steps: runs("echo 2 >~/x")})
	must(t, l.Engine.Close()) // when it returns, what it does at the end of a build is done
	l.open(func(c *Config) { c.Cache = 1 })
	all, err := l.store.Layers(ctx)
	must(t, err)
	for _, layer := range all {
		layer.Used = layer.Used.Add(-time.Hour) // else it is spared
		must(t, l.store.PutLayer(ctx, layer))
	}
	l.tidyUp()
	if all, err := l.store.Layers(ctx); err != nil || len(all) != 0 {
		t.Errorf("left %+v, %v", all, err)
	}
	if got := l.inside(ctx, "app", "cat ~/x"); got != "2" {
		t.Errorf("the template is %q", got)
	}
	names, err := os.ReadDir(filepath.Join(l.dir, "images", "templates"))
	if err != nil || len(names) != 2 {
		t.Errorf("images %v, %v", names, err)
	}
}

func TestStartCommand(t *testing.T) {
	l := newLab(t, "gvisor", nil)
	l.small()
	ctx := as(t, "acme")
	spec := Spec{FromTemplate: "small", Steps: []Step{{Type: "ENV", Args: []string{"WORD", "up"}}, {Type: "USER", Args: []string{"web"}}, {Type: "WORKDIR", Args: []string{"/w"}}},
		Start: "echo begin; sleep 0.05; id -un >>$WORD; pwd; sleep 1000", Ready: "[ -s /w/up ]"}
	b := l.mustBuild(ctx, "app", spec)
	for _, line := range []string{"begin", "/w", "The template is ready"} {
		if !strings.Contains(b.text(), line) {
			t.Errorf("the log lacks %q:\n%s", line, b.text())
		}
	}
	tpl, err := l.images.Get("acme/app:default")
	if err != nil || tpl.Start != spec.Start || tpl.Ready != spec.Ready || tpl.User != "web" || tpl.Workdir != "/w" || tpl.Envs["WORD"] != "up" {
		t.Errorf("%+v, %v", tpl, err)
	}
	if got := l.inside(ctx, "app", "cat /w/up"); got != "web" { // of this sandbox, and not of the one that tried it
		t.Errorf("the start command wrote %q", got)
	}
	if again := l.mustBuild(ctx, "app", spec); !strings.Contains(again.text(), "CACHED start command") {
		t.Errorf("it was tried again:\n%s", again.text())
	}
	l.mustBuild(ctx, "child", Spec{FromTemplate: "app", Steps: runs("true")})
	if tpl, err := l.images.Get("acme/child:default"); err != nil || tpl.Start != spec.Start || tpl.User != "web" {
		t.Errorf("a template of it: %+v, %v", tpl, err)
	}
	l.readyTimeout = 200 * time.Millisecond
	late := l.run(ctx, "late", Spec{FromTemplate: "small", Start: "sleep 1000", Ready: "false"})
	if late.State != store.BuildFailed || late.Step != StepFinalize || !strings.Contains(late.Reason, "did not succeed within") {
		t.Errorf("never ready: %s at %q: %s", late.State, late.Step, late.Reason)
	}
	l.readyTimeout = time.Minute
	hanging := l.run(ctx, "late", Spec{FromTemplate: "small", Start: "exit 9", Ready: "sleep 1000"})
	if hanging.State != store.BuildFailed || !strings.Contains(hanging.Reason, "exit status 9") {
		t.Errorf("failed while the ready command hangs: %s: %s", hanging.State, hanging.Reason)
	}
	ended := l.mustBuild(ctx, "ended", Spec{FromTemplate: "small", Start: "touch /tmp/done"})
	if !strings.Contains(ended.text(), "ready") {
		t.Errorf("a start command that ends well:\n%s", ended.text())
	}
}

// serveRegistry serves the template small's files as an image.
func (l *lab) serveRegistry() string {
	l.t.Helper()
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	l.t.Cleanup(server.Close)
	host := strings.TrimPrefix(server.URL, "http://")
	var b bytes.Buffer
	must(l.t, tarDirectory(&b, filepath.Join(l.dir, "small")))
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	must(l.t, err)
	img, err := mutate.AppendLayers(empty.Image, layer)
	must(l.t, err)
	config, err := img.ConfigFile()
	must(l.t, err)
	config.OS, config.Architecture = "linux", "amd64"
	config.Config.User, config.Config.WorkingDir, config.Config.Env = "web", "/srv", []string{"FROM_IMAGE=yes"}
	img, err = mutate.ConfigFile(img, config)
	must(l.t, err)
	ref, err := name.ParseReference(host + "/o/small:1")
	must(l.t, err, remote.Write(ref, img))
	return host
}

func TestFromImage(t *testing.T) {
	var host string
	l := newLab(t, "gvisor", nil)
	l.small()
	host = l.serveRegistry()
	ctx := as(t, "acme")
	l.mustBuild(operator(t.Context()), "operators", Spec{FromImage: host + "/o/small:1", Steps: runs("true")}) // what he got is not for tenants
	denied := l.run(ctx, "app", Spec{FromImage: host + "/o/small:1"})
	if denied.State != store.BuildFailed || denied.Step != StepBase || !strings.Contains(denied.Reason, "not on the public Internet") {
		t.Errorf("a registry of this host: %s: %s", denied.State, denied.Reason)
	}
	l.cfg.Registries = []string{host}
	spec := Spec{FromImage: host + "/o/small:1", Steps: runs("id -un; pwd; echo $FROM_IMAGE")}
	b := l.mustBuild(ctx, "app", spec)
	if !strings.Contains(b.text(), "user\n/home/user\nyes") {
		t.Errorf("steps do not run as E2B has it:\n%s", b.text())
	}
	if got := l.inside(ctx, "app", "echo $FROM_IMAGE; [ -x /usr/local/bin/ss ] && ss -Htuln sport = :80; echo $?"); got != "yes\n0" {
		t.Errorf("inside it is %q", got)
	}
	other := l.mustBuild(as(t, "other"), "app", spec)
	if strings.Contains(other.text(), "pull ") {
		t.Errorf("it was pulled again for another tenant:\n%s", other.text())
	}
	spec.Force = true
	if forced := l.mustBuild(ctx, "app", spec); !strings.Contains(forced.text(), "pull ") {
		t.Errorf("it was not pulled again although all was forced:\n%s", forced.text())
	}
	imported := l.mustBuild(ctx, "imported", Spec{FromImage: "small", Steps: runs("pwd")})
	if !strings.Contains(imported.text(), "this server has the template small") || !strings.Contains(imported.text(), "/home/user") {
		t.Errorf("of a template that the operator made:\n%s", imported.text())
	}
	bare := filepath.Join(l.dir, "bare")
	must(t, os.MkdirAll(bare, 0o755), os.WriteFile(bare+"/file", []byte("x"), 0o644))
	_, err := l.images.Make(ctx, image.Source{Path: bare}, image.MakeOptions{Name: "bare"})
	must(t, err)
	shellless := l.run(ctx, "shellless", Spec{FromImage: "bare", Steps: runs("true")})
	if shellless.State != store.BuildFailed || shellless.Step != StepBase || !strings.Contains(shellless.Reason, "/bin/bash") {
		t.Errorf("without a shell: %s at %q: %s", shellless.State, shellless.Step, shellless.Reason)
	}
}

func TestRefusedAtOnce(t *testing.T) {
	l := newLab(t, "process", nil)
	l.small()
	ctx := as(t, "acme")
	for about, c := range map[string]struct {
		spec Spec
		kind firebreak.Kind
	}{
		"the host": {Spec{FromTemplate: "host"}, firebreak.KindInvalid}, "nothing there": {Spec{FromTemplate: "none"}, firebreak.KindNotFound},
		"another tenant's": {Spec{FromTemplate: "other/app"}, firebreak.KindNotFound}, "a layer": {Spec{FromTemplate: image.LayerName()}, firebreak.KindNotFound},
		"a path": {Spec{FromImage: "/etc"}, firebreak.KindInvalid}, "a bad step": {Spec{FromTemplate: "small", Steps: []Step{{Type: "X"}}}, firebreak.KindInvalid},
	} {
		tpl, b, err := l.Request(ctx, Request{Name: "app"})
		must(t, err)
		if err := l.Start(ctx, tpl.ID, b.ID, c.spec); firebreak.KindOf(err) != c.kind {
			t.Errorf("%s: %v", about, err)
		}
	}
	// A plain process would export the host.
	b := l.run(ctx, "app", Spec{FromTemplate: "small", Steps: runs("true")})
	if b.State != store.BuildFailed {
		t.Errorf("built in a plain process:\n%s", b.text())
	}
}

func TestTenants(t *testing.T) {
	l := newLab(t, "process", nil)
	l.small()
	mine, other := as(t, "acme"), as(t, "other")
	b := l.mustBuild(mine, "app", Spec{FromTemplate: "small"})
	for what, err := range map[string]error{
		"find by ID":   second(l.Resolve(other, b.template.ID)),
		"find by name": second(l.Resolve(other, "acme/app")),
		"its own":      second(l.Resolve(other, "app")),
		"status":       func() error { _, _, err := l.Status(other, b.template.ID, b.ID); return err }(),
		"upload":       second(l.Upload(other, b.template.ID, strings.Repeat("a", 64))),
		"builds":       second(l.Builds(other, b.template.ID)),
		"delete":       l.Delete(other, b.template.ID),
		"public":       second(l.SetPublic(other, b.template.ID, true)),
		"untag":        l.Untag(other, b.template.ID, []string{"x"}),
		"tag":          func() error { _, _, err := l.Tag(other, b.template.ID, []string{"x"}); return err }(),
		"start":        l.Start(other, b.template.ID, b.ID, Spec{FromTemplate: "small"}),
	} {
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s by another tenant: %v", what, err)
		}
	}
	if _, _, err := l.Request(other, Request{Name: "acme/app"}); firebreak.KindOf(err) != firebreak.KindInvalid {
		t.Errorf("a build in another tenant's name: %v", err)
	}
	if _, _, err := l.Request(t.Context(), Request{Name: "app"}); firebreak.KindOf(err) != firebreak.KindDenied {
		t.Errorf("a build of nobody: %v", err)
	}
	if list, err := l.List(other); err != nil || len(list) != 0 {
		t.Errorf("another tenant's list %v, %v", list, err)
	}
	if _, err := l.SetPublic(mine, "app", true); err != nil {
		t.Error(err)
	}
	if name, err := l.Resolve(other, "acme/app"); err != nil || name != "acme/app:default" {
		t.Errorf("a public one is %q, %v", name, err)
	}
	if err := l.Delete(other, "acme/app"); firebreak.KindOf(err) != firebreak.KindDenied {
		t.Errorf("a public one deleted by another: %v", err)
	}
	l.mustBuild(other, "mine", Spec{FromTemplate: "acme/app"})
	build, tags, err := l.Tag(mine, "app", []string{"V1", "stable"})
	if err != nil || build != b.ID || fmt.Sprint(tags) != "[stable v1]" {
		t.Errorf("tagged %s %v, %v", build, tags, err)
	}
	must(t, l.Untag(mine, "app", []string{"stable", "none"}))
	for ref, want := range map[string]bool{"app": true, "app:v1": true, "app:default": true, b.template.ID + ":v1": true, "acme/app:v1": true, "app:stable": false, "app:none": false} {
		if _, err := l.Resolve(mine, ref); (err == nil) != want {
			t.Errorf("%s: %v", ref, err)
		}
	}
	if err := l.Untag(mine, "app", []string{"default"}); firebreak.KindOf(err) != firebreak.KindInvalid {
		t.Errorf("the default tag: %v", err)
	}
	must(t, l.Delete(mine, "app"))
	for _, name := range []string{"acme/app:default", "acme/app:v1"} {
		if _, err := l.images.Get(name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left: %v", name, err)
		}
	}
	if _, _, err := l.Status(mine, b.template.ID, b.ID); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("its build is left: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }

func TestUploadLimits(t *testing.T) {
	l := newLab(t, "process", func(c *Config) { c.UploadBytes, c.Uploads = 1000, 1500 })
	ctx := as(t, "acme")
	tpl, _, err := l.Request(ctx, Request{Name: "app"})
	must(t, err)
	hash := func(c string) string { return strings.Repeat(c, 64) }
	send := func(h string, size int) error {
		u, err := l.Upload(ctx, tpl.ID, h)
		must(t, err)
		return l.Receive(context.Background(), u.Token, u.Template, u.Hash, bytes.NewReader(make([]byte, size)))
	}
	if err := send(hash("a"), 1001); firebreak.KindOf(err) != firebreak.KindExhausted {
		t.Errorf("too large: %v", err)
	}
	must(t, send(hash("b"), 1000))
	if u, err := l.Upload(ctx, "app", hash("b")); err != nil || !u.Present || u.Template != tpl.ID {
		t.Errorf("%+v, %v", u, err)
	}
	if u, err := l.Upload(ctx, "app", hash("a")); err != nil || u.Present {
		t.Errorf("what failed: %+v, %v", u, err)
	}
	u, err := l.Upload(ctx, tpl.ID, hash("c"))
	must(t, err)
	if err := l.Receive(ctx, u.Token, u.Template, hash("d"), strings.NewReader("x")); firebreak.KindOf(err) != firebreak.KindDenied {
		t.Errorf("other files: %v", err)
	}
	broken := io.MultiReader(strings.NewReader("half"), iotestErr{errors.New("cut")})
	u, err = l.Upload(ctx, tpl.ID, hash("c"))
	must(t, err)
	if err := l.Receive(ctx, u.Token, u.Template, u.Hash, broken); err == nil {
		t.Error("half an upload passed")
	}
	whole, parts, err := l.uploads()
	if err != nil || len(whole) != 1 || len(parts) != 0 {
		t.Errorf("there are %v and %v, %v", whole, parts, err)
	}
	// Two of which the first waits in the midst are too much at once, and one after the other are not.
	slow, feed := io.Pipe()
	u, err = l.Upload(ctx, tpl.ID, hash("f"))
	must(t, err)
	ended := make(chan error)
	go func() { ended <- l.Receive(context.Background(), u.Token, u.Template, u.Hash, slow) }()
	must(t, second(feed.Write(make([]byte, 900))))
	for l.coming.Load() < 900 {
		time.Sleep(time.Millisecond)
	}
	if err := send(hash("1"), 800); firebreak.KindOf(err) != firebreak.KindExhausted || !strings.Contains(err.Error(), "under way") {
		t.Errorf("too much at once: %v", err)
	}
	must(t, feed.CloseWithError(errors.New("cut")))
	if err := <-ended; err == nil {
		t.Error("half an upload passed")
	}
	must(t, send(hash("1"), 800), os.Remove(l.uploadPath("acme", hash("1"))))
	old := time.Now().Add(-2 * time.Hour)
	must(t, os.Chtimes(whole[0].path, old, old), os.WriteFile(filepath.Dir(whole[0].path)+"/"+partial+"x", nil, 0o600), os.Chtimes(filepath.Dir(whole[0].path)+"/"+partial+"x", old, old), send(hash("e"), 1000))
	must(t, l.clearUploads())
	whole, parts, err = l.uploads()
	if err != nil || len(whole) != 1 || !strings.HasSuffix(whole[0].path, hash("e")) || len(parts) != 0 {
		t.Errorf("there are %v and %v, %v", whole, parts, err)
	}
	for _, bad := range []string{"", "../x", hash("A"), hash("a") + "a"} {
		if _, err := l.Upload(ctx, tpl.ID, bad); firebreak.KindOf(err) != firebreak.KindInvalid {
			t.Errorf("the hash %q: %v", bad, err)
		}
	}
}

type iotestErr struct{ error }

func (e iotestErr) Read([]byte) (int, error) { return 0, e.error }

func TestQueue(t *testing.T) {
	l := newLab(t, "gvisor", func(c *Config) { c.Parallel, c.PerTenant, c.Queue = 2, 1, 2 })
	l.small()
	acme, other := as(t, "acme"), as(t, "other")
	slow := Spec{FromTemplate: "small", Steps: runs("echo begun; sleep 1000")}
	first, b1 := l.begin(acme, "a", slow)
	second, b2 := l.begin(acme, "b", slow)
	l.begin(acme, "c", slow)
	_, b4, err := l.Request(acme, Request{Name: "d"})
	must(t, err)
	limit := new(auth.LimitError)
	if err := l.Start(acme, "d", b4.ID, slow); !errors.As(err, &limit) || limit.RetryAfter <= 0 {
		t.Errorf("a queue that is full: %v", err)
	}
	theirs := l.mustBuild(other, "a", Spec{FromTemplate: "small", Steps: runs("true")})
	if strings.Contains(theirs.text(), "Waiting") {
		t.Errorf("another tenant had to wait:\n%s", theirs.text())
	}
	if now, log, err := l.Status(acme, second.ID, b2.ID); err != nil || now.State != store.BuildQueued || len(log) != 1 || !strings.Contains(log[0].Text, "Waiting") {
		t.Errorf("the second is %s: %v, %v", now.State, log, err)
	}
	if err := l.Start(acme, first.ID, b1.ID, slow); firebreak.KindOf(err) != firebreak.KindState {
		t.Errorf("started twice: %v", err)
	}
	l.until(acme, first, b1, "begun")
	// A newer build of the first ends it and comes at the end of the queue; the second is next.
	must(t, l.Delete(acme, "c"))
	_, b5 := l.begin(acme, "a", Spec{FromTemplate: "small", Steps: runs("true")})
	if got := l.wait(acme, first, b1); got.State != store.BuildFailed || !strings.Contains(got.Reason, "a newer build") {
		t.Errorf("the first is %s: %s", got.State, got.Reason)
	}
	l.until(acme, second, b2, "begun")
	must(t, l.Delete(acme, "b"))
	if got := l.wait(acme, first, b5); got.State != store.BuildReady {
		t.Errorf("the last is %s: %s", got.State, got.Reason)
	}
}

func TestQueueIsNotOverrun(t *testing.T) {
	l := newLab(t, "gvisor", func(c *Config) { c.Parallel, c.Queue = 1, 1 })
	l.small()
	ctx := as(t, "acme")
	slow := Spec{FromTemplate: "small", Steps: runs("sleep 1000")}
	l.begin(ctx, "first", slow)
	const many = 40
	errs := make(chan error, many)
	for i := range many {
		tpl, b, err := l.Request(ctx, Request{Name: fmt.Sprintf("next%d", i)})
		must(t, err)
		defer func() { must(t, l.Delete(ctx, tpl.ID)) }()
		go func() { errs <- l.Start(ctx, tpl.ID, b.ID, slow) }()
	}
	queued := 0
	for range many {
		if err := <-errs; err == nil {
			queued++
		} else if !errors.As(err, new(*auth.LimitError)) {
			t.Error(err)
		}
	}
	if queued != 1 {
		t.Errorf("%d wait where one may", queued)
	}
}

// until waits for a line in a build's log.
func (l *lab) until(ctx context.Context, tpl store.Template, b store.Build, line string) {
	l.t.Helper()
	for {
		now, log, err := l.Status(ctx, tpl.ID, b.ID)
		must(l.t, err)
		if strings.Contains(built{log: log}.text(), "\n"+line) {
			return
		}
		if !now.Finished.IsZero() {
			l.t.Fatalf("it ended: %s\n%s", now.Reason, built{log: log}.text())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestServerStops(t *testing.T) {
	l := newLab(t, "gvisor", nil)
	l.small()
	ctx := as(t, "acme")
	tpl, b := l.begin(ctx, "app", Spec{FromTemplate: "small", Steps: runs("echo begun; sleep 1000")})
	l.until(ctx, tpl, b, "begun")
	must(t, l.Engine.Close())
	l.open(nil)
	got := l.wait(ctx, tpl, b)
	if got.State != store.BuildFailed || !strings.Contains(got.Reason, "the server was stopped") {
		t.Errorf("%s: %s", got.State, got.Reason)
	}
	if layers, err := l.store.Layers(ctx); err != nil || len(layers) != 0 {
		t.Errorf("layers are left: %v, %v", layers, err)
	}
}

// TestRecover: what a process left that was killed is seen to by the next one, and what another one is at is not.
func TestRecover(t *testing.T) {
	l := newLab(t, "process", nil)
	l.small()
	ctx := as(t, "acme")
	left := func(state store.BuildState, created time.Time) store.Build {
		tpl, b, err := l.Request(ctx, Request{Name: "app"})
		must(t, err)
		b, err = l.store.UpdateBuild(ctx, b.ID, func(b *store.Build) error { b.State, b.Created = state, created; return nil })
		must(t, err)
		_ = tpl
		return b
	}
	now := time.Now().UTC()
	running, queued := left(store.BuildRunning, now), left(store.BuildQueued, now)
	alive, asked, forgotten := left(store.BuildRunning, now), left(store.BuildRequested, now), left(store.BuildRequested, now.Add(-2*maxRequested))
	temporary, kept := image.LayerName(), image.LayerName()
	for name, ready := range map[string]bool{temporary: false, kept: true} {
		_, err := l.images.Link(ctx, "small", name, nil)
		must(t, err, l.store.PutLayer(ctx, store.Layer{Image: name, Tenant: "acme", Key: name, Ready: ready, Build: running.ID, Used: now}))
	}
	before, ok, err := openLog(l.cfg.Dir, running.ID)
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	before.add(LevelInfo, "the last line")
	must(t, before.close())
	lock, ok, err := openLog(l.cfg.Dir, alive.ID)
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	must(t, l.Engine.Close())
	l.open(nil)
	for _, c := range []struct {
		about string
		build store.Build
		want  store.BuildState
	}{
		{"running", running, store.BuildFailed}, {"queued", queued, store.BuildFailed}, {"another process's", alive, store.BuildRunning},
		{"asked for", asked, store.BuildRequested}, {"asked for long ago", forgotten, store.BuildFailed},
	} {
		b, lines, err := l.Status(ctx, c.build.Template, c.build.ID)
		if err != nil || b.State != c.want || (b.Reason != "") != (c.want == store.BuildFailed) || b.Finished.IsZero() == (c.want == store.BuildFailed) {
			t.Errorf("%s: %+v, %v", c.about, b, err)
		}
		if c.about == "running" && (len(lines) != 2 || lines[0].Text != "the last line" || !strings.Contains(b.Reason, "restarted")) {
			t.Errorf("its log is %v, its reason %s", lines, b.Reason)
		}
	}
	if _, err := l.images.Get(temporary); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what it was making is left: %v", err)
	}
	if _, err := l.images.Get(kept); err != nil {
		t.Errorf("what it had kept is gone: %v", err)
	}
	must(t, lock.close())
}

func TestOldBuildsAreForgotten(t *testing.T) {
	l := newLab(t, "process", nil)
	l.small()
	ctx := as(t, "acme")
	first := l.mustBuild(ctx, "app:first", Spec{FromTemplate: "small"})
	_, asked, err := l.Request(ctx, Request{Name: "app"})
	must(t, err)
	_, forgotten, err := l.Request(ctx, Request{Name: "app"})
	must(t, err)
	_, err = l.store.UpdateBuild(ctx, forgotten.ID, func(b *store.Build) error { b.Created = b.Created.Add(-2 * maxRequested); return nil })
	must(t, err)
	for range keptBuilds + 2 {
		l.mustBuild(ctx, "app", Spec{FromTemplate: "small"})
	}
	must(t, l.pruneBuilds(ctx, first.template.ID))
	all, err := l.Builds(ctx, "app")
	must(t, err)
	has := func(id string) bool { return slices.ContainsFunc(all, func(b store.Build) bool { return b.ID == id }) }
	if len(all) != keptBuilds+2 || !has(first.ID) || !has(asked.ID) || has(forgotten.ID) {
		t.Errorf("%d builds are told of: %v", len(all), all)
	}
	logs, err := os.ReadDir(filepath.Join(l.cfg.Dir, "logs"))
	if err != nil || len(logs) != keptBuilds+1 {
		t.Errorf("%d logs, %v", len(logs), err)
	}
}

// TestDeletedWhileBuilt: a build that ends after its template is gone leaves no name behind.
func TestDeletedWhileBuilt(t *testing.T) {
	l := newLab(t, "process", nil)
	l.small()
	ctx := as(t, "acme")
	b := l.mustBuild(ctx, "app", Spec{FromTemplate: "small"})
	must(t, l.store.DeleteTemplate(ctx, b.template.ID))
	j := &job{Engine: l.Engine, build: b.Build, template: b.template}
	if err := j.publish(ctx, image.Template{Name: "small"}, base{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if _, err := l.images.Get("acme/app:default"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("its image has a name: %v", err)
	}
}
