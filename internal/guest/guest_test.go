package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/firebreak-dev/firebreak"
	processv1 "github.com/firebreak-dev/firebreak/internal/api/process"
)

// hostile serves h where an agent would be, and returns the host's end of it.
func hostile(t testing.TB, h http.HandlerFunc) *Guest {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	g := New(dialer(server.Listener.Addr()), "token")
	t.Cleanup(g.Close)
	return g
}

func dialer(address net.Addr) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, address.Network(), address.String())
	}
}

// raw answers every connection with these bytes, whatever is asked, and then goes on with next.
func raw(t testing.TB, answer string, next func(net.Conn)) *Guest {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = conn.Read(make([]byte, 4096))
				_, _ = io.WriteString(conn, answer)
				if next != nil {
					next(conn)
				}
			}()
		}
	}()
	g := New(dialer(l.Addr()), "token")
	t.Cleanup(g.Close)
	return g
}

func TestInitTriesUntilTheAgentIsThere(t *testing.T) {
	var tries atomic.Int32
	g := raw(t, "HTTP/1.1 204 No Content\r\n\r\n", nil)
	dial := g.dial
	g.dial = func(ctx context.Context) (net.Conn, error) {
		if tries.Add(1) < 4 {
			return nil, errors.New("not yet")
		}
		return dial(ctx)
	}
	if err := g.Init(t.Context(), Config{}); err != nil || tries.Load() != 4 {
		t.Errorf("%d tries, %v", tries.Load(), err)
	}
}

func TestInitEnds(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	g := New(func(context.Context) (net.Conn, error) { return nil, errors.New("mute") }, "token")
	if err := g.Init(ctx, Config{}); !errors.Is(err, context.DeadlineExceeded) || firebreak.KindOf(err) != firebreak.KindUnavailable {
		t.Errorf("with its context: %v", err)
	}
	ended := New(func(context.Context) (net.Conn, error) { return nil, fs.ErrNotExist }, "token")
	if err := ended.Init(t.Context(), Config{}); !errors.Is(err, fs.ErrNotExist) || firebreak.KindOf(err) != firebreak.KindUnavailable {
		t.Errorf("of a sandbox that has ended: %v", err)
	}
	mute := raw(t, "", func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := mute.Init(ctx, Config{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("of an agent that never answers: %v", err)
	}
	var calls atomic.Int32
	refusing := hostile(t, func(w http.ResponseWriter, _ *http.Request) {
		calls.Add(1)
		http.Error(w, "taken", http.StatusUnauthorized)
	})
	if err := refusing.Init(t.Context(), Config{}); firebreak.KindOf(err) != firebreak.KindDenied || calls.Load() != 1 {
		t.Errorf("refused %d times: %v", calls.Load(), err)
	}
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	var elsewhere atomic.Bool
	g := hostile(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/secret" {
			elsewhere.Store(true)
		}
		http.Redirect(w, r, "/secret", http.StatusTemporaryRedirect)
	})
	if err := g.Health(t.Context()); err == nil {
		t.Error("a redirect passed for health")
	}
	if _, err := g.Process().List(t.Context(), connect.NewRequest(&processv1.ListRequest{})); err == nil {
		t.Error("a redirect passed for a list")
	}
	if elsewhere.Load() {
		t.Error("the redirect was followed")
	}
}

func TestFloodsEnd(t *testing.T) {
	g := hostile(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Flood", strings.Repeat("x", 2*maxHeader))
	})
	if err := g.Health(t.Context()); err == nil {
		t.Error("a flood of headers was taken")
	}
	g = hostile(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusTeapot)
		_, _ = io.WriteString(w, strings.Repeat("e", 1<<20))
	})
	if err := g.Health(t.Context()); err == nil || len(err.Error()) > 2*maxText {
		t.Errorf("an error of %d bytes", len(err.Error()))
	}
	g = hostile(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/proto")
		for range 2 * maxMessage >> 16 {
			_, _ = w.Write(make([]byte, 64<<10))
		}
	})
	if _, err := g.Process().List(t.Context(), connect.NewRequest(&processv1.ListRequest{})); connect.CodeOf(err) != connect.CodeResourceExhausted {
		t.Errorf("a flood of a message: %v", err)
	}
	g = hostile(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/connect+proto")
		_, _ = w.Write([]byte{0, 0xff, 0xff, 0xff, 0xff})
		_, _ = w.Write(make([]byte, 1<<20))
	})
	stream, err := g.Process().Start(t.Context(), connect.NewRequest(&processv1.StartRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	if stream.Receive() || connect.CodeOf(stream.Err()) != connect.CodeResourceExhausted {
		t.Errorf("an envelope of 4 GiB: %v", stream.Err())
	}
}

// ask sends a request to the proxy exactly as written.
func ask(t testing.TB, g *Guest, method, target string, header http.Header) *http.Response {
	t.Helper()
	door := httptest.NewServer(g.Handler())
	defer door.Close()
	req, err := http.NewRequest(method, door.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.URL = &url.URL{Scheme: "http", Host: req.URL.Host, Opaque: "//" + req.URL.Host + target}
	for name, values := range header {
		req.Header[name] = values
	}
	client := &http.Client{CheckRedirect: noRedirect, Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	res.Body = io.NopCloser(bytes.NewReader(body))
	return res
}

func TestHandlerHidesTheInside(t *testing.T) {
	g := hostile(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.URL.RequestURI()) })
	for target, want := range map[string]int{
		"/files?path=/a": 200, "/files/compose": 200, "/health": 200, "/metrics": 200, "/envs": 200,
		"/process.Process/Start": 200, "/filesystem.Filesystem/Stat": 200,
		"/init": 404, "/init/": 404, "/INIT": 404, "//init": 404, "/%69nit": 404, "/files/../init": 404, "/files/%2e%2e/init": 404, "/files/..%2finit": 404,
		"/ports/22": 404, "/ports/": 404, "/export": 404, "/import": 404, "/warm/python": 404, "/process.Process/../init": 404, "/process.Process/%2e%2e": 404, "/process.Process/": 404,
		"/process.Process/a/b": 404, "/": 404, "/debug/pprof": 404, "/process.Process/Start%00": 404,
	} {
		if res := ask(t, g, "POST", target, nil); res.StatusCode != want {
			t.Errorf("%s: %d, want %d", target, res.StatusCode, want)
		}
	}
}

func TestHandlerPassesWhatIsOfTheProtocol(t *testing.T) {
	var seen http.Header
	g := hostile(t, func(w http.ResponseWriter, r *http.Request) {
		seen = r.Header.Clone()
		for name, value := range map[string]string{"Content-Type": "text/plain", "Etag": `"x"`, "Connect-Content-Encoding": "gzip",
			"Set-Cookie": "a=b", "Access-Control-Allow-Origin": "*", "Strict-Transport-Security": "max-age=1", "Content-Security-Policy": "x",
			"Clear-Site-Data": "*", "Refresh": "0;url=//x", "Location": "//x", "X-Accel-Redirect": "/etc/passwd", "Alt-Svc": "h3", "Connection": "X-Hop", "X-Hop": "1"} {
			w.Header().Set(name, value)
		}
	})
	res := ask(t, g, "GET", "/files", http.Header{"X-Access-Token": {"forged"}, "Authorization": {"Basic dXNlcjo="}, "Cookie": {"session=1"},
		"X-Api-Key": {"e2b_1"}, "Te": {"trailers"}, "Connection": {"X-Drop"}, "X-Drop": {"1"}, "Keepalive-Ping-Interval": {"50"}})
	for name, want := range map[string]string{"X-Access-Token": "token", "Authorization": "Basic dXNlcjo=", "Keepalive-Ping-Interval": "50",
		"Cookie": "", "X-Api-Key": "", "X-Drop": "", "X-Forwarded-For": ""} {
		if got := seen.Get(name); got != want {
			t.Errorf("the agent saw %s: %q, want %q", name, got, want)
		}
	}
	for name, want := range map[string]string{"Content-Type": "text/plain", "Etag": `"x"`, "Connect-Content-Encoding": "gzip",
		"Set-Cookie": "", "Access-Control-Allow-Origin": "", "Strict-Transport-Security": "", "Content-Security-Policy": "", "Clear-Site-Data": "",
		"Refresh": "", "Location": "", "X-Accel-Redirect": "", "Alt-Svc": "", "X-Hop": ""} {
		if got := res.Header.Get(name); got != want {
			t.Errorf("the client saw %s: %q, want %q", name, got, want)
		}
	}
}

func TestHandlerRefusesTricks(t *testing.T) {
	for name, answer := range map[string]string{
		"a redirect":         "HTTP/1.1 302 Found\r\nLocation: http://elsewhere/\r\nContent-Length: 0\r\n\r\n",
		"an upgrade":         "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n",
		"an unnamed upgrade": "HTTP/1.1 101 Switching Protocols\r\n\r\n",
		"no HTTP":            "SSH-2.0-OpenSSH_9.2\r\n\r\n",
		"an odd status":      "HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n",
		"two lengths":        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxy",
		"nothing":            "",
	} {
		if res := ask(t, raw(t, answer, nil), "GET", "/health", nil); res.StatusCode != 502 {
			t.Errorf("%s: %d, want 502", name, res.StatusCode)
		}
	}
	g := hostile(t, func(http.ResponseWriter, *http.Request) { t.Error("an upgrade reached the agent") })
	if res := ask(t, g, "GET", "/files", http.Header{"Connection": {"Upgrade"}, "Upgrade": {"tcp"}}); res.StatusCode != 400 {
		t.Errorf("an upgrade that a client asks for: %d", res.StatusCode)
	}
	dead := New(func(context.Context) (net.Conn, error) { return nil, errors.New("no") }, "token")
	res := ask(t, dead, "GET", "/health", nil)
	body, _ := io.ReadAll(res.Body)
	if res.StatusCode != 502 || !strings.Contains(string(body), `"code":502`) {
		t.Errorf("a dead sandbox: %d %s", res.StatusCode, body)
	}
}

func TestHandlerStreams(t *testing.T) {
	more := make(chan struct{})
	g := hostile(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "first")
		_ = http.NewResponseController(w).Flush()
		<-more
		_, _ = io.WriteString(w, "second")
	})
	door := httptest.NewServer(g.Handler())
	defer door.Close()
	res, err := http.Get(door.URL + "/files")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	head := make([]byte, len("first"))
	if _, err := io.ReadFull(res.Body, head); err != nil || string(head) != "first" {
		t.Errorf("%q, %v", head, err)
	}
	close(more)
	if rest, err := io.ReadAll(res.Body); err != nil || string(rest) != "second" {
		t.Errorf("%q, %v", rest, err)
	}
}

func TestDialPort(t *testing.T) {
	const switching = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
	g := raw(t, switching+"banner", func(c net.Conn) { _, _ = io.Copy(c, c) })
	conn, err := g.DialPort(t.Context(), 80)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "+echo")
	if err := conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Error(err)
	}
	if got, err := io.ReadAll(conn); err != nil || string(got) != "banner+echo" {
		t.Errorf("%q, %v", got, err)
	}
	for name, answer := range map[string]string{
		"closed":         "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 6\r\n\r\nclosed",
		"no upgrade":     "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
		"to another":     "HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n",
		"endless header": "HTTP/1.1 101 Switching Protocols\r\nX: " + strings.Repeat("x", 4*maxHeader),
		"endless error":  "HTTP/1.1 502 Bad Gateway\r\n\r\n" + strings.Repeat("x", 4*maxHeader),
		"no HTTP":        "220 smtp ready\r\n",
	} {
		if _, err := raw(t, answer, nil).DialPort(t.Context(), 80); firebreak.KindOf(err) != firebreak.KindUnavailable || len(err.Error()) > 2*maxText {
			t.Errorf("%s: %v", name, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	mute := raw(t, "", func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	if _, err := mute.DialPort(ctx, 80); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("of an agent that never answers: %v", err)
	}
}

func FuzzReadUpgrade(f *testing.F) {
	f.Add([]byte("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nbytes"))
	f.Add([]byte("HTTP/1.1 502 Bad Gateway\r\nContent-Length: 999999999999\r\n\r\nno"))
	f.Add([]byte("HTTP/1.1 101\r\n"))
	f.Fuzz(func(t *testing.T, answer []byte) {
		r, err := readUpgrade(bytes.NewReader(answer), &http.Request{Method: http.MethodPost})
		if err != nil {
			if len(err.Error()) > 8*maxText { // quoting takes up to four characters a byte
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
			return
		}
		rest, err := io.ReadAll(r)
		if err != nil || !bytes.HasSuffix(answer, rest) {
			t.Errorf("what follows the answer was changed: %q, %v", rest, err)
		}
	})
}

// FuzzPublic holds that what is passed on names, for any router, exactly what was checked.
func FuzzPublic(f *testing.F) {
	for _, path := range []string{"/files", "/init", "/process.Process/Start", "/process.Process/../init", "/files/compose"} {
		f.Add(path)
	}
	mux := http.NewServeMux()
	for _, private := range []string{"/init", "/ports/{port}", "/warm/{language}", "/export", "/import"} {
		mux.HandleFunc(private, func(http.ResponseWriter, *http.Request) {})
	}
	f.Fuzz(func(t *testing.T, path string) {
		if !public(path) {
			return
		}
		_, pattern := mux.Handler(&http.Request{Method: "POST", URL: &url.URL{Path: path}})
		if pattern != "" {
			t.Errorf("%q reaches %s", path, pattern)
		}
		if u, err := url.Parse(fmt.Sprintf("http://agent%s", path)); err != nil || u.Path != path {
			t.Errorf("%q is read as %v, %v", path, u, err)
		}
	})
}
