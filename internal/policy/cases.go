package policy

import (
	"fmt"
	"slices"

	"go.yaml.in/yaml/v3"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
)

// testCase is a case of a policy's own tests.
type testCase struct {
	name     string
	workload firebreak.Workload
	host     []driver.Info
	expect   expectation
	line     int
}

type expectation struct {
	driver     string
	boundary   firebreak.Boundary
	refused    bool
	boundaries []firebreak.Boundary
	rules      []string // that fired
	duties     []Duty
}

// Result is what became of one case. Err is nil if it is as expected.
type Result struct {
	Name string
	Line int // in the policy's file; of the built-in one for rows and leaves that an extension took over
	Err  error
}

func (p *Policy) readCase(n *yaml.Node) error {
	c := testCase{line: n.Line}
	err := readMap(n, "a test", map[string]field{
		"name": text(&c.name), "workload": workload(&c.workload),
		"host":   func(n *yaml.Node) error { return p.readHost(n, &c.host) },
		"expect": func(n *yaml.Node) error { return p.readExpectation(n, &c.expect) },
	})
	if err != nil {
		return err
	}
	if c.name == "" {
		return faultAt(n.Line, "a test has no name")
	}
	e := c.expect
	if e.driver == "" && e.boundary == 0 && !e.refused && len(e.boundaries)+len(e.rules)+len(e.duties) == 0 {
		return faultAt(n.Line, "test %s expects nothing", c.name)
	}
	p.cases = append(p.cases, c)
	return nil
}

// readHost reads technologies and how they are: healthy, or a problem in any words. What is not there has no driver.
func (p *Policy) readHost(n *yaml.Node, into *[]driver.Info) error {
	fields := map[string]field{}
	for _, t := range p.technologies {
		fields[t.Name] = func(n *yaml.Node) error {
			var state string
			if err := text(&state)(n); err != nil {
				return err
			}
			info := driver.Info{Name: t.Name, Boundary: t.Boundary}
			if state != "healthy" {
				info.Problems = []driver.Problem{{Text: state}}
			}
			*into = append(*into, info)
			return nil
		}
	}
	return readMap(n, "a host", fields)
}

func (p *Policy) readExpectation(n *yaml.Node, e *expectation) error {
	err := readMap(n, "what is expected", map[string]field{
		"driver": text(&e.driver), "boundary": word(&e.boundary), "refused": boolean(&e.refused), "boundaries": boundaries(&e.boundaries),
		"rules": texts(&e.rules), "duties": duties(&e.duties),
	})
	if err != nil {
		return err
	}
	for _, id := range e.rules {
		if !slices.ContainsFunc(p.rules, func(r rule) bool { return r.ID == id }) {
			return faultAt(n.Line, "there is no rule %q", id)
		}
	}
	switch {
	case e.driver != "" && p.technology(e.driver) < 0:
		return faultAt(n.Line, "%q is no technology", e.driver)
	case e.refused && (e.driver != "" || e.boundary != 0):
		return faultAt(n.Line, "what is refused has no driver and no boundary")
	}
	return nil
}

// Test runs the cases of the policy's file and holds the rules to the table and the tree.
func (p *Policy) Test() []Result {
	var results []Result
	for _, r := range p.table {
		results = append(results, Result{"table: " + r.capability, r.line, p.checkRow(r)})
	}
	p.tree.leaves(func(leaf *node) {
		results = append(results, Result{"tree: " + leaf.leaf, leaf.line, p.checkLeaf(leaf)})
	})
	for _, c := range p.cases {
		results = append(results, Result{"test: " + c.name, c.line, p.checkCase(c)})
	}
	return results
}

func (p *Policy) checkRow(r row) error {
	d := Decide(p, r.workload, nil)
	if err := p.checkBoundaries(d.Boundaries, r.boundaries); err != nil {
		return err
	}
	for _, name := range r.never {
		if slices.Contains(d.Drivers, name) {
			return fmt.Errorf("%s is acceptable", name)
		}
	}
	if r.first != "" && !p.extends && (len(d.Drivers) == 0 || d.Drivers[0] != r.first) {
		return fmt.Errorf("the order is %v, and %s is not first", d.Drivers, r.first)
	}
	return hasDuties(d, r.duties)
}

// checkBoundaries compares what is acceptable with a table or a tree. An extension may have taken away from it.
func (p *Policy) checkBoundaries(got, want []firebreak.Boundary) error {
	for _, b := range got {
		if !slices.Contains(want, b) {
			return fmt.Errorf("%s is acceptable, and only %v should be", b, want)
		}
	}
	if len(got) != len(want) && !p.extends {
		return fmt.Errorf("only %v is acceptable, and %v should be", got, want)
	}
	return nil
}

func (p *Policy) checkLeaf(leaf *node) error {
	w, _ := Complete(leaf.workload)
	reached, err := p.tree.walk(newFacts(w))
	if err != nil {
		return err
	}
	if reached != leaf {
		return fmt.Errorf("its workload comes to another leaf: %s", reached.leaf)
	}
	return p.checkBoundaries(Decide(p, leaf.workload, nil).Boundaries, leaf.boundaries)
}

func (p *Policy) checkCase(c testCase) error {
	d, e := Decide(p, c.workload, c.host), c.expect
	switch {
	case e.refused && d.Refusal == nil:
		return fmt.Errorf("%s is chosen, and it should be refused", d.Driver)
	case e.driver != "" && d.Driver != e.driver, e.boundary != 0 && d.Boundary != e.boundary:
		if d.Refusal != nil {
			return fmt.Errorf("it is refused: %s", d.Refusal.Text)
		}
		return fmt.Errorf("%s (%s) is chosen", d.Driver, d.Boundary)
	case len(e.boundaries) > 0 && !sameSet(d.Boundaries, e.boundaries):
		return fmt.Errorf("%v is acceptable, and %v should be", d.Boundaries, e.boundaries)
	}
	for _, id := range e.rules {
		if i := slices.IndexFunc(d.Trace, func(s Step) bool { return s.Rule == id }); i < 0 || !d.Trace[i].Fired {
			return fmt.Errorf("rule %s does not fire", id)
		}
	}
	return hasDuties(d, e.duties)
}

func sameSet(a, b []firebreak.Boundary) bool {
	return len(a) == len(b) && !slices.ContainsFunc(a, func(x firebreak.Boundary) bool { return !slices.Contains(b, x) })
}

func hasDuties(d Decision, want []Duty) error {
	for _, duty := range want {
		if !slices.ContainsFunc(d.Duties, func(s DutyStatus) bool { return s.Duty == duty }) {
			return fmt.Errorf("the duty %s does not come with it", duty)
		}
	}
	return nil
}

// leaves calls visit for each leaf, yes before no.
func (n *node) leaves(visit func(*node)) {
	switch {
	case n == nil:
	case n.ask == "":
		visit(n)
	default:
		n.yes.leaves(visit)
		n.no.leaves(visit)
	}
}

// walk answers the questions from f until it comes to a leaf.
func (n *node) walk(f *facts) (*node, error) {
	for n.ask != "" {
		yes, err := n.when.holds(f)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", n.ask, err)
		}
		if yes {
			n = n.yes
		} else {
			n = n.no
		}
	}
	return n, nil
}
