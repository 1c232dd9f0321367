package policy

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/firebreak-dev/firebreak"
)

// samples are workloads that differ in what rules ask for.
func samples() []firebreak.Workload {
	return []firebreak.Workload{
		{}, {Origin: firebreak.OriginTrusted}, {Tenancy: firebreak.TenancyMulti}, {Plugin: true}, {Place: firebreak.PlaceBrowser},
		{Origin: firebreak.OriginUntrusted, Data: firebreak.DataHealth, GPU: true, Needs: 31, StartWithin: 1e7, Audit: true},
	}
}

// A file is refused, or what it says is evaluated without a panic; a rule that fails accepts nothing, and an extension
// accepts nothing that the built-in policy does not.
func FuzzPolicy(f *testing.F) {
	f.Add(defaultYAML)
	f.Add([]byte(oneRule("id: r", "when: int(origin) > 0", "duties: [audit]")))
	f.Add([]byte(oneRule("id: r", "when: gpu || needs.network", "boundaries: [virtual-machine]", "require: tech.start < start_within")))
	f.Add([]byte(oneRule("id: r", "when: true", `require: tech.name.startsWith("g") || 1 / 0 == 1`)))
	f.Add([]byte("name: own\ntechnologies:\n  - {name: box, boundary: none, start: 1s, warm: 1s, get: it}\nrules:\n" +
		"  - {id: r, when: true, boundaries: [none], reason: a, source: b}\ntable: []\ntree: {leaf: x, boundaries: [none]}\ntests: []\n"))
	f.Add([]byte("a: [&x {b: *x}, !!binary aGk=, 0x1]\n---\n"))
	base := loadDefault(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := Load(data, "fuzz.yaml")
		if err != nil {
			if p != nil || firebreak.KindOf(err) != firebreak.KindInvalid {
				t.Fatalf("%v, with kind %s", err, firebreak.KindOf(err))
			}
			return
		}
		for _, w := range samples() {
			d := Decide(p, w, everywhere(p))
			failed := slices.ContainsFunc(d.Trace, func(s Step) bool { return s.Error != "" })
			if failed && (d.Driver != "" || len(d.Drivers) > 0) || (d.Driver == "") != (d.Refusal != nil) {
				t.Fatalf("%+v: %q is chosen, refusal %v, trace %+v", w, d.Driver, d.Refusal, d.Trace)
			}
			if d.Driver != "" && d.Boundary == firebreak.BoundaryNone {
				t.Fatalf("%+v: %s is chosen, and nobody named it", w, d.Driver)
			}
			for _, name := range d.Drivers {
				if p.extends && !slices.Contains(Decide(base, w, nil).Drivers, name) {
					t.Fatalf("%+v: an extension accepts %s", w, name)
				}
			}
		}
		p.Test()
		p.Markdown()
	})
}

// Whatever is said of a workload, it is refused or nothing is chosen that a rule does not accept.
func FuzzWorkload(f *testing.F) {
	for _, w := range samples() {
		data, err := json.Marshal(w)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte(`{"origin":"llm"}`))
	f.Add([]byte(`{"data":"health","needs":["linux","linux"],"start_within":"2540400h10m10s"}`))
	p, rules := loadDefault(f), oracle()
	host := everywhere(p)
	f.Fuzz(func(t *testing.T, data []byte) {
		w, err := firebreak.ReadWorkload(data)
		if err != nil {
			if w != (firebreak.Workload{}) || firebreak.KindOf(err) != firebreak.KindInvalid {
				t.Fatalf("%+v, %v", w, err)
			}
			return
		}
		d := Decide(p, w, host)
		if d.Driver != "" {
			chosen := p.technologies[p.technology(d.Driver)]
			for id, r := range rules {
				if r.fires(d.Workload) && r.accepts != nil && !r.accepts(d.Workload, chosen) {
					t.Fatalf("%s: %s is chosen against rule %s", data, d.Driver, id)
				}
			}
		}
		text, err := json.Marshal(d)
		if err != nil {
			t.Fatal(err)
		}
		again, err := firebreak.ReadWorkload(mustWorkload(t, text))
		if err != nil || again != d.Workload {
			t.Fatalf("%s reads as %+v, %v", text, again, err)
		}
	})
}

// mustWorkload takes the workload's text out of a decision's.
func mustWorkload(t *testing.T, decision []byte) []byte {
	t.Helper()
	var d struct{ Workload json.RawMessage }
	if err := json.Unmarshal(decision, &d); err != nil {
		t.Fatal(err)
	}
	return d.Workload
}

// Numbers that are no words can come from code, though not from JSON.
func FuzzFacts(f *testing.F) {
	f.Add(uint8(9), uint8(1), uint8(200), uint8(255), uint8(3), uint8(9), int64(-1), "gvisor", "because")
	p := loadDefault(f)
	host := everywhere(p)
	f.Fuzz(func(t *testing.T, origin, tenancy, data, needs, orchestrator, place uint8, start int64, name, why string) {
		w := firebreak.Workload{Origin: firebreak.Origin(origin), Tenancy: firebreak.Tenancy(tenancy), Data: firebreak.Data(data), Needs: firebreak.Needs(needs),
			Orchestrator: firebreak.Orchestrator(orchestrator), Place: firebreak.Place(place), StartWithin: firebreak.Duration(start)}
		d := DecideFor(p, w, host, Options{Driver: name, AcceptWeaker: why})
		if d.Driver != "" && w.Check() != nil || (d.Driver == "") != (d.Refusal != nil) || name != "" && d.Driver != "" && d.Driver != name {
			t.Fatalf("%+v, %q: %q is chosen, %+v", w, name, d.Driver, d.Refusal)
		}
		if d.Driver != "" && d.Override == nil && !slices.Contains(d.Drivers, d.Driver) {
			t.Fatalf("%+v: %s is chosen, and it is neither acceptable nor an override", w, d.Driver)
		}
	})
}
