package wasm

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/agent/account"
	"github.com/firebreak-dev/firebreak/internal/agent/code"
	"github.com/firebreak-dev/firebreak/internal/driver/wasm/engine"
	"github.com/firebreak-dev/firebreak/internal/memfs"
)

// cache is where scripts/install-test-tools.sh puts the interpreters.
const cache = "../../../.cache"

// interpreter returns the module of a language, or skips.
func interpreter(t testing.TB, language string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join(cache, "wasm", language+".wasm"))
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		if strings.Contains(","+os.Getenv("FIREBREAK_REQUIRE")+",", ",wasm,") {
			t.Fatal(err)
		}
		t.Skipf("%v: run scripts/install-test-tools.sh", err)
	}
	return path
}

// warm has a module compiled by a program without the race detector.
func warm(t testing.TB, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(cache, "wasm-compiled")
	if _, err := os.Stat(filepath.Join(dir, fmt.Sprintf("%x", sha256.Sum256(data)), "mac")); err == nil {
		return
	}
	run := exec.Command("go", "run", "github.com/firebreak-dev/firebreak/internal/driver/wasm/engine/warm", dir, path)
	if out, err := run.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// newWorld is a sandbox's world without its agent. What is compiled stays for the next test.
func newWorld(t testing.TB, language string) *world {
	t.Helper()
	path := interpreter(t, language)
	warm(t, path)
	e := engine.New(filepath.Join(cache, "wasm-compiled"))
	m, err := e.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.Release()
		if err := e.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	files := memfs.New(memfs.Options{})
	if err := files.MkdirAll("/home/user", 0o755); err != nil {
		t.Fatal(err)
	}
	return &world{module: m, language: language, command: []string{language}, files: files, memory: engine.NewMemory(512 << 20), slots: make(chan struct{}, 8)}
}

// sink writes down what comes of a run.
type sink struct {
	mu   sync.Mutex
	text strings.Builder
}

func (s *sink) say(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintf(&s.text, format+"\n", args...)
}

func (s *sink) Print(stream, text string) { s.say("%s %q", stream, text) }
func (s *sink) Result(main bool, forms map[string]json.RawMessage) {
	s.say("result %v %s", main, forms["text"])
}
func (s *sink) Failed(name, value, tb string) { s.say("failed %s: %s", name, value); s.say("%s", tb) }
func (s *sink) Flush()                        {}

type step struct{ code, want string }

func steps(language string) []step {
	if language == "python" {
		return []step{
			{"x = 1", ""},
			{"x += 1; x * 21", `result true "42"`},
			{"print('one'); print('two'); 3", "stdout \"one\\n\"\nstdout \"two\\n\"\nresult true \"3\""},
			{"1 / 0", "failed ZeroDivisionError: division by zero"},
			{"import asyncio\nawait asyncio.sleep(0.01)\n'slept'", `result true "slept"`},
			{"display(1); 2", "result false \"1\"\nresult true \"2\""},
			{"open('here', 'w').write('text'); import os; os.getcwd(), os.path.exists('/home/user/here')", `result true "('/home/user', True)"`},
			{"import socket; socket.socket()", "failed OSError"},
			{"import threading; threading.Thread(target=print).start()", "failed RuntimeError: can't start new thread"},
			{"import subprocess; subprocess.run('ls')", "failed OSError"},
			{"os.environ['GIVEN'], os.environ['HOME']", `result true "('yes', '/home/user')"`},
			{"os.listdir('/')", `result true "['home']"`},
		}
	}
	return []step{
		{"const x = 1", ""},
		{"const x = 2; x * 21", `result true "42"`},
		{"console.log('one', {a: [1, 'b']}); console.error('two'); 3", "stdout \"one { a: [ 1, 'b' ] }\\n\"\nstderr \"two\\n\"\nresult true \"3\""},
		{"null.f", "failed TypeError: cannot read property 'f' of null"},
		{"throw 7", "failed number: 7"},
		{"await new Promise(done => setTimeout(() => done('slept'), 10))", `result true "slept"`},
		{"class A { m () { return `${x}}` } }\nnew A().m()", `result true "2}"`},
		{"class A { m () { return 5 } }; new A().m()", `result true "5"`},
		{"let f = /[/'}]/; f.test('}')", `result true "true"`},
		{"display(1); 2", "result false \"1\"\nresult true \"2\""},
		{"'größer 😀'", `result true "größer 😀"`},
		{"process.env.GIVEN", `result true "yes"`},
		{"fetch('http://127.0.0.1')", "failed TypeError: fetch is refused: a WASM sandbox has no network"},
		{"std.writeFile('a.mjs', 'export default 1; export let b = 2, c = 3; export const up = () => ++b; export { c as \\\"odd name\\\" }'); 0", `result true "0"`},
		{"import a, { b as also, c } from './a.mjs'\nimport * as all from './a.mjs'; import e, * as f from \"./a.mjs\"\n[a, also, c, all.up(), e, f.b]", `result true "[ 1, 2, 3, 3, 1, 3 ]"`},
		{"// import x from './nowhere.mjs'\nconst text = `\nimport y from './nowhere.mjs'`; /*\nimport z from 'z' */ import{up}from'./a.mjs';import './a.mjs'\nup() + text.length", `result true "34"`},
		{"const lib = (await import('./a.mjs')).b; lib", `result true "4"`},
		{"import {\n  b, // the first\n  c /* the last */ as größe // of them\n} from './a.mjs' // so\n[größe, b]", `result true "[ 3, 4 ]"`},
		{"5; import './a.mjs'", `result true "5"`},
		{"import './a.mjs'", ""},
		{"import /* all */ a2, * as all2 from './a.mjs'; [a2, all2.b]", `result true "[ 1, 4 ]"`},
		{"import {\nb\n}\nfrom './a.mjs'\n/'/.test(b)\nconst z = 1; const z = 2; new Error().stack", `result true "    at <eval> (<evalScript>:6:`},
		{"import a3" + strings.Repeat(" ", 100_000) + "(" + strings.Repeat("// // ", 20_000), "failed SyntaxError"},
		{"import g from './nowhere.mjs'", "failed ReferenceError: could not load module"},
		{"import h from", "failed SyntaxError"},
		{"import a b from 'c'", "failed SyntaxError"},
		{"const imported = { import: 1 }\nimported\n.import", `result true "1"`},
		{"let long = 0;" + strings.Repeat("long++\n", 30_000) + "long", `result true "30000"`},
	}
}

func TestKernels(t *testing.T) {
	for _, language := range []string{"python", "javascript"} {
		t.Run(language, func(t *testing.T) {
			p := &interpreters{world: newWorld(t, language)}
			defer p.Close()
			k := start(t, p)
			for _, s := range steps(language) {
				if got := run(t, k, s.code); got != s.want && (s.want == "" || !strings.HasPrefix(got, s.want)) {
					t.Errorf("%s:\n%s\nwant\n%s", s.code, got, s.want)
				}
			}
			k.Kill("the test is over")
			<-k.Gone()
			if !strings.Contains(k.End(), "the test is over") || p.memory.Used() != 0 {
				t.Errorf("it ended so: %s; %d bytes are still taken", k.End(), p.memory.Used())
			}
		})
	}
}

// TestKernelEndsWithItsRun: code that is stopped takes its interpreter with it, and frees what it had.
func TestKernelEndsWithItsRun(t *testing.T) {
	for language, endless := range map[string]string{"python": "while True: pass", "javascript": "for (;;);"} {
		t.Run(language, func(t *testing.T) {
			p := &interpreters{world: newWorld(t, language)}
			defer p.Close()
			k := start(t, p)
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			out := &sink{}
			if k.Run(ctx, endless, nil, out) {
				t.Error("it is said to live on")
			}
			<-k.Gone()
			if !strings.Contains(k.End(), "knows no interrupt") {
				t.Errorf("it ended so: %s; %s", k.End(), out.text.String())
			}
		})
	}
}

// TestHostileKernel: code that writes where the kernel writes ends its own context.
func TestHostileKernel(t *testing.T) {
	p := &interpreters{world: newWorld(t, "python")}
	defer p.Close()
	for _, text := range []string{`99999999999`, `10\n{"type":"x"}`, `5\nhello`, `-1\n`} {
		k := start(t, p)
		run(t, k, `import os; os.write(os.open("/dev/kernel/answers", os.O_WRONLY), b'`+text+`')`)
		<-k.Gone()
		if !strings.Contains(k.End(), "what no kernel says") {
			t.Errorf("%s: it ended so: %s", text, k.End())
		}
	}
}

func start(t *testing.T, p *interpreters) code.Kernel {
	t.Helper()
	l, err := p.Language("")
	if err != nil {
		t.Fatal(err)
	}
	k, err := p.Start(code.Options{Language: l, User: account.User{Name: user, Home: "/home/user"}, Dir: "/home/user"})
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	return k
}

func run(t *testing.T, k code.Kernel, text string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out := &sink{}
	k.Run(ctx, text, map[string]string{"GIVEN": "yes"}, out)
	return strings.TrimSpace(out.text.String())
}
