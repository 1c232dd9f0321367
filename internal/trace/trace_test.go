package trace

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/firebreak-dev/firebreak"
)

// collector takes spans as OpenTelemetry's own does, over HTTP.
type collector struct {
	*httptest.Server
	t      *testing.T
	answer func(n int, w http.ResponseWriter) // nil: 200

	mu       sync.Mutex
	requests []*http.Request          // guarded by mu
	spans    map[string]*tracepb.Span // guarded by mu; by name
	resource map[string]string        // guarded by mu
}

func collect(t *testing.T, answer func(n int, w http.ResponseWriter)) *collector {
	c := &collector{t: t, answer: answer, spans: map[string]*tracepb.Span{}, resource: map[string]string{}}
	c.Server = httptest.NewServer(c)
	t.Cleanup(c.Close)
	return c
}

func (c *collector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body := io.Reader(r.Body)
	if r.Header.Get("Content-Encoding") == "gzip" {
		z, err := gzip.NewReader(body)
		if err != nil {
			c.t.Error(err)
			return
		}
		body = z
	}
	b, err := io.ReadAll(body)
	if err != nil {
		c.t.Error(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.requests = append(c.requests, r)
	if c.answer != nil {
		rec := httptest.NewRecorder()
		c.answer(len(c.requests), rec)
		if rec.Code != http.StatusOK {
			w.WriteHeader(rec.Code)
			return
		}
		defer func() { _, _ = w.Write(rec.Body.Bytes()) }()
	}
	var data tracepb.TracesData
	if err := proto.Unmarshal(b, &data); err != nil || r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/x-protobuf" {
		c.t.Errorf("%s %v: %v", r.Method, r.Header, err)
	}
	for _, rs := range data.GetResourceSpans() {
		for _, a := range rs.GetResource().GetAttributes() {
			c.resource[a.GetKey()] = a.GetValue().GetStringValue()
		}
		for _, ss := range rs.GetScopeSpans() {
			for _, s := range ss.GetSpans() {
				c.spans[s.GetName()] = s
			}
		}
	}
}

func attributes(s *tracepb.Span) map[string]string {
	all := map[string]string{}
	for _, a := range s.GetAttributes() {
		all[a.GetKey()] = a.GetValue().GetStringValue()
	}
	return all
}

func environment(pairs ...string) func(string) string {
	return func(name string) string {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == name {
				return pairs[i+1]
			}
		}
		return ""
	}
}

func setup(t *testing.T, cfg Config) (*Tracer, func()) {
	t.Helper()
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Getenv == nil {
		cfg.Getenv = environment()
	}
	tracer, shutdown, err := Setup(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return tracer, func() {
		t.Helper()
		if err := shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	}
}

// A request's span and those of the work for it come to the collector, below the client's own.
func TestSpansOfACreate(t *testing.T) {
	before := runtime.NumGoroutine()
	c := collect(t, nil)
	tracer, shutdown := setup(t, Config{Endpoint: c.URL + "/", Version: "v1.2"})
	mux := http.NewServeMux()
	mux.HandleFunc("POST /sandboxes/{id}", func(w http.ResponseWriter, r *http.Request) {
		ctx, create := tracer.Start(r.Context(), "create", "tenant", "acme")
		_, decide := tracer.Start(ctx, "decide")
		decide.Set("driver", "gvisor", "pool", "", "odd")
		decide.End(nil)
		_, agent := tracer.Start(ctx, "agent")
		agent.End(&firebreak.Error{Kind: firebreak.KindHost, Err: errors.New("/secret/path")})
		create.End(errors.New("a bug"))
		w.WriteHeader(http.StatusServiceUnavailable)
	})
	req := httptest.NewRequest(http.MethodPost, "/sandboxes/fabc", nil)
	req.Header.Set("Traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
	tracer.Door("e2b", mux).ServeHTTP(httptest.NewRecorder(), req)
	if req.Pattern != "POST /sandboxes/{id}" {
		t.Errorf("outside the pattern is %q", req.Pattern)
	}
	shutdown()
	if len(c.requests) != 1 || c.requests[0].URL.Path != "/v1/traces" || len(c.spans) != 4 {
		t.Fatalf("%d requests, spans %v", len(c.requests), c.spans)
	}
	if c.resource["service.name"] != "firebreak" || c.resource["service.version"] != "v1.2" || c.resource["telemetry.sdk.language"] != "go" {
		t.Errorf("resource %v", c.resource)
	}
	door, create := c.spans["POST /sandboxes/{id}"], c.spans["create"]
	for name, s := range c.spans {
		if got := hex.EncodeToString(s.GetTraceId()); got != "4bf92f3577b34da6a3ce929d0e0e4736" {
			t.Errorf("%s is of trace %s", name, got)
		}
		parent := map[string]string{"POST /sandboxes/{id}": "00f067aa0ba902b7", "create": hex.EncodeToString(door.GetSpanId())}[name]
		if parent == "" {
			parent = hex.EncodeToString(create.GetSpanId())
		}
		if got := hex.EncodeToString(s.GetParentSpanId()); got != parent {
			t.Errorf("%s is below %s, want %s", name, got, parent)
		}
		if strings.Contains(s.String(), "secret") || strings.Contains(s.String(), "fabc") {
			t.Errorf("%s tells too much: %v", name, s)
		}
	}
	if a := attributes(door); door.GetKind() != tracepb.Span_SPAN_KIND_SERVER || a["http.route"] != "/sandboxes/{id}" || a["http.request.method"] != "POST" ||
		door.GetStatus().GetCode() != tracepb.Status_STATUS_CODE_ERROR {
		t.Errorf("%v", door)
	}
	if a := attributes(c.spans["decide"]); a["firebreak.driver"] != "gvisor" || len(a) != 1 || c.spans["decide"].GetStatus().GetCode() != tracepb.Status_STATUS_CODE_UNSET {
		t.Errorf("%v", c.spans["decide"])
	}
	if a := attributes(c.spans["agent"]); a["error.type"] != "host" || c.spans["agent"].GetStatus().GetMessage() != "host" {
		t.Errorf("%v", c.spans["agent"])
	}
	if create.GetStatus().GetMessage() != "internal" || attributes(create)["firebreak.tenant"] != "acme" {
		t.Errorf("%v", create)
	}
	c.Close()
	for end := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if n := runtime.NumGoroutine(); n > before {
		t.Errorf("%d goroutines are left of %d", n, before)
	}
}

// Clients cannot make a span of theirs fill memory, nor its name one of many.
func TestHostileClients(t *testing.T) {
	c := collect(t, nil)
	tracer, shutdown := setup(t, Config{Endpoint: c.URL})
	h := tracer.Door("e2b", http.NotFoundHandler())
	for _, header := range []string{"", "00-" + strings.Repeat("0", 32) + "-" + strings.Repeat("0", 16) + "-01", strings.Repeat("x", 10000), "\xff", "00-zz-zz-zz"} {
		req := httptest.NewRequest("BREW", "/"+strings.Repeat("x", 10000), nil)
		req.Header["Traceparent"], req.Header["Tracestate"] = []string{header}, []string{strings.Repeat("a=b,", 5000)}
		h.ServeHTTP(httptest.NewRecorder(), req)
	}
	_, long := tracer.Start(t.Context(), "long", "x", strings.Repeat("y", 100000))
	long.End(nil)
	shutdown()
	if len(c.spans) != 2 || c.spans["e2b"] == nil || len(attributes(c.spans["long"])["firebreak.x"]) != 1000 || attributes(c.spans["e2b"])["http.request.method"] != "_OTHER" {
		t.Errorf("%d spans, %v", len(c.spans), c.spans["e2b"])
	}
}

func TestNoTraces(t *testing.T) {
	for name, env := range map[string]func(string) string{
		"nothing":     environment(),
		"disabled":    environment("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:1", "OTEL_SDK_DISABLED", "true"),
		"no exporter": environment("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:1", "OTEL_TRACES_EXPORTER", "none"),
	} {
		tracer, shutdown := setup(t, Config{Getenv: env})
		if tracer != nil {
			t.Errorf("%s: there is a tracer", name)
		}
		ctx, span := tracer.Start(t.Context(), "x", "a", "b")
		span.Set("c", "d")
		span.End(errors.New("e"))
		rec := httptest.NewRecorder()
		tracer.Door("e2b", http.NotFoundHandler()).ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/", nil))
		if ctx != t.Context() || span != nil || rec.Code != http.StatusNotFound {
			t.Errorf("%s: %v, %d", name, span, rec.Code)
		}
		shutdown()
	}
}

func TestNoTracesCostNothing(t *testing.T) {
	var tracer *Tracer
	ctx := t.Context()
	if n := testing.AllocsPerRun(100, func() {
		_, span := tracer.Start(ctx, "x", "a", "b")
		span.Set("c", "d")
		span.End(nil)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestEnvironment(t *testing.T) {
	const base, own = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
	const headers = "OTEL_EXPORTER_OTLP_HEADERS"
	for _, c := range []struct {
		endpoint string
		env      []string
		url      string // empty: an error
	}{
		{"http://h:4318", nil, "http://h:4318/v1/traces"}, {"", []string{base, "http://h:4318/x/"}, "http://h:4318/x/v1/traces"},
		{"", []string{base, "http://h:4318", own, "https://t/in"}, "https://t/in"}, {"http://c", []string{own, "https://t/in"}, "http://c/v1/traces"},
		{"h:4318", nil, ""}, {"grpc://h", nil, ""}, {"http://", nil, ""}, {"http://h", []string{"OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"}, ""},
		{"http://h", []string{"OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf"}, "http://h/v1/traces"},
		{"http://h", []string{"OTEL_TRACES_EXPORTER", "zipkin"}, ""}, {"http://h", []string{"OTEL_TRACES_EXPORTER", "otlp"}, "http://h/v1/traces"},
		{"http://h", []string{headers, "authorization=Bearer%20s3cret, x-a=b,"}, "http://h/v1/traces"}, {"http://h", []string{headers, "s3cret"}, ""},
		{"http://h", []string{headers, "a=s3cret%0d%0ax"}, ""}, {"http://h", []string{headers, "a=%zz"}, ""}, {"http://h", []string{headers, "a b=s3cret"}, ""},
		{"http://h", []string{"OTEL_EXPORTER_OTLP_TIMEOUT", "500"}, "http://h/v1/traces"}, {"http://h", []string{"OTEL_EXPORTER_OTLP_TIMEOUT", "-1"}, ""},
		{"http://h", []string{"OTEL_EXPORTER_OTLP_TIMEOUT", "soon"}, ""}, {"http://h", []string{"OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"}, "http://h/v1/traces"},
		{"http://h", []string{"OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"}, ""}, {"http://h", []string{"OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere.pem"}, ""},
		{"http://h", []string{"OTEL_EXPORTER_OTLP_CERTIFICATE", "/etc/passwd"}, ""}, {"http://h", []string{"OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "/etc/passwd"}, ""},
	} {
		s, on, err := settingsOf(Config{Endpoint: c.endpoint, Getenv: environment(c.env...)})
		if (err == nil) != (c.url != "") || on != (c.url != "") || err == nil && s.url != c.url {
			t.Errorf("%q %v: %+v, %v, %v", c.endpoint, c.env, s, on, err)
		}
		if err != nil && strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%v tells a secret", err)
		}
		if slices.Contains(c.env, "authorization=Bearer%20s3cret, x-a=b,") && (s.headers["authorization"] != "Bearer s3cret" || s.headers["x-a"] != "b" || len(s.headers) != 2) {
			t.Errorf("headers %v", s.headers)
		}
	}
	_, _, err := Setup(t.Context(), Config{Endpoint: "x", Getenv: environment()})
	if firebreak.KindOf(err) != firebreak.KindInvalid {
		t.Error(err)
	}
}

// What a collector does not take is tried again if it says so, dropped if not, and the log says it once.
func TestCollectorThatFails(t *testing.T) {
	elsewhere := collect(t, nil)
	for _, status := range []int{http.StatusServiceUnavailable, http.StatusTooManyRequests, http.StatusBadRequest, http.StatusTemporaryRedirect} {
		var lines bytes.Buffer
		c := collect(t, func(n int, w http.ResponseWriter) {
			if n <= 3 {
				w.Header().Set("Location", elsewhere.URL)
				w.WriteHeader(status)
			}
		})
		s, _, err := settingsOf(Config{Endpoint: c.URL, Getenv: environment("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip", "OTEL_EXPORTER_OTLP_HEADERS", "x-key=k")})
		if err != nil {
			t.Fatal(err)
		}
		exporter := newClient(s, slog.New(slog.NewTextHandler(&lines, nil)))
		exporter.first = time.Millisecond
		send := func() {
			spans := []*tracepb.ResourceSpans{{ScopeSpans: []*tracepb.ScopeSpans{{Spans: []*tracepb.Span{{Name: "x"}}}}}}
			if err := exporter.UploadTraces(t.Context(), spans); err != nil {
				t.Error(err)
			}
		}
		again := status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests
		send()
		if got := len(c.requests); got != map[bool]int{true: 4, false: 1}[again] || (c.spans["x"] != nil) != again {
			t.Errorf("%d: %d requests, %v", status, got, c.spans)
		}
		if !again {
			send()
			send()
			send()
		}
		if c.spans["x"] == nil || c.requests[0].Header.Get("X-Key") != "k" || strings.Count(lines.String(), "cannot be sent") != map[bool]int{true: 0, false: 1}[again] ||
			strings.Count(lines.String(), "sent again") != map[bool]int{true: 0, false: 1}[again] {
			t.Errorf("%d: %v; log: %s", status, c.spans, lines.String())
		}
		if err := exporter.Stop(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if len(elsewhere.requests) > 0 {
		t.Error("a redirect was followed")
	}
}

func TestUploadEndsWithItsContext(t *testing.T) {
	var lines bytes.Buffer
	ctx, cancel := context.WithCancel(t.Context())
	c := collect(t, func(_ int, w http.ResponseWriter) {
		cancel()
		w.WriteHeader(http.StatusServiceUnavailable)
	})
	s, _, err := settingsOf(Config{Endpoint: c.URL, Getenv: environment()})
	if err != nil {
		t.Fatal(err)
	}
	exporter := newClient(s, slog.New(slog.NewTextHandler(&lines, nil)))
	exporter.first = time.Hour
	if err := exporter.UploadTraces(ctx, nil); err != nil || !strings.Contains(lines.String(), "cannot be sent") {
		t.Errorf("%v, %s", err, lines.String())
	}
}

// reply is an ExportTraceServiceResponse.
func reply(rejected uint64, why string) []byte {
	inner := protowire.AppendTag(nil, 1, protowire.VarintType)
	inner = protowire.AppendVarint(inner, rejected)
	inner = protowire.AppendTag(inner, 2, protowire.BytesType)
	inner = protowire.AppendString(inner, why)
	return protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), inner)
}

func TestPartialSuccessIsLogged(t *testing.T) {
	var lines bytes.Buffer
	c := collect(t, func(_ int, w http.ResponseWriter) { _, _ = w.Write(reply(7, "too long")) })
	tracer, shutdown := setup(t, Config{Endpoint: c.URL, Log: slog.New(slog.NewTextHandler(&lines, nil))})
	_, span := tracer.Start(t.Context(), "x")
	span.End(nil)
	shutdown()
	if !strings.Contains(lines.String(), "rejected=7") || !strings.Contains(lines.String(), "too long") {
		t.Errorf("log: %s", lines.String())
	}
}

func FuzzPartial(f *testing.F) {
	f.Add(reply(7, "too long"))
	f.Add([]byte{0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, why := partial(b); len(why) > 500 {
			t.Errorf("%d bytes", len(why))
		}
	})
}

func FuzzHeaders(f *testing.F) {
	f.Add("a=b,c=d%20e")
	f.Fuzz(func(t *testing.T, text string) {
		headers, err := parseHeaders(text)
		for name, value := range headers {
			if err != nil || name == "" || strings.ContainsAny(name+value, "\r\n") {
				t.Errorf("%q: %q %q, %v", text, name, value, err)
			}
		}
	})
}
