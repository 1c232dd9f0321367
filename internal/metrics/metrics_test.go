package metrics

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/firebreak-dev/firebreak"
)

// value returns a number by its labels, "a=b c=d": of a histogram how many were observed. -1: it is not there.
func value(t *testing.T, m *Metrics, name, labels string) float64 {
	t.Helper()
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, metric := range f.GetMetric() {
			var got []string
			for _, l := range metric.GetLabel() {
				got = append(got, l.GetName()+"="+l.GetValue())
			}
			if f.GetName() == namespace+"_"+name && strings.Join(got, " ") == labels {
				return metric.GetCounter().GetValue() + metric.GetGauge().GetValue() + float64(metric.GetHistogram().GetSampleCount())
			}
		}
	}
	return -1
}

func want(t *testing.T, m *Metrics, all map[string]float64) {
	t.Helper()
	for key, n := range all {
		name, labels, _ := strings.Cut(key, " ")
		if got := value(t, m, name, labels); got != n {
			t.Errorf("%s is %v, want %v", key, got, n)
		}
	}
}

func TestCounts(t *testing.T) {
	m := New(Config{Version: "v1", Commit: "abc"})
	m.Created("gvisor", false, 100*time.Millisecond, Phases{Image: time.Millisecond, Create: 80 * time.Millisecond, Agent: 19 * time.Millisecond}, nil)
	m.Created("gvisor", true, time.Millisecond, Phases{Agent: time.Millisecond}, nil)
	m.Created("", false, time.Millisecond, Phases{Image: time.Second}, &firebreak.Error{Kind: firebreak.KindDenied, Err: errors.New("no")})
	m.Created("gvisor", false, time.Second, Phases{}, errors.New("a bug"))
	m.Ended("gvisor", string(firebreak.EndDeadline), 1500*time.Millisecond)
	m.Ended("gvisor", string(firebreak.EndDeadline), -time.Second)
	m.Refused([]string{"tenants-need-vm", "gpu"})
	m.Refused(nil)
	m.Exec("gvisor", 4*time.Millisecond)
	m.Webhook("sent")
	want(t, m, map[string]float64{
		"create_seconds driver=gvisor outcome=ok source=cold":           1,
		"create_seconds driver=gvisor outcome=ok source=pool":           1,
		"create_seconds driver=none outcome=denied source=cold":         1,
		"create_seconds driver=gvisor outcome=internal source=cold":     1,
		"create_phase_seconds driver=gvisor phase=image":                1,
		"create_phase_seconds driver=gvisor phase=create":               1,
		"create_phase_seconds driver=gvisor phase=agent":                2,
		"create_phase_seconds driver=none phase=image":                  -1,
		"ended_total driver=gvisor reason=deadline":                     2,
		"ended_cpu_seconds_total driver=gvisor":                         1.5,
		"refusals_total rule=gpu":                                       1,
		"refusals_total rule=tenants-need-vm":                           1,
		"refusals_total rule=none":                                      1,
		"exec_seconds driver=gvisor":                                    1,
		"webhook_attempts_total outcome=sent":                           1,
		"build_info commit=abc go=" + runtime.Version() + " version=v1": 1,
	})
}

// What is served is what Prometheus reads.
func TestServed(t *testing.T) {
	m := New(Config{Connections: func() int { return 3 }})
	m.Refused([]string{"a \"rule\"\n", "b"})
	server := httptest.NewServer(m.Handler())
	defer server.Close()
	expected := `# HELP firebreak_connections Open connections.
# TYPE firebreak_connections gauge
firebreak_connections 3
# HELP firebreak_refusals_total Requests that the policy refused, by rule.
# TYPE firebreak_refusals_total counter
firebreak_refusals_total{rule="a \"rule\"\n"} 1
firebreak_refusals_total{rule="b"} 1
`
	if err := testutil.ScrapeAndCompare(server.URL, strings.NewReader(expected), "firebreak_connections", "firebreak_refusals_total"); err != nil {
		t.Error(err)
	}
	resp, err := server.Client().Get(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || !strings.Contains(string(text), "\ngo_goroutines ") || !strings.Contains(string(text), "\nprocess_open_fds ") {
		t.Errorf("the runtime and the process are not there: %v", err)
	}
	problems, err := testutil.GatherAndLint(m.registry)
	if err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
}

func TestSamples(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // however slow the host is, it is all of one sample
		var asked atomic.Int32
		m := New(Config{Tenants: true, Connections: func() int { return 7 },
			Pools: func() []Pool {
				return []Pool{{Name: "host/gvisor", Ready: 2, Target: 3, Min: 1, Max: 4, Claims: 10, Misses: 1}}
			},
			Sandboxes: func(context.Context) ([]Sandbox, error) {
				asked.Add(1)
				return []Sandbox{
					{Driver: "gvisor", State: "running", Tenant: "acme", CPUs: 1, Memory: 512 << 20, UsedCPU: time.Second, UsedMemory: 1 << 20},
					{Driver: "gvisor", State: "running", Tenant: "acme", CPUs: 0.5, UsedCPU: time.Second},
					{Driver: "gvisor", State: "paused", Tenant: "umbra"}, {Driver: "container", State: "running"},
				}, nil
			}})
		var all sync.WaitGroup
		for range 10 {
			all.Go(func() {
				m.Handler().ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/metrics", nil))
			})
		}
		all.Wait()
		if n := asked.Load(); n != 1 {
			t.Errorf("asked %d times at once", n)
		}
		want(t, m, map[string]float64{
			"sandboxes driver=gvisor state=running": 2, "sandboxes driver=gvisor state=paused": 1, "sandboxes driver=container state=running": 1,
			"sandboxes_limit_cpus driver=gvisor": 1.5, "sandboxes_limit_memory_bytes driver=gvisor": 512 << 20,
			"sandboxes_cpu_seconds driver=gvisor": 2, "sandboxes_memory_bytes driver=gvisor": 1 << 20,
			"tenant_sandboxes tenant=acme": 2, "tenant_sandboxes tenant=umbra": 1, "tenant_sandboxes tenant=none": 1, "connections ": 7,
			"pool_sandboxes pool=host/gvisor what=ready": 2, "pool_sandboxes pool=host/gvisor what=target": 3,
			"pool_total pool=host/gvisor what=claim": 10, "pool_total pool=host/gvisor what=miss": 1, "sample_failures_total ": 0,
		})
	})
}

// A scrape has all else when the sandboxes cannot be listed, and bounds the time for it.
func TestSampleThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // however slow the host is, it is all of one sample
		m := New(Config{Sandboxes: func(ctx context.Context) ([]Sandbox, error) {
			if end, ok := ctx.Deadline(); !ok || time.Until(end) > sampleTimeout {
				t.Error("there is no time limit")
			}
			return []Sandbox{{Driver: "gvisor", State: "running"}}, errors.New("locked")
		}})
		m.Webhook("sent")
		want(t, m, map[string]float64{"sandboxes driver=gvisor state=running": -1, "sample_failures_total ": 1, "webhook_attempts_total outcome=sent": 1,
			"tenant_sandboxes tenant=none": -1})
	})
}

// Whatever clients send, there are few series.
func TestLabelsAreBounded(t *testing.T) {
	m := New(Config{})
	h := m.Door("e2b", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { SetRoute(r.Context(), r.URL.Path) })) // as no handler should
	for i := range 5000 {
		name := fmt.Sprintf("x%d", i)
		m.Created(name, false, 0, Phases{}, nil)
		m.Ended("gvisor", name, 0)
		m.Refused([]string{name})
		m.Exec(name, 0)
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(fmt.Sprintf("M%d", i), "/"+name, nil))
	}
	m.Refused([]string{strings.Repeat("x", 1000), "bad \xff\n\"", ""})
	n := 0
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if strings.HasPrefix(f.GetName(), namespace) {
			n += len(f.GetMetric())
		}
	}
	if n > 800 {
		t.Errorf("there are %d series", n)
	}
	want(t, m, map[string]float64{"refusals_total rule=other": 5000 - maxRules + 2, "refusals_total rule=none": 1})
}

func TestDoor(t *testing.T) {
	m := New(Config{})
	mux := http.NewServeMux()
	mux.HandleFunc("GET /sandboxes/{id}", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) })
	mux.HandleFunc("POST /sandboxes", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusEarlyHints)
		if got := value(t, m, "http_requests_in_flight", "door=e2b"); got != 1 {
			t.Errorf("%v requests are under way", got)
		}
		_, _ = io.Copy(w, strings.NewReader("made"))
	})
	mux.HandleFunc("/rpc.Service/", func(w http.ResponseWriter, r *http.Request) { SetRoute(r.Context(), "/rpc.Service/Get") })
	mux.HandleFunc("/abort", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	server := httptest.NewServer(m.Door("e2b", mux))
	defer server.Close()
	for _, ask := range []string{"GET /sandboxes/a", "GET /sandboxes/b", "POST /sandboxes", "GET /nowhere/" + strings.Repeat("x", 500), "BREW /sandboxes/a", "GET /rpc.Service/Evil", "POST /abort"} {
		verb, path, _ := strings.Cut(ask, " ")
		req, err := http.NewRequestWithContext(t.Context(), verb, server.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if resp, err := server.Client().Do(req); err == nil {
			resp.Body.Close()
		} else if path != "/abort" {
			t.Error(err)
		}
	}
	want(t, m, map[string]float64{
		"http_request_seconds code=404 door=e2b method=GET route=GET /sandboxes/{id}": 2,
		"http_request_seconds code=200 door=e2b method=POST route=POST /sandboxes":    1,
		"http_request_seconds code=404 door=e2b method=GET route=other":               1,
		"http_request_seconds code=200 door=e2b method=GET route=/rpc.Service/Get":    1,
		"http_request_seconds code=0 door=e2b method=POST route=/abort":               1,
		"http_request_seconds code=405 door=e2b method=other route=other":             1,
		"http_requests_in_flight door=e2b":                                            0,
	})
}

func TestLabelsThatAreNoText(t *testing.T) {
	m := New(Config{Tenants: true, Pools: func() []Pool { return []Pool{{Name: "\xff"}, {Name: "\xfe"}} },
		Sandboxes: func(context.Context) ([]Sandbox, error) {
			return []Sandbox{{Driver: "\xff", State: "\xff", Tenant: "\xff"}, {Driver: "a\nb\"", State: "running"}}, nil
		}})
	m.Created("\xff", false, 0, Phases{}, nil)
	m.Refused([]string{"\xff", strings.Repeat("x", 1000)})
	want(t, m, map[string]float64{"create_seconds driver=other outcome=ok source=cold": 1, "refusals_total rule=other": 2,
		"sandboxes driver=other state=other": 1, "tenant_sandboxes tenant=other": 1, "pool_sandboxes pool=other what=ready": 0})
}

// What a handler can do with the writer of net/http, it can do with ours.
func TestDoorHidesNothing(t *testing.T) {
	m := New(Config{})
	flushed := make(chan struct{})
	mux := http.NewServeMux()
	mux.HandleFunc("/flush", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "first\n")
		w.(http.Flusher).Flush()
		<-flushed
	})
	mux.HandleFunc("/hijack", func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\n\r\nraw")
	})
	server := httptest.NewServer(m.Door("data", mux))
	defer server.Close()
	resp, err := server.Client().Get(server.URL + "/flush")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if line, err := bufio.NewReader(resp.Body).ReadString('\n'); line != "first\n" {
		t.Errorf("%q, %v", line, err)
	}
	close(flushed)
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /hijack HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if all, err := io.ReadAll(conn); !strings.HasSuffix(string(all), "raw") {
		t.Errorf("%q, %v", all, err)
	}
	const hijacked = "http_request_seconds code=101 door=data method=GET route=/hijack"
	for end := time.Now().Add(10 * time.Second); value(t, m, "http_request_seconds", strings.TrimPrefix(hijacked, "http_request_seconds ")) < 1 && time.Now().Before(end); {
		time.Sleep(time.Millisecond) // the handler is still on its way out
	}
	want(t, m, map[string]float64{hijacked: 1})
}

func TestTimeStart(t *testing.T) {
	event, end := "\x00\x00\x00\x00\x02{}", "\x02\x00\x00\x00\x02{}"
	for _, c := range []struct {
		name, method, path, kind string
		status                   int
		body                     []string
		want                     float64 // -1: nothing was counted
	}{
		{"started", "POST", "/process.Process/Start", "application/connect+json", 200, []string{event, event, end}, 1},
		{"gRPC", "POST", "/process.Process/Start", "application/grpc+proto", 200, []string{event}, 1},
		{"not started", "POST", "/process.Process/Start", "application/connect+json", 200, []string{end}, -1},
		{"refused", "POST", "/process.Process/Start", "application/json", 404, []string{`{"code":"not_found"}`}, -1},
		{"no stream", "POST", "/process.Process/Start", "application/json", 200, []string{"{}"}, -1},
		{"nothing", "POST", "/process.Process/Start", "application/connect+json", 200, []string{""}, -1},
		{"another call", "POST", "/process.Process/List", "application/connect+json", 200, []string{event}, -1},
		{"no call", "GET", "/process.Process/Start", "application/connect+json", 200, []string{event}, -1},
	} {
		m := New(Config{})
		rec := httptest.NewRecorder()
		w := m.TimeStart(rec, httptest.NewRequest(c.method, c.path, nil), "gvisor")
		w.Header().Set("Content-Type", c.kind)
		w.WriteHeader(c.status)
		for i, part := range c.body {
			if i%2 == 0 {
				_, _ = io.WriteString(w, part)
			} else {
				_, _ = io.Copy(w, strings.NewReader(part))
			}
		}
		w.(http.Flusher).Flush()
		if got := value(t, m, "exec_seconds", "driver=gvisor"); got != c.want || rec.Code != c.status || rec.Body.String() != strings.Join(c.body, "") {
			t.Errorf("%s: counted %v; answered %d %q", c.name, got, rec.Code, rec.Body)
		}
	}
}

func TestNilCountsNothing(t *testing.T) {
	var m *Metrics
	m.Created("x", false, 0, Phases{}, nil)
	m.Ended("x", "y", 0)
	m.Refused([]string{"x"})
	m.Exec("x", 0)
	m.Webhook("x")
	rec := httptest.NewRecorder()
	h := m.Door("e2b", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) }))
	h.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/", nil))
	if w := m.TimeStart(rec, httptest.NewRequest(http.MethodPost, "/process.Process/Start", nil), "x"); rec.Code != http.StatusTeapot || w != rec {
		t.Errorf("%d", rec.Code)
	}
	rec = httptest.NewRecorder()
	if m.Handler().ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/metrics", nil)); rec.Code != http.StatusNotFound {
		t.Errorf("%d", rec.Code)
	}
}
