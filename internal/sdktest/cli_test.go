package sdktest_test

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
)

// cli is E2B's command line, which people have by npm.
type cli struct {
	t *testing.T
	k kit
	s *server
}

func (c cli) command(ctx context.Context, args ...string) *exec.Cmd {
	program := filepath.Join(c.k.npm, "node_modules/@e2b/cli/dist/index.js")
	cmd := c.k.command(ctx, c.s.byHeaders(), append([]string{c.k.node, program}, args...)...)
	cmd.Env = append(cmd.Env, "NO_COLOR=1", "E2B_TEAM_ID=team", "CI=1")
	return cmd
}

// run returns what the command line printed and its exit status.
func (c cli) run(stdin string, args ...string) (stdout, stderr string, status int) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), programLimit)
	defer cancel()
	cmd := c.command(ctx, args...)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if stdin != "" {
		cmd.Stdin = strings.NewReader(stdin)
	}
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		c.t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

func (c cli) must(args ...string) string {
	c.t.Helper()
	out, errs, status := c.run("", args...)
	if status != 0 {
		c.t.Fatalf("e2b %s: status %d\n%s%s", strings.Join(args, " "), status, out, errs)
	}
	return out
}

// says holds a command to words in its output.
func (c cli) says(words []string, args ...string) {
	c.t.Helper()
	out := c.must(args...)
	for _, word := range words {
		if !strings.Contains(out, word) {
			c.t.Errorf("e2b %s: want %q in:\n%s", strings.Join(args, " "), word, out)
		}
	}
}

func testCLI(t *testing.T, k kit, s *server) {
	c := cli{t, k, s}
	id := c.create("base")
	for _, part := range []struct {
		name string
		test func(c cli, id string)
	}{
		{"list and info", cli.shows}, {"exec", cli.execs}, {"metrics and logs", cli.measures}, {"terminal", cli.terminal},
		{"pause and resume", cli.pauses}, {"templates", cli.templates}, {"kill", cli.kills},
	} {
		t.Run(part.name, func(t *testing.T) { part.test(cli{t, k, s}, id) })
	}
}

func (c cli) create(template string) string {
	c.t.Helper()
	out := c.must("sandbox", "create", template, "--detach", "--timeout", "600")
	id := strings.TrimSpace(out)
	if !regexp.MustCompile(`^[a-z0-9]+$`).MatchString(id) {
		c.t.Fatalf("no id but %q", out)
	}
	return id
}

func (c cli) shows(id string) {
	var boxes []struct{ SandboxID, State, TemplateID string }
	if err := json.Unmarshal([]byte(c.must("sandbox", "list", "--format", "json")), &boxes); err != nil {
		c.t.Fatal(err)
	}
	var states []string
	for _, b := range boxes {
		if b.SandboxID == id {
			states = append(states, b.State)
		}
	}
	if len(states) != 1 || states[0] != "running" {
		c.t.Errorf("listed as %q among %d", states, len(boxes))
	}
	c.says([]string{id}, "sandbox", "list")
	c.says([]string{id, "running"}, "sandbox", "info", id, "--format", "json")
	c.says([]string{id}, "sandbox", "info", id)
}

func (c cli) execs(id string) {
	c.says([]string{"out"}, "sandbox", "exec", id, "echo", "out")
	c.says([]string{"root /tmp word"}, "sandbox", "exec", "-u", "root", "-c", "/tmp", "-e", "W=word", id, "sh", "-c", `echo "$(id -un) $PWD $W"`)
	if out, errs, status := c.run("", "sandbox", "exec", id, "sh", "-c", "echo why >&2; exit 3"); status != 3 || !strings.Contains(errs, "why") {
		c.t.Errorf("a command that fails: status %d, %q, %q", status, out, errs)
	}
	if out, errs, status := c.run("one\ntwo\n", "sandbox", "exec", id, "wc", "-l"); status != 0 || strings.TrimSpace(out) != "2" {
		c.t.Errorf("standard input: status %d, %q, %q", status, out, errs)
	}
	c.must("sandbox", "exec", "-b", id, "sleep", "600")
	c.says([]string{"sleep 600"}, "sandbox", "exec", id, "sh", "-c", `cat /proc/*/cmdline | tr '\0' ' '`)
}

func (c cli) measures(id string) {
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(time.Second) {
		out := c.must("sandbox", "metrics", id, "--format", "json")
		if strings.Contains(out, "cpuCount") || strings.Contains(out, "cpu") {
			break
		}
		if time.Now().After(end) {
			c.t.Fatalf("no metrics: %q", out)
		}
	}
	c.must("sandbox", "metrics", id)
	c.must("sandbox", "logs", id, "--format", "json", "--level", "DEBUG")
	c.must("sandbox", "logs", id)
}

// terminal types into `e2b sandbox connect`, which only speaks to a terminal.
func (c cli) terminal(id string) {
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Minute)
	defer cancel()
	cmd := c.command(ctx, "sandbox", "connect", "-c", "/tmp", "-e", "WORD=w", id)
	tty, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 33, Cols: 99})
	if err != nil {
		c.t.Fatal(err)
	}
	screen := &output{}
	read := make(chan struct{})
	go func() {
		defer close(read)
		buf := make([]byte, 4096)
		for {
			n, err := tty.Read(buf)
			_, _ = screen.Write(buf[:n])
			if err != nil {
				return // the other end is closed
			}
		}
	}()
	type answer struct{ typed, want string }
	for _, a := range []answer{{"", "$"}, {"echo \"[$((40+2)) $WORD $PWD $(stty size)]\"\r", "[42 w /tmp 33 99]"}} {
		if _, err := tty.WriteString(a.typed); err != nil {
			c.t.Fatal(err)
		}
		for !strings.Contains(screen.String(), a.want) {
			if ctx.Err() != nil {
				c.t.Fatalf("no %q on the screen:\n%q", a.want, screen)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	if _, err := tty.WriteString("exit\r"); err != nil {
		c.t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		c.t.Errorf("the terminal ended with %v\n%q", err, screen)
	}
	_ = tty.Close() // it ends the reader
	<-read
}

func (c cli) pauses(id string) {
	c.must("sandbox", "pause", id)
	c.says([]string{id}, "sandbox", "list", "--state", "paused")
	c.must("sandbox", "resume", id)
	c.says([]string{id}, "sandbox", "list", "--state", "running", "--limit", "0")
}

func (c cli) templates(string) {
	dir := c.t.TempDir()
	for name, text := range map[string]string{
		"e2b.Dockerfile": "FROM e2bdev/base\nENV FLAVOUR=docker\nCOPY hello.txt /opt/hello.txt\nRUN cat /opt/hello.txt >/opt/copied\n",
		"hello.txt":      "hello\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			c.t.Fatal(err)
		}
	}
	c.must("template", "create", "by-cli", "-p", dir, "--cpu-count", "1", "--memory-mb", "512")
	c.says([]string{"by-cli"}, "template", "list", "--format", "json")
	c.says([]string{"by-cli"}, "template", "list")
	id := c.create("by-cli")
	c.says([]string{"hello", "docker"}, "sandbox", "exec", id, "sh", "-c", "cat /opt/copied; echo $FLAVOUR")
	c.must("sandbox", "kill", id)
	c.must("template", "publish", "-y", "by-cli")
	c.must("template", "unpublish", "-y", "by-cli")
	if _, errs, status := c.run("", "sandbox", "snapshot", "list"); status == 0 || !strings.Contains(errs, "501") {
		c.t.Errorf("e2b sandbox snapshot list: status %d, %s", status, errs)
	}
	c.must("template", "delete", "-y", "by-cli")
	if out := c.must("template", "list", "--format", "json"); strings.Contains(out, "by-cli") {
		c.t.Errorf("still listed: %s", out)
	}
}

func (c cli) kills(id string) {
	other := c.create("base")
	c.must("sandbox", "kill", other, id)
	if out := c.must("sandbox", "list", "--format", "json"); strings.Contains(out, id) || strings.Contains(out, other) {
		c.t.Errorf("still listed: %s", out)
	}
}
