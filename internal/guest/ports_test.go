package guest

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/firebreak-dev/firebreak"
)

const toPort = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"

// listening is a sandbox in which serve answers on every port.
func listening(t *testing.T, opened *atomic.Int32, serve func(c net.Conn, r *bufio.Reader)) *Guest {
	t.Helper()
	return raw(t, toPort, func(c net.Conn) {
		opened.Add(1)
		serve(c, bufio.NewReader(c))
	})
}

func get(t *testing.T, g *Guest, url string, header http.Header) (*http.Response, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if header != nil {
		req.Header = header
	}
	return g.Ports().RoundTrip(req)
}

func TestPortsKeepConnectionsUntilClose(t *testing.T) {
	var opened atomic.Int32
	closed := make(chan struct{}, 8)
	g := listening(t, &opened, func(c net.Conn, r *bufio.Reader) {
		for {
			if _, err := http.ReadRequest(r); err != nil {
				closed <- struct{}{}
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
		}
	})
	for _, url := range []string{"http://x:80/", "http://y:80/", "http://x:80/", "http://x:81/"} {
		res, err := get(t, g, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		if body, err := io.ReadAll(res.Body); err != nil || string(body) != "hi" {
			t.Errorf("%s: %q, %v", url, body, err)
		}
		res.Body.Close()
	}
	if n := opened.Load(); n != 3 { // x:80 once, y:80, x:81
		t.Errorf("%d connections", n)
	}
	g.Close()
	for range 3 {
		<-closed // or the test's time is up
	}
}

func TestPortsSwitchProtocols(t *testing.T) {
	var opened atomic.Int32
	g := listening(t, &opened, func(c net.Conn, r *bufio.Reader) {
		req, err := http.ReadRequest(r)
		if err != nil || req.Header.Get("Upgrade") != "echo" {
			t.Errorf("%v, %v", req, err)
		}
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nbanner ")
		_, _ = io.Copy(c, r)
		_ = c.(*net.TCPConn).CloseWrite()
	})
	res, err := get(t, g, "http://x:80/", http.Header{"Connection": {"Upgrade"}, "Upgrade": {"echo"}})
	if err != nil {
		t.Fatal(err)
	}
	stream := res.Body.(io.ReadWriteCloser)
	defer stream.Close()
	_, _ = io.WriteString(stream, "hello")
	if err := stream.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Error(err)
	}
	if got, err := io.ReadAll(stream); err != nil || string(got) != "banner hello" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestPortsSayWhoseFaultItIs(t *testing.T) {
	if _, err := get(t, raw(t, "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 6\r\n\r\nclosed", nil), "http://x:80/", nil); firebreak.KindOf(err) != firebreak.KindUnavailable {
		t.Errorf("a closed port: %v", err)
	}
	if _, err := get(t, raw(t, "HTTP/1.1 501 Not Implemented\r\nContent-Length: 2\r\n\r\nno", nil), "http://x:80/", nil); firebreak.KindOf(err) != firebreak.KindUnsupported {
		t.Errorf("a sandbox without ports: %v", err)
	}
	var opened atomic.Int32
	for name, answer := range map[string]string{"silence": "", "no HTTP": "SSH-2.0\r\n\r\n", "endless headers": "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 4*maxHeader)} {
		g := listening(t, &opened, func(c net.Conn, r *bufio.Reader) {
			_, _ = http.ReadRequest(r)
			_, _ = io.WriteString(c, answer)
		})
		if _, err := get(t, g, "http://x:80/", nil); err == nil || firebreak.KindOf(err) == firebreak.KindUnavailable {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestMetrics(t *testing.T) {
	g := hostile(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/metrics" || r.Header.Get("X-Access-Token") != "token" {
			t.Errorf("%s %v", r.URL, r.Header)
		}
		_, _ = io.WriteString(w, `{"ts":1,"cpu_count":2,"mem_total":5,"mem_used":4,"mem_cache":3,"disk_used":2,"disk_total":18446744073709551615}`)
	})
	if m, err := g.Metrics(t.Context()); err != nil || m != (Metrics{5, 4, 3, 2, 1 << 53}) {
		t.Errorf("%+v, %v", m, err)
	}
	for name, h := range map[string]http.HandlerFunc{
		"none":    func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotImplemented) },
		"no JSON": func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") },
		"minus":   func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"mem_total":-1}`) },
		"endless": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{"x":"`+strings.Repeat("x", 4*maxMetrics)+`","mem_total":1}`)
		},
	} {
		if _, err := hostile(t, h).Metrics(t.Context()); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
