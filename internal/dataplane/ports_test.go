package dataplane_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/firebreak-dev/firebreak/internal/dataplane"
)

func TestServersInsideAreToldNoTokens(t *testing.T) {
	w := newWorld(t, nil)
	type seen struct {
		header    http.Header
		host, uri string
	}
	got := make(chan seen, 1)
	port := inside(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Strict-Transport-Security", "max-age=1")
		w.Header().Set("Set-Cookie", "a=b")
		got <- seen{r.Header, r.Host, r.RequestURI}
	})
	secrets := []string{"X-Access-Token", "token-of-sb1", "E2B-Traffic-Access-Token", "traffic-of-sb1", "X-API-Key", "e2b_00", "Authorization", "Bearer e2b_00"}
	own := []string{"Cookie", "session=1", "X-Custom", "1", "X-Forwarded-Host", "forged"}
	res := w.ask("GET", "/a%2fb?x=;&y=1", with(with(to("sb1", port), secrets...), own...))
	s := <-got
	for name, want := range map[string]string{"X-Access-Token": "", "E2b-Traffic-Access-Token": "", "X-Api-Key": "", "Authorization": "",
		"E2b-Sandbox-Id": "", "E2b-Sandbox-Port": "", "Cookie": "session=1", "X-Custom": "1", "X-Forwarded-Proto": "https",
		"X-Forwarded-Host": strings.TrimPrefix(w.server.URL, "https://"), "X-Forwarded-For": "127.0.0.1"} {
		if s.header.Get(name) != want {
			t.Errorf("%s: %q, want %q", name, s.header.Get(name), want)
		}
	}
	if s.uri != "/a%2fb?x=;&y=1" {
		t.Errorf("asked for %q", s.uri)
	}
	if res.Header.Get("Set-Cookie") != "a=b" || res.Header.Get("Strict-Transport-Security") != "" {
		t.Errorf("answered with %v", res.Header)
	}
	res = w.ask("GET", "/", http.Header{"Host": {hostOf(port, "sb1")}, "X-Api-Key": {"own"}, "Authorization": {"Bearer own"}})
	if s := <-got; s.header.Get("X-Api-Key") != "own" || s.header.Get("Authorization") != "Bearer own" || s.host != hostOf(port, "sb1") {
		t.Errorf("keys of its own: %v at %s", s.header, s.host)
	}
	if res.Header.Get("Strict-Transport-Security") == "" {
		t.Error("a site of its own cannot say what holds for it")
	}
	w.rec.Annotations[dataplane.AnnotationMaskHost] = "localhost:${PORT}"
	w.ask("GET", "/", to("sb1", port))
	if s := <-got; s.host != "localhost:"+port {
		t.Errorf("its host is masked as %q", s.host)
	}
}

// TestStreamsBothWays sends and receives in turn within one request, over both versions of HTTP.
func TestStreamsBothWays(t *testing.T) {
	w := newWorld(t, nil)
	port := inside(t, func(w http.ResponseWriter, r *http.Request) {
		c := http.NewResponseController(w)
		if err := c.EnableFullDuplex(); err != nil {
			t.Error(err)
		}
		_, _ = io.WriteString(w, "begun\n")
		for lines := bufio.NewReader(r.Body); ; {
			_ = c.Flush()
			line, err := lines.ReadString('\n')
			if err != nil {
				return
			}
			_, _ = io.WriteString(w, strings.ToUpper(line))
		}
	})
	for _, version := range []int{1, 2} {
		transport := w.server.Client().Transport.(*http.Transport).Clone()
		transport.ForceAttemptHTTP2 = version == 2
		if version == 1 {
			transport.Protocols = new(http.Protocols)
			transport.Protocols.SetHTTP1(true)
			transport.TLSClientConfig.NextProtos = nil
		}
		defer transport.CloseIdleConnections()
		body, send := io.Pipe()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.server.URL+"/", body)
		if err != nil {
			t.Fatal(err)
		}
		req.Header = to("sb1", port)
		res, err := transport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		if res.ProtoMajor != version {
			t.Errorf("%s, want version %d", res.Proto, version)
		}
		lines := bufio.NewReader(res.Body)
		for i, want := range []string{"begun\n", "A\n", "B\n"} {
			if line, err := lines.ReadString('\n'); err != nil || line != want {
				t.Fatalf("line %d: %q, %v", i, line, err)
			}
			_, _ = fmt.Fprintf(send, "%c\n", 'a'+i)
		}
		_ = send.Close()
		if rest, err := io.ReadAll(lines); err != nil || string(rest) != "C\n" {
			t.Errorf("in the end: %q, %v", rest, err)
		}
		res.Body.Close()
	}
}

func TestWebSockets(t *testing.T) {
	w := newWorld(t, nil)
	port := inside(t, func(rw http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(rw, r, &websocket.AcceptOptions{Subprotocols: []string{"shout"}})
		if err != nil {
			t.Error(err)
			return
		}
		defer c.CloseNow()
		for {
			kind, data, err := c.Read(r.Context())
			if err != nil {
				if websocket.CloseStatus(err) != websocket.StatusNormalClosure {
					t.Errorf("the server: %v", err)
				}
				return
			}
			_ = c.Write(r.Context(), kind, []byte(strings.ToUpper(string(data))))
		}
	})
	for name, header := range map[string]http.Header{"headers": to("sb1", port), "host": {"Host": {hostOf(port, "sb1")}}} {
		host := header.Get("Host")
		header.Del("Host")
		c, res, err := websocket.Dial(t.Context(), w.server.URL, &websocket.DialOptions{HTTPClient: http1(w), HTTPHeader: header, Host: host, Subprotocols: []string{"shout"}})
		if err != nil {
			t.Fatalf("by %s: %v, %v", name, err, res)
		}
		if c.Subprotocol() != "shout" {
			t.Errorf("by %s: subprotocol %q", name, c.Subprotocol())
		}
		for range 3 {
			if err := c.Write(t.Context(), websocket.MessageText, []byte("hello")); err != nil {
				t.Error(err)
			}
			if _, data, err := c.Read(t.Context()); err != nil || string(data) != "HELLO" {
				t.Errorf("by %s: %q, %v", name, data, err)
			}
		}
		if err := c.Close(websocket.StatusNormalClosure, ""); err != nil {
			t.Error(err)
		}
	}
	_, res, err := websocket.Dial(t.Context(), w.server.URL, &websocket.DialOptions{HTTPClient: http1(w), HTTPHeader: to("sb1", closedPort(t))})
	if err == nil || res == nil || res.StatusCode != 502 {
		t.Errorf("to a closed port: %v, %v", res, err)
	}
}

func http1(w *world) *http.Client {
	transport := w.server.Client().Transport.(*http.Transport).Clone()
	transport.TLSClientConfig.NextProtos = []string{"http/1.1"}
	w.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// TestHalfClose speaks a protocol in which the answer comes at the end of input.
func TestHalfClose(t *testing.T) {
	w := newWorld(t, nil)
	port := inside(t, func(rw http.ResponseWriter, r *http.Request) {
		conn, buffered, err := http.NewResponseController(rw).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: count\r\n\r\n")
		n, err := io.Copy(io.Discard, buffered)
		if err != nil {
			t.Error(err)
		}
		_, _ = fmt.Fprintf(conn, "%d bytes", n)
	})
	conn, err := tls.Dial("tcp", w.server.Listener.Addr().String(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: count\r\n\r\n", hostOf(port, "sb1"))
	buffered := bufio.NewReader(conn)
	res, err := http.ReadResponse(buffered, nil)
	if err != nil || res.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%v, %v", res, err)
	}
	_, _ = io.WriteString(conn, strings.Repeat("x", 100_000))
	if err := conn.CloseWrite(); err != nil {
		t.Error(err)
	}
	if got, err := io.ReadAll(buffered); err != nil || string(got) != "100000 bytes" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestCrowds(t *testing.T) {
	w := newWorld(t, func(c *dataplane.Config) { c.PerSandbox = 2 })
	w.add(t, "sb2")
	began, end := make(chan struct{}), make(chan struct{})
	port := inside(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			began <- struct{}{}
			<-end
		}
	})
	answered := make(chan int)
	for range 2 {
		go func() { answered <- w.ask("GET", "/slow", to("sb1", port)).StatusCode }()
		<-began
	}
	if res := w.ask("GET", "/", to("sb1", port)); res.StatusCode != http.StatusTooManyRequests || res.Header.Get("Retry-After") == "" {
		t.Errorf("a third request: %d %v", res.StatusCode, res.Header)
	}
	if res := w.ask("GET", "/", to("sb2", port)); res.StatusCode != http.StatusOK {
		t.Errorf("another sandbox: %d", res.StatusCode)
	}
	close(end)
	for range 2 {
		if code := <-answered; code != http.StatusOK {
			t.Errorf("a slow one: %d", code)
		}
	}
	for range 3 {
		res := w.ask("GET", "/", to("sb1", port))
		for end := time.Now().Add(time.Minute); res.StatusCode == http.StatusTooManyRequests && time.Now().Before(end); {
			time.Sleep(time.Millisecond) // who was answered is still on its way out
			res = w.ask("GET", "/", to("sb1", port))
		}
		if res.StatusCode != http.StatusOK {
			t.Errorf("afterwards: %d", res.StatusCode)
		}
	}
}

func TestConnectIsRefused(t *testing.T) {
	w := newWorld(t, nil)
	conn, err := tls.Dial("tcp", w.server.Listener.Addr().String(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = fmt.Fprintf(conn, "CONNECT %s HTTP/1.1\r\nHost: %[1]s\r\n\r\n", hostOf("80", "sb1"))
	if res, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || res.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("%v, %v", res, err)
	}
}

// TestClientsThatGoAway holds that a stream ends inside when its client is gone.
func TestClientsThatGoAway(t *testing.T) {
	w := newWorld(t, nil)
	ended := make(chan struct{})
	port := inside(t, func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
		close(ended)
	})
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.server.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header = to("sb1", port)
	res, err := w.server.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	cancel()
	<-ended // or the test's time is up
}
