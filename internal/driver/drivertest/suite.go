// Package drivertest is the conformance suite of the driver contract: one flat list of checks, the same for every
// driver. A check runs against a driver of its own, and whatever it leaves on the host is a failure.
package drivertest

import (
	"context"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
)

// Place is where a driver under test lives. The same place may be given to several drivers, as to several processes.
type Place struct {
	StateDir string // absolute, made, and for this driver alone
	Agent    string // the agent executable
	Mute     bool   // the agent will never listen; for drivers that do not run Agent
	Log      *slog.Logger
}

// Suite says how to test one driver.
type Suite struct {
	Name string                                    // as FIREBREAK_REQUIRE names it
	New  func(t testing.TB, p Place) driver.Driver // must be cheap; the driver needs no closing
	Root func(t testing.TB) driver.Root            // nil: no root
	Caps driver.Caps                               // what it offers on a host that lacks nothing
	Work func(spec driver.Spec) string             // a directory in the sandbox for programs; nil: /tmp
	User string                                    // an ordinary account in the sandbox; "": user

	// Language is what sandboxes of the language boundary run; nil: programs of Linux, or nothing.
	Language *Language
	// InMemory says that sandboxes live in the calling process and die with it.
	InMemory bool
	// Patience bounds every wait; only a broken driver makes a check wait so long. 0: two minutes.
	Patience time.Duration
	// Agent makes the agent executable; nil: package agentbin does.
	Agent func(t testing.TB) string
}

// check is one named test. The suite skips it with the reason unless the driver has needs and one of boundaries.
type check struct {
	name       string
	needs      driver.Caps
	boundaries []firebreak.Boundary // nil: any
	agent      bool                 // it asks the agent of the protocol, and no program
	language   bool                 // it is of a language
	run        func(c *C)
}

// checks is the whole suite, in the order in which it runs.
func checks() []check {
	return slices.Concat(lifecycleChecks(), createChecks(), reattachChecks(), capsChecks(), pauseChecks(),
		execChecks(), fileChecks(), languageChecks(), containChecks(), limitChecks(), hammerChecks())
}

// Checks returns the names of all checks.
func Checks() []string {
	var names []string
	for _, ck := range checks() {
		names = append(names, ck.name)
	}
	return names
}

// Run runs every check as a subtest.
func (s Suite) Run(t *testing.T) {
	if s.child(t) {
		return
	}
	r := s.start(t)
	for _, ck := range checks() {
		t.Run(ck.name, func(t *testing.T) { r.one(t, ck) })
	}
}

// RunCheck runs the one check with this name.
func (s Suite) RunCheck(t testing.TB, name string) {
	r := s.start(t)
	for _, ck := range checks() {
		if ck.name == name {
			r.one(t, ck)
			return
		}
	}
	t.Fatalf("the suite has no check %q", name)
}

// suiteRun is what the checks of one run share.
type suiteRun struct {
	Suite
	info driver.Info
	bin  *programs
	must bool // FIREBREAK_REQUIRE names this driver
}

// start probes the driver once, as a manager would.
func (s Suite) start(t testing.TB) *suiteRun {
	t.Helper()
	if s.Patience == 0 {
		s.Patience = 2 * time.Minute
	}
	if s.User == "" {
		s.User = "user"
	}
	if s.Work == nil {
		s.Work = func(driver.Spec) string { return "/tmp" }
	}
	r := &suiteRun{Suite: s, must: slices.Contains(strings.Split(os.Getenv("FIREBREAK_REQUIRE"), ","), s.Name)}
	r.bin = newPrograms(t, s)
	place := Place{StateDir: t.TempDir(), Agent: r.bin.agent(t), Log: slog.New(slog.DiscardHandler)}
	ctx, cancel := context.WithTimeout(context.Background(), s.Patience) // the agent is built by now
	defer cancel()
	info, err := s.New(t, place).Probe(ctx)
	if err != nil {
		t.Fatalf("probe: %v", err)
	}
	r.info = info
	if !info.Healthy() {
		r.skip(t, info.Err().Error())
	}
	for _, w := range info.Warnings {
		t.Logf("warning: %s; to mend it: %s", w.Text, w.Mend)
	}
	return r
}

// skip skips for what the host lacks; where the driver is required that is a failure.
func (r *suiteRun) skip(t testing.TB, why string) {
	t.Helper()
	if r.must {
		t.Fatalf("FIREBREAK_REQUIRE names %s, but: %s", r.Name, why)
	}
	t.Skip(why)
}

// one runs one check: what it leaves is looked for after all of its own cleanup.
func (r *suiteRun) one(t testing.TB, ck check) {
	if len(ck.boundaries) > 0 && !slices.Contains(ck.boundaries, r.info.Boundary) {
		t.Skipf("boundary %v promises nothing of this", r.info.Boundary)
	}
	if ck.agent && r.Language == nil && !r.info.Caps.Has(driver.CapProcesses) {
		t.Skip("no agent of ours serves its sandboxes")
	}
	if ck.language && r.Language == nil {
		t.Skip("its sandboxes are of no language")
	}
	if missing := driver.Missing(r.info.Caps, ck.needs); missing != 0 {
		why := "this host or driver has no " + strings.Join(missing.Names(), ", ")
		if r.Caps&missing != 0 {
			r.skip(t, why)
		}
		t.Skip(why)
	}
	c := newC(t, r)
	ck.run(c)
}
