package manager

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/fake"
	"github.com/firebreak-dev/firebreak/internal/policy"
)

// posing is the fake driver under another name, with another boundary.
type posing struct {
	driver.Driver
	info   driver.Info
	err    error
	probes atomic.Int32
}

func (d *posing) Probe(context.Context) (driver.Info, error) {
	d.probes.Add(1)
	return d.info, d.err
}

// posers are the drivers that the built-in policy expects of a host without virtual machines. Each has a host of its own:
// what one held would be a wreck to another, and recovery clears those.
type posers struct{ gvisor, container, process *posing }

func (h *testHost) posers() posers {
	pose := func(d driver.Driver, name string, b firebreak.Boundary) *posing {
		return &posing{Driver: d, info: driver.Info{Name: name, Boundary: b, Caps: driver.CapPause}}
	}
	return posers{pose(h.fake, "gvisor", firebreak.BoundaryUserKernel), pose(fake.New(), "container", firebreak.BoundarySharedKernel),
		pose(fake.New(), "process", firebreak.BoundaryNone)}
}

// policed is a manager with the built-in policy and those drivers.
func (h *testHost) policed(t testing.TB, p posers, set ...func(*Config)) *Manager {
	return h.process(t, append([]func(*Config){func(c *Config) {
		c.Policy, c.Drivers = "", drivers{"gvisor": p.gvisor, "container": p.container, "process": p.process}
	}}, set...)...)
}

func textOf(t testing.TB, d *policy.Decision) string {
	t.Helper()
	text, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestCreateFollowsTheDecision(t *testing.T) {
	trusted := firebreak.Workload{Origin: firebreak.OriginTrusted}
	for name, c := range map[string]struct {
		req     Request
		driver  string
		warning string
		against string // rule that the override goes against
	}{
		"nothing is said":           {Request{}, "gvisor", "", ""},
		"something handed in":       {Request{Envs: map[string]string{"TOKEN": "x"}}, "gvisor", "not enforced: brokered-secrets", ""},
		"trusted code":              {Request{Workload: trusted, Timeout: time.Minute}, "container", "", ""},
		"trusted, named":            {Request{Workload: trusted, Timeout: time.Minute, Driver: "gvisor"}, "gvisor", "", ""},
		"named, not needed weaker":  {Request{Driver: "gvisor", AcceptWeaker: "just in case"}, "gvisor", "", ""},
		"container with a reason":   {Request{Driver: "container", AcceptWeaker: "a test"}, "container", "taken because: a test; against rule model-written", "model-written"},
		"process with a reason":     {Request{Driver: "process", AcceptWeaker: "a test"}, "process", "egress-allowlist (process shares", "some-wall"},
		"trusted process, a reason": {Request{Workload: trusted, Driver: "process", AcceptWeaker: "a test"}, "process", "nothing isolates", "some-wall"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			m := h.policed(t, h.posers())
			rec := mustCreate(t, m, c.req)
			d := rec.Decision
			if rec.Driver != c.driver || d.Driver != c.driver || d.Boundary != rec.Boundary || len(d.Trace) == 0 {
				t.Errorf("%s was made, the decision is %+v", rec.Driver, d)
			}
			if text := strings.Join(rec.Warnings, "\n"); c.warning == "" && text != "" || !strings.Contains(text, c.warning) {
				t.Errorf("warnings %q, want %q", text, c.warning)
			}
			if c.against == "" && d.Override != nil || c.against != "" && (d.Override == nil || d.Override.Rules[0] != c.against) {
				t.Errorf("override %+v, want one against %q", d.Override, c.against)
			}
			again, err := m.Get(operator(t.Context()), string(rec.ID))
			if err != nil || textOf(t, again.Decision) != textOf(t, d) {
				t.Errorf("the record keeps %+v, %v", again.Decision, err)
			}
			advised, err := m.Advise(operator(t.Context()), c.req.question())
			if err != nil || textOf(t, &advised) != textOf(t, d) {
				t.Errorf("advised\n%+v, created\n%+v, %v", advised, d, err)
			}
		})
	}
}

func TestCreateIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		req        Request
		kind       firebreak.Kind
		text, mend string
	}{
		"tenants":         {Request{Workload: firebreak.Workload{Tenancy: firebreak.TenancyMulti}}, firebreak.KindHost, "hardware boundary by rule model-written, shared-tenancy", "/dev/kvm boots a guest"},
		"weaker":          {Request{Driver: "container"}, firebreak.KindDenied, "container (shared-kernel) is not acceptable", "--accept-weaker"},
		"no wall":         {Request{Driver: "process"}, firebreak.KindDenied, "rule some-wall", "--accept-weaker"},
		"no wall at all":  {Request{Driver: "process", Workload: firebreak.Workload{Origin: firebreak.OriginTrusted}}, firebreak.KindDenied, "some-wall", "--accept-weaker"},
		"blank reason":    {Request{Driver: "process", AcceptWeaker: " \t"}, firebreak.KindDenied, "some-wall", "--accept-weaker"},
		"reason alone":    {Request{AcceptWeaker: "why not"}, firebreak.KindInvalid, "none is named", "--isolation"},
		"long reason":     {Request{Driver: "process", AcceptWeaker: strings.Repeat("x", maxWhy+1)}, firebreak.KindInvalid, "longer than", ""},
		"network":         {Request{Workload: firebreak.Workload{Needs: firebreak.NeedNetwork}}, firebreak.KindUnsupported, "egress-allowlist is not met", "leave the need for a network out"},
		"GPU":             {Request{Workload: firebreak.Workload{GPU: true}}, firebreak.KindUnsupported, "gpu-passthrough is not met", "leave the GPU out"},
		"unknown driver":  {Request{Driver: "zen"}, firebreak.KindInvalid, `there is no driver "zen"`, "gvisor"},
		"absent driver":   {Request{Driver: "firecracker"}, firebreak.KindUnsupported, "no driver for it", "/dev/kvm"},
		"unknown word":    {Request{Workload: firebreak.Workload{Origin: 99}}, firebreak.KindInvalid, "99 is no origin", "correct"},
		"past the policy": {Request{Workload: firebreak.Workload{Place: firebreak.PlaceBrowser, Tenancy: firebreak.TenancyMulti}}, firebreak.KindDenied, "nothing satisfies these rules together", "change one"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			m := h.policed(t, h.posers())
			_, _, err := m.Create(operator(t.Context()), c.req)
			var e *firebreak.Error
			if !errors.As(err, &e) || e.Kind != c.kind || !strings.Contains(err.Error(), c.text) || !strings.Contains(e.Mend, c.mend) {
				t.Errorf("%v, want %s: %s; %s", err, c.kind, c.text, c.mend)
			}
			h.holds(t)
			if got := records(t, m); len(got) != 0 {
				t.Errorf("records %v", got)
			}
		})
	}
}

func TestDecisionsAreLogged(t *testing.T) {
	h := newHost(t)
	var log bytes.Buffer
	m := h.policed(t, h.posers(), func(c *Config) {
		c.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelInfo}))
	})
	rec := mustCreate(t, m, Request{Driver: "process", AcceptWeaker: "a test"})
	if _, _, err := m.Create(operator(t.Context()), Request{Driver: "process"}); err == nil {
		t.Error("created without a reason")
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"msg=decided sandbox=" + string(rec.ID) + " driver=process boundary=none policy=default@", `because="a test"`,
		"msg=refused isolation=process policy=default@", "rules=some-wall,model-written,whole-program reason="} {
		if strings.Count(log.String(), want) != 1 {
			t.Errorf("%q is not in the log once:\n%s", want, &log)
		}
	}
}

func TestBadPolicyMakesNothing(t *testing.T) {
	h := newHost(t)
	for path, want := range map[string]string{
		writePolicy(t, strings.Replace(anything, "when: true", "when: gpo", 1)): ":6: rule all: when: ",
		filepath.Join(h.dir, "none.yaml"):                                       "no such file",
		h.dir:                                                                   "is a directory",
		writePolicy(t, strings.Repeat("#", 1<<20+1)):                            "is larger than",
	} {
		m := h.process(t, func(c *Config) { c.Policy = path })
		for name, err := range map[string]error{"advise": second(m.Advise(operator(t.Context()), Question{}))} {
			if firebreak.KindOf(err) != firebreak.KindInvalid || !strings.Contains(err.Error(), want) {
				t.Errorf("%s with %s: %v, want %q", name, path, err, want)
			}
		}
		if _, _, err := m.Create(operator(t.Context()), Request{}); firebreak.KindOf(err) != firebreak.KindInvalid {
			t.Errorf("create with %s: %v", path, err)
		}
		if _, _, err := m.Policy(); err == nil {
			t.Errorf("%s is a policy", path)
		}
		if _, err := m.List(operator(t.Context())); err != nil {
			t.Errorf("list with %s: %v", path, err)
		}
	}
	h.holds(t)
}

func TestKeptDecisionIsTheSame(t *testing.T) {
	h := newHost(t)
	questions := []Question{{}, {Workload: firebreak.Workload{Origin: firebreak.OriginTrusted, Needs: firebreak.NeedLinux | firebreak.NeedFileIO}},
		{Workload: firebreak.Workload{StartWithin: firebreak.Duration(time.Second)}, TimeLimit: time.Minute}, {Driver: "gvisor"}}
	var first [][]byte
	for round := range 3 {
		m := h.policed(t, h.posers())
		if round > 0 {
			m.rules.compile = func() (*policy.Policy, error) { return nil, errors.New("compiled once more") }
		}
		for i, q := range questions {
			d, err := m.Advise(operator(t.Context()), q)
			if err != nil {
				t.Fatal(err)
			}
			text, err := json.Marshal(d)
			if err != nil {
				t.Fatal(err)
			}
			if round == 0 {
				first = append(first, text)
			} else if !bytes.Equal(text, first[i]) {
				t.Errorf("question %d: kept\n%s, made\n%s", i, text, first[i])
			}
		}
	}
	m := h.policed(t, h.posers(), func(c *Config) {
		c.Policy = writePolicy(t, strings.ReplaceAll(anything, "{name: fake, boundary: language", "{name: gvisor, boundary: user-kernel"))
	})
	if d, err := m.Advise(operator(t.Context()), Question{}); err != nil || d.Refusal == nil {
		t.Errorf("another policy's decision was taken: %+v, %v", d, err)
	}
	p := h.posers()
	p.gvisor.info.Problems = []driver.Problem{{Text: "gone"}}
	for _, path := range []string{"gvisor", "container", "process"} {
		if err := os.Remove(filepath.Join(h.dir, "probes", path+".json")); err != nil {
			t.Fatal(err)
		}
	}
	if d, err := h.policed(t, p).Advise(operator(t.Context()), Question{}); err != nil || d.Driver != "" {
		t.Errorf("a decision of when the driver was healthy was taken: %+v, %v", d, err)
	}
}

func TestKeptDecisionsAreBounded(t *testing.T) {
	h := newHost(t)
	m := h.policed(t, h.posers())
	for i := range maxDecisions + 20 {
		if _, err := m.Advise(operator(t.Context()), Question{TimeLimit: time.Duration(i+1) * time.Second}); err != nil {
			t.Fatal(err)
		}
	}
	files, err := os.ReadDir(m.decisionDir())
	if err != nil || len(files) > maxDecisions || len(files) == 0 {
		t.Errorf("%d decisions are kept, %v", len(files), err)
	}
	if err := os.WriteFile(filepath.Join(m.decisionDir(), files[0].Name()), []byte(`{"driver":`), 0o600); err != nil {
		t.Fatal(err)
	}
	for i := range maxDecisions + 20 {
		if d, err := m.Advise(operator(t.Context()), Question{TimeLimit: time.Duration(i+1) * time.Second}); err != nil || d.Driver != "gvisor" {
			t.Fatalf("with a damaged file: %+v, %v", d, err)
		}
	}
}

// age makes what is kept of a probe older.
func (h *testHost) age(t *testing.T, name string, by time.Duration) {
	t.Helper()
	path := filepath.Join(h.dir, "probes", name+".json")
	var c cachedInfo
	text, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(text, &c)
	}
	c.At = c.At.Add(-by)
	if err = errors.Join(err, writeFile(path, c)); err != nil {
		t.Fatal(err)
	}
}

func TestBadProbesAreKeptForAWhile(t *testing.T) {
	h, p := newHost(t), posers{}
	p = h.posers()
	p.container.info.Problems = []driver.Problem{{Text: "no runtime", Mend: "apt-get install crun"}}
	for range 3 {
		mustCreate(t, h.policed(t, p), Request{})
	}
	if p.container.probes.Load() != 1 || p.gvisor.probes.Load() != 1 {
		t.Errorf("%d and %d probes, want one of each driver", p.container.probes.Load(), p.gvisor.probes.Load())
	}
	h.age(t, "container", badProbeLife+time.Second)
	h.age(t, "gvisor", 24*time.Hour)
	mustCreate(t, h.policed(t, p), Request{})
	if p.container.probes.Load() != 2 || p.gvisor.probes.Load() != 1 {
		t.Errorf("%d and %d probes, want a second one of what was bad", p.container.probes.Load(), p.gvisor.probes.Load())
	}
}

func TestMendIsSeenBeforeARefusal(t *testing.T) {
	h := newHost(t)
	p := h.posers()
	p.gvisor.info.Problems = []driver.Problem{{Text: "no user namespaces", Mend: "sysctl x=1"}}
	m := h.policed(t, p)
	for _, req := range []Request{{}, {Driver: "gvisor"}} {
		_, _, err := m.Create(operator(t.Context()), req)
		if firebreak.KindOf(err) != firebreak.KindHost || !strings.Contains(err.Error(), "no user namespaces") || !strings.Contains(err.Error(), "sysctl x=1") {
			t.Errorf("%+v: %v", req, err)
		}
	}
	if n := p.gvisor.probes.Load(); n != 2 {
		t.Errorf("%d probes, want one at first and one before the second refusal", n)
	}
	p.gvisor.info.Problems = nil
	for _, process := range []*Manager{m, h.policed(t, p)} {
		if rec := mustCreate(t, process, Request{}); rec.Driver != "gvisor" {
			t.Errorf("%s was made", rec.Driver)
		}
	}
	if n := p.container.probes.Load(); n != 1 {
		t.Errorf("%d probes of a driver that would not do", n)
	}
}

func TestProbeThatFailsIsAProblem(t *testing.T) {
	h := newHost(t)
	p := h.posers()
	p.gvisor.info, p.gvisor.err = driver.Info{}, errors.New("out of luck")
	m := h.policed(t, p)
	if _, _, err := m.Create(operator(t.Context()), Request{}); firebreak.KindOf(err) != firebreak.KindHost || !strings.Contains(err.Error(), "could not be tried: out of luck") {
		t.Errorf("create: %v", err)
	}
	if rec := mustCreate(t, m, Request{Workload: firebreak.Workload{Origin: firebreak.OriginTrusted}}); rec.Driver != "container" {
		t.Errorf("%s was made", rec.Driver)
	}
	ctx, cancel := context.WithCancel(operator(t.Context()))
	cancel()
	if _, err := m.Advise(ctx, Question{}); !errors.Is(err, context.Canceled) {
		t.Errorf("advise of who went away: %v", err)
	}
}

func TestDoctor(t *testing.T) {
	h := newHost(t)
	p := h.posers()
	p.container.info.Problems = []driver.Problem{{Text: "no runtime"}}
	var told []string
	tell := func(step string) { told = append(told, step) }
	for round, want := range []struct {
		fresh, kept bool
		probes      int32
	}{{false, false, 1}, {false, true, 1}, {true, false, 2}} {
		r, err := h.policed(t, p).Doctor(operator(t.Context()), want.fresh, tell)
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Drivers) != 3 || r.Drivers[0].Kept != want.kept || r.KVMKept != want.kept || p.gvisor.probes.Load() != want.probes {
			t.Errorf("round %d: %+v, %d probes", round, r.Drivers, p.gvisor.probes.Load())
		}
		if r.Host.Kernel == "" || r.Host.StateDisk.Path == "" || r.Drivers[0].At.IsZero() {
			t.Errorf("host %+v", r.Host)
		}
		if got := fmt.Sprint(r.Cases[0].Decision.Driver, " ", r.Cases[1].Decision.Driver); got != "gvisor gvisor" {
			t.Errorf("common cases come to %s", got)
		}
	}
	if len(told) != 9 || !strings.HasPrefix(told[0], "try the drivers ") {
		t.Errorf("told %q", told)
	}
}
