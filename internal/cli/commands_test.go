package cli

import (
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	firebreakv1 "github.com/firebreak-dev/firebreak/internal/api/firebreak/v1"
)

func TestScripts(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	tree(t, dir, "a.py 0644 import sys; print(sys.argv)", "b.sh 0644 #!/bin/bash -e\necho $0 $1 ${BASH_VERSION:+bash}", "sub/c 0644 #!/usr/bin/env -S python3\nprint('c')",
		"-d.sh 0644 echo dash", "plain 0644 text", "e.rb 0644 x", "venv.py 0644 #!/no/such/venv/bin/python3.9\nprint('v')", "echo 0755 #!/bin/false")
	tests := []struct {
		args   []string
		stdin  string
		code   int
		stdout string
		errors []string
	}{
		{args: []string{"a.py", "-x", "--", "y"}, stdout: "['a.py', '-x', '--', 'y']\n"},
		{args: []string{"./b.sh", "1"}, stdout: "b.sh 1 bash\n"},
		{args: []string{"sub/c"}, stdout: "c\n"},
		{args: []string{"./-d.sh"}, stdout: "dash\n"},
		{args: []string{"-w", "/home", "venv.py"}, stdout: "v\n"},
		{args: []string{"echo", "the sandbox's"}, stdout: "the sandbox's\n"},
		{args: []string{"/bin/echo", "too"}, stdout: "too\n"},
		{args: []string{"--lang", "sh", "plain"}, code: 127, errors: []string{}},
		{args: []string{"--lang", "python", "-", "1"}, stdin: "import sys; print(sys.argv, sys.stdin.read())", stdout: "['script.py', '1'] \n"},
		{args: []string{"-"}, stdin: "#!/bin/sh\necho from input", stdout: "from input\n"},
		{args: []string{"-"}, stdin: "echo", code: 125, errors: []string{"no #! line", "--lang python"}},
		{args: []string{"--lang", "pyhton", "-"}, stdin: "x", code: 125, errors: []string{`unknown language "pyhton"`, "did you mean python?"}},
		{args: []string{"a.pyy"}, code: 127, errors: nil},
		{args: []string{"b.py"}, code: 125, errors: []string{"there is no file b.py here", "did you mean a.py?"}},
		{args: []string{"quite-another.py"}, code: 125, errors: []string{"there is no file", "goes after --"}},
		{args: []string{"./plain"}, code: 125, errors: []string{"./plain is no script", "--lang"}},
		{args: []string{"./sub"}, code: 125, errors: []string{"./sub is a directory"}},
		{args: []string{"--lang", "sh", "--", "true"}, code: 125, errors: []string{"--lang is for scripts"}},
	}
	for _, c := range tests {
		s := newServer(t)
		in := pipeWith(t, func(w io.Writer) { _, _ = io.WriteString(w, c.stdin) })
		got := run{s: s, stdin: in}.do(t, append([]string{"run"}, c.args...)...)
		if len(c.errors) > 0 {
			got.wantError(t, c.code, append(c.errors, "firebreak: run: ")...)
		} else if got.code != c.code || got.stdout != c.stdout {
			t.Errorf("run %v: %+v", c.args, got)
		}
		if len(s.sandboxes) != 0 {
			t.Errorf("run %v left a sandbox", c.args)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 8 {
		t.Errorf("the directory holds %v, %v", entries, err)
	}
}

func TestScriptWithoutABoundaryOverwritesNothing(t *testing.T) {
	s := newServer(t)
	tree(t, s.dir, "home/x.sh 0644 echo mine")
	t.Chdir(filepath.Join(s.dir, "home"))
	run{s: s}.do(t, "run", "-q", "--isolation", "process", "x.sh").wantError(t, 125, "run: upload script: /home/x.sh exists; choose another work directory")
	wantTree(t, filepath.Join(s.dir, "home"), "x.sh 0644 echo mine")
}

func TestScriptTriesItsInterpreters(t *testing.T) {
	s, dir := newServer(t), t.TempDir()
	tree(t, dir, "x.py 0644 print('by the second')", "y.lua 0644 x")
	s.absent = []string{"python3", "lua", "lua5.4", "luajit"}
	if _, err := exec.LookPath("python"); err != nil {
		tree(t, dir, "bin/python 0755 #!/bin/sh\nexec python3 \"$@\"")
		t.Setenv("PATH", dir+"/bin:"+os.Getenv("PATH"))
	}
	run{s: s}.do(t, "run", filepath.Join(dir, "x.py")).want(t, 0, "by the second\n", "")
	run{s: s}.do(t, "run", filepath.Join(dir, "y.lua")).
		wantError(t, 127, "y.lua needs lua or lua5.4 or luajit, which template host has not; install it")
}

func TestTemplates(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		template, create string
		source           any
	}{
		{"base", "base", nil},
		{"docker.io/library/debian:12", "made", &firebreakv1.MakeTemplateRequest_Reference{Reference: "docker.io/library/debian:12"}},
		{dir, "made", &firebreakv1.MakeTemplateRequest_Path{Path: dir}},
	} {
		s := newServer(t)
		got := run{s: s}.do(t, "run", "--template", c.template, "--", "true")
		if got.code != 0 || s.created[0].Template != c.create || (c.source == nil) != (len(s.makes) == 0) {
			t.Errorf("%s: %+v, created from %q", c.template, got, s.created[0].Template)
		}
		if c.source == nil {
			continue
		}
		if m := s.makes[0]; !m.IfMissing || m.GetPath()+m.GetReference() != c.template {
			t.Errorf("%s was made by %v", c.template, m)
		}
		if got.stderr != "firebreak: pull layer 3a5f\n" {
			t.Errorf("%s: said %q", c.template, got.stderr)
		}
	}
	run{s: newServer(t)}.do(t, "run", "--template", "bsae", "--", "true").wantError(t, 125, `there is no template "bsae"; did you mean base?`)
	run{s: newServer(t)}.do(t, "run", "--template", "alpine", "--", "true").wantError(t, 125, "firebreak template import docker.io/library/alpine")
	run{s: newServer(t)}.do(t, "run", "--template", "./none", "--", "true").wantError(t, 125, "none: no such file")

	s := newServer(t)
	run{s: s}.do(t, "template", "ls").want(t, 0, "NAME  FORM  DIGEST        SIZE   AGE  SOURCE\nhost  root                -      -\nbase  root  0123456789ab  3 MiB  -\n", "")
	run{s: s}.do(t, "template", "ls", "-q").want(t, 0, "host\nbase\n", "")
	run{s: s}.do(t, "template", "rm", "base").want(t, 0, "base\n", "")
	run{s: s}.do(t, "template", "rm", "bse").wantError(t, 125, "template rm: ", "did you mean base?")
	run{s: s}.do(t, "template", "gc").want(t, 0, "removed 3, freed 2 GiB\n", "")
	run{s: s}.do(t, "template", "build", "base", "-q").want(t, 0, "made\n", "")
	run{s: s}.do(t, "template", "import", "--name", "n", dir).want(t, 0, "n\n", "firebreak: pull layer 3a5f\n")
	if s.makes[0].GetRecipe() != "base" || s.makes[1].GetPath() != dir || s.makes[1].Name != "n" {
		t.Errorf("made by %v", s.makes)
	}
	run{s: s}.do(t, "template", "imoprt").wantError(t, 125, "did you mean import?")
	run{s: s}.do(t, "template", "build").wantError(t, 125, "an argument is missing; say what to build")
	run{s: s}.do(t, "template", "inspect", "base").want(t, 0, "{\n  \"name\": \"base\",\n  \"digest\": \"sha256:0123456789abcdef0123\",\n  \"size_bytes\": \"3145728\"\n}\n", "")
}

func TestImportShowsBarsOnATerminal(t *testing.T) {
	p := newTypist(t)
	got := run{s: newServer(t), errOut: p.tty, env: map[string]string{}}.do(t, "template", "import", "docker.io/x")
	p.awaits("pull layer 3a5f")
	p.awaits("100")
	if got.code != 0 || got.stdout != "made\n" {
		t.Errorf("got %+v", got)
	}
}

func TestList(t *testing.T) {
	s := withSandbox(t)
	s.sandboxes["dead"] = &firebreakv1.Sandbox{Id: "dead", State: "ended", EndReason: "deadline", Driver: "gvisor"}
	run{s: s}.do(t, "ls").want(t, 0, "ID        NAME  STATE    ISOLATION  BOUNDARY     TEMPLATE  AGE  COMMAND\n"+
		"3fa7b2c1  work  running  gvisor     user-kernel  host      -    sh\ufffd[2J\n", "")
	run{s: s}.do(t, "ls", "-q").want(t, 0, "3fa7b2c1\n", "")
	if got := (run{s: s}).do(t, "ls", "-a"); !strings.Contains(got.stdout, "ended (deadline)") {
		t.Errorf("got %+v", got)
	}
	var list []map[string]any
	got := run{s: s}.do(t, "ls", "--json")
	if err := json.Unmarshal([]byte(got.stdout), &list); err != nil || len(list) != 1 || list[0]["id"] != sandboxID {
		t.Errorf("got %+v, %v", got, err)
	}
	if got := (run{s: newServer(t)}).do(t, "ls", "--json"); got.stdout != "[]\n" {
		t.Errorf("nothing is %q", got.stdout)
	}
	if got := (run{s: s}).do(t, "inspect", "work"); got.code != 0 || !strings.Contains(got.stdout, `"name": "work"`) {
		t.Errorf("got %+v", got)
	}
	run{s: s}.do(t, "inspect", "wrk").wantError(t, 125, "inspect: ", `no sandbox "wrk"; did you mean work?`)
}

func TestExec(t *testing.T) {
	s := withSandbox(t)
	in := pipeWith(t, func(w io.Writer) { _, _ = io.WriteString(w, "in") })
	run{s: s, stdin: in, env: map[string]string{"B": "b"}}.do(t, "exec", "-e", "A=a", "-e", "B", "work", "--", "sh", "-c", "echo $A $B $(cat); echo e >&2; exit 4").
		want(t, 4, "a b in\n", "e\n")
	run{s: s}.do(t, "exec", "3fa", "echo", "-n", "--json").want(t, 0, "--json", "")
	run{s: s}.do(t, "exec", "work", "missing-x").wantError(t, 127, "exec: missing-x: not found")
	run{s: s}.do(t, "exec", "--timeout", "200ms", "work", "sleep", "9").wantError(t, 124, "firebreak: exec: the program was stopped at its time limit of 200ms")
	run{s: s}.do(t, "exec", "work").wantError(t, 125, "an argument is missing; write firebreak exec")
	run{s: s}.do(t, "exec", "nobody", "true").wantError(t, 125, `there is no sandbox "nobody"; firebreak ls`)
	s.sandboxes["4e15"] = &firebreakv1.Sandbox{Id: "4e15", State: "running", Driver: "wasm", Elsewhere: true}
	run{s: s}.do(t, "exec", "4e15", "true").wantError(t, 125, "lives within the process of firebreak that made it; ask the server that made it: --server")
	s.sandboxes[sandboxID].State, s.sandboxes[sandboxID].EndReason = "ended", "deadline"
	run{s: s}.do(t, "exec", "work", "true").wantError(t, 125, "sandbox 3fa7b2c1 has ended: deadline")
	if len(s.deleted) != 0 {
		t.Error("exec removed the sandbox")
	}
}

func TestDetach(t *testing.T) {
	s := newServer(t)
	run{s: s}.do(t, "run", "--detach", "--name", "bg", "--timeout", "1m", "--", "sh", "-c", "echo one; echo two >&2; while [ ! -e go ]; do sleep 0.05; done; echo three; exit 8").want(t, 0, sandboxID+"\n", "")
	if c := s.created[0]; !c.Detached || c.Timeout.AsDuration() != time.Minute || !strings.HasPrefix(c.Command, "sh -c echo one") {
		t.Errorf("created by %v", c)
	}
	s.all[0].at(1) // both lines are there
	run{s: s}.do(t, "logs", "bg").want(t, 0, "one\n", "two\n")
	tree(t, s.dir, "home/go 0644 ")
	run{s: s}.do(t, "logs", "-f", "bg").want(t, 0, "one\nthree\n", "two\n")
	run{s: s}.do(t, "wait", "bg").want(t, 8, "", "")
	run{s: s}.do(t, "logs", "bg").want(t, 0, "one\nthree\n", "two\n")
	run{s: s}.do(t, "kill", "bg").want(t, 0, "bg\n", "")
	run{s: s}.do(t, "kill", "bg").wantError(t, 125, `there is no sandbox "bg"`)
	run{s: s}.do(t, "kill").wantError(t, 125, "say which sandboxes, or --all")

	s = newServer(t)
	run{s: s}.do(t, "run", "-d", "--", "missing-x").wantError(t, 127, "missing-x: not found")
	if len(s.sandboxes) != 0 {
		t.Error("a sandbox without a program is left")
	}
	got := run{s: s}.do(t, "run", "-d", "--json", "--", "true")
	var object runJSON
	if err := json.Unmarshal([]byte(got.stdout), &object); err != nil || object.ID != sandboxID || object.ExitCode != nil {
		t.Errorf("got %+v, %v", got, err)
	}
	run{s: s}.do(t, "kill", "--all").want(t, 0, sandboxID+"\n", "")

	s = newServer(t)
	got = run{s: s}.do(t, "run", "--rm=false", "--", "sh", "-c", "exit 3")
	got.want(t, 3, "", "firebreak: sandbox 3fa7b2c1 is kept; remove it with: firebreak kill 3fa7b2c1\n")
	if !s.created[0].Detached || len(s.sandboxes) != 1 {
		t.Error("the sandbox was not kept")
	}
}

func TestLogsOfWhatIsLeft(t *testing.T) {
	s := newServer(t)
	run{s: s}.do(t, "run", "-d", "--", "seq", "1", "200000").want(t, 0, sandboxID+"\n", "")
	for i, p := 0, s.all[0]; p.at(i).GetEnd() == nil; { // logs does not wait for what is yet to come
		i++
	}
	s.oldest = 500_000
	got := run{s: s}.do(t, "logs", "3fa")
	whole := 1288895 // bytes of seq 1 200000
	if lost := whole - len(got.stdout); got.code != 0 || lost < 500_000 || lost > 500_000+probeStep || !strings.HasSuffix(got.stdout, "\n200000\n") {
		t.Errorf("exit status %d, lost %d bytes", got.code, lost)
	}
	if !strings.HasPrefix(got.stderr, "firebreak: warning: the first 48") || !strings.HasSuffix(got.stderr, " KiB are no longer kept\n") {
		t.Errorf("said %q", got.stderr)
	}
}

func TestMistakesGetOneLineWithTheMend(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.WriteFile("x.py", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for line, parts := range map[string][]string{
		"run":                            {"run: no program; write firebreak run"},
		"rnu -- true":                    {`unknown command "rnu"; did you mean firebreak run?`},
		"rum -- true":                    {`unknown command "rum"; did you mean firebreak run?`},
		"x.py 1":                         {`unknown command "x.py"; to run that file: firebreak run x.py 1`},
		"python3 y":                      {"to run a program: firebreak run -- python3 y"},
		"run --memroy 1g -- true":        {"run: unknown flag --memroy; did you mean --memory?"},
		"run --xyzzy -- true":            {"run: unknown flag --xyzzy; see firebreak run --help"},
		"run -m 1g -- true":              {"run: unknown flag -m; did you mean --memory?"},
		"run --memory 12q -- true":       {`run: --memory "12q": not a size; write it like 512m`},
		"run --timeout fast -- true":     {`run: --timeout "fast": not a length of time; write it like 30s`},
		"run --cpus many -- true":        {`run: --cpus "many"`},
		"run --cpus -1 -- true":          {"a limit is negative"},
		"run --isolation gvizor -- true": {`unknown isolation "gvizor"; did you mean gvisor?`},
		"run --volume a -- true":         {`--volume "a" is not host:guest[:ro]`},
		"run --volume ./none:/x -- true": {"none: no such file or directory; create it first"},
		"run -v ./d:/d -- true":          {"-v is --verbose; did you mean --volume ./d:/d?"},
		"run -e =x -- true":              {"has no valid name"},
		"run --env-file none -- true":    {"--env-file: open none: no such file"},
		"run -d --rm -- true":            {"--detach and --rm exclude each other"},
		"run -d --output x -- true":      {"--detach and --output exclude each other"},
		"ls extra":                       {`ls: unexpected argument "extra"`},
		"cp a":                           {"an argument is missing; write firebreak cp"},
		"--server http://x run --volume ./a:/b -- true": {"must be absolute"},
	} {
		s := newServer(t)
		run{s: s}.do(t, strings.Fields(line)...).wantError(t, 125, parts...)
		if len(s.created) != 0 {
			t.Errorf("%q made a sandbox", line)
		}
	}
}

func TestSignalBeforeTheProgramRuns(t *testing.T) {
	s, signals := newServer(t), make(chan os.Signal, 1)
	s.slow = make(chan struct{})
	signals <- syscall.SIGTERM
	run{s: s, signals: signals}.do(t, "run", "--", "true").want(t, 143, "", "")
}

func TestEnvironmentNamesTheServer(t *testing.T) {
	a := &app{lookupEnv: func(name string) (string, bool) { return "from " + name, strings.HasPrefix(name, "FIREBREAK_") }}
	a.stateDir = "from a flag"
	a.readEnvironment()
	if a.server != "from FIREBREAK_SERVER" || a.stateDir != "from a flag" {
		t.Errorf("server %q, state directory %q", a.server, a.stateDir)
	}
}

func TestCompletion(t *testing.T) {
	s := withSandbox(t)
	for line, want := range map[string]string{
		"kill ":              "3fa7b2c1\trunning sh\ufffd[2J\nwork\trunning sh\ufffd[2J\n:4\n",
		"cp ":                "3fa7b2c1:\nwork:\n:2\n",
		"run --template ":    "host\nbase\n:4\n",
		"template rm ":       "host\nbase\n:4\n",
		"run --isolation gv": "gvisor\ncontainer\nwasm\nv8\nprocess\n:4\n", // the shell picks
	} {
		words := strings.Fields(line)
		if strings.HasSuffix(line, " ") {
			words = append(words, "")
		}
		got := run{s: s}.do(t, append([]string{"__complete"}, words...)...)
		if got.code != 0 || got.stdout != want {
			t.Errorf("%q completes to %q, want %q", line, got.stdout, want)
		}
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if got := (run{s: s}).do(t, "completion", shell); got.code != 0 || !strings.Contains(got.stdout, "firebreak") {
			t.Errorf("%s: %+v", shell, got)
		}
	}
}

func TestVersion(t *testing.T) {
	got := run{s: newServer(t)}.do(t, "version")
	if got.code != 0 || !strings.HasPrefix(got.stdout, "firebreak ") || !strings.Contains(got.stdout, "go1.") {
		t.Errorf("got %+v", got)
	}
	var v version
	if err := json.Unmarshal([]byte(run{s: newServer(t)}.do(t, "version", "--json").stdout), &v); err != nil || v.Go == "" {
		t.Errorf("%+v, %v", v, err)
	}
}
