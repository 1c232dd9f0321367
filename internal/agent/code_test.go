package agent_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/agent"
)

// step is a run and what must come of it; empty fields of want are not looked at, but an error must be wanted.
type step struct {
	run
	text, stdout, stderr string // "-" for none
	failed, value        string // of the error
	kinds                string
}

func (i *interpreter) steps(language string, steps []step) {
	i.t.Helper()
	for _, s := range steps {
		s.Language = language
		got := i.run(s.run)
		for _, check := range []struct{ what, want, got string }{
			{"text", s.text, got.text()}, {"stdout", s.stdout, got.stdout}, {"stderr", s.stderr, got.stderr},
			{"value of the error", s.value, got.failed.Value}, {"kinds", s.kinds, got.kinds()},
		} {
			if check.want != "" && strings.TrimPrefix(check.want, "-") != check.got {
				i.t.Errorf("%.200q: %s is %.300q, want %q", s.Code, check.what, check.got, check.want)
			}
		}
		if got.status != 200 || s.failed != got.failed.Name {
			i.t.Errorf("%.200q: %d %s; error %.900q, want %q", s.Code, got.status, got.refusal, got.failed.Name+": "+got.failed.Value+got.failed.Traceback, s.failed)
		}
	}
}

func TestPython(t *testing.T) {
	needs(t, "python3")
	i := inProcess(t, agent.Config{}).interpreter()
	i.steps("python", []step{
		{run: run{Code: "1+1"}, text: "2", stdout: "-", stderr: "-", kinds: "number_of_executions result end_of_execution"},
		{run: run{Code: "x = 20"}, text: "-", kinds: "number_of_executions end_of_execution"},
		{run: run{Code: "x += 1\nx * 2"}, text: "42"},
		{run: run{Code: "_"}, text: "42"},
		{run: run{Code: "x;"}, text: "-"},
		{run: run{Code: "x ;  # silent"}, text: "-"},
		{run: run{Code: "None"}, kinds: "number_of_executions end_of_execution"},
		{run: run{Code: "'it\\'s'"}, text: "it's"},
		{run: run{Code: ""}, kinds: "number_of_executions end_of_execution"},
		{run: run{Code: "# only a comment"}, kinds: "number_of_executions end_of_execution"},
		{run: run{Code: "if x:\n  print('yes')\n"}, stdout: "yes\n"},
		{run: run{Code: "'ünï→😀'"}, text: "ünï→😀"},
		{run: run{Code: "print('ünï→😀', end='')"}, stdout: "ünï→😀"},
		{run: run{Code: "print('\\udc80')"}, stdout: "\\udc80\n"},
		{run: run{Code: "import sys; print('out'); print('err', file=sys.stderr); 7"}, text: "7", stdout: "out\n", stderr: "err\n"},
		{run: run{Code: "print('a'); display(1); print('b'); display('two'); print('c'); 3"},
			kinds: "number_of_executions stdout result stdout result stdout result end_of_execution", text: "3"},
		{run: run{Code: "import os, subprocess\nprint('a'); os.system('echo b'); subprocess.run(['echo', 'c']); os.write(1, b'd\\n'); print('e')"}, stdout: "a\nb\nc\nd\ne\n"},
		{run: run{Code: "os.environ.get('A'), os.environ['FROM_INIT']", Env: map[string]string{"A": "b", "FROM_INIT": "run"}}, text: "('b', 'run')"},
		{run: run{Code: "os.environ.get('A'), os.environ['FROM_INIT']"}, text: "(None, 'yes')"},
		{run: run{Code: "import asyncio\nawait asyncio.sleep(0.01)\nasync def f(): return 5\nawait f()"}, text: "5"},
		{run: run{Code: "asyncio.run(f())"}, text: "5"},
		{run: run{Code: "[await f() for _ in range(2)]"}, text: "[5, 5]"},
		{run: run{Code: "async for z in missing: pass"}, failed: "NameError"},
		{run: run{Code: "__name__, sys.modules['__main__'].x"}, text: "('__main__', 21)"},
		{run: run{Code: "import pickle\nclass P: pass\ntype(pickle.loads(pickle.dumps(P()))) is P"}, text: "True"},
		{run: run{Code: "from dataclasses import dataclass\n@dataclass\nclass D:\n  a: int\nD(1)"}, text: "D(a=1)"},
		{run: run{Code: "import inspect\ndef g(): return 1\nprint(inspect.getsource(g))"}, stdout: "def g(): return 1\n\n"},
		{run: run{Code: "import multiprocessing as m\ndef h(q): q.put(x)\nq = m.Queue(); p = m.Process(target=h, args=(q,)); p.start(); v = q.get(); p.join(); v"}, text: "21"},
		{run: run{Code: "if os.fork() == 0:\n  print('child')\nelse:\n  os.wait(); print('parent')"}, stdout: "child\nparent\n"},
		{run: run{Code: "!echo shell $((1+1))\n%cd /\nos.getcwd()"}, text: "/", stdout: "shell 2\n"},
		{run: run{Code: "x = 5\nx\n% 3"}, text: "", failed: "SyntaxError"},
		{run: run{Code: "import threading\nt = threading.Thread(target=lambda: (print('in'), display('thread'))); t.start(); t.join(); 1"}, text: "1", stdout: "in\n"},
		{run: run{Code: "sys.stdout.close()\n1"}, text: "1"},
	})
}

func TestPythonErrors(t *testing.T) {
	needs(t, "python3")
	i := inProcess(t, agent.Config{}).interpreter()
	i.steps("python", []step{
		{run: run{Code: "print('before')\n1/0"}, stdout: "before\n", failed: "ZeroDivisionError", value: "division by zero",
			kinds: "number_of_executions stdout error end_of_execution"},
		{run: run{Code: "def f(:"}, failed: "SyntaxError"},
		{run: run{Code: "nope"}, failed: "NameError", value: "name 'nope' is not defined"},
		{run: run{Code: "input()"}, failed: "EOFError"},
		{run: run{Code: "import sys; sys.exit(3)"}, failed: "SystemExit", value: "3"},
		{run: run{Code: "exit()"}, failed: "SystemExit"},
		{run: run{Code: "raise KeyboardInterrupt"}, failed: "KeyboardInterrupt"},
		{run: run{Code: "def f(): f()\nf()"}, failed: "RecursionError"},
		{run: run{Code: "class E(Exception):\n  def __str__(self): 1/0\nraise E"}, failed: "E"},
		{run: run{Code: "class R:\n  def __repr__(self): 1/0\nR()"}, text: "<R whose repr raised ZeroDivisionError>"},
		{run: run{Code: "class M:\n  def __getattr__(self, n): return lambda *a: 'x'\n  def __repr__(self): return 'm'\nM()"}, text: "m"},
		{run: run{Code: "x = 'alive'; x"}, text: "alive"},
		{run: run{Code: "float('nan')"}, text: "nan"},
		{run: run{Code: "10**5000;1"}, text: "1"},
		{run: run{Code: "%nonsense"}, failed: "SyntaxError"},
		{run: run{Code: "import linecache; linecache.checkcache()\ndef deep():\n  return undefined_name\ndeep()"}, failed: "NameError"},
	})
	got := i.python("def outer():\n    return inner()\ndef inner():\n    raise ValueError('why')\nouter()")
	for _, want := range []string{"Traceback (most recent call last):", `File "<cell 17>", line 5, in <module>`, "return inner()", "raise ValueError('why')", "ValueError: why"} {
		if !strings.Contains(got.failed.Traceback, want) {
			t.Errorf("the traceback lacks %q:\n%s", want, got.failed.Traceback)
		}
	}
	if strings.Contains(got.failed.Traceback, "kernel") {
		t.Errorf("the traceback shows the kernel:\n%s", got.failed.Traceback)
	}
}

func TestPythonRichResults(t *testing.T) {
	needs(t, "python3")
	i := inProcess(t, agent.Config{}).interpreter()
	got := i.python(`class Rich:
  def _repr_html_(self): return "<b>x</b>"
  def _repr_png_(self): return b"\x89PNG"
  def _repr_json_(self): return {"a": [1, float("inf")]}
  def _repr_latex_(self): raise ValueError
  def _repr_svg_(self): return ("<svg/>", {"width": 1})
  def _repr_mimebundle_(self, include=None, exclude=None): return {"application/x-own": {"b": 1}, "text/markdown": "*x*"}
display({"text/plain": "raw", "e2b/chart": {"type": "unknown"}}, raw=True)
display(Rich)
Rich()`)
	if len(got.results) != 3 || got.failed.Name != "" {
		t.Fatalf("%+v", got)
	}
	raw, class, rich := got.results[0], got.results[1], got.results[2]
	if raw.Text != "raw" || raw.Main || raw.Chart["type"] != "unknown" {
		t.Errorf("raw: %+v", raw)
	}
	if class.HTML != "" || class.Text != "<class '__main__.Rich'>" {
		t.Errorf("class: %+v", class)
	}
	if png, _ := base64.StdEncoding.DecodeString(rich.PNG); !rich.Main || rich.HTML != "<b>x</b>" || string(png) != "\x89PNG" ||
		string(rich.JSON) != `{"a":[1,null]}` || rich.Extra["application/x-own"] == nil {
		t.Errorf("rich: %+v", rich)
	}
}

// pyplot skips where matplotlib and pandas are not importable. To have them: python3 -m venv V && V/bin/pip install
// matplotlib pandas, and V/bin in front of PATH.
func pyplot(t *testing.T) {
	needs(t, "python3")
	if err := exec.Command("python3", "-c", "import matplotlib, pandas").Run(); err != nil {
		lacks(t, "matplotlib", "python3 cannot import matplotlib and pandas")
	}
}

func TestFigures(t *testing.T) {
	pyplot(t)
	i := inProcess(t, agent.Config{}).interpreter()
	const use = "import matplotlib.pyplot as plt\n"
	for _, c := range []struct{ code, kind, elements string }{
		{"plt.plot([1, 2], [3, 4], label='a'); plt.xlabel('Time (s)'); plt.title('T'); plt.show()", "line", `[{"label":"a","points":[[1,3],[2,4]]}]`},
		{"plt.scatter([1, 2], [3, 4], label='s')", "scatter", `[{"label":"s","points":[[1,3],[2,4]]}]`},
		{"plt.bar(['x', 'y'], [3, 4], label='g')\nplt.show()", "bar", `[{"group":"g","label":"x","value":3},{"group":"g","label":"y","value":4}]`},
		{"plt.barh(['x', 'y'], [3, 4])", "bar", `[{"group":"","label":"x","value":3},{"group":"","label":"y","value":4}]`},
		{"plt.pie([1, 3], labels=['p', 'q'])", "pie", `[{"angle":90,"label":"p","radius":1},{"angle":270,"label":"q","radius":1}]`},
		{"plt.boxplot([[1, 2, 3, 4, 5]])", "box_and_whisker", `[{"first_quartile":2,"label":"1","max":5,"median":3,"min":1,"outliers":[],"third_quartile":4}]`},
		{"fig, (a, b) = plt.subplots(1, 2); a.plot([1]); b.plot([2])", "superchart", ""},
		{"fig = plt.figure(); fig.gca().plot([1]); fig", "line", ""},
		{"import numpy as np; plt.imshow(np.zeros((2, 2)))", "unknown", "[]"},
	} {
		got := i.python(use + c.code)
		var shown []told
		for _, r := range got.results {
			if r.PNG != "" {
				shown = append(shown, r)
			}
		}
		if len(shown) != 1 || got.failed.Name != "" || got.stderr != "" {
			t.Errorf("%s: %d figures, %+v", c.code, len(shown), got)
			continue
		}
		png, _ := base64.StdEncoding.DecodeString(shown[0].PNG)
		elements, _ := json.Marshal(shown[0].Chart["elements"])
		if !strings.HasPrefix(string(png), "\x89PNG") || shown[0].Chart["type"] != c.kind || c.elements != "" && string(elements) != c.elements {
			t.Errorf("%s: %s %s", c.code, shown[0].Chart["type"], elements)
		}
		if c.kind == "line" && c.elements != "" && (shown[0].Chart["x_label"] != "Time (s)" || shown[0].Chart["x_unit"] != "s" || shown[0].Chart["x_scale"] != "linear") {
			t.Errorf("the axes: %v", shown[0].Chart)
		}
	}
}

func TestFrames(t *testing.T) {
	pyplot(t)
	i := inProcess(t, agent.Config{}).interpreter()
	got := i.python("import pandas as pd\npd.DataFrame({'a': [1, 2], 'b': ['x', None], 'c': pd.to_datetime(['2020-01-01', None])})")
	if len(got.results) != 1 || !strings.Contains(got.results[0].HTML, "<table") ||
		string(got.results[0].Data) != `{"a":[1,2],"b":["x",null],"c":["2020-01-01T00:00:00",null]}` {
		t.Errorf("%+v, data %s", got, got.results[0].Data)
	}
}

func TestOutputIsStreamed(t *testing.T) {
	needs(t, "python3")
	needs(t, "node")
	i := inProcess(t, agent.Config{}).interpreter()
	for language, code := range map[string]string{
		"python":     "import time, os\nprint('first')\nwhile not os.path.exists(GO): time.sleep(0.01)\nprint('second')",
		"javascript": "console.log('first'); while (!require('fs').existsSync(GO)) await new Promise(r => setTimeout(r, 10)); console.log('second')",
		"bash":       "echo first; while [ ! -e GO ]; do sleep 0.01; done; echo second",
	} {
		flag := t.TempDir() + "/go"
		quoted := flag
		if language != "bash" {
			quoted = "'" + flag + "'"
		}
		got, err := i.try(t.Context(), run{Code: strings.ReplaceAll(code, "GO", quoted), Language: language}, func(e told) {
			if e.Text == "first\n" {
				must(t, exec.Command("touch", flag).Run())
			}
		})
		if err != nil || got.stdout != "first\nsecond\n" {
			t.Errorf("%s: %+v, %v", language, got, err)
		}
	}
}

func TestMuchOutput(t *testing.T) {
	needs(t, "python3")
	i := inProcess(t, agent.Config{}).interpreter()
	got := i.python("print('x' * 5_000_000 + 'é')")
	if len(got.stdout) != 5_000_003 || !strings.HasSuffix(got.stdout, "xé\n") {
		t.Errorf("%d bytes", len(got.stdout))
	}
	got = i.python("for n in range(70): print('y' * (1 << 20))\n'done'")
	if len(got.stdout) > 65<<20 || len(got.stdout) < 60<<20 || !strings.Contains(got.stderr, "More than 64 MiB") {
		t.Errorf("%d bytes, stderr %q", len(got.stdout), got.stderr)
	}
	got = i.python("'z' * 3_000_000")
	if len(got.text()) > 1<<20+100 || !strings.Contains(got.text(), "3000000 characters in all") {
		t.Errorf("%d bytes of text", len(got.text()))
	}
	got = i.python("display({'text/html': 'h' * 9_000_000, 'text/plain': 'small'}, raw=True)")
	if len(got.results) != 1 || got.results[0].HTML != "" || !strings.HasSuffix(got.results[0].Text, "small") {
		t.Errorf("%.1000v", got)
	}
	got = i.python("c = " + strings.Repeat("1+", 20_000) + "1; c")
	if got.text() != "20001" && got.failed.Name != "RecursionError" {
		t.Errorf("long code: %.300v", got)
	}
	if got := i.python("'" + strings.Repeat("q", 1<<20) + "'"); got.status != 413 {
		t.Errorf("too long code: %d %s", got.status, got.refusal)
	}
}

func TestInterruptLeavesTheContextUsable(t *testing.T) {
	needs(t, "python3")
	needs(t, "node")
	i := inProcess(t, agent.Config{}).interpreter()
	for _, c := range []struct{ language, set, get, want string }{
		{"python", "kept = 1", "kept", "1"},
		{"javascript", "const kept = 1", "kept", "1"},
		{"bash", "kept=1", "echo $kept", "1\n"},
	} {
		loops := map[string][]string{
			"python": {"while True: pass", "import time; time.sleep(100)", "import asyncio; await asyncio.sleep(100)", "import os; os.system('sleep 100')",
				"while True:\n  try:\n    time.sleep(100)\n  except KeyboardInterrupt:\n    break\ntime.sleep(100)", "while True: print('x' * 1000)", "while True: display(1)"},
			"javascript": {"while (true);", "await new Promise(() => {})", "new Promise(() => {})", "for (;;) console.log('x'.repeat(1000))"},
			"bash":       {"while :; do :; done", "sleep 100; echo no", "f() { while true; do sleep 1; done; }; f", "cat /dev/zero | tr '\\0' x", "trap 'echo int' INT; sleep 100"},
		}[c.language]
		i.run(run{Code: c.set, Language: c.language})
		for _, loop := range loops {
			ctx, cancel := context.WithTimeout(t.Context(), 250*time.Millisecond)
			if got, err := i.try(ctx, run{Code: loop, Language: c.language}, nil); err == nil {
				t.Errorf("%s ended: %+v", loop, got)
			}
			cancel()
			begun := time.Now()
			got := i.run(run{Code: c.get, Language: c.language})
			answer := got.text()
			if c.language == "bash" {
				answer = got.stdout
			}
			if answer != c.want || time.Since(begun) > 3*time.Second {
				t.Errorf("after %q: %+v %q %+v in %v", loop, got.kinds(), got.text(), got.failed, time.Since(begun))
			}
		}
	}
}
