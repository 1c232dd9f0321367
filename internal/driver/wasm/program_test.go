package wasm

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"
)

func put(t *testing.T, w *world, name, text string) {
	t.Helper()
	f, err := w.files.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err == nil {
		_, err = io.WriteString(f, text)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestPrograms(t *testing.T) {
	for _, test := range []struct {
		name, language, code, stdin string
		options                     map[string]string
		status                      int
		stdout, stderr              string
	}{
		{name: "args, input and files", language: "python", stdin: "line\n", status: 3, stdout: "['x.py', 'one', 'two'] line ['x.py'] True yes\n",
			code: "import os, sys\nprint(sys.argv, input(), os.listdir('/home/user'), os.path.exists('x.py'), os.environ['GIVEN'])\nsys.exit(3)"},
		{name: "javascript", language: "javascript", code: "console.log('sum', 1 + 1, scriptArgs.slice(1).join())", stdout: "sum 2 one,two\n"},
		{name: "javascript as in Node.js", language: "javascript", status: 5, stderr: "why\n", stdout: "one,two yes /home/user\ng\n  in\nout again\n",
			code: "console.log(process.argv.slice(2).join(), process.env.GIVEN, process.cwd())\nconsole.group('g'); console.log('in'); console.groupEnd()\nconsole.error('why')\nconst tick = setInterval(() => { clearInterval(tick); process.stdout.write('out '); setTimeout(() => { console.log('again'); process.exit(5) }, 1) }, 1)"},
		{name: "no modules of Node.js", language: "javascript", status: 1, stderr: "require('fs') finds nothing: a WASM sandbox has no modules of Node.js", code: "require('fs')"},
		{name: "python where it begins", language: "python", stdout: "/home/user 3 slept\na WASM sandbox has no network\na WASM sandbox runs no other programs: use a template of Linux programs\n",
			code: "import asyncio, os, subprocess, socket\nopen('../made.py', 'w').write('a = 3')\nos.rename('../made.py', 'made.py')\nimport made\nos.remove('made.py')\nprint(os.getcwd(), made.a, asyncio.run(asyncio.sleep(0.01, 'slept')))\nfor f in (lambda: socket.create_connection(('localhost', 1)), lambda: subprocess.run(['ls'])):\n    try: f()\n    except OSError as e: print(e)"},
		{name: "ruby", language: "ruby", status: 4, stdout: "[\"one\", \"two\"] x.rb 3.4 {\"a\":[1]} [\"x.rb\"] yes\n", stderr: "to stderr",
			code: "require 'json'\nputs \"#{ARGV} #{$0} #{RUBY_VERSION[0, 3]} #{JSON.dump({a: [1]})} #{Dir.children('.')} #{ENV['GIVEN']}\"\nwarn 'to stderr'\nexit 4"},
		{name: "ruby's errors", language: "ruby", status: 1, stderr: "divided by 0 (ZeroDivisionError)", code: "1 / 0"},
		{name: "its time", language: "python", code: "while True: pass", options: map[string]string{"timeout": "100ms"}, status: statusTimeout, stderr: "ended after 100ms"},
		{name: "asleep at its time", language: "python", code: "import time; time.sleep(1000)", options: map[string]string{"timeout": "1s"}, status: statusTimeout, stderr: "ended after 1s"},
		{name: "its instructions", language: "javascript", code: "for (;;);", options: map[string]string{"fuel": "50000000"}, status: statusKilled, stderr: "ended after 50000000 instructions"},
		{name: "its output", language: "python", code: "while True: print('x' * 1000)", options: map[string]string{"output": "100000"}, status: statusKilled, stderr: "ended after 100000 bytes of output"},
		{name: "deep recursion", language: "python", code: "def f(): return f() + 1\nf()", status: 1, stderr: "RecursionError"},
		{name: "deeper recursion", language: "javascript", code: "function f () { return [f()].map(f) }\nf()", status: statusTrap, stderr: "trap: "},
		{name: "memory", language: "python", code: "x = [0] * 10 ** 9", status: 1, stderr: "MemoryError"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t, test.language)
			var err error
			if w.options, err = parseOptions(test.options); err != nil {
				t.Fatal(err)
			}
			file := map[string]string{"python": "x.py", "javascript": "x.js", "ruby": "x.rb"}[test.language]
			put(t, w, "/home/user/"+file, test.code)
			var stdout, stderr bytes.Buffer
			env := environment(w.base("/home/user"), map[string]string{"GIVEN": "yes", "PWD": "/home/user"})
			status := w.run(t.Context(), []string{w.command[0], file, "one", "two"}, env, "/home/user", strings.NewReader(test.stdin), &stdout, &stderr)
			if status != test.status || test.stdout != "" && stdout.String() != test.stdout || !strings.Contains(stderr.String(), test.stderr) {
				t.Errorf("status %d, %.300q, %.600q", status, stdout.String(), stderr.String())
			}
		})
	}
}

// TestDeterministic: with the same seed, time and chance are the same, and with another they are not.
func TestDeterministic(t *testing.T) {
	once := func(seed string) string {
		w := newWorld(t, "python")
		var err error
		if w.options, err = parseOptions(map[string]string{"deterministic": seed}); err != nil {
			t.Fatal(err)
		}
		put(t, w, "/x.py", "import random, time, os, uuid\nprint(random.random(), time.time(), time.monotonic(), os.urandom(4), uuid.uuid4(), {'a', 'b', 'c'})\ntime.sleep(3)\nprint(time.time())")
		var out bytes.Buffer
		begin := time.Now()
		if status := w.run(t.Context(), []string{"python", "/x.py"}, environment(w.base("/")), "/", strings.NewReader(""), &out, &out); status != 0 {
			t.Fatalf("status %d, %s", status, out.String())
		}
		if !strings.Contains(out.String(), " 946684") { // 2000-01-01
			t.Errorf("not the fixed time: %s (it took %v)", out.String(), time.Since(begin))
		}
		return out.String()
	}
	first, again, other := once("1"), once("1"), once("2")
	if first != again || first == other {
		t.Errorf("seed 1: %s\nagain: %s\nseed 2: %s", first, again, other)
	}
}

func TestOptions(t *testing.T) {
	for key, value := range map[string]string{"timeout": "soon", "fuel": "-1", "output": "1.5", "deterministic": "yes", "threads": "4"} {
		if _, err := parseOptions(map[string]string{key: value}); err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("%s=%s: %v", key, value, err)
		}
	}
}
