package mcp_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/mcp"
)

// served is a world's door over HTTP. Requests are on behalf of the tenant in their header X-Tenant.
func (w *world) served() *httptest.Server {
	s := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		ctx := r.Context()
		switch tenant := r.Header.Get("X-Tenant"); tenant {
		case "":
		case "operator":
			ctx = operator(ctx)
		default:
			ctx = auth.WithCaller(ctx, auth.Caller{Tenant: auth.Tenant{ID: tenant}})
		}
		w.door.ServeHTTP(rw, r.WithContext(ctx))
	}))
	w.t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

// remote is a world whose door is served to others than its own user.
func remote(t *testing.T, change func(*mcp.Config)) (*world, *httptest.Server) {
	w := newWorld(t, func(cfg *mcp.Config) {
		cfg.Local = false
		cfg.PortURL = func(id string, port uint16) string { return fmt.Sprintf("http://%d-%s.box.test", port, id) }
		cfg.Hosts = []string{"box.test"}
		cfg.Origins = []string{"https://app.test"}
		cfg.Request.AcceptWeaker = ""
		if change != nil {
			change(cfg)
		}
	})
	return w, w.served()
}

// asTenant adds who sends.
type asTenant string

func (a asTenant) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("X-Tenant", string(a))
	return http.DefaultTransport.RoundTrip(r)
}

func dialHTTP(t *testing.T, s *httptest.Server, tenant string, opts *sdk.ClientOptions) *client {
	t.Helper()
	cs, err := sdk.NewClient(&sdk.Implementation{Name: "test", Version: "1"}, opts).Connect(t.Context(),
		&sdk.StreamableClientTransport{Endpoint: s.URL, HTTPClient: &http.Client{Transport: asTenant(tenant)}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cs.Close() })
	return &client{cs, t}
}

// post sends one message with raw headers, and returns the answer.
func post(t *testing.T, s *httptest.Server, tenant, body string, header ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json, text/event-stream")
	req.Header.Set("X-Tenant", tenant)
	for i := 0; i < len(header); i += 2 {
		if req.Header.Set(header[i], header[i+1]); header[i] == "Host" {
			req.Host = header[i+1]
		}
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(text)
}

const hello = `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}`

func TestHTTP(t *testing.T) {
	w, s := remote(t, nil)
	c := dialHTTP(t, s, "acme", nil)
	if got := c.call("run_code", object{"code": "6*7"}, nil); got != "42" {
		t.Errorf("%q", got)
	}
	all, err := w.manager.List(operator(t.Context()))
	if err != nil || len(all) != 1 || all[0].Tenant != "acme" || all[0].Detached {
		t.Errorf("%+v, %v", all, err)
	}
	if _, err := c.CallTool(t.Context(), &sdk.CallToolParams{Name: "upload_file", Arguments: object{"source": "/etc/passwd", "path": "x"}}); err == nil {
		t.Error("files of the server's host can be had")
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	for eventually(t, "the sandbox ends with the session", func() bool {
		all, err := w.manager.List(operator(t.Context()))
		return err == nil && len(all) == 0
	}) {
	}
}

func TestWhoMaySend(t *testing.T) {
	_, s := remote(t, nil)
	host := strings.TrimPrefix(s.URL, "http://")
	for name, c := range map[string]struct {
		tenant string
		header []string
		status int
	}{
		"nobody":             {"", nil, 401},
		"a tenant":           {"acme", nil, 200},
		"its own page":       {"acme", []string{"Origin", s.URL}, 200},
		"a page let in":      {"acme", []string{"Origin", "https://app.test"}, 200},
		"a strange page":     {"acme", []string{"Origin", "https://evil.test"}, 403},
		"a page of nowhere":  {"acme", []string{"Origin", "null"}, 403},
		"a rebound name":     {"acme", []string{"Host", "evil.test", "Origin", "http://evil.test"}, 403},
		"a strange name":     {"acme", []string{"Host", "evil.test"}, 403},
		"our name":           {"acme", []string{"Host", "api.box.test"}, 200},
		"a name like ours":   {"acme", []string{"Host", "evilbox.test"}, 403},
		"the loopback":       {"acme", []string{"Host", "localhost:" + host[strings.LastIndexByte(host, ':')+1:]}, 200},
		"no such version":    {"acme", []string{"Mcp-Protocol-Version", "1999-01-01"}, 400},
		"another media type": {"acme", []string{"Content-Type", "text/plain"}, 415},
		"no such session":    {"acme", []string{"Mcp-Session-Id", "zen"}, 404},
	} {
		t.Run(name, func(t *testing.T) {
			res, text := post(t, s, c.tenant, hello, c.header...)
			if res.StatusCode != c.status {
				t.Errorf("%d %s", res.StatusCode, text)
			}
			if c.status == 401 && res.Header.Get("Www-Authenticate") == "" {
				t.Error("it does not say what is needed")
			}
		})
	}
}

func TestSessionsAreOfOneTenant(t *testing.T) {
	_, s := remote(t, nil)
	res, _ := post(t, s, "acme", hello)
	id := res.Header.Get("Mcp-Session-Id")
	const ping = `{"jsonrpc":"2.0","id":2,"method":"ping"}`
	for tenant, want := range map[string]int{"acme": 200, "other": 403, "operator": 403} {
		if res, text := post(t, s, tenant, ping, "Mcp-Session-Id", id); res.StatusCode != want {
			t.Errorf("%s: %d %s", tenant, res.StatusCode, text)
		}
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodDelete, s.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Mcp-Session-Id", id)
	for _, c := range []struct {
		tenant string
		status int
	}{{"other", 403}, {"acme", 204}, {"acme", 404}} {
		req.Header.Set("X-Tenant", c.tenant)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != c.status {
			t.Errorf("DELETE of %s: %d", c.tenant, res.StatusCode)
		}
	}
}

func TestSessionsHaveALimit(t *testing.T) {
	_, s := remote(t, func(cfg *mcp.Config) { cfg.Sessions = 4 })
	for i := range 3 {
		_, text := post(t, s, "acme", hello)
		if full := strings.Contains(text, "too many MCP sessions"); full != (i == 2) {
			t.Errorf("%d: %s", i, text)
		}
	}
	if _, text := post(t, s, "other", hello); strings.Contains(text, "too many") {
		t.Errorf("one tenant has taken all: %s", text)
	}
}

func TestIdleSessionsEnd(t *testing.T) {
	w, s := remote(t, func(cfg *mcp.Config) { cfg.SessionIdle = 3 * time.Second })
	c := dialHTTP(t, s, "acme", nil)
	c.call("run_command", object{"command": "sleep 4"}, nil)
	for eventually(t, "it ends", func() bool {
		all, err := w.manager.List(operator(t.Context()))
		return err == nil && len(all) == 0
	}) {
	}
}

// TestDeleteStopsWhatRuns ends a session while a tool is at work, which an orderly close would wait for.
func TestDeleteStopsWhatRuns(t *testing.T) {
	w, s := remote(t, nil)
	c := dialHTTP(t, s, "acme", nil)
	c.call("run_command", object{"command": "true"}, nil)
	ended := make(chan error, 1)
	go func() {
		_, err := c.CallTool(context.Background(), &sdk.CallToolParams{Name: "run_command", Arguments: object{"command": "sleep 600", "timeout_seconds": 600}})
		ended <- err
	}()
	time.Sleep(100 * time.Millisecond) // it may not have begun, which must do no harm
	req, err := http.NewRequestWithContext(t.Context(), http.MethodDelete, s.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Mcp-Session-Id", c.ID())
	req.Header.Set("X-Tenant", "acme")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	<-ended
	for eventually(t, "the sandbox is gone", func() bool {
		all, err := w.manager.List(operator(t.Context()))
		return err == nil && len(all) == 0
	}) {
	}
}

// TestStreamsResume has the connection of a call break, and takes its result from another one.
func TestStreamsResume(t *testing.T) {
	_, s := remote(t, nil)
	res, _ := post(t, s, "acme", hello)
	id := res.Header.Get("Mcp-Session-Id")
	post(t, s, "acme", `{"jsonrpc":"2.0","method":"notifications/initialized"}`, "Mcp-Session-Id", id)
	ctx, cancel := context.WithCancel(t.Context())
	body := `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"run_command","arguments":{"command":"sleep 1; echo late"}}}`
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	headers := map[string]string{"Content-Type": "application/json", "Accept": "application/json, text/event-stream", "X-Tenant": "acme",
		"Mcp-Session-Id": id, "Mcp-Protocol-Version": "2025-11-25"}
	for k, v := range headers {
		req.Header.Set(k, v)
	}
	first, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1000)
	n, err := first.Body.Read(buf) // the event that says what to go on from
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(buf[:n]), "id: ")
	event, _, ok := strings.Cut(rest, "\n")
	if !ok {
		t.Fatalf("no id in %q", buf[:n])
	}
	cancel()
	first.Body.Close()
	for eventually(t, "the stream is taken up", func() bool {
		again, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		for k, v := range headers {
			again.Header.Set(k, v)
		}
		again.Header.Set("Last-Event-Id", event)
		res, err := http.DefaultClient.Do(again)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		text, err := io.ReadAll(res.Body)
		if res.StatusCode == http.StatusConflict {
			return false // the server has not seen yet that the first connection is gone
		}
		if err != nil || !strings.Contains(string(text), "late") {
			t.Errorf("%d %q, %v", res.StatusCode, text, err)
		}
		return true
	}) {
	}
}

func TestExposedPorts(t *testing.T) {
	w, s := remote(t, nil)
	c := dialHTTP(t, s, "acme", nil)
	l := httptest.NewServer(http.NotFoundHandler()) // of a plain process the loopback is the host's
	defer l.Close()
	port := l.Listener.Addr().String()[len("127.0.0.1:"):]
	var out struct{ Sandbox, URL string }
	c.call("run_command", object{"command": "true"}, &out)
	private := func() string {
		rec, err := w.manager.Find(operator(t.Context()), out.Sandbox)
		if err != nil {
			t.Fatal(err)
		}
		return rec.Annotations["dataplane/private"]
	}
	if private() != "true" {
		t.Error("anybody reaches the ports of a new sandbox")
	}
	c.call("expose_port", object{"port": json.Number(port)}, &out)
	if out.URL != "http://"+port+"-"+out.Sandbox+".box.test" || private() != "" {
		t.Errorf("%+v, %q", out, private())
	}
	for _, own := range []int{49983, 49999} {
		c.refused("expose_port", object{"port": own}, "firebreak's own")
	}
	c.refused("expose_port", object{"port": 1}, "nothing in the sandbox listens", "run_command")
}

func TestForwardedPorts(t *testing.T) {
	w := newWorld(t, nil)
	c := w.connect(nil)
	l := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(rw, "from inside") }))
	defer l.Close()
	var out struct{ Sandbox, URL string }
	c.call("expose_port", object{"port": json.Number(l.Listener.Addr().String()[len("127.0.0.1:"):])}, &out)
	if out.URL == l.URL {
		t.Fatal("it is the server's own address")
	}
	get := func() (string, error) {
		res, err := http.Get(out.URL)
		if err != nil {
			return "", err
		}
		defer res.Body.Close()
		text, err := io.ReadAll(res.Body)
		return string(text), err
	}
	if text, err := get(); text != "from inside" {
		t.Errorf("%q, %v", text, err)
	}
	c.call("kill_sandbox", object{"sandbox": out.Sandbox}, nil)
	http.DefaultClient.CloseIdleConnections()
	for eventually(t, "the port is closed", func() bool { _, err := get(); return err != nil }) {
	}
}

// TestManySessions has 100 clients at work at once, of which some vanish.
func TestManySessions(t *testing.T) {
	if testing.Short() {
		t.Skip("makes 100 sandboxes")
	}
	w, s := remote(t, nil)
	var all sync.WaitGroup
	for i := range 100 {
		all.Go(func() {
			c := &client{t: t}
			cs, err := sdk.NewClient(&sdk.Implementation{Name: "test", Version: "1"}, nil).Connect(t.Context(),
				&sdk.StreamableClientTransport{Endpoint: s.URL, HTTPClient: &http.Client{Transport: asTenant(fmt.Sprintf("t%d", i%7))}, DisableStandaloneSSE: true}, nil)
			if err != nil {
				t.Error(err)
				return
			}
			c.ClientSession = cs
			res, err := cs.CallTool(t.Context(), &sdk.CallToolParams{Name: "run_command", Arguments: object{"command": fmt.Sprintf("echo %d", i)}})
			if err != nil || !strings.HasPrefix(textOf(res), fmt.Sprintf("%d\n", i)) {
				t.Errorf("%d: %v, %+v", i, err, res)
			}
			if i%3 != 0 { // the others vanish
				_ = cs.Close()
			}
		})
	}
	all.Wait()
	if err := w.door.Close(); err != nil {
		t.Error(err)
	}
	w.holds(0)
}
