package config_test

import (
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/config"
)

func write(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "firebreak.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func env(pairs ...string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		for _, pair := range pairs {
			if n, value, _ := strings.Cut(pair, "="); n == name {
				return value, true
			}
		}
		return "", false
	}
}

const whole = `
# All that can be said.
listen: 0.0.0.0:7070
socket: /run/firebreak.sock
domain: box.lan
tls:
  mode: files
  listen: ":443"
  cert: /etc/cert.pem
  key: /etc/key.pem
state_dir: /srv/firebreak
policy: /etc/policy.yaml
log: {level: debug, format: json}
otlp: http://127.0.0.1:4318
aliases: {base: python, code-interpreter-v1: "python:3.13"}
max_timeout: 1h
envd_version: 0.6.4
max_connections: 100
grace: 0
kill_on_exit: true
metrics: false
webhooks_near: true
cors_origins: ["https://a.example", "http://localhost:3000"]
pools:
  - {template: base, driver: gvisor, min: 1, max: 4, limits: {cpus: 0.5, memory: 512m, disk: 1g, pids: 100}}
  - name: py
    template: python
    warm: [python]
    max: 2
    workload: {origin: untrusted, tenancy: multi, needs: [network]}
`

func TestFileSaysAll(t *testing.T) {
	c, err := config.Load(write(t, whole), env(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if c.Listen != "0.0.0.0:7070" || c.Socket != "/run/firebreak.sock" || c.Domain != "box.lan" ||
		c.TLS != (config.TLS{Mode: "files", Listen: ":443", Cert: "/etc/cert.pem", Key: "/etc/key.pem"}) ||
		c.StateDir != "/srv/firebreak" || c.Policy != "/etc/policy.yaml" || c.Log != (config.Log{Level: slog.LevelDebug, Format: "json"}) ||
		c.OTLP != "http://127.0.0.1:4318" || c.MaxTimeout != time.Hour || c.EnvdVersion != "0.6.4" || c.MaxConnections != 100 ||
		c.Grace != 0 || !c.KillOnExit || c.Metrics || !c.WebhooksNear || len(c.CORSOrigins) != 2 || c.Aliases["code-interpreter-v1"] != "python:3.13" {
		t.Errorf("read %+v", c)
	}
	want := []config.Pool{
		{Template: "base", Driver: "gvisor", Min: 1, Max: 4, Limits: firebreak.Limits{CPUs: 0.5, Memory: 512 << 20, Disk: 1 << 30, PIDs: 100}},
		{Name: "py", Template: "python", Warm: []string{"python"}, Max: 2, Workload: firebreak.Workload{Origin: firebreak.OriginUntrusted, Tenancy: firebreak.TenancyMulti, Needs: firebreak.NeedNetwork}},
	}
	if !reflect.DeepEqual(c.Pools, want) {
		t.Errorf("pools\n%+v, want\n%+v", c.Pools, want)
	}
	covered := map[string]bool{}
	for line := range strings.Lines(c.YAML()) {
		key, _, _ := strings.Cut(strings.TrimSpace(line), ":")
		covered[key] = strings.Contains(line, "# ")
	}
	for _, s := range config.Settings() {
		if key := s.Key[strings.LastIndexByte(s.Key, '.')+1:]; !covered[key] {
			t.Errorf("this test says nothing of %s", s.Key)
		}
	}
}

// TestPrintedIsReadBack holds --print-config to printing what --config reads.
func TestPrintedIsReadBack(t *testing.T) {
	for _, text := range []string{"", whole, "tls: auto\n", "aliases: {}\npools: []\n", "domain: \"null\"\npolicy: 'Null'\n", `socket: "/run/a b: #c'\"\\é.sock"`} {
		c, err := config.Load(write(t, text), env(), nil)
		if err != nil {
			t.Fatal(err)
		}
		back, err := config.Load(write(t, c.YAML()), env(), nil)
		if err != nil {
			t.Fatalf("%v in\n%s", err, c.YAML())
		}
		if strip(back.YAML()) != strip(c.YAML()) {
			t.Errorf("printed\n%s\nread back\n%s", c.YAML(), back.YAML())
		}
	}
}

// strip takes the comments away.
func strip(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		before, _, _ := strings.Cut(line, "  # ")
		b.WriteString(strings.TrimSpace(before) + "\n")
	}
	return b.String()
}

func TestPrecedence(t *testing.T) {
	file := write(t, "listen: 127.0.0.1:1\ngrace: 1s\nmax_connections: 1\n")
	variables := env("FIREBREAK_LISTEN=127.0.0.1:2", "FIREBREAK_GRACE=2s", "FIREBREAK_TLS=auto", "FIREBREAK_DOMAIN=")
	c, err := config.Load(file, variables, map[string]string{"listen": "127.0.0.1:3"})
	if err != nil {
		t.Fatal(err)
	}
	if c.Listen != "127.0.0.1:3" || c.Grace != 2*time.Second || c.MaxConnections != 1 || c.TLS.Mode != "auto" || c.Log.Format != "text" {
		t.Errorf("%+v", c)
	}
	for _, want := range []string{"listen: \"127.0.0.1:3\"  # --listen\n", "grace: 2s  # FIREBREAK_GRACE\n", "max_connections: 1  # " + file + ":3\n", "  format: text\n"} {
		if !strings.Contains(c.YAML(), want) {
			t.Errorf("%q is not in\n%s", want, c.YAML())
		}
	}
}

func TestMistakesAreRefused(t *testing.T) {
	for name, test := range map[string]struct{ text, want string }{
		"unknown key":          {"listn: 1\n", ":1: unknown key \"listn\""},
		"unknown in section":   {"log:\n  level: info\n  colour: red\n", ":3: unknown key \"log.colour\""},
		"unknown section":      {"# x\nserver: {port: 1}\n", ":2: unknown key \"server\""},
		"unknown in pool":      {"pools:\n  - max: 1\n    mem: 1g\n", ":3: unknown key \"mem\" in a pool"},
		"unknown in limits":    {"pools: [{max: 1, limits: {cpu: 1}}]\n", "unknown key \"cpu\" in limits"},
		"unknown in workload":  {"pools: [{max: 1, workload: {orgin: model}}]\n", "orgin"},
		"twice":                {"listen: \":1\"\nlisten: \":2\"\n", "listen"},
		"twice in aliases":     {"aliases: {a: b, a: c}\n", "a"},
		"no value":             {"domain:\n", ":1: domain has no value"},
		"not a mapping":        {"- listen\n", ":1: the file is no mapping"},
		"two documents":        {"grace: 1s\n---\ngrace: 2s\n", "something follows"},
		"not yaml":             {"listen: [\n", "yaml"},
		"a list for a value":   {"listen: [a, b]\n", ":1: listen is no single value"},
		"a value for a list":   {"cors_origins: \"*\"\n", ":1: cors_origins is no list"},
		"a value for a map":    {"aliases: a=b\n", ":1: aliases is no mapping"},
		"a comma in a list":    {"cors_origins: [\"http://a,http://b\"]\n", "without commas"},
		"no address":           {"listen: 7070\n", "is no address"},
		"no port":              {"listen: \"127.0.0.1:http\"\n", "has no port"},
		"large port":           {"listen: \"127.0.0.1:65536\"\n", "has no port"},
		"no level":             {"log: {level: loud}\n", "is none of debug, info, warn, error"},
		"no format":            {"log: {format: xml}\n", "is none of text, json"},
		"no bool":              {"metrics: yes\n", "neither true nor false"},
		"no time":              {"grace: soon\n", "not a length of time"},
		"negative time":        {"max_timeout: -1s\n", "not a length of time"},
		"long grace":           {"grace: 2h\n", "is more than 1h"},
		"no number":            {"max_connections: 0\n", "is no whole number"},
		"no version":           {"envd_version: v1\n", "is no version"},
		"no origin":            {"cors_origins: [example.com]\n", "is no origin"},
		"an IP domain":         {"domain: 10.0.0.1\n", "is an address"},
		"a domain upward":      {"domain: ../x\n", "is no domain"},
		"capitals":             {"domain: Box.lan\n", "is no domain"},
		"relative socket":      {"socket: run/x.sock\n", "no absolute path"},
		"long socket":          {"socket: /" + strings.Repeat("x", 120) + "\n", "longer than"},
		"alias of itself":      {"aliases: {a: a}\n", "is not NAME=OTHER"},
		"cert without key":     {"tls: {cert: /x}\n", "go together"},
		"files without cert":   {"tls: files\n", "there is no tls.cert"},
		"auto with cert":       {"tls: {mode: auto, cert: /x, key: /y}\n", "tls.cert is given"},
		"nothing to listen on": {"listen: \"\"\n", "nothing to listen on"},
		"a pool without max":   {"pools: [{template: base}]\n", "needs a max"},
		"max below min":        {"pools: [{min: 3, max: 2}]\n", "max 2 below min 3"},
		"a large pool":         {"pools: [{max: 1000000}]\n", "no number from 1 to"},
		"no memory":            {"pools: [{max: 1, limits: {memory: lots}}]\n", "not a size"},
		"no processors":        {"pools: [{max: 1, limits: {cpus: NaN}}]\n", "no number of processors"},
		"an anchor of anchors": {"a: &a [x, x]\nlisten: *a\n", "unknown key \"a\""},
		"a key that is a list": {"[a]: b\n", "is no text"},
	} {
		t.Run(name, func(t *testing.T) {
			path := write(t, test.text)
			_, err := config.Load(path, env(), nil)
			if firebreak.KindOf(err) != firebreak.KindInvalid || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %q", err, test.want)
			}
		})
	}
}

func TestMistakesNameTheirSource(t *testing.T) {
	for want, load := range map[string]func() error{
		"--grace: ":        func() error { _, err := config.Load("", env(), map[string]string{"grace": "x"}); return err },
		"FIREBREAK_TLS: ":  func() error { _, err := config.Load("", env("FIREBREAK_TLS=on"), nil); return err },
		"no such file":     func() error { _, err := config.Load("/nowhere/x.yaml", env(), nil); return err },
		"longer than 1048": func() error { _, err := config.Load(write(t, strings.Repeat("#", 2<<20)), env(), nil); return err },
	} {
		if err := load(); firebreak.KindOf(err) != firebreak.KindInvalid || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func TestAnnouncedDomain(t *testing.T) {
	at := func(port int) net.Addr { return &net.TCPAddr{Port: port} }
	for name, test := range map[string]struct {
		text string
		tls  net.Addr
		want string
	}{
		"nothing":         {"", nil, ""},
		"a local CA":      {"tls: auto\n", at(7443), "firebreak.localhost:7443"},
		"the usual port":  {"tls: auto\ndomain: box.lan\n", at(443), "box.lan"},
		"a proxy":         {"domain: box.lan\n", nil, "box.lan"},
		"a proxy's port":  {"domain: \"box.lan:8443\"\n", nil, "box.lan:8443"},
		"port of a proxy": {"domain: \"box.lan:8443\"\ntls: auto\n", at(7443), "box.lan:8443"},
	} {
		c, err := config.Load(write(t, test.text), env(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.Announced(test.tls); got != test.want {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
		if strings.Contains(c.Host(), ":") {
			t.Errorf("%s: host %q", name, c.Host())
		}
	}
}

func TestFlagsAndVariables(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range config.Settings() {
		if seen[s.Flag()] || !strings.Contains(s.Usage, "`") && !s.Bool {
			t.Errorf("--%s stands twice, or its usage names no value", s.Flag())
		}
		seen[s.Flag()] = true
		if s.Key == "tls.mode" && (s.Flag() != "tls" || s.Variable() != "FIREBREAK_TLS") || s.Key == "log.level" && s.Variable() != "FIREBREAK_LOG_LEVEL" {
			t.Errorf("%s is --%s and %s", s.Key, s.Flag(), s.Variable())
		}
	}
}

// FuzzFile: what is read without an error is complete, and is read back as it is printed.
func FuzzFile(f *testing.F) {
	f.Add(whole)
	f.Add("tls: auto\n")
	f.Add("pools: [{max: 1, workload: {origin: model}}]\n")
	f.Fuzz(func(t *testing.T, text string) {
		path := write(t, text)
		c, err := config.Load(path, env(), nil)
		if err != nil {
			return
		}
		if c.TLS.Mode == "" || c.MaxConnections < 1 || c.Grace < 0 {
			t.Fatalf("incomplete: %+v", c)
		}
		back, err := config.Load(write(t, c.YAML()), env(), nil)
		if err != nil {
			t.Fatalf("%v in\n%s", err, c.YAML())
		}
		for _, pair := range [][2]any{{c.Listen, back.Listen}, {c.Aliases, back.Aliases}, {c.Pools, back.Pools}, {c.CORSOrigins, back.CORSOrigins}, {c.MaxTimeout, back.MaxTimeout}, {c.Policy, back.Policy}} {
			if !reflect.DeepEqual(pair[0], pair[1]) {
				t.Fatalf("%+v became %+v in\n%s", pair[0], pair[1], c.YAML())
			}
		}
	})
}
