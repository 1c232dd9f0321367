package agent_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/agent"
	"github.com/firebreak-dev/firebreak/internal/guest"
)

func TestJavaScript(t *testing.T) {
	needs(t, "node")
	i := inProcess(t, agent.Config{}).interpreter()
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "m.mjs"), []byte("export const v = 11; export default 12"), 0o600))
	i.steps("js", []step{
		{run: run{Code: "console.log('x'.repeat(500_000)); console.log('end'); 1"}, text: "1", stdout: strings.Repeat("x", 500_000) + "\nend\n"},
		{run: run{Code: "Symbol('s')"}, text: "Symbol(s)", stdout: "-"},
		{run: run{Code: "const a = 3; a * 2"}, text: "6", kinds: "number_of_executions result end_of_execution"},
		{run: run{Code: "const a = 4; let { b } = { b: a }; b"}, text: "4"},
		{run: run{Code: "undefined"}, text: "-", kinds: "number_of_executions end_of_execution"},
		{run: run{Code: "null"}, text: "null"},
		{run: run{Code: "10n ** 20n"}, text: "100000000000000000000n"},
		{run: run{Code: "'it\\'s ünï😀'"}, text: "it's ünï😀"},
		{run: run{Code: "({ x: [1, { y: new Map([[1, 2]]) }] })"}, text: "{ x: [ 1, { y: [Map] } ] }"},
		{run: run{Code: "console.log('out'); console.error('err'); 1"}, text: "1", stdout: "out\n", stderr: "err\n"},
		{run: run{Code: "console.log('a'); display('b'); console.log('c')"}, kinds: "number_of_executions stdout result stdout end_of_execution"},
		{run: run{Code: "await new Promise(r => setTimeout(() => r(5), 10))"}, text: "5"},
		{run: run{Code: "Promise.resolve(6)"}, text: "6"},
		{run: run{Code: "require('path').join('a', 'b')"}, text: "a/b"},
		{run: run{Code: "(await import('node:os')).EOL.length"}, text: "1"},
		{run: run{Code: "import fs, { existsSync as e } from 'fs'\nimport * as os from 'os'\n[e === fs.existsSync, typeof os.cpus, 'import (x)']"}, text: "[ true, 'function', 'import (x)' ]"},
		{run: run{Code: "import d, { v } from '" + dir + "/m.mjs'; d + v"}, text: "23"},
		{run: run{Code: "process.env.A + process.env.FROM_INIT", Env: map[string]string{"A": "b"}}, text: "byes"},
		{run: run{Code: "process.env.A"}, text: "-"},
		{run: run{Code: "throw new TypeError('why')"}, failed: "TypeError", value: "why"},
		{run: run{Code: "throw 3"}, failed: "number", value: "3"},
		{run: run{Code: "nope"}, failed: "ReferenceError"},
		{run: run{Code: "function ("}, failed: "SyntaxError"},
		{run: run{Code: "Promise.reject(new RangeError('r'))"}, failed: "RangeError", value: "r"},
		{run: run{Code: "setTimeout(() => { throw new Error('later') }, 1); await new Promise(r => setTimeout(r, 50)); a"}, text: "4"},
		{run: run{Code: "const f = () => f(); f()"}, failed: "RangeError"},
		{run: run{Code: "class F {}\nnew F()"}, text: "F {}"},
	})
}

func TestTypeScript(t *testing.T) {
	needs(t, "node")
	i := inProcess(t, agent.Config{}).interpreter()
	got := i.run(run{Code: "interface P { x: number }\nconst p: P = { x: 1 }; p.x as number", Language: "ts"})
	if got.failed.Name == "Unsupported" && strings.Contains(got.failed.Value, "TypeScript needs Node.js 22.13") {
		t.Skip(got.failed.Value)
	}
	if got.text() != "1" {
		t.Errorf("%+v", got)
	}
}

func TestBash(t *testing.T) {
	needs(t, "bash")
	i := inProcess(t, agent.Config{}).interpreter()
	i.steps("bash", []step{
		{run: run{Code: "x=1; declare -A m; m[k]=v; f() { echo f$1; }; cd /"}, stdout: "-", stderr: "-", kinds: "number_of_executions end_of_execution"},
		{run: run{Code: "echo $x ${m[k]}; f 2; pwd"}, stdout: "1 v\nf2\n/\n"},
		{run: run{Code: "echo out; echo err >&2; (exit 3)"}, stdout: "out\n", stderr: "err\n", failed: "ExitStatus", value: "exit status 3"},
		{run: run{Code: "echo 'it'\\''s' \"q\" '!!' `echo sub`"}, stdout: "it's q !! sub\n"},
		{run: run{Code: "cat <<E\nhere $x\nE\n# comment"}, stdout: "here 1\n"},
		{run: run{Code: "if then"}, failed: "ExitStatus"},
		{run: run{Code: "${nothing:?is missing}; echo no"}, stdout: "-", failed: "ExitStatus"},
		{run: run{Code: "read line; echo [$line]; cat"}, stdout: "[]\n"},
		{run: run{Code: "echo $A $FROM_INIT", Env: map[string]string{"A": "it's", "FROM_INIT": "run"}}, stdout: "it's run\n"},
		{run: run{Code: "echo [$A] $FROM_INIT"}, stdout: "[] yes\n"},
		{run: run{Code: `printf '16\n{"type":"done"}' >&4; echo $x`}, stdout: "1\n"},
		{run: run{Code: "printf() { echo mine; }; builtin() { echo mine; }; unset -f builtin; printf"}, stdout: "mine\n"},
		{run: run{Code: "exit 7"}, failed: "KernelDied"},
		{run: run{Code: "echo [$x]"}, stdout: "[]\n"},
	})
	for body, want := range map[string]string{`{"code":"\u0000","language":"bash"}`: "zero byte", `{"code":"1","language":"bash","env_vars":{"a-b":"c"}}`: "shell can set"} {
		if status, text := i.ask("POST", "/execute", body); status != 400 || !strings.Contains(text, want) {
			t.Errorf("%s: %d %s", body, status, text)
		}
	}
}

func TestDeadKernels(t *testing.T) {
	needs(t, "python3")
	i := inProcess(t, agent.Config{}).interpreter()
	for _, c := range []struct{ code, want string }{
		{"print('last words'); import os; os._exit(3)", "exit status 3"},
		{"import os; os.kill(os.getpid(), 9)", "SIGKILL"},
		{"import os; os.close(4)", "lost"},
		{"import os; os.write(4, b'nonsense\\n')", "no kernel says"},
		{"import os; os.write(4, b'8388608\\n'); os._exit(0)", "no kernel says"},
	} {
		i.python("x = 1")
		got := i.python(c.code)
		if got.failed.Name != "KernelDied" || !strings.Contains(got.failed.Value, c.want) || strings.Contains(c.code, "last") && got.stdout != "last words\n" {
			t.Errorf("%s: %+v", c.code, got)
		}
		if got := i.python("'x' in globals()"); got.text() != "False" || got.count != 1 {
			t.Errorf("after %s: %+v", c.code, got)
		}
	}
	// One that dies between two runs: the next is told, and does not run.
	flag := filepath.Join(t.TempDir(), "go")
	pid := i.python("import threading, time, os\ndef die():\n  while not os.path.exists('" + flag + "'): time.sleep(0.01)\n  os._exit(4)\n" +
		"threading.Thread(target=die).start()\nos.getpid()").text()
	if s := state(pid); s == "" || s == "Z" {
		t.Fatalf("the kernel %q is in state %q", pid, s)
	}
	must(t, os.WriteFile(flag, nil, 0o600))
	eventually(t, func() string {
		if s := state(pid); s != "" && s != "Z" {
			return "the kernel is in state " + s
		}
		return ""
	})
	if got := i.python("print('ran')"); got.failed.Name != "KernelDied" || got.stdout != "" {
		t.Errorf("%+v", got)
	}
	if got := i.python("2"); got.text() != "2" {
		t.Errorf("%+v", got)
	}
}

func TestContexts(t *testing.T) {
	needs(t, "python3")
	i := inProcess(t, agent.Config{}).interpreter()
	if status, text := i.ask("GET", "/health", ""); status != 200 || strings.TrimSpace(text) != `"OK"` {
		t.Errorf("health: %d %q", status, text)
	}
	dir := t.TempDir()
	for body, want := range map[string]string{
		`{"language":"r"}`:                          "400 language \"r\" cannot be run here",
		`{"cwd":"/nonexistent"}`:                    "400 cwd '/nonexistent' does not exist",
		`{"cwd":"/etc/passwd"}`:                     "400 cwd '/etc/passwd' is not a directory",
		`{"language":3}`:                            "400 read the request",
		`{"language":"Python","cwd":"` + dir + `"}`: "200 {",
	} {
		status, text := i.ask("POST", "/contexts", body)
		if !strings.HasPrefix(fmt.Sprint(status, " ", text), want) {
			t.Errorf("%s: %d %s", body, status, text)
		}
	}
	var list []struct{ ID, Language, Cwd string }
	_, text := i.ask("GET", "/contexts", "")
	must(t, json.Unmarshal([]byte(text), &list))
	own := ""
	for _, c := range list {
		if c.Cwd == dir {
			own = c.ID
		}
	}
	if own == "" || !strings.Contains(text, `"language":"python"`) {
		t.Fatal(text)
	}
	if got := i.run(run{Code: "x = 1; import os; os.getcwd()", Context: own}); got.text() != dir {
		t.Errorf("%+v", got)
	}
	if got := i.python("x"); got.failed.Name != "NameError" {
		t.Errorf("contexts share state: %+v", got)
	}
	if status, _ := i.ask("POST", "/contexts/"+own+"/restart", ""); status/100 != 2 {
		t.Errorf("restart: %d", status)
	}
	if got := i.run(run{Code: "x", Context: own}); got.failed.Name != "NameError" || got.count != 1 {
		t.Errorf("after a restart: %+v", got)
	}
	if status, _ := i.ask("DELETE", "/contexts/"+own, ""); status != 204 {
		t.Errorf("delete: %d", status)
	}
	for method, path := range map[string]string{"DELETE": "/contexts/" + own, "POST": "/contexts/" + own + "/restart"} {
		if status, text := i.ask(method, path, ""); status != 404 || text != "Context "+own+" not found" {
			t.Errorf("%s %s: %d %q", method, path, status, text)
		}
	}
	for body, want := range map[string]int{`{"code":"1","context_id":"` + own + `"}`: 404, `{"code":"1","context_id":"x","language":"python"}`: 400,
		`{}`: 400, `{"code":1}`: 400, `[]`: 400, `{"code":"1","env_vars":{"a=":"1"}}`: 400, `{"code":"1","unknown":true,"context_id":null,"language":null,"env_vars":null}`: 200} {
		if status, text := i.ask("POST", "/execute", body); status != want {
			t.Errorf("%s: %d %s", body, status, text)
		}
	}
}

func TestTooManyContexts(t *testing.T) {
	needs(t, "bash")
	i := inProcess(t, agent.Config{}).interpreter()
	for range 32 {
		i.context("bash")
	}
	if status, text := i.ask("POST", "/contexts", `{"language":"bash"}`); status != http.StatusTooManyRequests {
		t.Errorf("%d %s", status, text)
	}
}

// Runs of one context come in the order in which they arrived; those of others do not wait for them.
func TestQueue(t *testing.T) {
	needs(t, "python3")
	i := inProcess(t, agent.Config{}).interpreter()
	other := i.context("python")
	flag := filepath.Join(t.TempDir(), "go")
	var work sync.WaitGroup
	begin := func(code string) { // returns once it runs or is about to wait for its turn
		body, err := json.Marshal(run{Code: code})
		must(t, err)
		res, err := i.do(t.Context(), "POST", "/execute", string(body))
		must(t, err)
		work.Go(func() {
			defer res.Body.Close()
			if _, err := io.Copy(io.Discard, res.Body); err != nil || res.StatusCode != http.StatusOK {
				t.Errorf("%s: %d, %v", code, res.StatusCode, err)
			}
		})
		time.Sleep(10 * time.Millisecond) // it says that it waits just before it does
	}
	begin("import time, os\norder = []\nwhile not os.path.exists('" + flag + "'): time.sleep(0.01)")
	for n := range 5 {
		begin(fmt.Sprintf("order.append(%d)", n))
	}
	if got := i.run(run{Code: "1", Context: other}); got.text() != "1" {
		t.Errorf("the other context: %+v", got)
	}
	must(t, os.WriteFile(flag, nil, 0o600))
	work.Wait()
	if got := i.python("order"); got.text() != "[0, 1, 2, 3, 4]" {
		t.Errorf("%+v", got)
	}
}

// A restart or a deletion ends what runs; a client that goes away while it waits does not run.
func TestRunsThatAreCutShort(t *testing.T) {
	needs(t, "python3")
	i := inProcess(t, agent.Config{}).interpreter()
	for method, suffix := range map[string]string{"POST": "/restart", "DELETE": ""} {
		id := i.context("python")
		begun := make(chan struct{})
		var got ran
		var work sync.WaitGroup
		work.Go(func() {
			got, _ = i.try(t.Context(), run{Code: "print('on', flush=True)\nwhile True: pass", Context: id}, func(e told) {
				if e.Type == "stdout" {
					close(begun)
				}
			})
		})
		<-begun
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		_, _ = i.try(ctx, run{Code: "open('/nonexistent')", Context: id}, nil)
		cancel()
		i.ask(method, "/contexts/"+id+suffix, "")
		work.Wait()
		if got.failed.Name != "KernelDied" || !strings.Contains(got.failed.Value, "the context was") {
			t.Errorf("%s: %+v", method, got)
		}
	}
}

// In a sandbox kernels are the user's, without the agent's token or rights, and nothing of them is left.
func TestKernelsAreTheUsersAndLeaveNothing(t *testing.T) {
	needRoot(t)
	needs(t, "python3")
	fds := func() int { list, _ := os.ReadDir("/proc/self/fd"); return len(list) }
	b := inProcess(t, agent.Config{DropCapabilities: true})
	i := b.interpreter()
	got := i.python("import os; print(open('/proc/self/status').read()); os.listdir('/proc/self/fd')")
	for _, want := range []string{"CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1"} {
		if !strings.Contains(got.stdout, want) {
			t.Errorf("a kernel's status lacks %q", want)
		}
	}
	i.ask("DELETE", "/contexts/"+i.context("python"), "")
	i.client.CloseIdleConnections()
	time.Sleep(100 * time.Millisecond)
	goroutines, files := runtime.NumGoroutine(), fds()
	for range 5 {
		id := i.context("python")
		i.run(run{Code: "import subprocess; subprocess.Popen(['sleep', '1000']); 1", Context: id})
		i.ask("DELETE", "/contexts/"+id, "")
	}
	i.client.CloseIdleConnections()
	eventually(t, func() string {
		if g, f := runtime.NumGoroutine(), fds(); g > goroutines+2 || f > files+1 {
			return fmt.Sprintf("%d goroutines and %d files, before %d and %d", g, f, goroutines, files)
		}
		return ""
	})
}

func BenchmarkCode(b *testing.B) {
	needs(b, "python3")
	box, _ := program(b, realAgent(b))
	i := box.interpreter()
	i.python("1+1")
	for b.Loop() {
		if got := i.python("1+1"); got.text() != "2" {
			b.Fatalf("%+v", got)
		}
	}
}

func BenchmarkCodeFirst(b *testing.B) {
	for _, language := range []string{"python", "javascript", "bash"} {
		b.Run(language, func(b *testing.B) {
			box, _ := program(b, realAgent(b))
			i := box.interpreter()
			for b.Loop() {
				id := i.context(language)
				if got := i.run(run{Code: "1", Context: id}); got.status != 200 {
					b.Fatalf("%+v", got)
				}
				i.ask("DELETE", "/contexts/"+id, "")
			}
		})
	}
}

// A kernel that was started ahead runs the first code, with the environment that the sandbox was given later.
func TestWarm(t *testing.T) {
	needs(t, "python3")
	b := inProcess(t, agent.Config{})
	if err := b.Warm(t.Context(), "cobol"); err == nil || !strings.Contains(err.Error(), "cobol") {
		t.Errorf("a language that is not there: %v", err)
	}
	for range 2 {
		if err := b.Warm(t.Context(), "python"); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Init(t.Context(), guest.Config{Envs: map[string]string{"LATER": "yes"}}); err != nil {
		t.Fatal(err)
	}
	i := b.interpreter()
	got := i.run(run{Code: "import os; os.environ['LATER']"})
	if got.text() != "'yes'" && got.text() != "yes" || got.count != 1 {
		t.Errorf("%q, run number %d", got.text(), got.count)
	}
	if _, list := i.ask("GET", "/contexts", ""); strings.Count(list, `"python"`) != 1 {
		t.Errorf("contexts: %s", list)
	}
}
