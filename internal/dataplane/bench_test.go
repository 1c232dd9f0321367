package dataplane_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/firebreak-dev/firebreak/internal/signature"
)

// BenchmarkRequests is what the way into a sandbox costs, by where it leads and how it is addressed. "no plane" is the
// guest alone.
func BenchmarkRequests(b *testing.B) {
	w := newWorld(b, nil)
	for _, id := range []string{"sb2", "sb3"} {
		w.add(b, id)
	}
	port := inside(b, func(http.ResponseWriter, *http.Request) {})
	q := url.Values{"path": {"/dev/null/x"}, "signature": {signature.Sign("token-of-sb3", signature.Read, "/dev/null/x", "", "")}}
	bare := httptest.NewServer(w.guests["sb1"].Handler())
	defer bare.Close()
	for _, c := range []struct {
		name, url string
		header    http.Header
	}{
		{"agent, no plane", bare.URL + "/health", nil},
		{"agent, by headers", "/health", to("sb1", agentPort)},
		{"agent, by host", "/health", http.Header{"Host": {hostOf(agentPort, "sb1")}}},
		{"agent, by token", "/health", http.Header{"X-Access-Token": {"token-of-sb1"}}},
		{"agent, by signature", "/files?" + q.Encode(), nil},
		{"a port", "/", to("sb1", port)},
		{"nobody", "/health", to("nobody", agentPort)},
	} {
		b.Run(c.name, func(b *testing.B) {
			plain := httptest.NewServer(w.plane)
			defer plain.Close()
			target := c.url
			if target[0] == '/' {
				target = plain.URL + target
			}
			req, err := http.NewRequestWithContext(b.Context(), http.MethodGet, target, nil)
			if err != nil {
				b.Fatal(err)
			}
			for name, values := range c.header {
				req.Header[name] = values
			}
			req.Host = c.header.Get("Host")
			b.ReportAllocs()
			for b.Loop() {
				res, err := plain.Client().Do(req)
				if err != nil {
					b.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, res.Body)
				res.Body.Close()
			}
		})
	}
}
