package policy

import (
	"fmt"
	"slices"
	"testing"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
)

// space is all workloads whose facts are set. The bounds on the start are one of each interval between the times of the
// technologies, which is all that a rule can tell apart.
type space struct {
	needs     []firebreak.Needs
	bounds    []firebreak.Duration
	workloads []firebreak.Workload
	index     map[firebreak.Workload]int
}

func newSpace(p *Policy) *space {
	s := &space{bounds: []firebreak.Duration{0, 1}, index: map[firebreak.Workload]int{}}
	for n := range firebreak.Needs(32) {
		s.needs = append(s.needs, n)
	}
	for _, t := range p.Technologies() {
		s.bounds = append(s.bounds, t.Start, t.Warm)
	}
	slices.Sort(s.bounds)
	s.bounds = slices.Compact(s.bounds)
	if testing.Short() || raced {
		s.needs, s.bounds = []firebreak.Needs{0, firebreak.NeedLinux, 31}, s.bounds[:4]
	}
	for _, needs := range s.needs {
		for _, bound := range s.bounds {
			s.add(firebreak.Workload{Needs: needs, StartWithin: bound})
		}
	}
	return s
}

func (s *space) add(w firebreak.Workload) {
	bools := []bool{false, true}
	for o := firebreak.OriginNone; o <= firebreak.OriginUntrusted; o++ {
		for t := firebreak.TenancySingle; t <= firebreak.TenancyMulti; t++ {
			for d := firebreak.DataPublic; d <= firebreak.DataRegulated; d++ {
				for flags := range 32 {
					w.Origin, w.Tenancy, w.Data = o, t, d
					w.GPU, w.Plugin, w.Audit = bools[flags&1], bools[flags>>1&1], bools[flags>>2&1]
					w.Orchestrator = firebreak.OrchestratorNone + firebreak.Orchestrator(flags>>3&1)
					w.Place = firebreak.PlaceServer + firebreak.Place(flags>>4&1)
					s.index[w] = len(s.workloads)
					s.workloads = append(s.workloads, w)
				}
			}
		}
	}
}

// raises lists the workloads that are one step riskier than w.
func raises(w firebreak.Workload) []firebreak.Workload {
	var list []firebreak.Workload
	add := func(possible bool, change func(*firebreak.Workload)) {
		if riskier := w; possible {
			change(&riskier)
			list = append(list, riskier)
		}
	}
	add(w.Origin < firebreak.OriginUntrusted, func(w *firebreak.Workload) { w.Origin++ })
	add(w.Tenancy < firebreak.TenancyMulti, func(w *firebreak.Workload) { w.Tenancy++ })
	add(w.Data < firebreak.DataRegulated, func(w *firebreak.Workload) { w.Data++ })
	add(!w.Audit, func(w *firebreak.Workload) { w.Audit = true })
	return list
}

// class is all workloads for which the same technologies are acceptable in the same order: whatever a host is, the same
// is chosen for them, because a host comes in only where the first healthy one is picked.
type class struct {
	order []int
	picks []int8 // by the set of healthy technologies
}

// proof walks the space.
type proof struct {
	p       *Policy
	classes []class
	byOrder map[string]int
	classOf []int
	rules   map[string]ruling
}

func (x *proof) class(order []int) int {
	key := fmt.Sprint(order)
	if n, known := x.byOrder[key]; known {
		return n
	}
	c := class{order: order, picks: make([]int8, 1<<len(x.p.technologies))}
	for healthy := range c.picks {
		c.picks[healthy] = int8(pick(order, set(healthy)))
	}
	x.byOrder[key] = len(x.classes)
	x.classes = append(x.classes, c)
	return len(x.classes) - 1
}

// judge holds the rules to the second opinion: which fire, what they leave, what they ask for.
func (x *proof) judge(t *testing.T, w firebreak.Workload) verdict {
	t.Helper()
	v := x.p.judge(w)
	want, owed := x.p.all(), map[Duty][]string{}
	for i, r := range x.p.rules {
		o := x.rules[r.ID]
		fires := o.fires(w)
		if v.steps[i].Fired != fires || v.steps[i].Error != "" {
			t.Fatalf("%+v: rule %s fired: %v, %q, want %v", w, r.ID, v.steps[i].Fired, v.steps[i].Error, fires)
		}
		if !fires {
			continue
		}
		for _, duty := range o.duties {
			owed[duty] = append(owed[duty], r.ID)
		}
		for n, tech := range x.p.technologies {
			if o.accepts != nil && !o.accepts(w, tech) {
				want &^= 1 << n
			}
		}
	}
	if v.accepted != want {
		t.Fatalf("%+v: accepted %b, want %b", w, v.accepted, want)
	}
	if len(v.order) != want.size() {
		t.Fatalf("%+v: %v is the order of %b", w, v.order, want)
	}
	for _, n := range v.order {
		if !want.has(n) {
			t.Fatalf("%+v: %s is in the order, and a rule that fired does not accept it", w, x.p.technologies[n].Name)
		}
	}
	if len(v.duties) != len(owed) {
		t.Fatalf("%+v: duties %v, want %v", w, v.duties, owed)
	}
	for _, d := range v.duties {
		if !slices.Equal(d.rules, owed[d.duty]) {
			t.Fatalf("%+v: %s is asked for by %v, want %v", w, d.duty, d.rules, owed[d.duty])
		}
	}
	return v
}

func TestEveryWorkloadOnEveryHost(t *testing.T) {
	x := &proof{p: loadDefault(t), byOrder: map[string]int{}, rules: oracle()}
	if len(x.rules) != len(x.p.rules) {
		t.Fatalf("the second opinion has %d rules, the policy %d", len(x.rules), len(x.p.rules))
	}
	s := newSpace(x.p)
	seen, reasons := map[string]bool{}, []firebreak.Workload{} // one workload for each set of rules that fired
	for _, w := range s.workloads {
		v := x.judge(t, w)
		x.classOf = append(x.classOf, x.class(v.order))
		key := make([]byte, 0, len(v.steps))
		for _, step := range v.steps {
			key = fmt.Appendf(key, "%t", step.Fired)
		}
		if key := string(key) + fmt.Sprint(v.order); !seen[key] {
			seen[key] = true
			reasons = append(reasons, w)
		}
		x.checkTree(t, w)
	}
	pairs := x.checkMonotone(t, s)
	decisions := 0
	some := []string{"container", "gvisor", "firecracker", "wasm", "kata", "kubernetes-gvisor"}
	for n, w := range reasons {
		decisions += x.checkDecisions(t, w, []string{some[n%6], some[(n+1)%6], some[(n+2+n/6%2)%6]})
	}
	hosts := 1 << len(x.p.technologies)
	fmt.Printf("enumeration: %d workloads x %d sets of healthy technologies = %d choices (%d kinds of order); %d steps of risk compared on every host; "+
		"%d whole decisions for %d sets of fired rules\n",
		len(s.workloads), hosts, len(s.workloads)*hosts, len(x.classes), pairs, decisions, len(reasons))
}

// checkTree asserts that no workload is given a boundary that is not in the leaf it comes to.
func (x *proof) checkTree(t *testing.T, w firebreak.Workload) {
	t.Helper()
	leaf, err := x.p.tree.walk(newFacts(w))
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range x.classes[x.classOf[len(x.classOf)-1]].order {
		if b := x.p.technologies[n].Boundary; !slices.Contains(leaf.boundaries, b) {
			t.Fatalf("%+v: %s is acceptable, and the tree comes to %q", w, b, leaf.leaf)
		}
	}
}

// checkMonotone asserts that one step more of risk makes nothing acceptable that was not, and on no host chooses a
// weaker boundary. It returns how many steps there are; steps between the same classes are compared once.
func (x *proof) checkMonotone(t *testing.T, s *space) int {
	t.Helper()
	steps, done := 0, map[[2]int]bool{}
	for i, w := range s.workloads {
		for _, riskier := range raises(w) {
			steps++
			pair := [2]int{x.classOf[i], x.classOf[s.index[riskier]]}
			if done[pair] {
				continue
			}
			done[pair] = true
			before, after := x.classes[pair[0]], x.classes[pair[1]]
			for _, n := range after.order {
				if !slices.Contains(before.order, n) {
					t.Fatalf("%+v -> %+v: %s becomes acceptable", w, riskier, x.p.technologies[n].Name)
				}
			}
			for healthy, picked := range after.picks {
				if picked >= 0 && weaker(x.p.technologies[picked].Boundary, x.p.technologies[before.picks[healthy]].Boundary) {
					t.Fatalf("%+v -> %+v on %b: %s becomes %s", w, riskier, healthy, x.p.technologies[before.picks[healthy]].Name, x.p.technologies[picked].Name)
				}
			}
		}
	}
	return steps
}

// checkDecisions makes whole decisions for w on hosts where each of three drivers is absent, sick or healthy.
func (x *proof) checkDecisions(t *testing.T, w firebreak.Workload, some []string) int {
	t.Helper()
	w, _ = Complete(w) // a program's needs are never empty
	v := x.p.judge(w)
	const states = 27
	for state := range states {
		host, healthy := []driver.Info{{Name: "process", Boundary: firebreak.BoundaryNone}}, set(0)
		for n, rest := 0, state; n < len(some); n, rest = n+1, rest/3 {
			tech := x.p.technology(some[n])
			info := driver.Info{Name: some[n], Boundary: x.p.technologies[tech].Boundary}
			switch rest % 3 {
			case 1:
				info.Problems = []driver.Problem{{Text: "sick", Mend: "heal it"}}
				host = append(host, info)
			case 2:
				healthy |= 1 << tech
				host = append(host, info)
			}
		}
		d := Decide(x.p, w, host)
		want := pick(v.order, healthy)
		if (want < 0) != (d.Refusal != nil) || want >= 0 && d.Driver != x.p.technologies[want].Name {
			t.Fatalf("%+v on %v: %q, refused: %v, want %d", w, host, d.Driver, d.Refusal, want)
		}
		x.checkReasons(t, d, v)
	}
	return states
}

// checkReasons asserts that nothing is without a reason, and that each reason is a rule that fired or the host's.
func (x *proof) checkReasons(t *testing.T, d Decision, v verdict) {
	t.Helper()
	fired := map[string]bool{}
	for i, step := range d.Trace {
		fired[step.Rule] = step.Fired
		if step != v.steps[i] || step.Reason == "" {
			t.Fatalf("trace %+v, want %+v", step, v.steps[i])
		}
	}
	if r := d.Refusal; r != nil && (r.Text == "" || r.Mend == "" || d.Err() == nil || d.Driver != "" || len(d.Drivers) == 0 && len(r.Rules) == 0) {
		t.Fatalf("%+v: a refusal without a reason: %+v", d.Workload, r)
	}
	seen := 1
	for _, o := range d.Others {
		seen++
		if o.Text == "" || len(o.Rules) == 0 && o.Problem == nil && d.Driver == "" {
			t.Fatalf("%+v: %s is left out without a reason", d.Workload, o.Driver)
		}
		for _, id := range o.Rules {
			if !fired[id] {
				t.Fatalf("%+v: %s is left out by rule %s, which did not fire", d.Workload, o.Driver, id)
			}
		}
	}
	if d.Driver == "" {
		seen--
	}
	if seen != len(x.p.technologies) || len(d.Duties) != len(v.duties) {
		t.Fatalf("%+v: %d technologies and %d duties are told of, want %d and %d", d.Workload, seen, len(d.Duties), len(x.p.technologies), len(v.duties))
	}
	for _, duty := range d.Duties {
		if duty.Status == "" || duty.Text == "" || duty.Status == StatusWaived {
			t.Fatalf("%+v: duty %+v", d.Workload, duty)
		}
	}
}

// Unset facts add nothing to the space: a decision is that of the completed workload.
func TestUnsetFactsAreTheCarefulOnes(t *testing.T) {
	p := loadDefault(t)
	checked := 0
	for _, needs := range []firebreak.Needs{0, firebreak.NeedCompute} {
		for o := range firebreak.OriginUntrusted + 1 {
			for ten := range firebreak.TenancyMulti + 1 {
				for d := range firebreak.DataPersonal + 1 {
					for orch := range firebreak.OrchestratorKubernetes + 1 {
						for place := range firebreak.PlaceBrowser + 1 {
							for _, plugin := range []bool{false, true} {
								w := firebreak.Workload{Origin: o, Tenancy: ten, Data: d, Orchestrator: orch, Place: place, Plugin: plugin, Needs: needs}
								checkCompleted(t, p, w)
								checked++
							}
						}
					}
				}
			}
		}
	}
	fmt.Printf("enumeration: %d workloads with unset facts\n", checked)
}

func checkCompleted(t *testing.T, p *Policy, w firebreak.Workload) {
	t.Helper()
	full, taken := Complete(w)
	if full.Origin == 0 || full.Tenancy == 0 || full.Data == 0 || full.Orchestrator == 0 || full.Place == 0 {
		t.Fatalf("%+v is completed to %+v", w, full)
	}
	if again, more := Complete(full); again != full || len(more) != 0 {
		t.Fatalf("%+v is completed twice, by %v", w, more)
	}
	if (full == w) != (len(taken) == 0) {
		t.Fatalf("%+v: %v was taken for %+v", w, taken, full)
	}
	got, want := p.judge(full), Decide(p, w, nil)
	if !slices.Equal(p.names(got.order), want.Drivers) || want.Workload != full || len(want.Defaults) != len(taken) {
		t.Fatalf("%+v: %v, want %v", w, want.Drivers, p.names(got.order))
	}
}
