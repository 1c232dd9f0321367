package mcp_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/firebreak-dev/firebreak/internal/driver/hostproc"
	"github.com/firebreak-dev/firebreak/internal/mcp"
)

func TestRunCodeKeepsState(t *testing.T) {
	w := newWorld(t, nil)
	c := w.connect(nil)
	var out struct {
		Sandbox string
		Stdout  string
		Results []struct {
			Text string
			Data any
		}
		Error *struct{ Name string }
	}
	if got := c.call("run_code", object{"code": "x = 41\nprint('hi')\nx + 1"}, &out); got != "hi\n42" || out.Stdout != "hi\n" || len(out.Results) != 1 {
		t.Errorf("%q, %+v", got, out)
	}
	if got := c.call("run_code", object{"code": "x"}, nil); got != "41" {
		t.Errorf("the variable is %q", got)
	}
	c.refused("run_code", object{"code": "x", "context": "other"}, "NameError")
	c.refused("run_code", object{"code": "1/0"}, "Traceback", "ZeroDivisionError")
	if got := c.call("run_code", object{"code": "echo $((6*7))", "language": "bash"}, nil); got != "42\n" {
		t.Errorf("bash says %q", got)
	}
	res := c.try("run_code", object{"code": "while True: pass", "timeout_seconds": 1})
	if !res.IsError {
		t.Error("an endless loop is no error")
	}
	wantParts(t, "an endless loop", textOf(res), "interrupted after 1s", "timeout_seconds")
	if got := c.call("run_code", object{"code": "x"}, nil); got != "41" {
		t.Errorf("after that the variable is %q", got)
	}
	w.holds(1)
}

func TestPictures(t *testing.T) {
	c := newWorld(t, nil).connect(nil)
	const show = `
class Picture:
    def _repr_png_(self):
        import base64
        return base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")
Picture()`
	res := c.try("run_code", object{"code": show})
	if res.IsError || len(res.Content) != 2 {
		t.Fatalf("%v %s", res.IsError, textOf(res))
	}
	if p, ok := res.Content[1].(*sdk.ImageContent); !ok || p.MIMEType != "image/png" || !strings.HasPrefix(string(p.Data), "\x89PNG") {
		t.Errorf("the picture is %+v", res.Content[1])
	}
	many := c.try("run_code", object{"code": show + "\nfor _ in range(20): display(Picture())"})
	if len(many.Content) != 9 {
		t.Errorf("%d pieces of content", len(many.Content))
	}
	wantParts(t, "many pictures", textOf(many), "left out because there are more than 8")
}

func TestCommands(t *testing.T) {
	c := newWorld(t, nil).connect(nil)
	var out struct {
		CommandID string `json:"command_id"`
		ExitCode  *int   `json:"exit_code"`
		Stdout    string
		Stderr    string
		Truncated bool
		TimedOut  bool `json:"timed_out"`
	}
	got := c.call("run_command", object{"command": "echo out; echo err >&2; exit 3", "cwd": "/", "env": object{"A": "b"}}, &out)
	if out.Stdout != "out\n" || out.Stderr != "err\n" || out.ExitCode == nil || *out.ExitCode != 3 {
		t.Errorf("%q %+v", got, out)
	}
	wantParts(t, "its text", got, "out\n", "stderr:\nerr\n", "[exit code 3]")
	if got := c.call("run_command", object{"command": "echo $A; pwd; kill -TERM $$", "cwd": "/", "env": object{"A": "b"}}, &out); *out.ExitCode != 143 {
		t.Errorf("a signal: %q %+v", got, out)
	}
	got = c.call("run_command", object{"command": "sleep 600", "timeout_seconds": 1}, &out)
	if !out.TimedOut {
		t.Errorf("%+v", out)
	}
	wantParts(t, "the time limit", got, "killed after 1s", "background")
	c.refused("run_command", object{"command": "true", "cwd": "/nope"}, "/nope")
	c.refused("run_command", object{"command": " "}, "empty")
	c.refused("run_command", object{"command": strings.Repeat("x", 65<<10)}, "maxLength")
	c.refused("run_command", object{"command": "true", "timeout_seconds": -1}, "minimum")
	c.refused("run_command", object{"command": "true", "sandbox": "zen"}, "no sandbox", "list_sandboxes")
}

func TestOutputIsCutAndCanBeReadOn(t *testing.T) {
	c := newWorld(t, nil).connect(nil)
	var out struct {
		CommandID string `json:"command_id"`
		Stdout    string
		Truncated bool
	}
	got := c.call("run_command", object{"command": "seq 1 20000"}, &out)
	if len(got) > 18<<10 || !out.Truncated || !strings.HasPrefix(got, "1\n2\n") {
		t.Errorf("%d bytes of text, %v", len(got), out.Truncated)
	}
	wantParts(t, "what is left out", got, "bytes left out", `command_id "`+out.CommandID+`"`, "19999\n20000\n[exit code 0]")
	var all strings.Builder
	var read struct {
		Text       string
		NextOffset int64 `json:"next_offset"`
		Length     int64
	}
	for offset := int64(0); offset == 0 || offset < read.Length; offset = read.NextOffset {
		c.call("read_output", object{"command_id": out.CommandID, "offset": offset}, &read)
		all.WriteString(read.Text)
	}
	var want strings.Builder
	for i := range 20000 {
		fmt.Fprintln(&want, i+1)
	}
	if all.String() != want.String() {
		t.Errorf("%d bytes of %d can be read", all.Len(), want.Len())
	}
	c.call("read_output", object{"command_id": out.CommandID, "offset": -6}, &read)
	if read.Text != "20000\n" {
		t.Errorf("its end is %q", read.Text)
	}
	c.refused("read_output", object{"command_id": "zen"}, "no command")
}

func TestBackground(t *testing.T) {
	c := newWorld(t, nil).connect(nil)
	fifo := filepath.Join(t.TempDir(), "go")
	var out struct {
		CommandID string `json:"command_id"`
		Running   bool
		Text      string
		ExitCode  *int `json:"exit_code"`
	}
	c.call("run_command", object{"command": "mkfifo " + fifo + "; echo begun; cat " + fifo, "background": true}, &out)
	if !out.Running {
		t.Fatalf("%+v", out)
	}
	id := out.CommandID
	c.call("read_output", object{"command_id": id, "wait_seconds": 60}, &out)
	if out.Text != "begun\n" || !out.Running {
		t.Errorf("%+v", out)
	}
	if err := os.WriteFile(fifo, []byte("said\n"), 0); err != nil {
		t.Fatal(err)
	}
	for out.Running {
		c.call("read_output", object{"command_id": id, "offset": 6, "wait_seconds": 60}, &out)
	}
	if out.Text != "said\n" || out.ExitCode == nil || *out.ExitCode != 0 {
		t.Errorf("%+v", out)
	}
	c.call("run_command", object{"command": "sleep 600 | sleep 601", "background": true}, &out)
	c.call("kill_command", object{"command_id": out.CommandID}, &out)
	if out.Running {
		t.Error("it was not killed")
	}
	if got := c.call("run_command", object{"command": "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c '[s]leep 60[01]' || true"}, nil); !strings.HasPrefix(got, "0\n") {
		t.Errorf("of its processes there are %q", got)
	}
	c.refused("kill_command", object{"command_id": id, "signal": "SEGV"}, "enum")
}

func TestCancellationStopsTheWork(t *testing.T) {
	c := newWorld(t, nil).connect(nil)
	c.call("run_command", object{"command": "true"}, nil)
	for _, tool := range []struct {
		name string
		args func(path string) object
	}{
		{"run_command", func(p string) object { return object{"command": "echo $$ >" + p + "; sleep 600"} }},
		{"run_code", func(p string) object {
			return object{"code": "import os, time\ntry:\n  f = open('" + p + "', 'w'); f.write('x\\n'); f.close()\n  time.sleep(600)\nfinally:\n  os.remove('" + p + "')"}
		}},
	} {
		t.Run(tool.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "pid")
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() {
				_, err := c.CallTool(ctx, &sdk.CallToolParams{Name: tool.name, Arguments: tool.args(path)})
				done <- err
			}()
			text := ""
			for eventually(t, "it begins", func() bool {
				b, _ := os.ReadFile(path)
				text = strings.TrimSpace(string(b))
				return text != ""
			}) {
			}
			cancel()
			if err := <-done; err == nil {
				t.Error("a cancelled call has a result")
			}
			for eventually(t, "it is stopped", func() bool {
				if tool.name == "run_code" {
					_, err := os.Stat(path)
					return os.IsNotExist(err)
				}
				return ended(t, text)
			}) {
			}
		})
	}
}

// ended reports whether the process of that number has, reaped or not.
func ended(t *testing.T, pid string) bool {
	t.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(pid))
	if err != nil {
		t.Fatal(err)
	}
	st, err := hostproc.ReadStat(n)
	return err != nil || !st.Running()
}

// eventually reports whether to look again.
func eventually(t *testing.T, what string, is func() bool) bool {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if is() {
			return false
		}
	}
	t.Fatalf("not within a minute: %s", what)
	return false
}

func TestFiles(t *testing.T) {
	c := newWorld(t, nil).connect(nil)
	dir := t.TempDir()
	path := filepath.Join(dir, "sub", "a.txt")
	c.call("write_file", object{"path": path, "content": "one\ntwo\nthree\n"}, nil)
	if got := c.call("read_file", object{"path": path}, nil); got != "one\ntwo\nthree\n" {
		t.Errorf("%q", got)
	}
	var read struct {
		NextLine int `json:"next_line"`
		Base64   string
	}
	got := c.call("read_file", object{"path": path, "line": 2, "lines": 1}, &read)
	if !strings.HasPrefix(got, "two\n[more") || read.NextLine != 3 {
		t.Errorf("%q %+v", got, read)
	}
	c.refused("read_file", object{"path": path, "line": 9}, "has 4 lines")
	c.call("edit_file", object{"path": path, "edits": []object{{"old": "two", "new": "2"}, {"old": "e\n", "new": "E\n", "all": true}}}, nil)
	if got := c.call("read_file", object{"path": path}, nil); got != "onE\n2\nthreE\n" {
		t.Errorf("edited: %q", got)
	}
	c.refused("edit_file", object{"path": path, "edits": []object{{"old": "2", "new": "x"}, {"old": "zen", "new": ""}}}, "old text of edit 2 is not in the file", "read the file again")
	c.refused("edit_file", object{"path": path, "edits": []object{{"old": "E", "new": ""}}}, "2 times", "set all")
	if got := c.call("read_file", object{"path": path}, nil); got != "onE\n2\nthreE\n" {
		t.Errorf("an edit that failed left %q", got)
	}
	c.refused("read_file", object{"path": dir + "/nope"}, "no such file", "list_files")
	c.call("write_file", object{"path": dir + "/bin", "content": "AAEC", "encoding": "base64"}, nil)
	c.refused("read_file", object{"path": dir + "/bin"}, "no text", "base64")
	if c.call("read_file", object{"path": dir + "/bin", "encoding": "base64", "offset": 1}, &read); read.Base64 != "AQI=" {
		t.Errorf("%+v", read)
	}
	c.refused("write_file", object{"path": dir + "/bin", "content": "?", "encoding": "base64"}, "no base64")
	got = c.call("list_files", object{"path": dir, "depth": 3}, nil)
	wantParts(t, "the list", got, dir+"/sub/\n", path+"  12 bytes", dir+"/bin  3 bytes")
}

func TestLongFiles(t *testing.T) {
	c := newWorld(t, nil).connect(nil)
	path := filepath.Join(t.TempDir(), "long")
	var want strings.Builder
	for i := range 30000 {
		fmt.Fprintf(&want, "line %d\n", i+1)
	}
	if err := os.WriteFile(path, []byte(want.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for next := 1; next != 0; {
		var read struct {
			Text     string
			NextLine int `json:"next_line"`
		}
		c.call("read_file", object{"path": path, "line": next}, &read)
		all.WriteString(read.Text)
		next = read.NextLine
	}
	if all.String() != want.String() {
		t.Errorf("%d bytes of %d", all.Len(), want.Len())
	}
	if err := os.WriteFile(path, []byte(strings.Repeat("x", 100<<10)), 0o600); err != nil {
		t.Fatal(err)
	}
	c.refused("read_file", object{"path": path}, "line 1 of", "base64")
}

func TestSearch(t *testing.T) {
	c := newWorld(t, nil).connect(nil)
	dir := t.TempDir()
	for name, text := range map[string]string{"a.go": "package a\nfunc Find() {}\n", "b.txt": "find me\n", ".git/c": "Find\n", "d.bin": "\x00Find\n", "sub/e.go": "// finds\n"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range []struct {
		args object
		want string
	}{
		{object{"pattern": `Find\(`}, dir + "/a.go:2: func Find() {}\n"},
		{object{"pattern": "find", "ignore_case": true, "glob": "*.go"}, dir + "/a.go:2: func Find() {}\n" + dir + "/sub/e.go:1: // finds\n"},
		{object{"pattern": "zen"}, "[nothing matches in 4 files]"},
		{object{"pattern": "Find", "path": dir + "/.git"}, dir + "/.git/c:1: Find\n"},
		{object{"pattern": "me$", "path": dir + "/b.txt"}, dir + "/b.txt:1: find me\n"},
	} {
		if s.args["path"] == nil {
			s.args["path"] = dir
		}
		if got := c.call("search_files", s.args, nil); got != s.want {
			t.Errorf("%v: %q, want %q", s.args, got, s.want)
		}
	}
	c.refused("search_files", object{"pattern": "(?=a)"}, "RE2")
	c.refused("search_files", object{"pattern": "a", "path": dir + "/nope"}, "no such file")
}

func TestSandboxes(t *testing.T) {
	w := newWorld(t, nil)
	c, other := w.connect(nil), w.connect(nil)
	var made, listed struct {
		Sandbox   string
		Default   bool
		Sandboxes []struct{ Sandbox, Driver, Boundary, State string }
	}
	wantParts(t, "an empty list", c.call("list_sandboxes", nil, nil), "none yet")
	c.call("run_command", object{"command": "true"}, &made)
	first := made.Sandbox
	c.call("create_sandbox", nil, &made)
	c.call("list_sandboxes", nil, &listed)
	if len(listed.Sandboxes) != 2 || listed.Sandboxes[0].Sandbox != first || listed.Sandboxes[0].Boundary != "none" {
		t.Errorf("%+v", listed)
	}
	c.call("run_command", object{"command": "true", "sandbox": made.Sandbox}, nil)
	other.refused("run_command", object{"command": "true", "sandbox": first}, "no sandbox")
	other.call("kill_sandbox", object{"sandbox": first}, nil)
	w.holds(2)
	c.call("kill_sandbox", object{"sandbox": made.Sandbox}, nil)
	c.refused("run_command", object{"command": "true", "sandbox": made.Sandbox}, "no sandbox")
	if _, err := w.manager.Delete(operator(t.Context()), first); err != nil { // somebody else ends it
		t.Fatal(err)
	}
	got := c.call("run_command", object{"command": "echo new"}, nil)
	wantParts(t, "after its end", got, "has ended", "gone", "new\n")
	for range 7 {
		c.call("create_sandbox", nil, nil)
	}
	c.refused("create_sandbox", nil, "8 sandboxes", "kill_sandbox")
	c.refused("create_sandbox", object{"template": "zen"}, "8 sandboxes")
	_ = c.Close() // what the session had goes with it
	eventually(t, "they end", func() bool {
		all, err := w.manager.List(operator(t.Context()))
		return err == nil && len(all) == 0
	})
}

func TestAdvise(t *testing.T) {
	c := newWorld(t, func(cfg *mcp.Config) { cfg.Request.AcceptWeaker = "a test" }).connect(nil)
	got := c.call("advise", object{"origin": "untrusted", "needs": []string{"linux"}}, nil)
	wantParts(t, "the advice", got, "Policy test")
	c.refused("advise", object{"needs": []string{"zen"}}, "zen")
	c.refused("advise", object{"origin": "zen"}, "enum")
}

func TestResources(t *testing.T) {
	c := newWorld(t, nil).connect(nil)
	path := filepath.Join(t.TempDir(), "a b.txt")
	c.call("write_file", object{"path": path, "content": "text"}, nil)
	var out struct {
		CommandID string `json:"command_id"`
		Sandbox   string
	}
	c.call("run_command", object{"command": "echo said"}, &out)
	for uri, want := range map[string]string{
		"sandbox://default/files" + strings.ReplaceAll(path, " ", "%20"): "text",
		"sandbox://" + out.Sandbox + "/log":                              "$ echo said: exit code 0",
		"sandbox://" + out.Sandbox + "/output/" + out.CommandID:          "said\n",
	} {
		res, err := c.ReadResource(t.Context(), &sdk.ReadResourceParams{URI: uri})
		if err != nil || len(res.Contents) != 1 || !strings.Contains(res.Contents[0].Text, want) {
			t.Errorf("%s: %+v, %v", uri, res, err)
		}
	}
	for _, uri := range []string{"sandbox://zen/log", "sandbox://default/files/nope", "sandbox://default/output/zen"} {
		if _, err := c.ReadResource(t.Context(), &sdk.ReadResourceParams{URI: uri}); err == nil {
			t.Errorf("%s can be read", uri)
		}
	}
}
