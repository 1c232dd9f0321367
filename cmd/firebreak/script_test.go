package main_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestScripts runs testdata/script against the real binary, once for each isolation. The scripts are to be read: they
// show what a user can rely on.
func TestScripts(t *testing.T) {
	bin := binary(t)
	examples, err := filepath.Abs("../../examples")
	if err != nil {
		t.Fatal(err)
	}
	for _, isolation := range []string{"gvisor", "container", "process"} {
		t.Run(isolation, func(t *testing.T) {
			serves(t, bin, isolation)
			testscript.Run(t, testscript.Params{
				Dir:                 "testdata/script",
				RequireExplicitExec: true,
				RequireUniqueNames:  true,
				Setup: func(env *testscript.Env) error {
					env.Setenv("PATH", filepath.Dir(bin)+":"+os.Getenv("PATH"))
					env.Setenv("FIREBREAK_STATE_DIR", filepath.Join(env.WorkDir, ".state"))
					env.Setenv("ISOLATION", isolation)
					env.Setenv("EXAMPLES", examples)
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
				Cmds: map[string]func(*testscript.TestScript, bool, []string){"exits": exits, "save": save},
				Condition: func(cond string) (bool, error) {
					return cond == isolation, nil
				},
			})
		})
	}
}

// serves skips the test if this host cannot serve an isolation, unless FIREBREAK_REQUIRE names it.
func serves(t *testing.T, bin, isolation string) {
	t.Helper()
	try := exec.Command(bin, "run", "--isolation", isolation, "--", "true")
	try.Env = append(os.Environ(), "FIREBREAK_STATE_DIR="+t.TempDir())
	out, err := try.CombinedOutput()
	switch {
	case err == nil:
	case slices.Contains(strings.Split(os.Getenv("FIREBREAK_REQUIRE"), ","), isolation):
		t.Fatalf("%s is required: %v\n%s", isolation, err, out)
	case strings.Contains(string(out), "cannot run here"):
		t.Skipf("%s", out)
	default:
		t.Fatalf("%v\n%s", err, out)
	}
}

// exits runs a program and checks its exit status: exits 3 firebreak run …
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits STATUS PROGRAM ARG…")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		exit := new(exec.ExitError)
		if !errors.As(err, &exit) {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit status %d, want %d\n%s%s", got, want, ts.ReadFile("stdout"), ts.ReadFile("stderr"))
	}
}

// save puts the last standard output into an environment variable: save ID
func save(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: save NAME")
	}
	ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile("stdout")))
}
