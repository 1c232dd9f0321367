package answer

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestStatus(t *testing.T) {
	for name, c := range map[string]struct {
		answer func(w http.ResponseWriter)
		want   int
	}{
		"nothing":     {func(http.ResponseWriter) {}, 200},
		"status":      {func(w http.ResponseWriter) { w.WriteHeader(404) }, 404},
		"twice":       {func(w http.ResponseWriter) { w.WriteHeader(404); w.WriteHeader(500) }, 404},
		"early hints": {func(w http.ResponseWriter) { w.WriteHeader(103); w.WriteHeader(201) }, 201},
		"write":       {func(w http.ResponseWriter) { _, _ = io.WriteString(w, "x"); w.WriteHeader(500) }, 200},
		"copy":        {func(w http.ResponseWriter) { _, _ = io.Copy(w, strings.NewReader("x")) }, 200},
		"flush":       {func(w http.ResponseWriter) { w.(http.Flusher).Flush() }, 200},
		"controller": {func(w http.ResponseWriter) {
			if err := http.NewResponseController(w).Flush(); err != nil {
				t.Error(err)
			}
		}, 200},
		"hijack": {func(w http.ResponseWriter) {
			conn, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = io.WriteString(conn, "HTTP/1.1 101 x\r\n\r\n")
			_ = conn.Close()
		}, 101},
	} {
		got := make(chan int, 1)
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			out := &Writer{ResponseWriter: w}
			if out.Status() != 0 {
				t.Errorf("%s: %d before anything was answered", name, out.Status())
			}
			c.answer(out)
			out.End()
			got <- out.Status()
		}))
		conn, err := net.Dial("tcp", server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, conn)
		if n := <-got; n != c.want {
			t.Errorf("%s: %d, want %d", name, n, c.want)
		}
		_ = conn.Close()
		server.Close()
	}
}
