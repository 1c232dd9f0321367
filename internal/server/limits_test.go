package server

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	firebreakv1 "github.com/firebreak-dev/firebreak/internal/api/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/api/firebreak/v1/firebreakv1connect"
)

func dial(t *testing.T, r *running) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", r.listeners.Plain.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil { // for a hang, not for speed
		t.Fatal(err)
	}
	return conn
}

// answered returns the status line and the rest of what the server says until it closes the connection.
func answered(t *testing.T, conn net.Conn) string {
	t.Helper()
	text, err := io.ReadAll(conn)
	if err != nil && !strings.Contains(err.Error(), "reset") {
		t.Errorf("the server does not close the connection: %v", err)
	}
	return string(text)
}

// TestSlowClientsAreCutOff has clients that begin and never end, in each place where one can stop.
func TestSlowClientsAreCutOff(t *testing.T) {
	r := start(t, nil, func(s *Server) {
		s.http.ReadHeaderTimeout, s.http.IdleTimeout, s.bodyTime = 500*time.Millisecond, 500*time.Millisecond, 500*time.Millisecond
	})
	key := "X-API-KEY: " + goodKey + "\r\n"
	for name, test := range map[string]struct{ text, want string }{
		"nothing":             {"", ""},
		"half a request line": {"GET /hea", ""},
		"half a header":       {"GET /health HTTP/1.1\r\nHost: x\r\nX-Pad: a", ""},
		"no end of headers":   {"GET /health HTTP/1.1\r\nHost: x\r\n", ""},
		"half a body":         {"POST /sandboxes HTTP/1.1\r\nHost: x\r\n" + key + "Content-Length: 10\r\n\r\n12345", "HTTP/1.1 400"},
		"half a chunk":        {"POST /sandboxes HTTP/1.1\r\nHost: x\r\n" + key + "Transfer-Encoding: chunked\r\n\r\nA\r\n123", "HTTP/1.1 400"},
		"a refused body":      {"POST /sandboxes HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345", "HTTP/1.1 401"},
		"a body for nobody":   {"POST /x HTTP/1.1\r\nHost: x\r\nE2b-Sandbox-Id: refuse\r\nContent-Length: 10\r\n\r\n12345", "HTTP/1.1 502"},
		"idle":                {"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 200"},
		"half of HTTP/2":      {"PRI * HTTP/2.0\r\n\r\nSM", ""},
	} {
		t.Run(name, func(t *testing.T) {
			conn := dial(t, r)
			if _, err := io.WriteString(conn, test.text); err != nil {
				t.Fatal(err)
			}
			if got := answered(t, conn); !strings.HasPrefix(got, test.want) || test.want == "" && strings.HasPrefix(got, "HTTP/1.1 2") {
				t.Errorf("answered %q", got)
			}
		})
	}
	t.Run("a TLS handshake", func(t *testing.T) {
		conn, err := net.Dial("tcp", r.listeners.TLS.String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write([]byte{22, 3, 1}); err != nil {
			t.Fatal(err)
		}
		answered(t, conn)
	})
}

// TestSlowDataIsNotCutOff holds the times above to the control plane: what goes into a sandbox, or is a file, may take
// as long as it takes.
func TestSlowDataIsNotCutOff(t *testing.T) {
	r := start(t, nil, func(s *Server) { s.bodyTime = 20 * time.Millisecond })
	c := r.client("tcp", r.listeners.Plain.String(), http1)
	for _, headers := range [][]string{{"E2b-Sandbox-Id", "a"}, {"X-API-KEY", goodKey}} {
		body, writer := io.Pipe()
		go func() {
			for range 10 {
				time.Sleep(20 * time.Millisecond) // the client's own slowness
				_, _ = writer.Write([]byte("x"))
			}
			writer.Close()
		}()
		status, text := send(t, c, "POST", r.plain()+"/upload/x", body, headers...)
		if status != 200 || !strings.Contains(text, " 10 ") {
			t.Errorf("%v: status %d, %q", headers, status, text)
		}
	}
}

// TestBodyTimeIsForTheBody has a handler that works on, in its own time, once the body is there.
func TestBodyTimeIsForTheBody(t *testing.T) {
	r := start(t, func(c *Config) {
		c.E2B = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			select {
			case <-r.Context().Done():
				t.Errorf("the request was ended: %v", r.Context().Err())
			case <-time.After(200 * time.Millisecond): // ten times what its body may take
			}
			fmt.Fprint(w, "done")
		})
	}, func(s *Server) { s.bodyTime = 20 * time.Millisecond })
	c := r.client("tcp", r.listeners.Plain.String(), http1)
	for range 2 { // on the same connection
		if status, text := send(t, c, "POST", r.plain()+"/sandboxes", strings.NewReader("{}"), "X-API-KEY", goodKey); status != 200 || text != "done" {
			t.Errorf("status %d, %q", status, text)
		}
	}
}

func TestLargeHeaders(t *testing.T) {
	r := start(t, nil, nil)
	pad := strings.Repeat("x", 100<<10)
	for name, test := range map[string]struct {
		client *http.Client
		url    string
	}{
		"HTTP/1.1":          {r.client("tcp", r.listeners.Plain.String(), http1), r.plain()},
		"HTTP/2 over TLS":   {r.client("tcp", r.listeners.TLS.String(), http2), "https://box.lan"},
		"HTTP/2 in the raw": {r.client("tcp", r.listeners.Plain.String(), h2c), r.plain()},
	} {
		t.Run(name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), "GET", test.url+"/health", nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("X-Pad", pad)
			resp, err := test.client.Do(req)
			switch {
			case err != nil: // HTTP/2 knows the limit before it sends, or cannot go on behind a field that is too long
				if !strings.HasPrefix(name, "HTTP/2") || !strings.Contains(err.Error(), "header list larger") && !strings.Contains(err.Error(), "GOAWAY") {
					t.Error(err)
				}
			case resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge:
				t.Errorf("status %d, want 431", resp.StatusCode)
			}
			if err == nil {
				resp.Body.Close()
			}
			if status, _ := send(t, test.client, "GET", test.url+"/health", nil); status != 200 {
				t.Errorf("the next request: status %d", status)
			}
		})
	}
	if status, _ := send(t, r.client("tcp", r.listeners.Plain.String(), http1), "GET", r.plain()+"/health", nil, "X-Pad", pad[:40<<10]); status != 200 {
		t.Errorf("40 KiB of headers: status %d", status)
	}
}

// endless is a body that says nothing of its length.
type endless struct{ left int }

func (e *endless) Read(p []byte) (int, error) {
	if e.left == 0 {
		return 0, io.EOF
	}
	n := min(len(p), e.left)
	e.left -= n
	return n, nil
}

func TestLargeBodies(t *testing.T) {
	r := start(t, nil, nil)
	c := r.client("tcp", r.listeners.Plain.String(), http1)
	h2 := r.client("tcp", r.listeners.TLS.String(), http2)
	key := []string{"X-API-KEY", goodKey}
	for name, test := range map[string]struct {
		client  *http.Client
		url     string
		body    io.Reader
		headers []string
		status  int
	}{
		"length said":        {c, r.plain() + "/sandboxes", bytes.NewReader(make([]byte, maxBody+1)), key, 413},
		"length not said":    {c, r.plain() + "/sandboxes", &endless{64 << 20}, key, 413},
		"HTTP/2":             {h2, "https://box.lan/sandboxes", &endless{64 << 20}, key, 413},
		"just enough":        {c, r.plain() + "/sandboxes", &endless{maxBody}, key, 200},
		"into a sandbox":     {c, r.plain() + "/files", &endless{64 << 20}, []string{"E2b-Sandbox-Id", "a"}, 200},
		"a file of the API":  {c, r.plain() + "/upload/x", &endless{64 << 20}, key, 200},
		"nobody's":           {c, r.plain() + "/sandboxes", &endless{64 << 20}, nil, 401},
		"nobody's in HTTP/2": {h2, "https://box.lan/sandboxes", &endless{64 << 20}, nil, 401},
	} {
		t.Run(name, func(t *testing.T) {
			if status, text := send(t, test.client, "POST", test.url, test.body, test.headers...); status != test.status {
				t.Errorf("status %d, %q; want %d", status, text, test.status)
			}
		})
	}
	t.Run("rpc", func(t *testing.T) {
		service := firebreakv1connect.NewSandboxServiceClient(c, r.plain())
		req := connect.NewRequest(&firebreakv1.CreateSandboxRequest{Name: strings.Repeat("x", maxBody)})
		req.Header().Set("X-API-KEY", goodKey)
		if _, err := service.CreateSandbox(t.Context(), req); connect.CodeOf(err) != connect.CodeResourceExhausted {
			t.Errorf("%v, want resource exhausted", err)
		}
	})
}

func TestPanicsAreAnswered(t *testing.T) {
	r := start(t, func(c *Config) {
		c.E2B = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/late" {
				w.WriteHeader(http.StatusOK)
				_ = http.NewResponseController(w).Flush()
			}
			if r.URL.Path == "/abort" {
				panic(http.ErrAbortHandler)
			}
			panic("oops")
		})
	}, nil)
	c := r.client("tcp", r.listeners.Plain.String(), http1)
	status, body := send(t, c, "GET", r.plain()+"/x", nil, "X-API-KEY", goodKey)
	if status != 500 || body != `{"code":500,"message":"internal server error"}`+"\n" {
		t.Errorf("status %d, %q", status, body)
	}
	if log := r.log.String(); !strings.Contains(log, "oops") || !strings.Contains(log, "limits_test.go") {
		t.Errorf("the log does not tell where:\n%s", log)
	}
	for _, path := range []string{"/late", "/abort"} {
		req, err := http.NewRequestWithContext(t.Context(), "GET", r.plain()+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-API-KEY", goodKey)
		resp, err := c.Do(req)
		if err == nil {
			_, err = io.ReadAll(resp.Body)
			resp.Body.Close()
		}
		if err == nil {
			t.Errorf("%s: a broken answer looks whole", path)
		}
	}
}

func TestTooManyConnectionsAreTurnedAway(t *testing.T) {
	r := start(t, func(c *Config) { c.MaxConnections = 3 }, nil)
	ask := func(conn net.Conn) error {
		if _, err := io.WriteString(conn, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			return err
		}
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err == nil {
			resp.Body.Close()
		}
		return err
	}
	conns := []net.Conn{dial(t, r), dial(t, r), dial(t, r)}
	for _, conn := range conns {
		if err := ask(conn); err != nil {
			t.Fatal(err)
		}
	}
	if err := ask(dial(t, r)); err == nil {
		t.Error("a fourth is served")
	}
	conns[0].Close()
	for end := time.Now().Add(time.Minute); ; { // until the server has seen it
		if err := ask(dial(t, r)); err == nil {
			break
		} else if time.Now().After(end) {
			t.Fatalf("nobody is served in place of one that left: %v", err)
		}
	}
	if !strings.Contains(r.log.String(), "turned away") {
		t.Error("the log says nothing of it")
	}
}

func TestOneHostCannotTakeAllConnections(t *testing.T) {
	c := newConnections(8, config(io.Discard).Log)
	at := func(ip string) net.Addr {
		return net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(ip), 1))
	}
	admit := func(ip string, want bool) func() {
		t.Helper()
		release, ok := c.admit(at(ip))
		if ok != want {
			t.Errorf("%s: admitted %v, want %v", ip, ok, want)
		}
		return release
	}
	release := admit("192.0.2.1", true)
	admit("::ffff:192.0.2.1", true) // the same
	admit("192.0.2.1", false)
	admit("2001:db8::1", true)
	admit("2001:db8::2", true) // of the same network
	admit("2001:db8::3", false)
	admit("2001:db8:0:1::3", true)
	for range 3 {
		admit("127.0.0.1", true) // a proxy
	}
	admit("127.0.0.1", false) // all are taken
	release()
	release() // twice is once
	admit("192.0.2.1", true)
	admit("192.0.2.1", false)
}

// TestManyIdleConnections keeps ten thousand connections open and idle, and asks on each of them once more.
func TestManyIdleConnections(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: this takes ten thousand connections")
	}
	const n = 10_000
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || limit.Cur < 2*n+1000 {
		t.Skipf("%d files may be open, %v: both ends of %d connections are in this process", limit.Cur, err, n)
	}
	r := start(t, func(c *Config) { c.MaxConnections = n + 10 }, nil)
	conns := make([]net.Conn, n)
	ask := func(conn net.Conn) {
		t.Helper()
		if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, "GET /health HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReaderSize(conn, 16), nil)
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("%v, %v", resp, err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Fatal(err)
		}
	}
	for i := range conns {
		conns[i] = dial(t, r)
		ask(conns[i])
	}
	for _, conn := range conns {
		ask(conn)
	}
}
