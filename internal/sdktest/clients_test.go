package sdktest_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestClients runs all clients against one server: each takes a while in which it mostly waits.
func TestClients(t *testing.T) {
	if testing.Short() {
		t.Skip("takes minutes")
	}
	k := findKit(t)
	s := startServer(t, binary(t), t.TempDir())
	programs := k.programs(s)
	t.Run("programs", func(t *testing.T) {
		for _, p := range programs {
			t.Run(p.name, func(t *testing.T) {
				t.Parallel()
				p.run(t.Context())
				p.report(t)
			})
		}
		t.Run("cli", func(t *testing.T) {
			t.Parallel()
			testCLI(t, k, s)
		})
		t.Run("examples", func(t *testing.T) {
			t.Parallel()
			testExamples(t, k, s)
		})
	})
	t.Run("refusals", func(t *testing.T) { refusals(t, programs) })
	t.Run("every method", func(t *testing.T) { everyMethod(t, k, programs) })
}

// kit is where the clients are installed.
type kit struct {
	node, npm string // the interpreter; a directory with node_modules and our programs
	python    string // the interpreter of an environment that has the packages
}

// findKit returns the installed clients, or skips the test.
func findKit(t *testing.T) kit {
	t.Helper()
	installed, err := filepath.Abs("../../.cache/sdk")
	if err != nil {
		t.Fatal(err)
	}
	k := kit{python: filepath.Join(installed, "python/bin/python"), npm: t.TempDir()}
	if k.node, err = exec.LookPath("node"); err != nil {
		lacks(t, "node is not installed")
	}
	if out, err := exec.Command(k.node, "-p", "+process.versions.node.split('.')[0] >= 20").Output(); err != nil || string(out) != "true\n" {
		lacks(t, "E2B's packages need Node.js 20")
	}
	for _, made := range []string{"python", "node"} {
		if _, err := os.Stat(filepath.Join(installed, made, "made-from")); err != nil {
			lacks(t, "E2B's clients are not installed; run `make tools`")
		}
	}
	// Node looks for packages beside the program that imports them, or above.
	for _, dir := range []string{"testdata/node", examples} {
		if err := os.CopyFS(filepath.Join(k.npm, filepath.Base(dir)), os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(filepath.Join(installed, "node/node_modules"), filepath.Join(k.npm, "node_modules")); err != nil {
		t.Fatal(err)
	}
	return k
}

// lacks skips the test, unless FIREBREAK_REQUIRE names it.
func lacks(t *testing.T, reason string) {
	t.Helper()
	if slices.Contains(strings.Split(os.Getenv("FIREBREAK_REQUIRE"), ","), "sdk") {
		t.Fatalf("FIREBREAK_REQUIRE names sdk, but %s", reason)
	}
	t.Skip(reason)
}

// program is one run of a client.
type program struct {
	name, kit string // of the test; whose methods it calls
	cmd       func(ctx context.Context) *exec.Cmd

	checks []checked
	called []string
	end    error
	said   *output // on standard error
}

// checked is what a program prints of one check.
type checked struct {
	Name   string   `json:"name"`
	OK     bool     `json:"ok"`
	Error  string   `json:"error"`
	Skip   string   `json:"skip"`
	MS     int      `json:"ms"`
	Called []string `json:"called"`

	Refused bool `json:"refused"` // the call of this name was answered with 501, as it should
}

// programs lists all, the long ones first.
func (k kit) programs(s *server) []*program {
	var all []*program
	add := func(name, kit string, env []string, args ...string) {
		all = append(all, k.program(name, kit, env, args...))
	}
	for _, name := range []string{"sandbox", "template", "interpreter", "commands", "files", "git", "refused"} {
		add("node/"+name, "node", s.byHeaders(), k.node, filepath.Join(k.npm, "node", name+".mjs"))
		for _, kind := range []string{"sync", "async"} {
			add("python/"+kind+"/"+name, kind, s.byHeaders(), k.python, "testdata/python/"+name+".py", kind)
		}
	}
	for _, name := range []string{"commands", "files", "interpreter"} { // over HTTP/2, but for what clients do over HTTP/1.1
		add("python/tls/"+name, "async", s.byTLS(), k.python, "testdata/python/"+name+".py", "async")
	}
	add("node/versions", "node", s.byHeaders(), k.node, filepath.Join(k.npm, "node", "versions.mjs"))
	add("node/tls", "node", s.byNames(), k.node, filepath.Join(k.npm, "node", "tls.mjs"))
	return all
}

// program is one run of a client, with an environment of its own.
func (k kit) program(name, kit string, env []string, args ...string) *program {
	return &program{name: name, kit: kit, said: &output{}, cmd: func(ctx context.Context) *exec.Cmd { return k.command(ctx, env, args...) }}
}

// byHeaders is what the server asks clients to export: they say in headers which sandbox they mean.
func (s *server) byHeaders() []string { return s.exports }

// byTLS has them do so over the encrypted port.
func (s *server) byTLS() []string {
	url := "https://localhost" + s.domain[strings.Index(s.domain, ":"):]
	return []string{s.key(), "E2B_API_URL=" + url, "E2B_SANDBOX_URL=" + url, "SSL_CERT_FILE=" + s.ca}
}

// byNames has clients use TLS and the names of sandboxes instead.
func (s *server) byNames() []string {
	return []string{s.key(), "E2B_DOMAIN=" + s.domain, "NODE_EXTRA_CA_CERTS=" + s.ca}
}

func (s *server) key() string {
	return s.exports[slices.IndexFunc(s.exports, func(v string) bool { return strings.HasPrefix(v, "E2B_API_KEY=") })]
}

// command is a client with an environment of its own.
func (k kit) command(ctx context.Context, env []string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(append(cleanEnv(), env...), "PYTHONDONTWRITEBYTECODE=1", "HOME="+k.npm)
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

const programLimit = 8 * time.Minute

func (p *program) run(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, programLimit)
	defer cancel()
	cmd := p.cmd(ctx)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, p.said
	p.end = cmd.Run()
	lines := bufio.NewScanner(&out)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var c checked
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			_, _ = p.said.Write(append(lines.Bytes(), '\n'))
			continue
		}
		if c.Called != nil {
			p.called = c.Called
			continue
		}
		p.checks = append(p.checks, c)
	}
}

// report turns what a program printed into tests.
func (p *program) report(t *testing.T) {
	for _, c := range p.checks {
		t.Run(c.Name, func(t *testing.T) {
			t.Logf("%d ms", c.MS)
			switch {
			case c.Skip != "":
				lacks(t, c.Skip)
			case !c.OK:
				t.Error(c.Error)
			}
		})
	}
	if p.end != nil || len(p.checks) == 0 || p.called == nil {
		t.Errorf("the program made %d checks and ended with %v\n%s", len(p.checks), p.end, p.said)
	}
}
