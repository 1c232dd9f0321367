package policy

import (
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak"
)

const extension = "name: mine\nextends: default\nrules:\n"

// oneRule is an extension with one rule of these lines; the first is line 4.
func oneRule(lines ...string) string {
	return extension + "  - " + strings.Join(lines, "\n    ") + "\n    reason: Because.\n    source: us\n"
}

func TestLoadRefuses(t *testing.T) {
	tech := "name: own\ntechnologies:\n  - {name: box, boundary: user-kernel, start: 1s, warm: 1s, get: buy it}\n"
	for name, c := range map[string]struct{ text, want string }{
		"an empty file":              {"", "p.yaml:1: it is no YAML: EOF"},
		"no YAML":                    {"name: [", "p.yaml:1: it is no YAML"},
		"bad indentation":            {"name: x\n\trules: 1\n", "p.yaml:2: it is no YAML"},
		"a list":                     {"- a\n", "p.yaml:1: the policy is no mapping"},
		"a second document":          {extension + "  []\n---\nname: b\n", "p.yaml:5: a second document follows"},
		"an alias":                   {"name: &a mine\nextends: *a\n", "p.yaml:1: anchors and aliases are not read"},
		"an unknown key":             {"name: x\nrisk: 3\n", `p.yaml:2: unknown key "risk" in the policy: it is none of extends, name,`},
		"a key twice":                {"name: x\nname: y\n", "p.yaml:2: name stands twice in the policy"},
		"no name":                    {"extends: default\n", "p.yaml:1: it has no name"},
		"no technologies":            {"name: x\nrules: []\n", "p.yaml:1: it has 0 technologies"},
		"no rules":                   {tech, "p.yaml:1: it has no rules, so it would refuse everything"},
		"an unknown base":            {"name: x\nextends: strict\n", `"strict" is unknown, only default can be extended`},
		"an unknown boundary":        {oneRule("id: r", "when: gpu", "boundaries: [vm]"), `p.yaml:6: rule r: boundaries: "vm" is none of [none language`},
		"the invalid boundary":       {oneRule("id: r", "when: gpu", "boundaries: [invalid]"), `p.yaml:6: rule r: boundaries: "invalid" is none of`},
		"an unknown key in a rule":   {oneRule("id: r", "when: gpu", "allow: [none]"), `p.yaml:6: rule r: unknown key "allow" in a rule`},
		"an unknown duty":            {oneRule("id: r", "when: gpu", "duties: [pray]"), `p.yaml:6: rule r: duties: "pray" is none of the duties`},
		"a rule without an id":       {oneRule("when: gpu", "boundaries: [none]"), "p.yaml:4: a rule has no id"},
		"a rule without a when":      {oneRule("id: r", "duties: [audit]"), "p.yaml:4: rule r: it has no when; write `when: true`"},
		"a rule without a reason":    {extension + "  - {id: r, when: gpu, duties: [audit]}\n", "p.yaml:4: rule r: it has no reason or no source"},
		"a rule that demands none":   {oneRule("id: r", "when: gpu"), "p.yaml:4: rule r: it demands nothing"},
		"an odd id":                  {oneRule("id: R 2", "when: gpu", "duties: [audit]"), `p.yaml:4: rule R 2: "R 2" is no name`},
		"an id of the default":       {oneRule("id: audit", "when: gpu", "duties: [audit]"), "p.yaml:4: rule audit: there is another rule with this id"},
		"CEL that does not parse":    {oneRule("id: r", "when: gpu &&", "duties: [audit]"), `p.yaml:5: rule r: when: "gpu &&", column 7: Syntax error`},
		"an unknown fact":            {oneRule("id: r", `when: orgin == "model"`, "duties: [audit]"), `p.yaml:5: rule r: when: "orgin == \"model\"", column 1: undeclared reference to 'orgin'`},
		"a fact of technologies":     {oneRule("id: r", "when: tech.gpu", "duties: [audit]"), "p.yaml:5: rule r: when: "},
		"an unknown tech fact":       {oneRule("id: r", "when: gpu", "require: tech.fast"), "p.yaml:6: rule r: require: "},
		"a wrong type":               {oneRule("id: r", "when: origin", "duties: [audit]"), `p.yaml:5: rule r: when: "origin" is of type string and not true or false`},
		"any type":                   {oneRule("id: r", "when: dyn(gpu)", "duties: [audit]"), "is of type dyn and not true or false"},
		"a word that never is":       {oneRule("id: r", `when: origin == "llm"`, "duties: [audit]"), `p.yaml:5: rule r: when: "origin == \"llm\"": origin is never "llm": it is one of none, trusted, model, untrusted`},
		"a word in a list":           {oneRule("id: r", `when: data in ["public", "health"]`, "duties: [audit]"), `data is never "health": it is one of public, internal, regulated`},
		"a word on the left":         {oneRule("id: r", `when: '"two" != tenancy'`, "duties: [audit]"), `tenancy is never "two"`},
		"a boundary in CEL":          {oneRule("id: r", "when: gpu", `require: tech.boundary == "vm"`), `p.yaml:6: rule r: require: "tech.boundary == \"vm\"": tech.boundary is never "vm"`},
		"a technology in CEL":        {oneRule("id: r", "when: gpu", `require: tech.name != "runc"`), `tech.name is never "runc"`},
		"what cannot be computed":    {oneRule("id: r", "when: gpu", `require: int(tech.name) == 1`), "p.yaml:6: rule r: require: for wasm: "},
		"a bad constant":             {oneRule("id: r", `when: start_within < duration("soon")`, "duties: [audit]"), `p.yaml:5: rule r: when: `},
		"a macro":                    {oneRule("id: r", `when: '[1, 2].all(i, i > 0)'`, "duties: [audit]"), `p.yaml:5: rule r: when: `},
		"an unquoted negation":       {oneRule("id: r", "when: !gpu", "duties: [audit]"), "p.yaml:5: rule r: when: !gpu begins with an exclamation mark: put it in quotes"},
		"an order in an extension":   {oneRule("id: r", "when: gpu", `prefer: tech.boundary == "shared-kernel"`), "p.yaml:4: rule r: prefer: an extension may only tighten"},
		"no wall in an extension":    {oneRule("id: r", "when: true", "boundaries: [none, shared-kernel]"), "p.yaml:4: rule r: boundaries: an extension may only tighten, so it cannot accept none"},
		"a new table in one":         {"name: x\nextends: default\ntechnologies: []\n", "p.yaml:3: technologies: an extension may only tighten"},
		"a new tree in one":          {"name: x\nextends: default\ntree: {}\n", "p.yaml:3: tree: an extension may only tighten"},
		"a false hardware":           {strings.Replace(tech, "start:", "hardware: true, start:", 1), "p.yaml:3: technologies: box cannot have a hardware boundary"},
		"a technology twice":         {tech + "  - {name: box, boundary: none, start: 1s, warm: 1s, get: it}\n", "p.yaml:4: technologies: box stands twice"},
		"a technology without get":   {"name: own\ntechnologies:\n  - {name: box, boundary: none, start: 1s, warm: 1s}\n", "p.yaml:3: technologies: box does not say how to get it"},
		"a test that expects naught": {extension + "  []\ntests:\n  - {name: t}\n", "p.yaml:6: tests: test t expects nothing"},
		"a test of a strange driver": {extension + "  []\ntests:\n  - {name: t, host: {docker: healthy}}\n", `p.yaml:6: tests: host: unknown key "docker" in a host`},
		"a test of a strange rule":   {extension + "  []\ntests:\n  - {name: t, expect: {rules: [r]}}\n", `p.yaml:6: tests: expect: there is no rule "r"`},
		"a test of a strange word":   {extension + "  []\ntests:\n  - {name: t, workload: {origin: llm}}\n", `p.yaml:6: tests: workload: read origin: "llm" is none of none, trusted`},
		"a huge file":                {strings.Repeat("#", maxFile+1), "p.yaml:1: it has 1048577 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := Load([]byte(c.text), "p.yaml")
			if p != nil || firebreak.KindOf(err) != firebreak.KindInvalid || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
			if err != nil && strings.Contains(err.Error(), "\n") {
				t.Errorf("%q has several lines", err)
			}
		})
	}
}

func load1(t *testing.T, text string) *Policy {
	t.Helper()
	p, err := Load([]byte(text), "p.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestAnExtensionTightens(t *testing.T) {
	p := load1(t, oneRule("id: no-gvisor", `when: data != "public"`, `require: tech.boundary == "virtual-machine"`)+
		"tests:\n  - name: internal data\n    host: {gvisor: healthy}\n    expect: {refused: true, rules: [no-gvisor]}\n"+
		"  - name: wrong\n    host: {gvisor: healthy}\n    expect: {driver: gvisor}\n"+
		"  - name: wrong rule\n    workload: {data: public}\n    host: {gvisor: healthy}\n    expect: {rules: [no-gvisor]}\n"+
		"  - name: wrong boundaries\n    expect: {boundaries: [user-kernel]}\n  - name: wrong duty\n    expect: {duties: [audit]}\n"+
		"  - name: wrong refusal\n    workload: {data: public}\n    host: {gvisor: healthy}\n    expect: {refused: true}\n"+
		"  - name: wrong boundary\n    workload: {data: public}\n    host: {gvisor: healthy}\n    expect: {boundary: shared-kernel}\n")
	if d := Decide(p, firebreak.Workload{}, hostOf(p, "gvisor", "firecracker")); d.Driver != "firecracker" {
		t.Errorf("%s is chosen: %v", d.Driver, d.Err())
	}
	if d := Decide(p, firebreak.Workload{Data: firebreak.DataPublic}, hostOf(p, "gvisor", "firecracker")); d.Driver != "gvisor" {
		t.Errorf("%s is chosen: %v", d.Driver, d.Err())
	}
	if p.Version() == loadDefault(t).Version() || p.Name() != "mine" {
		t.Errorf("it is called %s@%s", p.Name(), p.Version())
	}
	for _, r := range p.Test() {
		if wrong := strings.HasPrefix(r.Name, "test: wrong"); wrong != (r.Err != nil) {
			t.Errorf("%s, line %d: %v", r.Name, r.Line, r.Err)
		}
	}
}

func TestTheWholeCanBeReplaced(t *testing.T) {
	p := load1(t, `
name: own
technologies:
  - {name: gvisor, boundary: user-kernel, start: 1s, warm: 1s, get: it is here}
  - {name: process, boundary: none, start: 1s, warm: 1s, get: it is here}
rules:
  - {id: mine, when: origin == "trusted", boundaries: [none], reason: My machine., source: me}
`)
	trusted, host := firebreak.Workload{Origin: firebreak.OriginTrusted}, hostOf(p, "gvisor", "process")
	if d := Decide(p, trusted, host); d.Driver != "" {
		t.Errorf("%s is chosen, and nobody named it", d.Driver)
	}
	if d := DecideFor(p, trusted, host, Options{Driver: "process"}); d.Driver != "process" || d.Override != nil {
		t.Errorf("%q, %v, override %v", d.Driver, d.Err(), d.Override)
	}
	if d := Decide(p, firebreak.Workload{}, host); d.Driver != "" || !strings.Contains(d.Refusal.Text, "no rule of the policy says") {
		t.Errorf("%q, %v: no rule speaks for it", d.Driver, d.Err())
	}
	if got := p.Markdown(); strings.Contains(got, "mermaid") || !strings.Contains(got, "**mine**") {
		t.Errorf("page:\n%s", got)
	}
}

// What cannot be evaluated refuses, whatever else is acceptable and whoever takes the responsibility.
func TestAFailingRuleRefuses(t *testing.T) {
	for part, lines := range map[string][]string{
		"when":    {"id: broken", "when: int(origin) > 0", "duties: [audit]"},
		"require": {"id: broken", "when: true", `require: 'tech.gpu || int(origin) > 0'`},
	} {
		p := load1(t, oneRule(lines...))
		for _, o := range []Options{{}, {Driver: "gvisor"}, {Driver: "gvisor", AcceptWeaker: "because"}} {
			d := DecideFor(p, firebreak.Workload{}, everywhere(p), o)
			if d.Driver != "" || d.Refusal.Rules[0] != "broken" || len(d.Drivers) != 0 || firebreak.KindOf(d.Err()) != firebreak.KindDenied ||
				!strings.Contains(d.Refusal.Text, "rule broken cannot be evaluated, so nothing is acceptable: "+part) {
				t.Errorf("%s, %+v: %q, %v", part, o, d.Driver, d.Err())
			}
			if last := d.Trace[len(d.Trace)-1]; last.Rule != "broken" || last.Error == "" {
				t.Errorf("%s: trace %+v", part, last)
			}
		}
	}
}
