package server

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/localca"
)

// TestMain is also the programs that some tests start.
func TestMain(m *testing.M) {
	switch os.Getenv("FIREBREAK_TEST_CHILD") {
	case "activated":
		os.Exit(activated())
	case "stranger":
		os.Exit(stranger())
	}
	os.Exit(m.Run())
}

func TestProtocols(t *testing.T) {
	r := start(t, nil, nil)
	plain, encrypted := r.listeners.Plain.String(), r.listeners.TLS.String()
	for name, test := range map[string]struct {
		client *http.Client
		url    string
		major  int
	}{
		"HTTP/1.1":                {r.client("tcp", plain, http1), "http://127.0.0.1", 1},
		"h2c":                     {r.client("tcp", plain, h2c), "http://127.0.0.1", 2},
		"HTTP/1.1 over TLS":       {r.client("tcp", encrypted, http1), "https://box.lan", 1},
		"HTTP/2 over TLS":         {r.client("tcp", encrypted, http2), "https://box.lan", 2},
		"a sandbox's name":        {r.client("tcp", encrypted, http2), "https://8080-abc.box.lan", 2},
		"the API's name":          {r.client("tcp", encrypted, http1), "https://api.box.lan", 1},
		"localhost":               {r.client("tcp", encrypted, http1), "https://localhost", 1},
		"HTTP/1.1 on the socket":  {r.client("unix", r.listeners.Socket, http1), "http://firebreak", 1},
		"HTTP/2 raw on a socket":  {r.client("unix", r.listeners.Socket, h2c), "http://firebreak", 2},
		"what the client prefers": {r.client("tcp", encrypted, func(p *http.Protocols) { p.SetHTTP1(true); p.SetHTTP2(true) }), "https://box.lan", 2},
	} {
		t.Run(name, func(t *testing.T) {
			resp := do(t, test.client, "GET", test.url+"/health", nil)
			defer resp.Body.Close()
			if resp.StatusCode != 200 || resp.ProtoMajor != test.major {
				t.Errorf("status %d over %s, want HTTP/%d", resp.StatusCode, resp.Proto, test.major)
			}
		})
	}
	t.Run("another name", func(t *testing.T) {
		if resp, err := r.client("tcp", encrypted, http1).Get("https://example.com/health"); err == nil {
			resp.Body.Close()
			t.Error("the certificate is good for example.com")
		}
	})
	t.Run("old TLS", func(t *testing.T) {
		conn, err := tls.Dial("tcp", encrypted, &tls.Config{MaxVersion: tls.VersionTLS11, InsecureSkipVerify: true})
		if err == nil {
			conn.Close()
			t.Error("TLS 1.1 is spoken")
		}
	})
}

func TestRequestIDs(t *testing.T) {
	r := start(t, nil, nil)
	c := r.client("tcp", r.listeners.Plain.String(), http1)
	for given, kept := range map[string]bool{"abc-1.2_X": true, "a b": false, "": false, strings.Repeat("x", 65): false, "é": false} {
		resp := do(t, c, "GET", r.plain()+"/health", nil, "X-Request-Id", given)
		resp.Body.Close()
		got := resp.Header.Get("X-Request-Id")
		if got == "" || (got == given) != kept {
			t.Errorf("%q became %q", given, got)
		}
		if !strings.Contains(r.log.String(), "id="+got) {
			t.Errorf("%q is not in the log", got)
		}
	}
	resp := do(t, c, "GET", r.plain()+"/x", nil, "E2b-Sandbox-Id", "a")
	resp.Body.Close()
	if got := resp.Header.Get("X-Request-Id"); got != "" {
		t.Errorf("a sandbox's answer has %q", got)
	}
}

func TestNoDoors(t *testing.T) {
	r := start(t, func(c *Config) { c.DataPlane, c.RPC, c.E2B, c.Metrics, c.CA = nil, nil, nil, nil, []byte("PEM") }, nil)
	c := r.client("tcp", r.listeners.Plain.String(), http1)
	for path, want := range map[string]int{"/sandboxes": 404, "/firebreak.v1.X/Y": 404, "/metrics": 404, "/healthz": 200, "/ca.pem": 200} {
		if status, _ := send(t, c, "GET", r.plain()+path, nil, "X-API-KEY", goodKey); status != want {
			t.Errorf("%s: status %d, want %d", path, status, want)
		}
	}
}

func TestPagesOfOtherOrigins(t *testing.T) {
	preflight := []string{"Origin", "https://a.example", "Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "x-api-key"}
	for _, test := range []struct {
		origins, path string
		method        string
		headers       []string
		status        int
		allowed       string
	}{
		{"*", "/sandboxes", "OPTIONS", preflight, 204, "*"}, // before anybody has shown a key
		{"*", "/firebreak.v1.X/Y", "OPTIONS", preflight, 204, "*"},
		{"*", "/sandboxes", "GET", []string{"Origin", "https://a.example"}, 401, "*"}, // a page may read that it needs a key
		{"https://a.example", "/sandboxes", "OPTIONS", preflight, 204, "https://a.example"},
		{"https://b.example", "/sandboxes", "OPTIONS", preflight, 204, ""},
		{"https://b.example", "/sandboxes", "GET", []string{"Origin", "https://a.example", "X-API-KEY", goodKey}, 200, ""},
		{"", "/sandboxes", "OPTIONS", preflight, 401, ""},
		{"*", "/x", "GET", []string{"Origin", "https://a.example", "E2b-Sandbox-Id", "a"}, 200, ""}, // for the data plane to say
		{"*", "/metrics", "GET", []string{"Origin", "https://a.example"}, 200, ""},
	} {
		r := start(t, func(c *Config) { c.Origins = strings.Fields(test.origins) }, nil)
		c := r.client("tcp", r.listeners.Plain.String(), http1)
		resp := do(t, c, test.method, r.plain()+test.path, nil, test.headers...)
		resp.Body.Close()
		if resp.StatusCode != test.status || resp.Header.Get("Access-Control-Allow-Origin") != test.allowed {
			t.Errorf("%q: %s %s: %d, %q", test.origins, test.method, test.path, resp.StatusCode, resp.Header.Get("Access-Control-Allow-Origin"))
		}
	}
}

func TestReadiness(t *testing.T) {
	notYet := errors.New("not yet")
	r := start(t, func(c *Config) { c.Ready = func(context.Context) error { return notYet } }, nil)
	c := r.client("tcp", r.listeners.Plain.String(), http1)
	if status, body := send(t, c, "GET", r.plain()+"/readyz", nil); status != 503 || body != "not yet\n" {
		t.Errorf("status %d, %q", status, body)
	}
	if status, _ := send(t, c, "GET", r.plain()+"/healthz", nil); status != 200 {
		t.Errorf("healthz: status %d", status)
	}
}

// TestEnd ends a server in the midst of a stream, which is cut, and of a call, which ends by itself.
func TestEnd(t *testing.T) {
	streaming, working, finish := make(chan struct{}), make(chan struct{}), make(chan struct{})
	causes := make(chan error, 1)
	r := start(t, func(c *Config) {
		c.DataPlane = plane{http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_ = http.NewResponseController(w).Flush()
			close(streaming)
			<-r.Context().Done()
			causes <- context.Cause(r.Context())
		})}
		c.E2B = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			close(working)
			<-finish
			fmt.Fprint(w, "done")
		})
	}, nil)
	c := r.client("tcp", r.listeners.Plain.String(), http1)
	stream := do(t, c, "POST", r.plain()+"/process.Process/Start", nil, "E2b-Sandbox-Id", "a")
	defer stream.Body.Close()
	<-streaming
	answers := make(chan string, 1)
	go func() {
		_, body := send(t, c, "POST", r.plain()+"/sandboxes", nil, "X-API-KEY", goodKey)
		answers <- body
	}()
	<-working
	r.stop()
	if cause := <-causes; !errors.Is(cause, ErrClosing) {
		t.Errorf("the stream ended because of %v", cause)
	}
	if _, err := io.ReadAll(stream.Body); err != nil {
		t.Errorf("the stream was torn: %v", err)
	}
	for end := time.Now().Add(time.Minute); ; { // the listener is closed by now, or in a moment
		conn, err := net.Dial("tcp", r.listeners.Plain.String())
		if err != nil {
			break
		}
		conn.Close()
		if time.Now().After(end) {
			t.Fatal("new connections are accepted")
		}
	}
	close(finish)
	if body := <-answers; body != "done" {
		t.Errorf("the call was answered with %q", body)
	}
}

// TestEndIsBounded ends a server in the midst of a call that never ends.
func TestEndIsBounded(t *testing.T) {
	working := make(chan struct{})
	r := start(t, func(c *Config) {
		c.Grace = 10 * time.Millisecond
		c.E2B = http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			close(working)
			<-r.Context().Done()
		})
	}, nil)
	failed := make(chan error, 1)
	go func() {
		req, err := http.NewRequest("GET", r.plain()+"/sandboxes", nil)
		if err == nil {
			req.Header.Set("X-API-KEY", goodKey)
			var resp *http.Response
			if resp, err = r.client("tcp", r.listeners.Plain.String(), http1).Do(req); err == nil {
				resp.Body.Close()
			}
		}
		failed <- err
	}()
	<-working
	r.stop()
	if err := <-failed; err == nil {
		t.Error("it was answered")
	}
	if !strings.Contains(r.log.String(), "cut off") {
		t.Error("the log says nothing of it")
	}
}

func TestLongRequests(t *testing.T) {
	for _, test := range []struct {
		door   door
		path   string
		header string
		value  string
		want   bool
	}{
		{doorRPC, "/firebreak.v1.SandboxService/WatchSandboxes", "", "", true},
		{doorRPC, "/firebreak.v1.SandboxService/CreateSandbox", "", "", false},
		{doorRPC, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "", "", true},
		{doorData, "/process.Process/Start", "", "", true},
		{doorData, "/process.Process/SendInput", "Content-Type", "application/json", false},
		{doorData, "/chat", "Upgrade", "websocket", true},
		{doorData, "/events", "Accept", "text/event-stream", true},
		{doorData, "/files", "", "", false},
		{doorE2B, "/sandboxes", "Accept", "text/event-stream", false},
	} {
		r, err := http.NewRequest("POST", "http://x"+test.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set(test.header, test.value)
		if got := isLong(r, test.door); got != test.want {
			t.Errorf("%s %s %s: %v", test.path, test.header, test.value, got)
		}
	}
}

func TestUnixSockets(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	listen := func() (*Listeners, error) { return Listen(t.Context(), Addresses{Socket: path}) }
	first, err := listen()
	if err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", fi, err)
	}
	if l, err := listen(); err == nil {
		l.Close()
		t.Error("two servers listen on one socket")
	}
	first.All[0].Listener.(*net.UnixListener).SetUnlinkOnClose(false) // as one that was killed
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second, err := listen()
	if err != nil {
		t.Fatalf("a dead server's socket: %v", err)
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if l, err := listen(); err == nil {
		l.Close()
		t.Error("a file was taken for a socket")
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != "mine" {
		t.Errorf("the file is %q, %v", text, err)
	}
}

func TestListenersThatOthersReach(t *testing.T) {
	for address, far := range map[string]bool{"127.0.0.1:0": false, "[::1]:0": false, "0.0.0.0:0": true, "localhost:0": false, ":0": true} {
		l, err := Listen(t.Context(), Addresses{Plain: address})
		if err != nil {
			t.Errorf("%s: %v", address, err)
			continue
		}
		if l.Far() != far || l.Plain == nil || l.TLS != nil {
			t.Errorf("%s: far %v", address, l.Far())
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	if l, err := Listen(t.Context(), Addresses{Plain: "127.0.0.1:0", TLS: "192.0.2.1:443"}); err == nil {
		l.Close()
		t.Error("it listens on an address that this host does not have")
	} else if !strings.Contains(err.Error(), "to mend it") {
		t.Errorf("%v: no way to mend it", err)
	}
}

// stranger asks on the socket as another user, and prints what it is answered.
func stranger() int {
	conn, err := net.Dial("unix", os.Getenv("FIREBREAK_TEST_SOCKET"))
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET /sandboxes HTTP/1.1\r\nHost: x\r\n%s\r\n", os.Getenv("FIREBREAK_TEST_HEADER"))
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	fmt.Printf("%d %s", resp.StatusCode, body)
	return 0
}

func TestStrangersOnTheSocketNeedAKey(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can become another user")
	}
	r := start(t, nil, nil)
	for dir := r.listeners.Socket; len(dir) > 1 && dir != os.TempDir(); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	for want, header := range map[string]string{"401 ": "", "200 e2b acme": "X-API-KEY: " + goodKey + "\r\n"} {
		program, err := os.ReadFile("/proc/self/exe")
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(filepath.Dir(r.listeners.Socket), "stranger")
		if err := os.WriteFile(path, program, 0o755); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), path)
		cmd.Dir = "/"
		cmd.Env = []string{"FIREBREAK_TEST_CHILD=stranger", "FIREBREAK_TEST_SOCKET=" + r.listeners.Socket, "FIREBREAK_TEST_HEADER=" + header}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 54321, Gid: 54321}}
		if out, err := cmd.CombinedOutput(); err != nil || !strings.HasPrefix(string(out), want) {
			t.Errorf("%s, %v; want %s", out, err, want)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// activated is a server on what was passed to it, until its standard input ends.
func activated() int {
	l, err := Listen(context.Background(), Addresses{Plain: "127.0.0.1:1"})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", PassedVariable} {
		if value, ok := os.LookupEnv(name); ok {
			fmt.Printf("%s=%s is left to children\n", name, value)
			return 1
		}
	}
	ctx, stop := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer os.RemoveAll(dir)
	ca, err := localca.Open(dir, "box.lan")
	if err != nil {
		fmt.Println(err)
		return 1
	}
	if err := FindManager().Ready(ctx); err != nil {
		fmt.Println(err)
		return 1
	}
	if err := New(config(io.Discard)).Serve(ctx, ca.Certificate, l.All...); err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

// TestSocketActivation starts a server as systemd does: with two sockets that are open already.
func TestSocketActivation(t *testing.T) {
	for name, script := range map[string]string{
		"systemd":        `export LISTEN_PID=$$; exec "$0"`,
		"in a namespace": `export LISTEN_PID=$$ FIREBREAK_LISTEN_PARENT=$$; "$0"; exit $?`, // by a parent that runs on
	} {
		t.Run(name, func(t *testing.T) {
			var files []*os.File
			var addresses []string
			for range 2 {
				l, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				f, err := l.(*net.TCPListener).File()
				if err != nil {
					t.Fatal(err)
				}
				files, addresses = append(files, f), append(addresses, l.Addr().String())
				l.Close()
			}
			notified, err := net.ListenPacket("unixgram", filepath.Join(t.TempDir(), "n"))
			if err != nil {
				t.Fatal(err)
			}
			defer notified.Close()
			cmd := exec.CommandContext(t.Context(), "sh", "-c", script, os.Args[0])
			cmd.ExtraFiles = files
			cmd.Env = append(os.Environ(), "FIREBREAK_TEST_CHILD=activated", "LISTEN_FDS=2", "LISTEN_FDNAMES=plain:tls", "NOTIFY_SOCKET="+notified.LocalAddr().String())
			var out strings.Builder
			cmd.Stdout, cmd.Stderr = &out, &out
			stdin, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			for _, f := range files {
				f.Close()
			}
			c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
			for _, url := range []string{"http://" + addresses[0], "https://" + addresses[1]} {
				resp, err := c.Get(url + "/health") // it waits in the queue of the socket until the server is there
				if err != nil {
					t.Errorf("%v", err)
					continue
				}
				resp.Body.Close()
				if resp.StatusCode != 200 {
					t.Errorf("%s: status %d", url, resp.StatusCode)
				}
			}
			message := make([]byte, 100)
			if err := notified.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
				t.Fatal(err)
			}
			if n, _, err := notified.ReadFrom(message); err != nil || string(message[:n]) != "READY=1" {
				t.Errorf("the service manager was told %q, %v", message[:n], err)
			}
			stdin.Close()
			if err := cmd.Wait(); err != nil {
				t.Errorf("%v: %s", err, out.String())
			}
		})
	}
}
