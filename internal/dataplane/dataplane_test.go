package dataplane_test

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/dataplane"
	"github.com/firebreak-dev/firebreak/internal/signature"
)

const agentPort, codePort = "49983", "49999"

func text(t *testing.T, res *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

func TestWhoMayReachWhat(t *testing.T) {
	w := newWorld(t, nil)
	w.add(t, "sb2")
	open := inside(t, func(http.ResponseWriter, *http.Request) {})
	other := auth.Caller{Tenant: auth.Tenant{ID: "other"}}
	acme := auth.Caller{Tenant: auth.Tenant{ID: "acme"}}
	operator := auth.Caller{Operator: true}
	var nobody auth.Caller
	const token, traffic = "X-Access-Token", "E2B-Traffic-Access-Token"
	for _, c := range []struct {
		name, method, port, path string
		header                   []string
		caller                   auth.Caller
		private                  bool
		want                     int
	}{
		{"health", "GET", agentPort, "/health", nil, nobody, false, 204},
		{"health of another's", "GET", agentPort, "/health", nil, other, false, 204},
		{"health by another method", "POST", agentPort, "/health", nil, nobody, false, 401},
		{"metrics without token", "GET", agentPort, "/metrics", nil, nobody, false, 401},
		{"metrics", "GET", agentPort, "/metrics", []string{token, "token-of-sb1"}, nobody, false, 200},
		{"with another's token", "GET", agentPort, "/metrics", []string{token, "token-of-sb2"}, nobody, false, 401},
		{"with an empty token", "GET", agentPort, "/metrics", []string{token, ""}, nobody, false, 401},
		{"with the traffic token", "GET", agentPort, "/metrics", []string{traffic, "traffic-of-sb1"}, nobody, false, 401},
		{"by its tenant", "GET", agentPort, "/metrics", nil, acme, false, 200},
		{"by the operator", "GET", agentPort, "/metrics", nil, operator, false, 200},
		{"by another tenant", "GET", agentPort, "/metrics", nil, other, false, 401},
		{"another tenant with the token", "GET", agentPort, "/metrics", []string{token, "token-of-sb1"}, other, false, 200},
		{"RPC without token", "POST", agentPort, "/process.Process/List", nil, nobody, false, 401},
		{"files without token", "GET", agentPort, "/files?path=/etc/hostname", nil, nobody, false, 401},
		{"what the agent keeps for its host", "POST", agentPort, "/init", []string{token, "token-of-sb1"}, nobody, false, 404},
		{"a port of the agent's", "POST", agentPort, "/ports/22", []string{token, "token-of-sb1"}, nobody, false, 404},
		{"by another way of writing it", "POST", agentPort, "/files/..%2finit", []string{token, "token-of-sb1"}, nobody, false, 404},
		{"code without token", "GET", codePort, "/contexts", nil, nobody, false, 403},
		{"code, health", "GET", codePort, "/health", nil, nobody, false, 403},
		{"code with traffic token", "GET", codePort, "/health", []string{traffic, "traffic-of-sb1"}, nobody, false, 200},
		{"code with another's", "GET", codePort, "/health", []string{traffic, "traffic-of-sb2"}, nobody, false, 403},
		{"code with token", "GET", codePort, "/health", []string{token, "token-of-sb1"}, nobody, false, 200},
		{"code by its tenant", "GET", codePort, "/health", nil, acme, false, 200},
		{"code by another tenant", "GET", codePort, "/health", nil, other, false, 403},
		{"a public port", "GET", open, "/", nil, nobody, false, 200},
		{"a public port, another tenant", "GET", open, "/", nil, other, false, 200},
		{"a private port", "GET", open, "/", nil, nobody, true, 403},
		{"a private port, another tenant", "GET", open, "/", nil, other, true, 403},
		{"a private port with traffic token", "GET", open, "/", []string{traffic, "traffic-of-sb1"}, nobody, true, 200},
		{"a private port with another's", "GET", open, "/", []string{traffic, "traffic-of-sb2"}, nobody, true, 403},
		{"a private port by its tenant", "GET", open, "/", nil, acme, true, 200},
	} {
		w.caller = c.caller
		w.rec.Annotations[dataplane.AnnotationPrivate] = strconv.FormatBool(c.private)
		if res := w.ask(c.method, c.path, with(to("sb1", c.port), c.header...)); res.StatusCode != c.want {
			t.Errorf("%s: %d, want %d: %s", c.name, res.StatusCode, c.want, text(t, res))
		}
		if res := w.ask(c.method, c.path, with(http.Header{}, append(c.header, "Host", hostOf(c.port, "sb1"))...)); res.StatusCode != c.want {
			t.Errorf("%s, by host: %d, want %d: %s", c.name, res.StatusCode, c.want, text(t, res))
		}
	}
	w.caller = nobody
	w.rec.TrafficToken = "" // made by a door that asked for none
	for _, header := range [][]string{{traffic, ""}, nil} {
		if res := w.ask("GET", "/health", with(to("sb1", codePort), header...)); res.StatusCode != 403 {
			t.Errorf("code of a sandbox without traffic token: %d", res.StatusCode)
		}
	}
}

func TestRefusals(t *testing.T) {
	w := newWorld(t, nil)
	shut := inside(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	port := func(text string) int { n, _ := strconv.Atoi(text); return n }
	pooled, creating := w.add(t, "sb2"), w.add(t, "sb3")
	pooled.Pool, creating.State = "p", firebreak.StateCreating
	closed := closedPort(t) // last: who listens next may get it
	for name, c := range map[string]struct {
		header  http.Header
		status  int
		message string
		port    int
	}{
		"unknown":              {to("nobody", agentPort), 502, "The sandbox was not found", 0},
		"a beginning":          {to("sb", agentPort), 502, "The sandbox was not found", 0},
		"nobody's yet":         {to("sb2", agentPort), 502, "The sandbox was not found", 0},
		"not made yet":         {to("sb3", agentPort), 502, "The sandbox was not found", 0},
		"a token of no one":    {http.Header{"X-Access-Token": {"x"}}, 502, "The sandbox was not found", 0},
		"not open":             {to("sb1", closed), 502, "The sandbox is running but port is not open", port(closed)},
		"not open, by host":    {http.Header{"Host": {hostOf(closed, "sb1")}}, 502, "The sandbox is running but port is not open", port(closed)},
		"broken off":           {to("sb1", shut), 502, "The sandbox is running but the server on the port broke off", port(shut)},
		"no traffic token":     {to("sb1", codePort), 403, "The traffic access token is missing or wrong", 0},
		"malformed id":         {to("A", agentPort), 400, "", 0},
		"malformed port":       {to("sb1", "http"), 400, "", 0},
		"malformed host":       {http.Header{"Host": {hostOf("80", "a_b")}}, 400, "", 0},
		"headers beside hosts": {with(to("sb1", agentPort), "Host", hostOf("80", "nobody")), 502, "The sandbox was not found", 0},
	} {
		res := w.ask("GET", "/health", c.header)
		body := text(t, res)
		var got struct {
			SandboxID, Message string
			Port, Code         int
		}
		if err := json.Unmarshal([]byte(body), &got); res.StatusCode != c.status || (c.message != "") != (err == nil) {
			t.Errorf("%s: %d %q", name, res.StatusCode, body)
		}
		if c.message != "" && (got.Message != c.message || got.Port != c.port || got.Code != c.status) {
			t.Errorf("%s: %+v", name, got)
		}
	}
	if res := w.ask("GET", "/health", nil); res.StatusCode != http.StatusTeapot {
		t.Errorf("what is not for a sandbox: %d", res.StatusCode)
	}
	for err, want := range map[error]int{
		&firebreak.Error{Kind: firebreak.KindState, Err: errors.New("x")}:                 409,
		&firebreak.Error{Kind: firebreak.KindDenied, Err: errors.New("x")}:                403,
		&firebreak.Error{Kind: firebreak.KindExhausted, Err: errors.New("x")}:             429,
		&firebreak.Error{Kind: firebreak.KindHost, Err: errors.New("/var/lib/firebreak")}: 502,
		fs.ErrNotExist: 502,
	} {
		w.broken = err
		res := w.ask("GET", "/health", to("sb1", agentPort))
		if body := text(t, res); res.StatusCode != want || strings.Contains(body, "/var/lib") {
			t.Errorf("%v: %d %s", err, res.StatusCode, body)
		}
	}
}

func TestPages(t *testing.T) {
	w := newWorld(t, nil)
	res := w.ask("GET", "/x", http.Header{"Host": {hostOf("80", "nobody")}, "Accept": {"text/html,application/xhtml+xml;q=0.9"}})
	if body := text(t, res); res.StatusCode != 502 || !strings.HasPrefix(res.Header.Get("Content-Type"), "text/html") ||
		!strings.Contains(body, "The sandbox was not found") || !strings.Contains(body, "nobody") || res.Header.Get("Content-Security-Policy") == "" {
		t.Errorf("%d %v %s", res.StatusCode, res.Header, body)
	}
}

func TestPausedSandboxes(t *testing.T) {
	w := newWorld(t, nil)
	open := inside(t, func(http.ResponseWriter, *http.Request) {})
	w.rec.State = firebreak.StatePaused
	for _, c := range []struct {
		port, path string
		want       int
	}{{agentPort, "/health", 502}, {agentPort, "/files?path=/x", 401}, {open, "/health", 409}, {codePort, "/health", 403}} {
		if res := w.ask("GET", c.path, to("sb1", c.port)); res.StatusCode != c.want {
			t.Errorf("%s%s: %d, want %d", c.port, c.path, res.StatusCode, c.want)
		}
	}
	if res := w.ask("GET", "/metrics", with(to("sb1", agentPort), "X-Access-Token", "token-of-sb1")); res.StatusCode != 409 {
		t.Errorf("with its token: %d", res.StatusCode)
	}
	w.rec.AutoResume = true
	if res := w.ask("GET", "/metrics", to("sb1", agentPort)); res.StatusCode != 401 || len(w.resumed) != 0 {
		t.Errorf("who may not reach it resumed it: %d", res.StatusCode)
	}
	if res := w.ask("GET", "/", to("sb1", open)); res.StatusCode != 200 || len(w.resumed) != 1 {
		t.Errorf("traffic: %d, resumed %v", res.StatusCode, w.resumed)
	}
}

func TestOldClientsSendTheTokenAlone(t *testing.T) {
	w := newWorld(t, nil)
	w.add(t, "sb2")
	for path, want := range map[string]int{"/health": 204, "/metrics": 200, "/files?path=/nowhere": 404} {
		if res := w.ask("GET", path, http.Header{"X-Access-Token": {"token-of-sb2"}}); res.StatusCode != want {
			t.Errorf("%s: %d", path, res.StatusCode)
		}
	}
}

func TestSignedFiles(t *testing.T) {
	w := newWorld(t, nil)
	w.add(t, "sb2")
	path := filepath.Join(t.TempDir(), "a b")
	if err := os.WriteFile(path, []byte("<html>hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	signed := func(token, operation, expires string) string {
		q := url.Values{"path": {path}, "signature": {signature.Sign(token, operation, path, "", expires)}}
		if expires != "" {
			q.Set("signature_expiration", expires)
		}
		return "/files?" + q.Encode()
	}
	at := func(d time.Duration) string { return strconv.FormatInt(time.Now().Add(d).Unix(), 10) }
	for _, c := range []struct {
		name, method, target string
		want                 int
	}{
		{"good", "GET", signed("token-of-sb2", "read", ""), 200},
		{"of another sandbox", "GET", signed("token-of-sb1", "read", ""), 200},
		{"until later", "GET", signed("token-of-sb2", "read", at(time.Hour)), 200},
		{"expired", "GET", signed("token-of-sb2", "read", at(-time.Hour)), 401},
		{"by nobody", "GET", signed("token", "read", ""), 401},
		{"for writing", "GET", signed("token-of-sb2", "write", ""), 401},
		{"for reading", "POST", signed("token-of-sb2", "read", ""), 401},
		{"by a method that nobody signs", "DELETE", signed("token-of-sb2", "read", ""), 401},
		{"empty", "GET", "/files?path=/x&signature=", 401},
	} {
		res := w.ask(c.method, c.target, nil)
		body := text(t, res)
		if res.StatusCode != c.want {
			t.Errorf("%s: %d %s", c.name, res.StatusCode, body)
		}
		if c.want == 200 && (body != "<html>hello" || res.Header.Get("Content-Security-Policy") != "sandbox" || res.Header.Get("X-Content-Type-Options") != "nosniff") {
			t.Errorf("%s: %q %v: it must not act as a page of ours", c.name, body, res.Header)
		}
		if c.want == 401 && !strings.Contains(body, `"code":401`) {
			t.Errorf("%s: %s", c.name, body)
		}
	}
	if res := w.ask("GET", signed("token-of-sb2", "read", ""), with(to("sb1", agentPort))); res.StatusCode != 401 {
		t.Errorf("where the address names another sandbox: %d", res.StatusCode)
	}
	if res := w.ask("GET", signed("token-of-sb1", "read", ""), http.Header{"Host": {hostOf(agentPort, "sb1")}}); res.StatusCode != 200 {
		t.Errorf("by host: %d", res.StatusCode)
	}
	before := w.tried
	for _, target := range []string{signed("token", "read", at(-time.Hour)), "/files?path=/x&signature=v1_short"} {
		if w.ask("GET", target, nil); w.tried != before {
			t.Errorf("%s costs a search", target)
		}
	}
}

func TestWhatPagesMayCall(t *testing.T) {
	w := newWorld(t, func(c *dataplane.Config) { c.Origins = []string{"https://app.test"} })
	mine := inside(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Access-Control-Allow-Origin", "mine")
		w.WriteHeader(http.StatusAccepted)
	})
	ask := func(origin string) http.Header {
		return http.Header{"Origin": {origin}, "Access-Control-Request-Method": {"POST"}, "Access-Control-Request-Headers": {"e2b-sandbox-id,x-access-token"}}
	}
	for name, c := range map[string]struct {
		method string
		header http.Header
		status int
		allow  string
	}{
		"a question without address": {"OPTIONS", ask("https://app.test"), 204, "https://app.test"},
		"a question by host":         {"OPTIONS", with(ask("https://app.test"), "Host", hostOf(agentPort, "sb1")), 204, "https://app.test"},
		"a question of another's":    {"OPTIONS", ask("https://evil.test"), 204, ""},
		"a request":                  {"GET", with(to("sb1", agentPort), "Origin", "https://app.test"), 204, "https://app.test"},
		"a request to nobody":        {"GET", with(to("nobody", agentPort), "Origin", "https://app.test"), 502, "https://app.test"},
		"a request of another's":     {"GET", with(to("sb1", agentPort), "Origin", "https://evil.test"), 204, ""},
		"a request to code":          {"GET", with(to("sb1", codePort), "Origin", "https://app.test", "X-Access-Token", "token-of-sb1"), 200, "https://app.test"},
		"the sandbox's own server":   {"OPTIONS", with(ask("https://evil.test"), "Host", hostOf(mine, "sb1")), 202, "mine"},
	} {
		res := w.ask(c.method, "/health", c.header)
		if got := strings.Join(res.Header["Access-Control-Allow-Origin"], "|"); res.StatusCode != c.status || got != c.allow {
			t.Errorf("%s: %d, allows %q", name, res.StatusCode, got)
		}
	}
	nowhere := newWorld(t, func(c *dataplane.Config) { c.Origins = nil })
	if res := nowhere.ask("GET", "/health", with(to("sb1", agentPort), "Origin", "https://app.test")); res.Header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("where no pages may call: %v", res.Header)
	}
	everywhere := newWorld(t, nil)
	res := everywhere.ask("OPTIONS", "/files", ask("https://evil.test"))
	if h := res.Header; h.Get("Access-Control-Allow-Origin") != "*" || h.Get("Access-Control-Allow-Headers") == "" || h.Get("Access-Control-Allow-Credentials") != "" {
		t.Errorf("where all may: %v", h)
	}
}
