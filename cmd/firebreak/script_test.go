package main_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestScripts runs testdata/script against the real binary, once for each isolation. The scripts are to be read: they
// show what a user can rely on.
func TestScripts(t *testing.T) {
	bin := binary(t)
	for _, isolation := range []string{"gvisor", "container", "process"} {
		t.Run(isolation, func(t *testing.T) {
			serves(t, bin, isolation)
			runScripts(t, bin, "testdata/script", isolation, anyPolicy(t))
		})
	}
}

// TestChoice runs testdata/choice: what the built-in policy chooses on this host, which is gVisor where nothing is said.
func TestChoice(t *testing.T) {
	bin := binary(t)
	serves(t, bin, "gvisor")
	runScripts(t, bin, "testdata/choice", "gvisor", "")
}

// TestServe runs testdata/serve: a server, its keys and its tenants.
func TestServe(t *testing.T) {
	bin := binary(t)
	serves(t, bin, "gvisor")
	runScripts(t, bin, "testdata/serve", "gvisor", "")
}

// TestLanguages runs testdata/language: scripts and modules behind the boundary of a language.
func TestLanguages(t *testing.T) {
	bin := binary(t)
	serves(t, bin, "gvisor")
	for _, name := range []string{"python.wasm", "javascript.wasm"} {
		if _, err := os.Stat(filepath.Join(interpreters(t), name)); err == nil {
			continue
		} else if required("wasm") {
			t.Fatalf("wasm is required: %v; make tools", err)
		}
		t.Skipf("there is no %s: make tools", name)
	}
	runScripts(t, bin, "testdata/language", "gvisor", "")
}

// TestV8 runs testdata/v8: JavaScript in isolates.
func TestV8(t *testing.T) {
	bin := binary(t)
	serves(t, bin, "gvisor")
	if _, err := exec.LookPath("workerd"); err != nil {
		if required("v8") {
			t.Fatalf("v8 is required: %v; make tools", err)
		}
		t.Skipf("%v: make tools", err)
	}
	runScripts(t, bin, "testdata/v8", "gvisor", "")
}

// interpreters is where scripts/install-test-tools.sh puts those for WebAssembly.
func interpreters(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../../.cache/wasm")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func runScripts(t *testing.T, bin, dir, isolation, policy string) {
	examples, err := filepath.Abs("../../examples")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 dir,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("PATH", filepath.Dir(bin)+":"+os.Getenv("PATH"))
			env.Setenv("FIREBREAK_STATE_DIR", filepath.Join(env.WorkDir, ".state"))
			env.Setenv("FIREBREAK_POLICY", policy)
			env.Setenv("ISOLATION", isolation)
			env.Setenv("EXAMPLES", examples)
			env.Setenv("WASM", interpreters(t))
			env.Setenv("HOME", os.Getenv("HOME")) // without the agent built in, Go builds it, with its caches
			env.Defer(func() {
				kill := exec.Command(bin, "kill", "--all")
				kill.Env = env.Vars
				if out, err := kill.CombinedOutput(); err != nil {
					t.Errorf("firebreak kill --all: %v\n%s", err, out)
				}
			})
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exits": exits, "refused": refused, "save": save, "await": await},
		Condition: func(cond string) (bool, error) {
			return cond == isolation, nil
		},
	})
}

// exits runs a program and checks its exit status: exits 3 firebreak run …
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits STATUS PROGRAM ARG…")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	if got := status(ts, args[1:]); got != want {
		ts.Fatalf("exit status %d, want %d\n%s%s", got, want, ts.ReadFile("stdout"), ts.ReadFile("stderr"))
	}
}

// refused runs what cannot be, and holds the program to exit status 125 and one line, of which it gets a part:
// refused 'did you mean gvisor' firebreak run …
func refused(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: refused REGEXP PROGRAM ARG…")
	}
	want, err := regexp.Compile(args[0])
	ts.Check(err)
	got := status(ts, args[1:])
	errs := ts.ReadFile("stderr")
	if got != 125 || !strings.HasPrefix(errs, "firebreak: ") || strings.Count(errs, "\n") != 1 || !want.MatchString(strings.TrimSpace(errs)) {
		ts.Fatalf("exit status %d, want 125 and one line with %q\n%s", got, args[0], errs)
	}
}

func status(ts *testscript.TestScript, line []string) int {
	err := ts.Exec(line[0], line[1:]...)
	exit := new(exec.ExitError)
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	}
	ts.Fatalf("%v", err)
	return -1
}

// save puts the last standard output into an environment variable: save ID
func save(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: save NAME")
	}
	ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile("stdout")))
}

// await waits until a file has a line that matches, and puts what it exports into the environment: await out REGEXP
func await(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: await FILE REGEXP")
	}
	want, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	var text []byte
	for end := time.Now().Add(time.Minute); !want.Match(text); time.Sleep(20 * time.Millisecond) {
		text, _ = os.ReadFile(ts.MkAbs(args[0])) // it may not be there yet
		if time.Now().After(end) {
			ts.Fatalf("%s has no line %q:\n%s", args[0], args[1], text)
		}
	}
	for line := range strings.Lines(string(text)) {
		if pair, ok := strings.CutPrefix(strings.TrimSpace(line), "export "); ok {
			name, value, _ := strings.Cut(pair, "=")
			ts.Setenv(name, value)
		}
	}
}
