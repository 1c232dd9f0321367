// Package policy chooses what code must run behind. It is pure: a workload, what a host's drivers report and a file of
// rules go in, and a decision with all its reasons comes out, the same bytes for the same input. Rules are data: YAML
// with conditions in CEL, compiled once when a file is loaded. A rule can only take technologies away, so whatever
// cannot be evaluated or is not spoken for ends in a refusal.
package policy

import (
	_ "embed"
	"math/bits"
	"slices"
	"time"

	"github.com/firebreak-dev/firebreak"
)

//go:embed default.yaml
var defaultYAML []byte

// Policy is a set of rules, ready to decide. It does not change once loaded and may be used concurrently.
type Policy struct {
	name         string
	version      string // of the text: a decision names it
	extends      bool
	technologies []Technology
	rules        []rule
	table        []row
	tree         *node
	cases        []testCase
}

// Technology is one way to isolate, as the policy knows it: a fact sheet, not what a host can do.
type Technology struct {
	Name       string             `json:"name"`
	Title      string             `json:"title"`
	Boundary   firebreak.Boundary `json:"boundary"`
	Hardware   bool               `json:"hardware"` // a processor's virtualization stands between guest and host
	Linux      bool               `json:"linux"`    // runs Linux programs
	GPU        bool               `json:"gpu"`
	Snapshot   bool               `json:"snapshot"`
	Kubernetes bool               `json:"kubernetes"`
	Start      firebreak.Duration `json:"start"` // cold, an order of magnitude
	Warm       firebreak.Duration `json:"warm"`  // the claim of one made ahead
	Note       string             `json:"note"`
	Get        string             `json:"get"` // how a host comes to have it

	facts techFacts
	line  int
}

// Rule says what a fact about a workload demands.
type Rule struct {
	ID         string               `json:"id"`
	Number     int                  `json:"rule,omitempty"` // its place among the numbered rules; 0 for the others
	Asks       string               `json:"asks,omitempty"` // a numbered rule as a question
	When       string               `json:"when"`
	Boundaries []firebreak.Boundary `json:"boundaries,omitempty"` // those that it accepts; empty: it asks for none
	Require    string               `json:"require,omitempty"`    // what holds for each technology that it accepts
	Prefer     string               `json:"prefer,omitempty"`     // what holds for technologies that come first
	Duties     []Duty               `json:"duties,omitempty"`
	Reason     string               `json:"reason"`
	Corrects   string               `json:"corrects,omitempty"` // an older belief that the rule departs from
	Source     string               `json:"source"`
}

type rule struct {
	Rule
	line            int
	when            condition
	require, prefer choice
	boundaries      set // the technologies of Rule.Boundaries
}

// choice is a condition over technologies. Without a program it is fixed: it asks for no fact of the workload and was
// evaluated once for all.
type choice struct {
	condition
	fixed set
}

type row struct {
	capability string
	workload   firebreak.Workload
	boundaries []firebreak.Boundary
	first      string
	never      []string
	duties     []Duty
	line       int
}

// node is a question or, without one, a leaf.
type node struct {
	ask, whenText string
	when          condition
	yes, no       *node

	leaf       string
	workload   firebreak.Workload
	boundaries []firebreak.Boundary
	line       int
}

// Name returns the policy's name.
func (p *Policy) Name() string { return p.name }

// Version names the exact text of the policy.
func (p *Policy) Version() string { return p.version }

// Extends reports whether the policy adds to the built-in one.
func (p *Policy) Extends() bool { return p.extends }

// Rules returns the rules in their order.
func (p *Policy) Rules() []Rule {
	rules := make([]Rule, len(p.rules))
	for i, r := range p.rules {
		rules[i] = r.Rule
		rules[i].Boundaries, rules[i].Duties = slices.Clone(r.Boundaries), slices.Clone(r.Duties)
	}
	return rules
}

// Technologies returns what the policy knows of, the lightest first.
func (p *Policy) Technologies() []Technology { return slices.Clone(p.technologies) }

// technology returns the index of name, or -1.
func (p *Policy) technology(name string) int {
	return slices.IndexFunc(p.technologies, func(t Technology) bool { return t.Name == name })
}

// set is a set of technologies by their index.
type set uint64

const maxTechnologies = 64

func (s set) has(i int) bool { return s&(1<<i) != 0 }
func (s set) size() int      { return bits.OnesCount64(uint64(s)) }

// all returns the set of all technologies of p.
func (p *Policy) all() set {
	if len(p.technologies) == maxTechnologies {
		return ^set(0)
	}
	return 1<<len(p.technologies) - 1
}

// boundariesOf lists the boundaries of the technologies in order, each once.
func (p *Policy) boundariesOf(order []int) []firebreak.Boundary {
	var list []firebreak.Boundary
	for _, i := range order {
		if b := p.technologies[i].Boundary; !slices.Contains(list, b) {
			list = append(list, b)
		}
	}
	return list
}

// names lists the names of the technologies in order.
func (p *Policy) names(order []int) []string {
	list := make([]string, len(order))
	for i, t := range order {
		list[i] = p.technologies[t].Name
	}
	return list
}

func milliseconds(d firebreak.Duration) string {
	return time.Duration(d).Round(time.Millisecond).String()
}
