package policy

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
)

// hostOf makes a host on which all of these are healthy.
func hostOf(p *Policy, names ...string) []driver.Info {
	var host []driver.Info
	for _, name := range names {
		host = append(host, driver.Info{Name: name, Boundary: p.technologies[p.technology(name)].Boundary})
	}
	return host
}

func everywhere(p *Policy) []driver.Info { return hostOf(p, p.names(indices(len(p.technologies)))...) }

func TestTheSevenRules(t *testing.T) {
	p := loadDefault(t)
	for _, c := range []struct {
		name     string
		rule     string
		w        firebreak.Workload
		want     string // chosen where everything is healthy
		accepted []firebreak.Boundary
		never    []string
	}{
		{"1 code of a model runs at least in gVisor, never in a bare container", "model-written", firebreak.Workload{Origin: firebreak.OriginModel},
			"gvisor", []firebreak.Boundary{firebreak.BoundaryUserKernel, firebreak.BoundaryVirtualMachine}, []string{"container"}},
		{"2 tenants get a virtual machine each", "shared-tenancy", firebreak.Workload{Tenancy: firebreak.TenancyMulti},
			"firecracker", []firebreak.Boundary{firebreak.BoundaryVirtualMachine}, []string{"gvisor", "container", "qemu-tcg"}},
		{"3 a GPU excludes Firecracker", "gpu", firebreak.Workload{GPU: true},
			"gvisor", []firebreak.Boundary{firebreak.BoundaryUserKernel, firebreak.BoundaryVirtualMachine}, []string{"firecracker"}},
		{"4 a cluster uses its controller", "kubernetes", firebreak.Workload{Orchestrator: firebreak.OrchestratorKubernetes},
			"kubernetes-gvisor", []firebreak.Boundary{firebreak.BoundaryUserKernel, firebreak.BoundaryVirtualMachine}, []string{"gvisor", "kata"}},
		{"5 ten milliseconds are kept by what starts cold in them or was made ahead", "start-bound",
			firebreak.Workload{Tenancy: firebreak.TenancyMulti, StartWithin: 1e7},
			"firecracker", []firebreak.Boundary{firebreak.BoundaryVirtualMachine}, []string{"kubernetes-kata"}},
		{"6 computation prefers gVisor", "compute", firebreak.Workload{Origin: firebreak.OriginTrusted, Needs: firebreak.NeedLinux | firebreak.NeedCompute},
			"gvisor", []firebreak.Boundary{firebreak.BoundaryUserKernel, firebreak.BoundarySharedKernel, firebreak.BoundaryVirtualMachine}, nil},
		{"7 an auditor is shown a virtual machine", "audit", firebreak.Workload{Origin: firebreak.OriginTrusted, Audit: true},
			"firecracker", []firebreak.Boundary{firebreak.BoundaryVirtualMachine}, []string{"gvisor", "container"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := Decide(p, c.w, everywhere(p))
			if d.Driver != c.want || !slices.Equal(d.Boundaries, c.accepted) {
				t.Errorf("%s of %v, want %s of %v", d.Driver, d.Boundaries, c.want, c.accepted)
			}
			for _, name := range c.never {
				if slices.Contains(d.Drivers, name) {
					t.Errorf("%s is acceptable", name)
				}
			}
			n := slices.IndexFunc(p.rules, func(r rule) bool { return r.ID == c.rule })
			if number := int(c.name[0] - '0'); p.rules[n].Number != number || !d.Trace[n].Fired {
				t.Errorf("rule %s has number %d and fired: %v", c.rule, p.rules[n].Number, d.Trace[n].Fired)
			}
		})
	}
}

func TestANamedDriver(t *testing.T) {
	p := loadDefault(t)
	host := append(hostOf(p, "gvisor", "container", "process"),
		driver.Info{Name: "qemu", Boundary: firebreak.BoundaryVirtualMachine, Problems: []driver.Problem{{Text: "no KVM", Mend: "another host"}}},
		driver.Info{Name: "own", Boundary: firebreak.BoundaryLanguage},
		driver.Info{Name: "sick", Problems: []driver.Problem{{Text: "ill", Mend: "rest"}}},
		driver.Info{Name: "firecracker", Boundary: firebreak.BoundarySharedKernel})
	trusted := firebreak.Workload{Origin: firebreak.OriginTrusted}
	for _, c := range []struct {
		w        firebreak.Workload
		o        Options
		want     string
		kind     firebreak.Kind
		text     string
		override bool
	}{
		{o: Options{}, want: "gvisor"},
		{w: trusted, o: Options{}, want: "container"},
		{w: trusted, o: Options{Driver: "gvisor"}, want: "gvisor"},
		{w: trusted, o: Options{Driver: "gvisor", AcceptWeaker: "never mind"}, want: "gvisor"},
		{o: Options{Driver: "container"}, kind: firebreak.KindDenied, text: "container (shared-kernel) is not acceptable for this workload: rule model-written"},
		{o: Options{Driver: "container", AcceptWeaker: " \n"}, kind: firebreak.KindDenied, text: "is not acceptable"},
		{o: Options{Driver: "container", AcceptWeaker: "I read it"}, want: "container", override: true},
		{w: trusted, o: Options{Driver: "process"}, kind: firebreak.KindDenied, text: "rule some-wall"},
		{w: trusted, o: Options{Driver: "process", AcceptWeaker: "debugging"}, want: "process", override: true},
		{o: Options{AcceptWeaker: "why not"}, kind: firebreak.KindInvalid, text: "none is named"},
		{o: Options{Driver: "qemu", AcceptWeaker: "why not"}, kind: firebreak.KindHost, text: "qemu cannot run here: no KVM"},
		{o: Options{Driver: "wasm", AcceptWeaker: "why not"}, kind: firebreak.KindUnsupported, text: "this version of Firebreak has no driver for it"},
		{o: Options{Driver: "runq", AcceptWeaker: "why not"}, kind: firebreak.KindUnsupported, text: `there is no driver "runq"`},
		{o: Options{Driver: "own"}, kind: firebreak.KindDenied, text: "the policy does not know this driver"},
		{o: Options{Driver: "own", AcceptWeaker: "a test"}, want: "own", override: true},
		{o: Options{Driver: "sick", AcceptWeaker: "a test"}, kind: firebreak.KindHost, text: "sick cannot run here: ill"},
		{o: Options{Driver: "firecracker", AcceptWeaker: "a test"}, kind: firebreak.KindHost, text: "its driver gives the boundary shared-kernel"},
		{w: firebreak.Workload{Origin: 77}, o: Options{Driver: "gvisor", AcceptWeaker: "a test"}, kind: firebreak.KindInvalid, text: "77 is no origin"},
	} {
		d := DecideFor(p, c.w, host, c.o)
		if d.Driver != c.want || (d.Override != nil) != c.override {
			t.Errorf("%+v: %q, override %+v, refusal %+v", c.o, d.Driver, d.Override, d.Refusal)
		}
		err := d.Err()
		if (c.want == "") != (err != nil) || err != nil && (firebreak.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.text)) {
			t.Errorf("%+v: %v, want %s: %s", c.o, err, c.kind, c.text)
		}
		if d.Override != nil && (d.Override.Driver != c.want || d.Override.Why != c.o.AcceptWeaker) {
			t.Errorf("%+v: override %+v", c.o, d.Override)
		}
	}
}

func TestAnOverrideWaivesWhatTheDriverDoesNotGive(t *testing.T) {
	p := loadDefault(t)
	d := DecideFor(p, firebreak.Workload{Tenancy: firebreak.TenancyMulti}, hostOf(p, "process", "container"), Options{Driver: "process", AcceptWeaker: "a demo", TimeLimit: 1e9})
	want := map[Duty]Status{DutyIndependentKernel: StatusWaived, DutyEgressAllowlist: StatusWaived, DutyBrokeredSecrets: StatusNotYet, DutyTimeLimit: StatusEnforced}
	got := map[Duty]Status{}
	for _, s := range d.Duties {
		got[s.Duty] = s.Status
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if !slices.Equal(d.Override.Rules, []string{"some-wall", "model-written", "shared-tenancy", "whole-program"}) {
		t.Errorf("overridden: %v", d.Override.Rules)
	}
}

func TestARefusalSaysWhatToDo(t *testing.T) {
	p := loadDefault(t)
	sick := driver.Info{Name: "qemu", Boundary: firebreak.BoundaryVirtualMachine, Problems: []driver.Problem{{Text: "/dev/kvm boots no guest", Mend: "use a host with hardware virtualization"}}}
	for _, c := range []struct {
		host       []driver.Info
		w          firebreak.Workload
		text, mend string
	}{
		{hostOf(p, "gvisor", "container"), firebreak.Workload{Tenancy: firebreak.TenancyMulti},
			"it must run behind virtual-machine with a hardware boundary by rule model-written, shared-tenancy, and nothing here gives that: this version of Firebreak has no driver for firecracker, cloudhypervisor, kata, qemu",
			`use a host whose /dev/kvm boots a guest, and a version of Firebreak with a Firecracker driver; or take the responsibility for less: --isolation gvisor --accept-weaker "why"`},
		{append(hostOf(p, "gvisor"), sick), firebreak.Workload{Tenancy: firebreak.TenancyMulti},
			"it must run behind virtual-machine with a hardware boundary by rule shared-tenancy, and nothing here gives that: qemu: /dev/kvm boots no guest; this version of Firebreak has no driver for firecracker, cloudhypervisor, kata",
			`use a host with hardware virtualization; or take the responsibility for less: --isolation gvisor --accept-weaker "why"`},
		{nil, firebreak.Workload{},
			"it must run behind user-kernel or virtual-machine, and nothing here gives that: this version of Firebreak has no driver for gvisor, firecracker, cloudhypervisor, kata, qemu",
			"run Firebreak on Linux, where gVisor is built in"},
		{hostOf(p, "gvisor"), firebreak.Workload{Place: firebreak.PlaceBrowser, Data: firebreak.DataHealth},
			"nothing satisfies these rules together: regulated-data, browser", "change one of the facts that these rules ask for"},
	} {
		d := Decide(p, c.w, c.host)
		if d.Refusal == nil || d.Refusal.Text != c.text || d.Refusal.Mend != c.mend {
			t.Errorf("got  %+v\nwant %s\nmend %s", d.Refusal, c.text, c.mend)
		}
	}
}

// TestMendOfANamedDriver: what is said is the fact that nobody said, and that would change the answer.
func TestMendOfANamedDriver(t *testing.T) {
	p := loadDefault(t)
	for name, mend := range map[string]string{"wasm": "--needs compute", "container": "--origin"} {
		d := DecideFor(p, firebreak.Workload{}, hostOf(p, "gvisor", name), Options{Driver: name})
		if d.Refusal == nil || !strings.Contains(d.Refusal.Mend, mend) {
			t.Errorf("%s: %+v, want a mend with %s", name, d.Refusal, mend)
		}
	}
}

func TestTwoReportsAboutOneDriver(t *testing.T) {
	p := loadDefault(t)
	well := hostOf(p, "gvisor")[0]
	sick := driver.Info{Name: "gvisor", Boundary: well.Boundary, Problems: []driver.Problem{{Text: "sick"}}}
	for _, host := range [][]driver.Info{{well, sick}, {sick, well}} {
		if d := Decide(p, firebreak.Workload{}, host); d.Driver != "" {
			t.Errorf("%v: %s is chosen", host, d.Driver)
		}
	}
}

func TestSameInputSameBytes(t *testing.T) {
	p, again := loadDefault(t), loadDefault(t)
	host := everywhere(p)
	w := firebreak.Workload{Origin: firebreak.OriginUntrusted, Data: firebreak.DataHealth, GPU: true, Needs: 31, StartWithin: 1e7}
	want, err := json.Marshal(Decide(p, w, host))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for _, from := range []*Policy{p, again} {
				if got, err := json.Marshal(Decide(from, w, host)); err != nil || string(got) != string(want) {
					t.Errorf("%s, %v\nwant %s", got, err, want)
				}
			}
		})
	}
	wg.Wait()
	var back Decision
	if err := json.Unmarshal(want, &back); err != nil || back.Driver == "" || back.Workload.Data != firebreak.DataHealth {
		t.Errorf("it reads as %+v, %v", back, err)
	}
}

func TestDutiesAreNeverDropped(t *testing.T) {
	p := loadDefault(t)
	w := firebreak.Workload{Data: firebreak.DataPersonal, Audit: true, GPU: true, StartWithin: 1e9, Needs: firebreak.NeedLinux | firebreak.NeedNetwork}
	d := Decide(p, w, everywhere(p))
	want := map[Duty]Status{ // nobody gave it a time limit
		DutyIndependentKernel: StatusEnforced, DutyEgressAllowlist: StatusRefused, DutyBrokeredSecrets: StatusNotYet, DutyTimeLimit: StatusNotYet,
		DutyAudit: StatusNotYet, DutyGPUPassthrough: StatusRefused, DutyWarmStart: StatusNotYet,
	}
	got := map[Duty]Status{}
	for _, s := range d.Duties {
		got[s.Duty] = s.Status
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestNoPolicyAcceptsNothing(t *testing.T) {
	host := hostOf(loadDefault(t), "gvisor")
	for _, p := range []*Policy{nil, {}} {
		if d := Decide(p, firebreak.Workload{}, host); d.Driver != "" || d.Refusal == nil {
			t.Errorf("%s is chosen", d.Driver)
		}
	}
}
