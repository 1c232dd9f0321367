package agent_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak/internal/agent/code"
)

// interpreter is a client of the code interpreter in a box.
type interpreter struct {
	t      testing.TB
	client *http.Client
}

func (b *box) interpreter() *interpreter {
	transport := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 64,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return b.DialPort(ctx, code.Port) }}
	b.t.Cleanup(transport.CloseIdleConnections)
	return &interpreter{b.t, &http.Client{Transport: transport}}
}

// told is a line of the stream.
type told struct {
	Type      string          `json:"type"`
	Text      string          `json:"text"`
	Timestamp int64           `json:"timestamp"`
	Count     int             `json:"execution_count"`
	Main      bool            `json:"is_main_result"`
	HTML      string          `json:"html"`
	PNG       string          `json:"png"`
	JSON      json.RawMessage `json:"json"`
	Data      json.RawMessage `json:"data"`
	Chart     map[string]any  `json:"chart"`
	Extra     map[string]any  `json:"extra"`
	Name      string          `json:"name"`
	Value     string          `json:"value"`
	Traceback string          `json:"traceback"`
}

// ran is what a run gave.
type ran struct {
	status         int
	refusal        string // the body of an answer other than 200
	stdout, stderr string
	events         []told
	results        []told
	failed         told
	count          int
}

func (r ran) text() string {
	for _, e := range r.results {
		if e.Main {
			return e.Text
		}
	}
	return ""
}

// kinds is the order of events, without repetitions.
func (r ran) kinds() string {
	var kinds []string
	for _, e := range r.events {
		if e.Type != "keepalive" && (len(kinds) == 0 || kinds[len(kinds)-1] != e.Type) {
			kinds = append(kinds, e.Type)
		}
	}
	return strings.Join(kinds, " ")
}

func (i *interpreter) do(ctx context.Context, method, path, body string) (*http.Response, error) {
	i.t.Helper()
	req, err := http.NewRequestWithContext(ctx, method, "http://sandbox"+path, strings.NewReader(body))
	if err != nil {
		i.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	return i.client.Do(req)
}

func (i *interpreter) ask(method, path, body string) (int, string) {
	i.t.Helper()
	res, err := i.do(i.t.Context(), method, path, body)
	if err != nil {
		i.t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		i.t.Fatal(err)
	}
	return res.StatusCode, string(text)
}

// context makes a context and returns its id.
func (i *interpreter) context(language string) string {
	i.t.Helper()
	status, text := i.ask("POST", "/contexts", `{"language":"`+language+`"}`)
	var c struct{ ID string }
	if err := json.Unmarshal([]byte(text), &c); status != 200 || err != nil || c.ID == "" {
		i.t.Fatalf("make a %s context: %d %s", language, status, text)
	}
	return c.ID
}

// run is the request of a run.
type run struct {
	Code     string            `json:"code"`
	Context  string            `json:"context_id,omitempty"`
	Language string            `json:"language,omitempty"`
	Env      map[string]string `json:"env_vars,omitempty"`
}

// try runs code until it is done or ctx ends; each sees every event.
func (i *interpreter) try(ctx context.Context, r run, each func(told)) (got ran, err error) {
	i.t.Helper()
	body, err := json.Marshal(r)
	if err != nil {
		i.t.Fatal(err)
	}
	res, err := i.do(ctx, "POST", "/execute", string(body))
	if err != nil {
		return ran{}, err
	}
	defer res.Body.Close()
	got.status = res.StatusCode
	var stdout, stderr strings.Builder
	defer func() { got.stdout, got.stderr = stdout.String(), stderr.String() }()
	if res.StatusCode != http.StatusOK {
		text, err := io.ReadAll(res.Body)
		got.refusal = string(text)
		return got, err
	}
	lines := bufio.NewReader(res.Body)
	for {
		line, err := lines.ReadBytes('\n')
		if err == io.EOF && len(line) == 0 {
			return got, nil
		}
		if err != nil {
			return got, err
		}
		var e told
		if err := json.Unmarshal(bytes.TrimSpace(line), &e); err != nil {
			i.t.Errorf("the line %.200q: %v", line, err)
		}
		got.add(i.t, e, &stdout, &stderr)
		if each != nil {
			each(e)
		}
	}
}

func (r *ran) add(t testing.TB, e told, stdout, stderr io.StringWriter) {
	if n := len(r.events); n > 0 && r.events[n-1].Type == "end_of_execution" {
		t.Errorf("%+v after the end", e)
	}
	r.events = append(r.events, e)
	switch e.Type {
	case "number_of_executions":
		r.count = e.Count
	case "stdout":
		_, _ = stdout.WriteString(e.Text)
	case "stderr":
		_, _ = stderr.WriteString(e.Text)
	case "result":
		r.results = append(r.results, e)
	case "error":
		r.failed = e
	case "keepalive", "end_of_execution":
	default:
		t.Errorf("an event of type %q", e.Type)
	}
	if slices.Contains([]string{"stdout", "stderr"}, e.Type) && (e.Timestamp == 0 || len(e.Text) > 32<<10) {
		t.Errorf("%d bytes of output at %d", len(e.Text), e.Timestamp)
	}
}

// run runs code to its end.
func (i *interpreter) run(r run) ran {
	i.t.Helper()
	got, err := i.try(i.t.Context(), r, nil)
	if err != nil {
		i.t.Fatalf("run %.200q: %v", r.Code, err)
	}
	if n := len(got.events); got.status == 200 && (n == 0 || got.events[n-1].Type != "end_of_execution") {
		i.t.Errorf("%.200q: the stream has no end", r.Code)
	}
	return got
}

func (i *interpreter) python(code string) ran { i.t.Helper(); return i.run(run{Code: code}) }

// needs skips the test where a program is not installed, unless FIREBREAK_REQUIRE names it.
func needs(t testing.TB, program string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		lacks(t, program, program+" is not installed")
	}
}

func lacks(t testing.TB, what, reason string) {
	t.Helper()
	if slices.Contains(strings.Split(os.Getenv("FIREBREAK_REQUIRE"), ","), what) {
		t.Fatalf("FIREBREAK_REQUIRE names %s, but %s", what, reason)
	}
	t.Skip(reason)
}
