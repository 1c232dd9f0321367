package e2b_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/firebreak-dev/firebreak/internal/agentbin"
	"github.com/firebreak-dev/firebreak/internal/api/process"
	"github.com/firebreak-dev/firebreak/internal/api/process/processconnect"
	"github.com/firebreak-dev/firebreak/internal/dataplane"
	processdriver "github.com/firebreak-dev/firebreak/internal/driver/process"
	"github.com/firebreak-dev/firebreak/internal/signature"
)

// liveWorld is a world of real processes, with a data plane before its door.
func liveWorld(t *testing.T, dir string) *world {
	t.Helper()
	agent, err := agentbin.Path(t.Context(), filepath.Join(dir, "agent"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	d := processdriver.New(processdriver.Config{StateDir: filepath.Join(dir, "driver"), Agent: agent})
	w := newWorldOn(t, dir, oneDriver{"process", d}, nil)
	plane := dataplane.New(dataplane.Config{Sandboxes: w.sandboxes, Domain: w.cfg.Domain, Log: slog.New(slog.DiscardHandler)})
	w.server.Close()
	h := plane.Or(w.door)
	w.server = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(rw, r.WithContext(as(r.Context(), r.Header.Get("X-Tenant"))))
	}))
	t.Cleanup(w.server.Close)
	return w
}

// addressed adds the headers of a sandbox to requests.
type addressed struct {
	client *http.Client
	header http.Header
}

func (a addressed) Do(r *http.Request) (*http.Response, error) {
	for name, values := range a.header {
		r.Header[name] = values
	}
	return a.client.Do(r)
}

// bash runs a command in a sandbox as E2B's clients do, and returns its output.
func (w *world) bash(sb sandbox, command string) string {
	w.t.Helper()
	client := processconnect.NewProcessClient(addressed{w.server.Client(), http.Header{
		"X-Tenant": {"nobody"}, "E2b-Sandbox-Id": {sb.SandboxID}, "E2b-Sandbox-Port": {"49983"}, "X-Access-Token": {sb.EnvdAccessToken},
	}}, w.server.URL, connect.WithProtoJSON())
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	stream, err := client.Start(ctx, connect.NewRequest(&process.StartRequest{Process: &process.ProcessConfig{Cmd: "/bin/bash", Args: []string{"-l", "-c", command}}}))
	if err != nil {
		w.t.Fatal(err)
	}
	var out strings.Builder
	for stream.Receive() {
		out.Write(stream.Msg().GetEvent().GetData().GetStdout())
	}
	if err := stream.Err(); err != nil {
		w.t.Errorf("%s: %v", command, err)
	}
	return out.String()
}

// TestLifeOfASandbox goes the way of a client: make, run, write, read, look, restart the server, and end.
func TestLifeOfASandbox(t *testing.T) {
	dir := t.TempDir()
	w := liveWorld(t, dir)
	sb := w.make("acme", object{"timeout": 600, "envVars": object{"GREETING": "hello"}})
	if got := w.bash(sb, "echo $GREETING"); got != "hello\n" {
		t.Errorf("it says %q", got)
	}
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "a file")
	q := "?" + url.Values{"path": {file}, "username": {me.Username}}.Encode()
	token := []string{"E2b-Sandbox-Id", sb.SandboxID, "X-Access-Token", sb.EnvdAccessToken, "Content-Type", "application/octet-stream"}
	w.ask("nobody", "POST", "/files"+q, "written", token...).want(t, "write", 200)
	w.ask("acme", "GET", "/files"+q, nil, token[:2]...).want(t, "read, by its tenant", 200, "written")
	w.ask("other", "GET", "/files"+q, nil, token[:2]...).want(t, "read, by another", 401)
	signed := url.Values{"path": {file}, "signature": {signature.Sign(sb.EnvdAccessToken, signature.Read, file, "", "")}}
	w.ask("nobody", "GET", "/files?"+signed.Encode(), nil).want(t, "read, by a signature", 200, "written")

	var samples []struct{ CPUCount, MemTotal, DiskTotal, TimestampUnix int64 }
	w.ask("acme", "GET", "/sandboxes/"+sb.SandboxID+"/metrics", nil).into(t, &samples)
	if len(samples) != 1 || samples[0].CPUCount < 1 || samples[0].MemTotal <= 0 || samples[0].DiskTotal <= 0 || samples[0].TimestampUnix == 0 {
		t.Errorf("metrics %+v", samples)
	}
	w.servesItsPort(sb)

	w.server.Close()
	w.close()
	w.closed = true
	w = liveWorld(t, dir)
	if ids, _, _ := w.list("acme", "/v2/sandboxes"); len(ids) != 1 || ids[0] != sb.SandboxID {
		t.Errorf("after a restart there are %v", ids)
	}
	w.ask("nobody", "GET", "/files?"+signed.Encode(), nil).want(t, "read, by a signature, after a restart", 200, "written")
	res := w.ask("acme", "POST", "/v2/sandboxes/"+sb.SandboxID+"/connect", object{"timeout": 60})
	res.want(t, "connect after a restart", 200, sb.EnvdAccessToken, sb.TrafficAccessToken)
	if got := w.bash(sb, "echo $GREETING"); got != "hello\n" {
		t.Errorf("after a restart it says %q", got)
	}
	w.ask("acme", "DELETE", "/sandboxes/"+sb.SandboxID, nil).want(t, "kill", 204)
	for _, path := range []string{"/health", "/files" + q} {
		if res := w.ask("nobody", "GET", path, nil, token[:4]...); res.StatusCode != http.StatusBadGateway {
			t.Errorf("%s of what is gone: %d", path, res.StatusCode)
		}
	}
	if res := w.ask("nobody", "GET", "/files?"+signed.Encode(), nil); res.StatusCode != http.StatusUnauthorized {
		t.Errorf("its signature: %d", res.StatusCode)
	}
}

// servesItsPort reaches a server inside by its host name.
func (w *world) servesItsPort(sb sandbox) {
	w.t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "served at "+r.Host) }))
	defer s.Close()
	_, port, err := net.SplitHostPort(s.Listener.Addr().String())
	if err != nil {
		w.t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(w.t.Context(), http.MethodGet, w.server.URL, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set("X-Tenant", "nobody")
	req.Host = port + "-" + sb.SandboxID + "." + sb.Domain
	res, err := w.server.Client().Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer res.Body.Close()
	if body, err := io.ReadAll(res.Body); err != nil || string(body) != "served at "+req.Host {
		w.t.Errorf("%d %q, %v", res.StatusCode, body, err)
	}
}

// TestCodeOfASandbox runs code, with the traffic token as clients have it.
func TestCodeOfASandbox(t *testing.T) {
	w := liveWorld(t, t.TempDir())
	sb := w.make("acme", nil)
	header := []string{"E2b-Sandbox-Id", sb.SandboxID, "E2b-Sandbox-Port", "49999"}
	if res := w.ask("nobody", "POST", "/execute", object{"code": "echo $((1+1))", "language": "bash"}, header...); res.StatusCode != http.StatusForbidden {
		t.Errorf("without a token: %d %s", res.StatusCode, res.body)
	}
	header = append(header, "E2B-Traffic-Access-Token", sb.TrafficAccessToken)
	w.ask("nobody", "POST", "/execute", object{"code": "echo $((1+1))", "language": "bash"}, header...).want(t, "execute", 200, `"2\n"`, "end_of_execution")
	res := w.ask("nobody", "POST", "/contexts", object{"language": "bash"}, header...)
	if res.StatusCode/100 != 2 {
		t.Errorf("a context: %d %s", res.StatusCode, res.body)
	}
}
