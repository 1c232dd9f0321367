package drivertest_test

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/drivertest"
	"github.com/firebreak-dev/firebreak/internal/driver/process"
)

// pythonic is the suite of the process driver, whose sandboxes are taken for those of a language.
func pythonic(t *testing.T) drivertest.Suite {
	t.Helper()
	for _, program := range []string{"python3", "bash"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip(program + " is what the checks are tried with, and it is not installed")
		}
	}
	suite := liar(t)
	suite.Language = &drivertest.Language{
		Program: []string{"echo", "ok"}, Spin: []string{"sh", "-c", "while :; do :; done"}, Name: "python", Define: "x = 42", Recall: "x", Print: "print('ok')",
		Fail: "1/0", Forever: "while True: pass", Hoard: "x = bytearray(300 << 20)",
	}
	return suite
}

// TestLanguageChecksPass: what a plain process does as well is not held against it.
func TestLanguageChecksPass(t *testing.T) {
	suite := pythonic(t)
	suite.New = func(_ testing.TB, p drivertest.Place) driver.Driver {
		return process.New(process.Config{StateDir: p.StateDir, Agent: p.Agent, Log: p.Log})
	}
	for _, name := range []string{"language-files", "language-program", "language-program-destroyed", "language-code", "language-code-interrupted",
		"language-code-destroyed", "files-errors", "files-watch", "files-stay-inside"} {
		t.Run(name, func(t *testing.T) { suite.RunCheck(t, name) })
	}
}

// TestLanguageLies: what a plain process lets through is found.
func TestLanguageLies(t *testing.T) {
	for name, says := range map[string]string{
		"language-refusals": "want a refusal", "language-host-invisible": "is visible", "language-limit-disk": "16 MiB within a limit of 8",
		"language-limit-memory": "want an error",
	} {
		t.Run(name, func(t *testing.T) {
			suite := pythonic(t)
			r := record(t, func(t testing.TB) { suite.RunCheck(t, name) })
			if !r.Failed() || !strings.Contains(r.said(), says) {
				t.Errorf("failed: %v; want it to say %q, but it says:\n%s", r.Failed(), says, r.said())
			}
		})
	}
}

// TestLanguageBugs: each check of code finds what it is for.
func TestLanguageBugs(t *testing.T) {
	for name, bug := range map[string]struct {
		check, says string
		plant       func(l *drivertest.Language)
	}{
		"prints something else": {"language-code", "print: ", func(l *drivertest.Language) { l.Print = "print('no')" }},
		"forgets":               {"language-code", "recall: ", func(l *drivertest.Language) { l.Define = "" }},
		"does not fail":         {"language-code", "want an error", func(l *drivertest.Language) { l.Fail = "1" }},
		"ends by itself":        {"language-code-interrupted", "ended by itself", func(l *drivertest.Language) { l.Forever = "1" }},
		"another program":       {"language-program", "it prints", func(l *drivertest.Language) { l.Program = []string{"echo", "no"} }},
		"no endless program":    {"language-program", "an endless program", func(l *drivertest.Language) { l.Spin = []string{"true"} }},
	} {
		t.Run(name, func(t *testing.T) {
			suite := pythonic(t)
			bug.plant(suite.Language)
			r := record(t, func(t testing.TB) { suite.RunCheck(t, bug.check) })
			if !r.Failed() || !strings.Contains(r.said(), bug.says) {
				t.Errorf("failed: %v; want it to say %q, but it says:\n%s", r.Failed(), bug.says, r.said())
			}
		})
	}
}
