package e2b_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/build"
	"github.com/firebreak-dev/firebreak/internal/driver/fake"
	"github.com/firebreak-dev/firebreak/internal/e2b"
	"github.com/firebreak-dev/firebreak/internal/image"
	"github.com/firebreak-dev/firebreak/internal/store"
)

// buildWorld is a world whose templates are real images, with an engine that builds more. Its sandboxes run nothing, so
// that what needs no sandbox can be built, and all else fails.
type buildWorld struct {
	*world
	images *image.Store
	engine *build.Engine
}

func newBuildWorld(t *testing.T, change func(*build.Config)) *buildWorld {
	t.Helper()
	dir := t.TempDir()
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelError}))
	images, err := image.Open(filepath.Join(dir, "images"), log)
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(dir, "root")
	if err := os.MkdirAll(filepath.Join(root, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "bin", "bash"), []byte("#!"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := images.Make(t.Context(), image.Source{Path: root}, image.MakeOptions{Name: "small"}); err != nil {
		t.Fatal(err)
	}
	b := &buildWorld{images: images}
	b.world = newWorldOn(t, dir, oneDriver{"fake", fake.New()}, func(c *e2b.Config) {
		c.Templates = images
		cfg := build.Config{Dir: filepath.Join(dir, "builds"), Sandboxes: c.Sandboxes.(*sandboxes), Images: images, Store: c.Attempts.(*store.Store), Log: log}
		if change != nil {
			change(&cfg)
		}
		if b.engine, err = build.New(cfg); err != nil {
			t.Fatal(err)
		}
		c.Builds, c.Builder, c.Built, c.Tags = b.engine, b.engine, b.engine, b.engine
	})
	t.Cleanup(func() {
		if err := b.engine.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// requested is what a request for a build answers.
type requested struct {
	TemplateID, BuildID  string
	Public               bool
	Names, Tags, Aliases []string
}

func (b *buildWorld) request(tenant string, body object) requested {
	b.t.Helper()
	res := b.ask(tenant, "POST", "/v3/templates", body)
	res.want(b.t, "request a build", 202)
	var r requested
	res.into(b.t, &r)
	return r
}

// start begins a build. Its answer has a length, though nothing in it.
func (b *buildWorld) start(tenant string, r requested, body object) {
	b.t.Helper()
	req, err := http.NewRequestWithContext(b.t.Context(), "POST", b.server.URL+"/v2/templates/"+r.TemplateID+"/builds/"+r.BuildID, strings.NewReader(marshal(b.t, body)))
	if err != nil {
		b.t.Fatal(err)
	}
	req.Header.Set("X-Tenant", tenant)
	res, err := b.server.Client().Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	defer res.Body.Close()
	if text, _ := io.ReadAll(res.Body); res.StatusCode != 202 || res.ContentLength != 0 || len(text) > 0 {
		b.t.Fatalf("start: %d with %d bytes: %s", res.StatusCode, res.ContentLength, text)
	}
}

// status is what clients are told of a build.
type status struct {
	TemplateID, BuildID, Status string
	Logs                        []string
	LogEntries                  []line
	Reason                      *struct {
		Message, Step string
		LogEntries    []line
	}
}

type line struct {
	Timestamp            time.Time
	Level, Message, Step string
}

// wait does what clients do: it asks on from what it has, until the build has ended and there is no more of its log.
func (b *buildWorld) wait(tenant string, r requested) (last status, lines []line) {
	b.t.Helper()
	for {
		res := b.ask(tenant, "GET", fmt.Sprintf("/templates/%s/builds/%s/status?logsOffset=%d", r.TemplateID, r.BuildID, len(lines)), nil)
		res.want(b.t, "status", 200, `"logs":[]`, `"logEntries":[`)
		last = status{}
		res.into(b.t, &last)
		lines = append(lines, last.LogEntries...)
		if (last.Status == "ready" || last.Status == "error") && len(last.LogEntries) == 0 {
			return last, lines
		}
		time.Sleep(time.Millisecond)
	}
}

func TestBuildFlow(t *testing.T) {
	b := newBuildWorld(t, nil)
	r := b.request("acme", object{"name": "App:v1", "tags": []string{"stable"}, "cpuCount": 3, "memoryMB": 512, "unknown": true})
	if len(r.BuildID) != 36 || len(r.TemplateID) != 20 || r.Public || !slices.Equal(r.Names, []string{"app"}) || !slices.Equal(r.Tags, []string{"stable", "v1"}) {
		t.Errorf("%+v", r)
	}
	b.ask("acme", "GET", "/templates/"+r.TemplateID+"/builds/"+r.BuildID+"/status", nil).want(t, "before it begins", 200, `"status":"waiting"`, `"logEntries":[]`)
	b.ask("acme", "GET", "/templates/aliases/app", nil).want(t, "before it is built", 404)
	b.start("acme", r, object{"fromTemplate": "small", "steps": []object{{"type": "ENV", "args": []string{"A", "b"}}}})
	last, lines := b.wait("acme", r)
	if last.Status != "ready" || last.TemplateID != r.TemplateID || last.BuildID != r.BuildID || last.Reason != nil {
		t.Errorf("%+v", last)
	}
	if len(lines) < 3 || lines[0].Step != "base" || lines[0].Timestamp.IsZero() || lines[1].Message != "[1/1] ENV A b" || lines[1].Step != "1" || lines[1].Level != "info" {
		t.Errorf("the log is %+v", lines)
	}
	if tpl, err := b.images.Get("acme/app:v1"); err != nil || tpl.Envs["A"] != "b" || tpl.Limits.CPUs != 3 || tpl.Limits.Memory != 512<<20 {
		t.Errorf("%+v, %v", tpl, err)
	}
	b.ask("acme", "POST", "/v2/templates/"+r.TemplateID+"/builds/"+r.BuildID, object{"fromTemplate": "small"}).want(t, "started twice", 409)
	again := b.request("acme", object{"alias": "app"})
	if again.TemplateID != r.TemplateID || again.BuildID == r.BuildID || !slices.Equal(again.Tags, []string{"default"}) {
		t.Errorf("another build of it: %+v", again)
	}
	b.ask("acme", "GET", "/templates/app/builds/"+r.BuildID+"/status?level=error&limit=1", nil).want(t, "errors of the first", 200, `"logEntries":[]`)
	b.ask("acme", "GET", "/templates/app/builds/"+r.BuildID+"/status?limit=0", nil).want(t, "no lines", 200, `"logEntries":[]`)
	var logs struct{ Logs []line }
	b.ask("acme", "GET", "/templates/app/builds/"+r.BuildID+"/logs?direction=backward&limit=1", nil).into(t, &logs)
	if len(logs.Logs) != 1 || logs.Logs[0] != lines[len(lines)-1] {
		t.Errorf("the last line is %+v", logs)
	}
	b.ask("acme", "GET", fmt.Sprint("/templates/app/builds/", r.BuildID, "/logs?cursor=", time.Now().Add(time.Hour).UnixMilli()), nil).want(t, "later lines", 200, `"logs":[]`)
	for _, query := range []string{"status?logsOffset=-1", "status?level=loud", "status?limit=x", "logs?direction=up", "logs?cursor=x", "logs?level=x"} {
		b.ask("acme", "GET", "/templates/app/builds/"+r.BuildID+"/"+query, nil).want(t, query, 400)
	}
}

func TestBuildFails(t *testing.T) {
	b := newBuildWorld(t, nil)
	r := b.request("acme", object{"name": "app"})
	b.start("acme", r, object{"fromTemplate": "small", "steps": []object{{"type": "ENV", "args": []string{"A", "b"}}, {"type": "RUN", "args": []string{"true"}}}})
	last, lines := b.wait("acme", r)
	if last.Status != "error" || last.Reason == nil || last.Reason.Step != "2" || last.Reason.Message == "" || len(last.Reason.LogEntries) != 1 || last.Reason.LogEntries[0].Level != "error" {
		t.Errorf("%+v %+v", last, last.Reason)
	}
	if len(lines) == 0 || !strings.HasPrefix(lines[len(lines)-1].Message, "Build failed") {
		t.Errorf("the log is %+v", lines)
	}
	b.ask("acme", "POST", "/v2/sandboxes", object{"templateID": "app"}).want(t, "a sandbox of it", 404)
	for about, body := range map[string]any{
		"no name": object{}, "a bad name": object{"name": "a b"}, "another's name": object{"name": "other/app"}, "a bad tag": object{"name": "a", "tags": []string{"x y"}},
		"too little memory": object{"name": "a", "memoryMB": 1}, "a negative disk": object{"name": "a", "minFreeDiskMb": -1}, "no JSON": "x", "a wrong type": object{"name": 1},
	} {
		b.ask("acme", "POST", "/v3/templates", body).want(t, about, 400)
	}
	at := "/v2/templates/" + r.TemplateID + "/builds/"
	fresh := b.request("acme", object{"name": "app"})
	for about, c := range map[string]struct {
		body object
		want int
	}{
		"nothing": {object{}, 400}, "both": {object{"fromImage": "a", "fromTemplate": "b"}, 400}, "no such template": {object{"fromTemplate": "none"}, 404},
		"the host": {object{"fromTemplate": "host"}, 400}, "a bad step": {object{"fromTemplate": "small", "steps": []object{{"type": "X", "args": []string{"y"}}}}, 400},
		"a login of AWS": {object{"fromImage": "a", "fromImageRegistry": object{"type": "aws"}}, 501}, "half a login": {object{"fromImage": "a", "fromImageRegistry": object{"type": "registry", "username": "u"}}, 400},
		"a strange login": {object{"fromImage": "a", "fromImageRegistry": object{"type": "x"}}, 400},
	} {
		b.ask("acme", "POST", at+fresh.BuildID, c.body).want(t, about, c.want)
	}
	b.ask("acme", "POST", at+"00000000-0000-4000-8000-000000000000", object{"fromTemplate": "small"}).want(t, "no such build", 404)
	for _, path := range []string{"/templates", "/templates/x", "/v2/templates"} {
		b.ask("acme", "POST", path, object{"dockerfile": "FROM x"}).want(t, "a Dockerfile", 501)
	}
}

func TestUploadOfFiles(t *testing.T) {
	b := newBuildWorld(t, func(c *build.Config) { c.UploadBytes = 1000 })
	r := b.request("acme", object{"name": "app"})
	hash := strings.Repeat("a", 64)
	link := func() (present bool, to string) {
		var u struct {
			Present bool
			URL     string
		}
		res := b.ask("acme", "GET", "/templates/"+r.TemplateID+"/files/"+hash, nil)
		res.want(t, "where to", 201)
		res.into(t, &u)
		return u.Present, u.URL
	}
	put := func(to string, body io.Reader) int {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), "PUT", to, body)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Tenant", "nobody") // clients send no key there
		res, err := b.server.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		return res.StatusCode
	}
	present, to := link()
	if u, err := url.Parse(to); err != nil || present || !strings.HasPrefix(to, b.server.URL+"/upload/") || len(u.Path) < 100 {
		t.Fatalf("%v %s", present, to)
	}
	if got := put(to+"x", strings.NewReader("x")); got != 403 {
		t.Errorf("with another token: %d", got)
	}
	if got := put(to, bytes.NewReader(make([]byte, 1001))); got != 413 {
		t.Errorf("too much: %d", got)
	}
	if got := put(to, strings.NewReader("files")); got != 403 {
		t.Errorf("the same address again: %d", got)
	}
	_, to = link()
	if got := put(strings.Replace(to, hash, strings.Repeat("b", 64), 1), strings.NewReader("files")); got != 403 {
		t.Errorf("other files: %d", got)
	}
	_, to = link()
	if got := put(to, strings.NewReader("files")); got != 204 {
		t.Errorf("files: %d", got)
	}
	if present, again := link(); !present || again == "" || again == to {
		t.Errorf("after that: %v %s", present, again)
	}
	b.ask("acme", "GET", "/templates/"+r.TemplateID+"/files/x", nil).want(t, "no hash", 400)
	b.ask("nobody", "GET", "/templates/"+r.TemplateID+"/files/"+hash, nil).want(t, "nobody", 401)
	for _, c := range []struct {
		method, path string
		want         bool
	}{{"PUT", "/upload/a/b/c", true}, {"GET", "/upload/a/b/c", false}, {"PUT", "/v3/templates", false}, {"GET", "/health", false}} {
		req, err := http.NewRequest(c.method, c.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := e2b.IsUpload(req); got != c.want {
			t.Errorf("%s %s is an upload: %v", c.method, c.path, got)
		}
	}
}

func TestPublicURL(t *testing.T) {
	b := newBuildWorld(t, nil)
	b.cfg.PublicURL = "https://api.example.com/e2b/"
	b.door = e2b.New(b.cfg)
	r := b.request("acme", object{"name": "app"})
	b.ask("acme", "GET", "/templates/"+r.TemplateID+"/files/"+strings.Repeat("a", 64), nil).want(t, "where to", 201, `"url":"https://api.example.com/e2b/upload/`)
}

func TestBuiltTemplatesAsOthersAre(t *testing.T) {
	b := newBuildWorld(t, nil)
	r := b.request("acme", object{"name": "app", "cpuCount": 2, "memoryMB": 256})
	b.start("acme", r, object{"fromTemplate": "small"})
	if last, _ := b.wait("acme", r); last.Status != "ready" {
		t.Fatalf("%+v", last)
	}
	if _, err := b.images.Link(t.Context(), "small", "acme/imported:default", nil); err != nil {
		t.Fatal(err)
	}
	var all []struct {
		TemplateID, BuildID, BuildStatus string
		Names                            []string
		BuildCount, CPUCount, MemoryMB   int
	}
	b.ask("acme", "GET", "/templates", nil).into(t, &all)
	if len(all) != 4 || all[0].TemplateID != r.TemplateID || all[0].BuildID != r.BuildID || all[0].BuildStatus != "ready" || all[0].BuildCount != 1 || all[0].CPUCount != 2 || all[0].MemoryMB != 256 {
		t.Errorf("%+v", all)
	}
	for _, ref := range []string{r.TemplateID, "app", "app:default", "acme%2Fapp"} {
		b.ask("acme", "GET", "/templates/"+ref, nil).want(t, ref, 200, `"templateID":"`+r.TemplateID+`"`, `"builds":[{"buildID":"`+r.BuildID)
		b.ask("acme", "GET", "/templates/aliases/"+ref, nil).want(t, ref, 200, `"templateID":"`+r.TemplateID+`"`, `"public":false`)
	}
	b.ask("acme", "GET", "/templates/aliases/app%3Anone", nil).want(t, "a tag that is not there", 404)
	b.ask("acme", "GET", "/templates/small", nil).want(t, "a shared one", 200, `"templateID":"small"`)
	b.ask("acme", "POST", "/templates/tags", object{"target": "app", "tags": []string{"v2", "V3"}}).want(t, "tag", 201, `"buildID":"`+r.BuildID+`"`, `"tags":["v2","v3"]`)
	b.ask("acme", "GET", "/templates/"+r.TemplateID+"/tags", nil).want(t, "tags", 200, `[{"tag":"default","buildID":"`+r.BuildID, `{"tag":"v2"`)
	b.ask("acme", "DELETE", "/templates/tags", object{"name": "app", "tags": []string{"v2"}}).want(t, "untag", 204)
	b.ask("acme", "DELETE", "/templates/app%3Av3", nil).want(t, "delete a tag", 204)
	for _, name := range []string{"acme/app:v2", "acme/app:v3"} {
		if _, err := b.images.Get(name); err == nil {
			t.Errorf("%s is there", name)
		}
	}
	for about, body := range map[string]object{"no tag": {"target": "app"}, "a bad one": {"target": "app", "tags": []string{"a b"}}} {
		b.ask("acme", "POST", "/templates/tags", body).want(t, about, 400)
	}
	b.ask("acme", "DELETE", "/templates/tags", object{"name": "app", "tags": []string{"default"}}).want(t, "the default one", 400)

	strangers := [][3]string{
		{"GET", "/templates/" + r.TemplateID, ""}, {"GET", "/templates/acme%2Fapp", ""}, {"GET", "/templates/aliases/" + r.TemplateID, ""}, {"DELETE", "/templates/" + r.TemplateID, ""},
		{"PATCH", "/v2/templates/" + r.TemplateID, `{"public":true}`}, {"GET", "/templates/" + r.TemplateID + "/tags", ""}, {"GET", "/templates/" + r.TemplateID + "/builds/" + r.BuildID + "/status", ""},
		{"GET", "/templates/" + r.TemplateID + "/builds/" + r.BuildID + "/logs", ""}, {"POST", "/v2/templates/" + r.TemplateID + "/builds/" + r.BuildID, `{"fromTemplate":"small"}`},
		{"GET", "/templates/" + r.TemplateID + "/files/" + strings.Repeat("a", 64), ""}, {"POST", "/templates/tags", `{"target":"acme/app","tags":["x"]}`},
		{"DELETE", "/templates/tags", `{"name":"acme/app","tags":["x"]}`}, {"POST", "/v2/sandboxes", `{"templateID":"` + r.TemplateID + `"}`}, {"POST", "/v2/sandboxes", `{"templateID":"acme/app"}`},
	}
	for _, s := range strangers {
		b.ask("other", s[0], s[1], s[2]).want(t, "another tenant: "+s[0]+" "+s[1], 404)
		b.ask("nobody", s[0], s[1], s[2]).want(t, "nobody: "+s[0]+" "+s[1], 401)
	}
	b.ask("acme", "PATCH", "/v2/templates/app", object{"public": true}).want(t, "make it public", 200, `"names":["acme/app"]`)
	b.ask("other", "GET", "/templates/aliases/acme%2Fapp", nil).want(t, "a public one", 200, `"public":true`)
	b.ask("other", "GET", "/templates/"+r.TemplateID, nil).want(t, "a public one", 200, `"builds":[]`)
	b.ask("other", "DELETE", "/templates/"+r.TemplateID, nil).want(t, "delete a public one", 403)
	b.ask("other", "POST", "/v2/templates/"+r.TemplateID+"/builds/"+r.BuildID, object{"fromTemplate": "small"}).want(t, "build a public one", 403)
	b.ask("acme", "DELETE", "/templates/app", nil).want(t, "delete", 204)
	b.ask("acme", "GET", "/templates/"+r.TemplateID, nil).want(t, "deleted", 404)
}

func TestBuildBoxesAreNobodys(t *testing.T) {
	b := newWorld(t, nil)
	id := b.make("acme", nil).SandboxID
	if _, err := b.cfg.Lives.Annotate(as(context.Background(), "acme"), id, map[string]string{build.Annotation: "x"}); err != nil {
		t.Fatal(err)
	}
	b.ask("acme", "GET", "/v2/sandboxes", nil).want(t, "list", 200, "[]")
}
