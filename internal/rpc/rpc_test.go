package rpc_test

import (
	"bufio"
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
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/client"
	firebreakv1 "github.com/firebreak-dev/firebreak/internal/api/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/api/process"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/dataplane"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/fake"
	"github.com/firebreak-dev/firebreak/internal/event"
	"github.com/firebreak-dev/firebreak/internal/image"
	"github.com/firebreak-dev/firebreak/internal/manager"
	"github.com/firebreak-dev/firebreak/internal/rpc"
	"github.com/firebreak-dev/firebreak/internal/store"
)

// templates has one template, can make others, and tells what it was asked to collect.
type templates struct {
	asked []string
	more  []string // names of others
}

func (t *templates) Get(name string) (image.Template, error) {
	for _, tpl := range t.more {
		if tpl == name {
			return image.Template{Name: name}, nil
		}
	}
	if name != "host" {
		return image.Template{}, fmt.Errorf("template %q: %w", name, fs.ErrNotExist)
	}
	return image.Template{Name: "host", Digest: "sha256:h", User: "user", Envs: map[string]string{"A": "b"}, Entrypoint: []string{"x"}}, nil
}

func (t *templates) List() ([]image.Template, error) {
	host, err := t.Get("host")
	all := []image.Template{host}
	for _, name := range t.more {
		all = append(all, image.Template{Name: name})
	}
	return all, err
}

func (ts *templates) Has(name string) bool {
	_, err := ts.Get(name)
	return err == nil
}

func (*templates) RootOf(context.Context, image.Template, []driver.Form) (driver.Root, error) {
	return driver.Root{Form: driver.FormDirectory, Path: "/"}, nil
}

func (*templates) Make(ctx context.Context, src image.Source, opts image.MakeOptions) (image.Template, error) {
	if src.Reference == "bad" {
		return image.Template{}, &firebreak.Error{Kind: firebreak.KindDenied, Op: "pull bad", Err: errors.New("no access"), Mend: "log in: ü"}
	}
	for i := range int64(1000) {
		opts.Progress(image.Progress{Step: "pull", Done: i, Total: 1000})
	}
	opts.Progress(image.Progress{Step: "pull", Done: 1000, Total: 1000})
	return image.Template{Name: opts.Name, Source: src.Reference, Created: time.Unix(1, 0)}, ctx.Err()
}

func (*templates) Delete(name string) error {
	if name == "host" {
		return &firebreak.Error{Kind: firebreak.KindInvalid, Err: errors.New("host is always there")}
	}
	return nil
}

func (t *templates) Collect(_ context.Context, inUse func(string) bool) (int64, int, error) {
	removed := 0
	for _, digest := range []string{"sha256:h", "sha256:other"} {
		if !inUse(digest) {
			t.asked = append(t.asked, digest)
			removed++
		}
	}
	return 4096, removed, nil
}

// anything is a policy that knows the fake driver, and accepts it unless the data is regulated.
const anything = `
name: anything
technologies:
  - {name: fake, boundary: language, start: 1ms, warm: 1ms, get: use another test}
  - {name: qemu, boundary: virtual-machine, hardware: true, start: 1s, warm: 1ms, get: buy one}
rules:
  - {id: all, when: true, boundaries: [language, virtual-machine], duties: [brokered-secrets], reason: It is a test., source: this file}
  - {id: regulated, when: 'data == "regulated"', require: tech.hardware, reason: It is regulated., source: this file}
`

func writePolicy(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "policy.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// newConfig is a door on a manager with one driver, which is a fake.
func newConfig(t testing.TB) (rpc.Config, *manager.Manager) {
	t.Helper()
	dir, log := t.TempDir(), slog.New(slog.NewTextHandler(t.Output(), nil))
	s, err := store.Open(t.Context(), dir, log)
	if err != nil {
		t.Fatal(err)
	}
	ts, events := &templates{}, event.New(s)
	m, err := manager.New(manager.Config{StateDir: dir, Store: s, Events: events, Images: ts, Drivers: oneDriver{fake.New()}, Policy: writePolicy(t, anything), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	keys := auth.New(s, log)
	t.Cleanup(func() {
		keys.Close()
		if err := errors.Join(m.Close(), s.Close()); err != nil {
			t.Error(err)
		}
	})
	return rpc.Config{Sandboxes: m, Lives: m, Guests: m, Templates: ts, Advisor: m, Keys: keys, Events: events}, m
}

// newDoor is the door, and beside it the way into sandboxes.
func newDoor(cfg rpc.Config, m *manager.Manager) http.Handler {
	return dataplane.New(dataplane.Config{Sandboxes: m, Log: slog.New(slog.DiscardHandler)}).Or(rpc.New(cfg))
}

func newHandler(t *testing.T) (http.Handler, *manager.Manager) {
	t.Helper()
	cfg, m := newConfig(t)
	return newDoor(cfg, m), m
}

// operator has all requests made on behalf of the operator.
func operator(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(w, r.WithContext(auth.WithCaller(r.Context(), auth.Caller{Operator: true})))
	})
}

type oneDriver struct{ driver.Driver }

func (oneDriver) Names() []string { return []string{"fake"} }

func (d oneDriver) Keeper(name string) (driver.Driver, error) {
	if name != "fake" {
		return nil, fs.ErrNotExist
	}
	return d.Driver, nil
}

func (d oneDriver) Maker(_ context.Context, name string) (driver.Driver, error) {
	return d.Keeper(name)
}

// both runs a test over the two ways to the same handler: a network, and pipes in memory.
func both(t *testing.T, test func(t *testing.T, c *client.Client)) {
	t.Run("network", func(t *testing.T) {
		h, _ := newHandler(t)
		server := httptest.NewServer(operator(http.StripPrefix("/prefix", h)))
		t.Cleanup(server.Close)
		test(t, client.New(server.URL+"/prefix/", server.Client()))
	})
	t.Run("memory", func(t *testing.T) {
		h, _ := newHandler(t)
		local := rpc.NewLocal(h, slog.New(slog.DiscardHandler))
		t.Cleanup(func() {
			if err := local.Close(); err != nil {
				t.Error(err)
			}
		})
		test(t, client.New("http://firebreak", local.Client()))
	})
}

func create(t *testing.T, c *client.Client, msg *firebreakv1.CreateSandboxRequest) *firebreakv1.Sandbox {
	t.Helper()
	resp, err := c.Sandboxes.CreateSandbox(t.Context(), connect.NewRequest(msg))
	if err != nil {
		t.Fatal(err)
	}
	if resp.Msg.GetTimings().GetAgent().AsDuration() <= 0 {
		t.Errorf("timings %v", resp.Msg.GetTimings())
	}
	return resp.Msg.GetSandbox()
}

func TestSandboxes(t *testing.T) {
	both(t, func(t *testing.T, c *client.Client) {
		ctx := t.Context()
		sb := create(t, c, &firebreakv1.CreateSandboxRequest{Name: "web", Command: "x", Timeout: durationpb.New(time.Hour), Detached: true})
		if sb.GetState() != "running" || sb.GetName() != "web" || sb.GetDriver() != "fake" || sb.GetTemplate() != "host" ||
			sb.GetBoundary() != "language" || !sb.GetDetached() || sb.GetCommand() != "x" || sb.GetDeadline() == nil || sb.GetCreatedAt() == nil {
			t.Errorf("created %v", sb)
		}
		got, err := c.Sandboxes.GetSandbox(ctx, connect.NewRequest(&firebreakv1.GetSandboxRequest{Id: "web"}))
		if err != nil || got.Msg.GetSandbox().GetId() != sb.GetId() || got.Msg.GetUsage() == nil {
			t.Errorf("got %v, %v", got, err)
		}
		list, err := c.Sandboxes.ListSandboxes(ctx, connect.NewRequest(&firebreakv1.ListSandboxesRequest{}))
		if err != nil || len(list.Msg.GetSandboxes()) != 1 {
			t.Errorf("list %v, %v", list, err)
		}
		waited := make(chan error, 1)
		go func() {
			resp, err := c.Sandboxes.WaitSandbox(context.Background(), connect.NewRequest(&firebreakv1.WaitSandboxRequest{Id: sb.GetId()}))
			if err == nil && resp.Msg.GetSandbox().GetState() != "ended" {
				err = fmt.Errorf("waited for %v", resp.Msg)
			}
			waited <- err
		}()
		deleted, err := c.Sandboxes.DeleteSandbox(ctx, connect.NewRequest(&firebreakv1.DeleteSandboxRequest{Id: sb.GetId()}))
		if err != nil || deleted.Msg.GetSandbox().GetEndReason() != "destroyed" {
			t.Errorf("deleted %v, %v", deleted, err)
		}
		if err := <-waited; err != nil && !errors.Is(err, fs.ErrNotExist) { // it may have asked too late
			t.Error(err)
		}
	})
}

func TestErrorsArriveWhole(t *testing.T) {
	both(t, func(t *testing.T, c *client.Client) {
		_, err := c.Sandboxes.GetSandbox(t.Context(), connect.NewRequest(&firebreakv1.GetSandboxRequest{Id: "nobody"}))
		var e *firebreak.Error
		if !errors.As(err, &e) || e.Kind != firebreak.KindNotFound || !errors.Is(err, fs.ErrNotExist) || !strings.Contains(e.Mend, "firebreak ls") {
			t.Errorf("get of nobody: %#v", err)
		}
		if strings.Count(err.Error(), "to mend it") != 1 || !strings.Contains(err.Error(), `"nobody"`) {
			t.Errorf("the text says %q", err)
		}
		if ce := new(connect.Error); !errors.As(err, &ce) || ce.Code() != connect.CodeNotFound {
			t.Errorf("no connect error within: %v", err)
		}
		limits := &firebreakv1.Limits{MemoryBytes: 1 << 30}
		_, err = c.Sandboxes.CreateSandbox(t.Context(), connect.NewRequest(&firebreakv1.CreateSandboxRequest{Limits: limits}))
		if firebreak.KindOf(err) != firebreak.KindHost {
			t.Errorf("a limit that the fake cannot enforce: %v", err)
		}
		_, err = c.Templates.GetTemplate(t.Context(), connect.NewRequest(&firebreakv1.GetTemplateRequest{Name: "zen"}))
		if firebreak.KindOf(err) != firebreak.KindNotFound || !strings.Contains(err.Error(), "zen") {
			t.Errorf("a template that is not there: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err = c.Sandboxes.ListSandboxes(ctx, connect.NewRequest(&firebreakv1.ListSandboxesRequest{}))
		if firebreak.KindOf(err) != firebreak.KindCanceled || !errors.Is(err, context.Canceled) {
			t.Errorf("a call that was canceled: %v", err)
		}
		// The agent's errors are no errors of ours: their kind comes from the code.
		sb := create(t, c, &firebreakv1.CreateSandboxRequest{})
		_, err = c.Process(sb.GetId()).List(t.Context(), connect.NewRequest(&process.ListRequest{}))
		if firebreak.KindOf(err) != firebreak.KindUnsupported || !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("list of processes in a fake: %v", err)
		}
	})
}

func TestTemplates(t *testing.T) {
	both(t, func(t *testing.T, c *client.Client) {
		ctx := t.Context()
		create(t, c, &firebreakv1.CreateSandboxRequest{})
		got, err := c.Templates.GetTemplate(ctx, connect.NewRequest(&firebreakv1.GetTemplateRequest{Name: "host"}))
		if tpl := got.Msg.GetTemplate(); err != nil || tpl.GetUser() != "user" || tpl.GetEnvs()["A"] != "b" || tpl.GetCreatedAt() != nil || len(tpl.GetEntrypoint()) != 1 {
			t.Errorf("got %v, %v", got, err)
		}
		list, err := c.Templates.ListTemplates(ctx, connect.NewRequest(&firebreakv1.ListTemplatesRequest{}))
		if err != nil || len(list.Msg.GetTemplates()) != 1 {
			t.Errorf("list %v, %v", list, err)
		}
		if _, err := c.Templates.DeleteTemplate(ctx, connect.NewRequest(&firebreakv1.DeleteTemplateRequest{Name: "host"})); firebreak.KindOf(err) != firebreak.KindInvalid {
			t.Errorf("delete of host: %v", err)
		}
		if _, err := c.Templates.DeleteTemplate(ctx, connect.NewRequest(&firebreakv1.DeleteTemplateRequest{Name: "x"})); err != nil {
			t.Errorf("delete: %v", err)
		}
		collected, err := c.Templates.CollectGarbage(ctx, connect.NewRequest(&firebreakv1.CollectGarbageRequest{}))
		if err != nil || collected.Msg.GetRemoved() != 1 || collected.Msg.GetFreedBytes() != 4096 {
			t.Errorf("collected %v, %v, want all but the image of a living sandbox", collected, err)
		}
	})
}

func TestMakeTemplateStreams(t *testing.T) {
	both(t, func(t *testing.T, c *client.Client) {
		make := func(ref string) *connect.ServerStreamForClient[firebreakv1.MakeTemplateResponse] {
			source := &firebreakv1.MakeTemplateRequest_Reference{Reference: ref}
			stream, err := c.Templates.MakeTemplate(t.Context(), connect.NewRequest(&firebreakv1.MakeTemplateRequest{Name: "py", Source: source}))
			if err != nil {
				t.Fatal(err)
			}
			return stream
		}
		stream, told := make("python"), []*firebreakv1.MakeTemplateResponse{}
		for stream.Receive() {
			told = append(told, stream.Msg())
		}
		if err := errors.Join(stream.Err(), stream.Close()); err != nil || len(told) < 3 || len(told) > 100 {
			t.Fatalf("%d messages, %v, want a few of a thousand", len(told), err)
		}
		if p := told[len(told)-2].GetProgress(); p.GetDone() != 1000 || told[len(told)-1].GetTemplate().GetName() != "py" {
			t.Errorf("the last messages are %v", told[len(told)-2:])
		}
		stream = make("bad")
		for stream.Receive() {
			t.Errorf("told %v", stream.Msg())
		}
		var e *firebreak.Error
		if err := stream.Err(); !errors.As(err, &e) || e.Kind != firebreak.KindDenied || e.Mend != "log in: ü" || e.Op != "pull bad" {
			t.Errorf("the error of a stream is %v", err)
		}
		if err := stream.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestDataPlaneRefusals(t *testing.T) {
	h, _ := newHandler(t)
	server := httptest.NewServer(operator(h))
	defer server.Close()
	c := client.New(server.URL, server.Client())
	sb := create(t, c, &firebreakv1.CreateSandboxRequest{}).GetId()
	create(t, c, &firebreakv1.CreateSandboxRequest{})
	for name, want := range map[string]struct {
		id, port, path string
		status         int
		message        string
	}{
		"health":      {sb, "", "/health", http.StatusNoContent, ""},
		"port":        {sb, "49983", "/health", http.StatusNoContent, ""},
		"unknown":     {"nobody", "49983", "/health", http.StatusBadGateway, "The sandbox was not found"},
		"a beginning": {"f", "49983", "/health", http.StatusBadGateway, "The sandbox was not found"},
		"no ports":    {sb, "8080", "/", http.StatusBadGateway, "The sandbox is running but port is not open: it has no ports, since nothing in it can listen; one from a template of Linux programs has"},
		"no port":     {sb, "http", "/", http.StatusBadRequest, ""},
		"too large":   {sb, "65536", "/", http.StatusBadRequest, ""},
		"init":        {sb, "49983", "/init", http.StatusNotFound, ""},
		"ports":       {sb, "49983", "/ports/22", http.StatusNotFound, ""},
	} {
		t.Run(name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+want.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("E2b-Sandbox-Id", want.id)
			if want.port != "" {
				req.Header.Set("E2b-Sandbox-Port", want.port)
			}
			resp, err := server.Client().Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if resp.StatusCode != want.status {
				t.Errorf("status %d, want %d", resp.StatusCode, want.status)
			}
			if want.message == "" {
				return
			}
			var body struct {
				SandboxID, Message string
				Port, Code         int
			}
			if err := json.NewDecoder(resp.Body).Decode(&body); err != nil || body.SandboxID != want.id || body.Message != want.message || body.Code != 502 {
				t.Errorf("body %+v, %v", body, err)
			}
		})
	}
}

func TestClientUnderstandsRefusals(t *testing.T) {
	both(t, func(t *testing.T, c *client.Client) {
		_, err := c.Process("nobody").List(t.Context(), connect.NewRequest(&process.ListRequest{}))
		if firebreak.KindOf(err) != firebreak.KindNotFound {
			t.Errorf("list in nobody: %v (%s)", err, firebreak.KindOf(err))
		}
		_, err = c.ReadFile(t.Context(), "nobody", "/x", "")
		if firebreak.KindOf(err) != firebreak.KindNotFound || !strings.Contains(err.Error(), "nobody") {
			t.Errorf("read in nobody: %v", err)
		}
		err = c.WriteFile(t.Context(), "nobody", "/x", "root", strings.NewReader("x"))
		if firebreak.KindOf(err) != firebreak.KindNotFound {
			t.Errorf("write in nobody: %v", err)
		}
		sb := create(t, c, &firebreakv1.CreateSandboxRequest{}).GetId()
		if _, err := c.ReadFile(t.Context(), sb, "/x", ""); firebreak.KindOf(err) != firebreak.KindUnsupported {
			t.Errorf("read in a fake: %v (%s)", err, firebreak.KindOf(err))
		}
	})
}

func TestLocalCloseEndsRequests(t *testing.T) {
	began, ended := make(chan struct{}), make(chan struct{})
	local := rpc.NewLocal(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(began)
		<-r.Context().Done()
		close(ended)
	}), slog.New(slog.DiscardHandler))
	answered := make(chan error, 1)
	go func() {
		resp, err := local.Client().Get("http://x/")
		if err == nil {
			err = resp.Body.Close()
		}
		answered <- err
	}()
	<-began
	if err := local.Close(); err != nil {
		t.Error(err)
	}
	select {
	case <-ended:
	default:
		t.Error("closed while a handler was at work")
	}
	if err := <-answered; err == nil {
		t.Error("the request that was broken off has no error")
	}
	if _, err := local.Client().Get("http://x/"); err == nil {
		t.Error("a closed server answers")
	}
}

// BenchmarkRoundTrip is what the one code path of the command line costs for each call.
func BenchmarkRoundTrip(b *testing.B) {
	local := rpc.NewLocal(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(w, bufio.NewReader(r.Body))
	}), slog.New(slog.DiscardHandler))
	defer local.Close()
	c := local.Client()
	for b.Loop() {
		resp, err := c.Post("http://x/", "text/plain", strings.NewReader("hello"))
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			b.Fatal(err)
		}
		resp.Body.Close()
	}
}
