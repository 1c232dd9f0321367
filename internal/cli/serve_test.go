package cli

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	firebreakv1 "github.com/firebreak-dev/firebreak/internal/api/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/config"
)

// served runs firebreak serve and returns the settings that the server would have.
func served(t *testing.T, env map[string]string, args ...string) (config.Config, ran) {
	t.Helper()
	var got config.Config
	r := run{s: newServer(t), env: env}
	r.serve = func(_ context.Context, cfg config.Config, out, told io.Writer) error {
		got = cfg
		_, err := io.WriteString(out, "to out\n")
		_, toldErr := io.WriteString(told, "to people\n")
		return errors.Join(err, toldErr)
	}
	return got, r.do(t, append([]string{"serve"}, args...)...)
}

func TestServeTakesSettingsFromAllSources(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f.yaml")
	if err := os.WriteFile(file, []byte("listen: 127.0.0.1:1\ngrace: 1s\nmax_connections: 7\nstate_dir: /file\npolicy: /file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := run{s: newServer(t)}
	var cfg config.Config
	r.serve = func(_ context.Context, c config.Config, _, _ io.Writer) error { cfg = c; return nil }
	r.env = map[string]string{"FIREBREAK_CONFIG": file, "FIREBREAK_GRACE": "2s", "FIREBREAK_POLICY": "/env", "FIREBREAK_SERVER": "http://elsewhere"}
	got := r.do(t, "serve", "--listen", "127.0.0.1:3", "--kill-on-exit", "--tls", "auto", "--state-dir", "/flag", "--aliases", "a=b,c=d", "--debug")
	got.want(t, 0, "", "")
	if cfg.Listen != "127.0.0.1:3" || cfg.Grace != 2*time.Second || cfg.MaxConnections != 7 || !cfg.KillOnExit || cfg.TLS.Mode != "auto" ||
		cfg.StateDir != "/flag" || cfg.Policy != "/env" || cfg.Aliases["c"] != "d" || cfg.Log.Level.String() != "DEBUG" {
		t.Errorf("%+v", cfg)
	}
}

func TestServeWritesToBoth(t *testing.T) {
	_, got := served(t, nil)
	got.want(t, 0, "to out\n", "to people\n")
}

func TestServePrintsSettings(t *testing.T) {
	_, got := served(t, map[string]string{"FIREBREAK_DOMAIN": "box.lan"}, "--print-config", "--log-format", "json", "--metrics=false")
	if got.code != 0 || strings.Contains(got.stdout, "to out") {
		t.Errorf("%+v", got)
	}
	for _, want := range []string{"domain: box.lan  # FIREBREAK_DOMAIN\n", "  format: json  # --log-format\n", "metrics: false  # --metrics\n", "listen: \"127.0.0.1:7070\"\n"} {
		if !strings.Contains(got.stdout, want) {
			t.Errorf("%q is not in\n%s", want, got.stdout)
		}
	}
}

func TestServeRefuses(t *testing.T) {
	for line, parts := range map[string][]string{
		"--listen 7070":           {"--listen", "is no address"},
		"--tls maybe":             {"--tls", "none of auto, files, off"},
		"--lisetn :1":             {"unknown flag --lisetn", "did you mean --listen?"},
		"--server http://x":       {"serve is a server"},
		"now":                     {"takes no arguments"},
		"--config /nowhere":       {"no such file"},
		"--metrics=perhaps":       {"--metrics", "neither true nor false"},
		"--listen= --tls off":     {"nothing to listen on"},
		"--tls-cert /x --tls off": {"go together"},
	} {
		_, got := served(t, nil, strings.Fields(line)...)
		got.wantError(t, 125, append(parts, "firebreak: serve: ")...)
	}
	_, got := served(t, map[string]string{"FIREBREAK_MAX_CONNECTIONS": "many"})
	got.wantError(t, 125, "FIREBREAK_MAX_CONNECTIONS")
}

func TestServerAddresses(t *testing.T) {
	for address, ok := range map[string]bool{
		"http://127.0.0.1:7070": true, "https://box.lan/prefix": true, "unix:///run/x.sock": true,
		"127.0.0.1:7070": false, "ftp://x": false, "unix://run/x.sock": false, "unix:": false, "http://": false, ":": false,
	} {
		got := run{s: newServer(t)}.do(t, "--server", address, "ls", "-q")
		if ok {
			got.want(t, 0, "", "")
		} else {
			got.wantError(t, 125, "no address of a server", "unix:///run/firebreak.sock")
		}
	}
}

func TestKeyIsTakenFromTheEnvironment(t *testing.T) {
	for name, test := range map[string]struct {
		env    map[string]string
		server string
		want   string
	}{
		"ours":            {map[string]string{"FIREBREAK_API_KEY": "a", "E2B_API_KEY": "b"}, "http://x", "a"},
		"E2B's":           {map[string]string{"E2B_API_KEY": "b"}, "http://x", "b"},
		"E2B's on socket": {map[string]string{"E2B_API_KEY": "b"}, "unix:///x", ""},
		"ours on socket":  {map[string]string{"FIREBREAK_API_KEY": "a"}, "unix:///x", "a"},
		"no server":       {map[string]string{"FIREBREAK_API_KEY": "a", "E2B_API_KEY": "b"}, "", ""},
		"server in env":   {map[string]string{"FIREBREAK_SERVER": "unix:///x", "E2B_API_KEY": "b"}, "", ""},
		"none":            {nil, "http://x", ""},
	} {
		a := &app{server: test.server, lookupEnv: func(name string) (string, bool) { v, ok := test.env[name]; return v, ok }}
		if a.readEnvironment(); a.apiKey != test.want {
			t.Errorf("%s: %q, want %q", name, a.apiKey, test.want)
		}
	}
}

func TestKeyCommands(t *testing.T) {
	s := newServer(t)
	secret := "e2b_00112230" + strings.Repeat("f", 32)
	run{s: s}.do(t, "key", "create", "--tenant", "acme", "--name", "x\x1b[2J").want(t, 0, secret+"\n", "")
	if got := (run{s: s}).do(t, "key", "create", "--json"); got.code != 0 || !strings.Contains(got.stdout, `"secret": "e2b_00112231`) {
		t.Errorf("%+v", got)
	}
	run{s: s}.do(t, "key", "ls", "-q").want(t, 0, "00112230\n00112231\n", "")
	run{s: s}.do(t, "key", "ls", "-q", "--tenant", "acme").want(t, 0, "00112230\n", "")
	run{s: s}.do(t, "key", "revoke", "00112230").want(t, 0, "00112230\n", "")
	run{s: s}.do(t, "key", "ls", "-q").want(t, 0, "00112231\n", "")
	got := run{s: s}.do(t, "key", "ls", "-a")
	if got.code != 0 || !strings.Contains(got.stdout, "ID        TENANT  NAME") || !strings.Contains(got.stdout, "revoked 0s ago") || !strings.Contains(got.stdout, "3h") || strings.Contains(got.stdout, "\x1b") {
		t.Errorf("%+v", got)
	}
	run{s: s}.do(t, "key", "revoke", "nothing").wantError(t, 125, "there is no key nothing")
	if got := (run{s: s}).do(t, "key", "revoke", secret); got.code != 125 || strings.Contains(got.stderr, secret) {
		t.Errorf("a key in place of its id: %+v", got)
	}
	run{s: s}.do(t, "key", "rovoke", "x").wantError(t, 125, "did you mean revoke?")
}

func TestTenantCommands(t *testing.T) {
	s := newServer(t)
	run{s: s}.do(t, "tenant", "set", "acme", "--sandboxes", "3", "--memory", "2g", "--origin", "untrusted", "--needs", "network").want(t, 0, "acme\n", "")
	want := &firebreakv1.Tenant{Id: "acme", Limits: &firebreakv1.Tenant_Limits{Sandboxes: 3, MemoryBytes: 2 << 30}, Workload: &firebreakv1.Workload{Origin: "untrusted", Needs: []string{"network"}}}
	if !proto.Equal(s.tenants[0], want) {
		t.Errorf("set %v, want %v", s.tenants[0], want)
	}
	// What is not said stays.
	run{s: s}.do(t, "tenant", "set", "acme", "--cpus", "1.5", "--data", "health", "--needs", "linux", "--audit").want(t, 0, "acme\n", "")
	want.Limits.Cpus, want.Workload.Data, want.Workload.Needs, want.Workload.Audit = 1.5, "health", []string{"linux"}, true
	if !proto.Equal(s.tenants[0], want) {
		t.Errorf("set %v, want %v", s.tenants[0], want)
	}
	run{s: s}.do(t, "tenant", "set", "acme", "--unlimited", "--burst", "2", "--audit=false").want(t, 0, "acme\n", "")
	want.Limits, want.Workload.Audit = &firebreakv1.Tenant_Limits{Burst: 2}, false
	if !proto.Equal(s.tenants[0], want) {
		t.Errorf("set %v, want %v", s.tenants[0], want)
	}
	got := run{s: s}.do(t, "tenant", "ls")
	if got.code != 0 || !strings.Contains(got.stdout, "acme  -          -     -       -          untrusted, health, linux") {
		t.Errorf("%+v", got)
	}
	run{s: s}.do(t, "tenant", "set", "acme", "--origin", "modle").wantError(t, 125, "did you mean model?")
	run{s: s}.do(t, "tenant", "set", "acme", "--needs", "luck").wantError(t, 125, "luck")
}

func TestPoolCommands(t *testing.T) {
	s := newServer(t)
	run{s: s}.do(t, "pool", "set", "base", "--min", "2", "--max", "5", "--warm", "python,bash", "--memory", "512m", "--isolation", "gvisor", "--origin", "model").want(t, 0, "base\n", "")
	want := &firebreakv1.Pool{Name: "base", Template: "base", Driver: "gvisor", Min: 2, Max: 5, Warm: []string{"python", "bash"},
		Limits: &firebreakv1.Limits{MemoryBytes: 512 << 20}, Workload: &firebreakv1.Workload{Origin: "model"}}
	if !proto.Equal(s.pools[0].Pool, want) {
		t.Errorf("set %v, want %v", s.pools[0].Pool, want)
	}
	run{s: s}.do(t, "pool", "set", "other", "--name", "o").want(t, 0, "o\n", "")
	if p := s.pools[1].Pool; p.Min != 1 || p.Max != 1 {
		t.Errorf("without a word: %v", p)
	}
	s.pools[1].Failing = "no memory"
	got := run{s: s}.do(t, "pool", "ls")
	if got.code != 0 || !strings.Contains(got.stdout, "base  base      gvisor     2    5    2      0       7       2       0") || !strings.Contains(got.stderr, "pool o cannot be filled: no memory") {
		t.Errorf("%+v", got)
	}
	run{s: s}.do(t, "pool", "drain", "base", "o").want(t, 0, "base\no\n", "")
	if !slices.Equal(s.drained, []string{"base", "o"}) {
		t.Errorf("drained %v", s.drained)
	}
	run{s: s}.do(t, "pool", "rm", "o").want(t, 0, "o\n", "")
	run{s: s}.do(t, "pool", "rm", "o").wantError(t, 125, "there is no pool o", "firebreak pool ls")
	run{s: s}.do(t, "pool", "ls", "-q").want(t, 0, "base\n", "")
}

func TestPauseResumeAndTimeout(t *testing.T) {
	s := withSandbox(t)
	run{s: s}.do(t, "pause", "work").want(t, 0, "work\n", "")
	run{s: s}.do(t, "pause", "work").wantError(t, 125, "pause: sandbox 3fa7b2c1 is paused")
	run{s: s}.do(t, "ls", "-q", "--state", "paused").want(t, 0, sandboxID+"\n", "")
	run{s: s}.do(t, "ls", "-q", "--state", "running,ended").want(t, 0, "", "")
	run{s: s}.do(t, "resume", "work").want(t, 0, "work\n", "")
	sb := s.sandboxes[sandboxID]
	if sb.State != "running" || sb.Deadline != nil {
		t.Errorf("resumed: %v", sb)
	}
	run{s: s}.do(t, "resume", "--timeout", "5m", "3fa").want(t, 0, "3fa\n", "")
	if sb.Deadline.GetSeconds() != 300 {
		t.Errorf("resumed with %v", sb.Deadline)
	}
	run{s: s}.do(t, "timeout", "--extend", "work", "90").want(t, 0, "work\n", "")
	if sb.Deadline.GetSeconds() != 90 || !sb.AutoResume {
		t.Errorf("given %v", sb)
	}
	run{s: s}.do(t, "timeout", "work", "soon").wantError(t, 125, `"soon" is no length of time`)
	run{s: s}.do(t, "timeout", "work").wantError(t, 125, "an argument is missing")
	run{s: s}.do(t, "pause", "wrok").wantError(t, 125, `there is no sandbox "wrok"; did you mean work?`)
}

func TestListShowsTenants(t *testing.T) {
	s := withSandbox(t)
	if got := (run{s: s}).do(t, "ls"); strings.Contains(got.stdout, "TENANT") {
		t.Errorf("without tenants: %s", got.stdout)
	}
	s.sandboxes[sandboxID].Tenant = "acme"
	if got := (run{s: s}).do(t, "ls"); !strings.Contains(got.stdout, "ID        NAME  TENANT  STATE") || !strings.Contains(got.stdout, "3fa7b2c1  work  acme    running") {
		t.Errorf("with a tenant: %s", got.stdout)
	}
}

func TestMetadata(t *testing.T) {
	s := newServer(t)
	run{s: s}.do(t, "run", "--detach", "--metadata", "job=nightly", "--metadata", "empty=", "--", "sleep", "1").want(t, 0, sandboxID+"\n", "")
	if got := s.created[0].Metadata; len(got) != 2 || got["job"] != "nightly" {
		t.Errorf("created with %v", got)
	}
	run{s: s}.do(t, "run", "--metadata", "=x", "--", "true").wantError(t, 125, "has no name")
	run{s: s}.do(t, "ls", "--metadata", "x").wantError(t, 125, "has no name", "--metadata job=nightly")
}
