package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/localca"
)

const goodKey = "e2b_00000000000000000000000000000000000000aa"

// plane is a data plane for whatever has a sandbox's header.
type plane struct{ http.Handler }

func (plane) Addressed(r *http.Request) bool { return r.Header.Get("E2b-Sandbox-Id") != "" }

// who answers with the door and the caller.
func who(door string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := auth.CallerOf(r.Context())
		caller := c.Tenant.ID
		if r.Header.Get("E2b-Sandbox-Id") == "refuse" { // and not read its body
			http.Error(w, "no", http.StatusBadGateway)
			return
		}
		switch {
		case err != nil:
			caller = "nobody"
		case c.Operator:
			caller = "operator"
		}
		n, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			status := http.StatusBadRequest
			if tooLong := new(http.MaxBytesError); errors.As(err, &tooLong) {
				status = http.StatusRequestEntityTooLarge
			}
			http.Error(w, err.Error(), status)
			return
		}
		fmt.Fprintf(w, "%s %s %d %s%s", door, caller, n, r.Header.Get("X-Api-Key"), r.Header.Get("Authorization"))
	})
}

// lines is a log to be read while it is written.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// running is a server at work on a plain port, an encrypted one and a unix socket.
type running struct {
	*Server
	t         *testing.T
	listeners *Listeners
	log       *lines
	ca        *localca.CA
	stop      context.CancelFunc
	ended     chan error // what Serve returned
}

func config(log io.Writer) Config {
	return Config{
		DataPlane: plane{who("data")}, RPC: who("rpc"), E2B: who("e2b"), MCP: who("mcp"), Metrics: who("metrics"),
		Authenticate: func(_ context.Context, key string) (auth.Tenant, error) {
			switch key {
			case goodKey:
				return auth.Tenant{ID: "acme"}, nil
			case "e2b_broken":
				return auth.Tenant{}, &firebreak.Error{Kind: firebreak.KindUnavailable, Err: errors.New("the database is locked")}
			}
			return auth.Tenant{}, &firebreak.Error{Kind: firebreak.KindDenied, Err: errors.New("it is not valid")}
		},
		Public:         func(r *http.Request) bool { return r.URL.Path == "/health" },
		Upload:         func(r *http.Request) bool { return strings.HasPrefix(r.URL.Path, "/upload/") },
		MaxConnections: 1000, Grace: 10 * time.Second,
		Log: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
}

// start runs a server, after a change of how it is made or of itself.
func start(t *testing.T, change func(*Config), adjust func(*Server)) *running {
	t.Helper()
	r := &running{t: t, log: &lines{}, ended: make(chan error, 1)}
	var err error
	if r.ca, err = localca.Open(t.TempDir(), "box.lan"); err != nil {
		t.Fatal(err)
	}
	cfg := config(r.log)
	if change != nil {
		change(&cfg)
	}
	r.Server = New(cfg)
	if adjust != nil {
		adjust(r.Server)
	}
	r.listeners, err = Listen(t.Context(), Addresses{Plain: "127.0.0.1:0", TLS: "127.0.0.1:0", Socket: t.TempDir() + "/s"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	r.stop = stop
	go func() { r.ended <- r.Serve(ctx, r.ca.Certificate, r.listeners.All...) }()
	t.Cleanup(func() {
		stop()
		select {
		case err := <-r.ended:
			if err != nil {
				t.Errorf("serve: %v", err)
			}
		case <-time.After(time.Minute):
			t.Error("it does not end")
		}
	})
	return r
}

func (r *running) plain() string { return "http://" + r.listeners.Plain.String() }

// client returns a client that trusts the authority, and dials this server whatever the name.
func (r *running) client(network, address string, protocols func(*http.Protocols)) *http.Client {
	p := &http.Protocols{}
	protocols(p)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(r.ca.PEM())
	transport := &http.Transport{Protocols: p, TLSClientConfig: &tls.Config{RootCAs: roots}, DisableCompression: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, address)
		}}
	r.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func http1(p *http.Protocols) { p.SetHTTP1(true) }
func http2(p *http.Protocols) { p.SetHTTP2(true) }
func h2c(p *http.Protocols)   { p.SetUnencryptedHTTP2(true) }

// send returns the status and the body of an answer.
func send(t *testing.T, c *http.Client, method, url string, body io.Reader, headers ...string) (int, string) {
	t.Helper()
	resp := do(t, c, method, url, body, headers...)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

func do(t *testing.T, c *http.Client, method, url string, body io.Reader, headers ...string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}
