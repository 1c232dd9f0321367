package policy

import (
	"fmt"
	"slices"

	"github.com/firebreak-dev/firebreak"
)

// Step is what one rule had to say. All rules are in a decision's trace, in the order of the policy.
type Step struct {
	Rule   string `json:"rule"`
	Fired  bool   `json:"fired"`
	When   string `json:"when"`
	Reason string `json:"reason"`
	Error  string `json:"error,omitempty"` // why it could not be evaluated: then nothing is acceptable
}

// verdict is what the rules say about a workload, whatever the host is.
type verdict struct {
	steps    []Step
	accepts  []set // by rule: the technologies that it leaves; all of them if it did not fire
	accepted set
	order    []int // the accepted ones that have a wall, in order of preference
	duties   []demand
	spoken   bool // a rule that fired names boundaries
	failed   int  // index of the first rule that could not be evaluated, or -1
}

// demand is a duty and the rules that ask for it.
type demand struct {
	duty  Duty
	rules []string
}

// judge evaluates all rules for a complete workload.
func (p *Policy) judge(w firebreak.Workload) verdict {
	v := verdict{steps: make([]Step, len(p.rules)), accepts: make([]set, len(p.rules)), accepted: p.all(), failed: -1}
	f := newFacts(w)
	var prefers []set
	for i := range p.rules {
		r := &p.rules[i]
		fired, accepts, prefer, err := r.apply(p, f)
		v.steps[i] = Step{Rule: r.ID, Fired: fired, When: r.When, Reason: r.Reason}
		v.accepts[i] = accepts
		v.accepted &= accepts
		if err != nil {
			v.steps[i].Error = err.Error()
			if v.failed < 0 {
				v.failed = i
			}
		}
		if !fired {
			continue
		}
		v.spoken = v.spoken || len(r.Boundaries) > 0
		v.demand(r)
		if r.Prefer != "" {
			prefers = append(prefers, prefer)
		}
	}
	if !v.spoken || v.failed >= 0 {
		v.accepted = 0
	}
	v.order = p.sort(v.accepted, prefers)
	return v
}

// apply evaluates r: whether it fires, what it leaves, what it wants first. A rule with an error leaves nothing.
func (r *rule) apply(p *Policy, f *facts) (fired bool, accepts, prefer set, err error) {
	if fired, err = r.when.holds(f); err != nil {
		return false, 0, 0, fmt.Errorf("when: %w", err)
	}
	accepts = p.all()
	if !fired {
		return false, accepts, 0, nil
	}
	if len(r.Boundaries) > 0 {
		accepts = r.boundaries
	}
	if r.Require != "" {
		required, err := r.require.among(p.technologies, f)
		if err != nil {
			return true, 0, 0, fmt.Errorf("require: %w", err)
		}
		accepts &= required
	}
	if r.Prefer != "" {
		if prefer, err = r.prefer.among(p.technologies, f); err != nil {
			return true, 0, 0, fmt.Errorf("prefer: %w", err)
		}
	}
	return true, accepts, prefer, nil
}

func (v *verdict) demand(r *rule) {
	for _, duty := range r.Duties {
		i := slices.IndexFunc(v.duties, func(d demand) bool { return d.duty == duty })
		if i < 0 {
			i = len(v.duties)
			v.duties = append(v.duties, demand{duty: duty})
		}
		v.duties[i].rules = append(v.duties[i].rules, r.ID)
	}
}

// sort lists the accepted technologies that have a wall: in the policy's order, but the preferred first, and what an
// earlier rule prefers before what a later one does.
func (p *Policy) sort(accepted set, prefers []set) []int {
	order := make([]int, 0, accepted.size())
	for i, t := range p.technologies {
		if accepted.has(i) && t.Boundary != firebreak.BoundaryNone {
			order = append(order, i)
		}
	}
	for _, first := range slices.Backward(prefers) {
		slices.SortStableFunc(order, func(a, b int) int {
			switch {
			case first.has(a) == first.has(b):
				return 0
			case first.has(a):
				return -1
			}
			return 1
		})
	}
	return order
}

// pick returns the first of order that is healthy, or -1. It is all that a host can change in a choice.
func pick(order []int, healthy set) int {
	for _, i := range order {
		if healthy.has(i) {
			return i
		}
	}
	return -1
}

// against returns the ids of the rules that do not leave technology i.
func (v *verdict) against(p *Policy, i int) []string {
	var ids []string
	for r, accepts := range v.accepts {
		if !accepts.has(i) {
			ids = append(ids, p.rules[r].ID)
		}
	}
	return ids
}

// conflict returns the ids of rules that together leave nothing with a wall, none of which could be left out.
func (v *verdict) conflict(p *Policy) []string {
	var walls set
	for i, t := range p.technologies {
		if t.Boundary != firebreak.BoundaryNone {
			walls |= 1 << i
		}
	}
	accepts := slices.Clone(v.accepts)
	left := func() set {
		all := walls
		for _, a := range accepts {
			all &= a
		}
		return all
	}
	var ids []string
	for r, a := range v.accepts {
		if accepts[r] = p.all(); left() != 0 {
			accepts[r] = a
			ids = append(ids, p.rules[r].ID)
		}
	}
	return ids
}
