package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
)

// Options are what a caller asks for beside the workload.
type Options struct {
	Driver       string `json:"driver,omitempty"`        // the one to take; empty: the first that is acceptable and healthy
	AcceptWeaker string `json:"accept_weaker,omitempty"` // why Driver may be weaker than the policy accepts

	TimeLimit firebreak.Duration `json:"time_limit,omitempty"` // after which the sandbox is destroyed; 0: it has none
}

// Decision is what a workload must run behind, on one host, and why. It is plain data; equal inputs give equal bytes.
type Decision struct {
	Policy   string             `json:"policy"` // name and version of its text
	Workload firebreak.Workload `json:"workload"`
	Defaults []Assumption       `json:"defaults,omitempty"`

	Driver   string             `json:"driver,omitempty"` // the chosen one; empty if refused
	Boundary firebreak.Boundary `json:"boundary,omitempty"`
	Override *Override          `json:"override,omitempty"`
	Refusal  *Refusal           `json:"refusal,omitempty"`

	Boundaries []firebreak.Boundary `json:"boundaries,omitempty"` // acceptable, in order of preference
	Drivers    []string             `json:"drivers,omitempty"`    // acceptable, in order of preference, here or not
	Others     []Other              `json:"others,omitempty"`     // all that are not chosen
	Duties     []DutyStatus         `json:"duties,omitempty"`
	Trace      []Step               `json:"trace,omitempty"`
}

// Override records that somebody took responsibility for a driver that the policy does not accept.
type Override struct {
	Driver string   `json:"driver"`
	Why    string   `json:"why"`
	Rules  []string `json:"rules,omitempty"` // those that do not accept it
}

// Refusal says why no sandbox may be made, and what would change that.
type Refusal struct {
	Kind  firebreak.Kind `json:"-"`
	Text  string         `json:"text"`
	Mend  string         `json:"mend,omitempty"`
	Rules []string       `json:"rules,omitempty"`
}

// Other is a technology that was not chosen.
type Other struct {
	Driver   string             `json:"driver"`
	Boundary firebreak.Boundary `json:"boundary,omitempty"`
	Rules    []string           `json:"rules,omitempty"`   // those that do not accept it
	Problem  *driver.Problem    `json:"problem,omitempty"` // what keeps it from working here
	Text     string             `json:"text"`              // one sentence
}

// Err returns nil if a driver was chosen, else the refusal as an error.
func (d *Decision) Err() error {
	if d.Refusal == nil {
		return nil
	}
	return &firebreak.Error{Kind: d.Refusal.Kind, Op: "choose isolation", Err: errors.New(d.Refusal.Text), Mend: d.Refusal.Mend}
}

// Fired returns the ids of the rules whose condition held.
func (d *Decision) Fired() []string {
	var ids []string
	for _, s := range d.Trace {
		if s.Fired {
			ids = append(ids, s.Rule)
		}
	}
	return ids
}

// Decide chooses for w among what the drivers of a host report. It always answers: Refusal is set if nothing is chosen.
func Decide(p *Policy, w firebreak.Workload, host []driver.Info) Decision {
	return DecideFor(p, w, host, Options{})
}

// DecideFor decides with a caller's wishes. A named driver that the policy does not accept is refused unless
// AcceptWeaker says why it is accepted; then the decision records it. A driver without a boundary is only chosen by name.
func DecideFor(p *Policy, w firebreak.Workload, host []driver.Info, o Options) Decision {
	if p == nil {
		p = &Policy{name: "none"}
	}
	d := Decision{Policy: p.name + "@" + p.version}
	if err := w.Check(); err != nil {
		d.Refusal = &Refusal{Kind: firebreak.KindInvalid, Text: err.Error(), Mend: "correct the workload"}
		return d
	}
	d.Workload, d.Defaults = Complete(w)
	o.AcceptWeaker = strings.TrimSpace(o.AcceptWeaker)
	c := chooser{p: p, verdict: p.judge(d.Workload), host: p.look(host), limit: o.TimeLimit, d: &d}
	d.Trace = c.steps
	d.Boundaries, d.Drivers = p.boundariesOf(c.order), p.names(c.order)
	c.choose(o)
	c.others(o)
	c.dutyStatuses()
	return d
}

// place is what a host reports about the technologies of a policy, and about drivers that the policy does not know.
type place struct {
	known   []*driver.Info // by technology; nil: no driver for it
	odd     []*driver.Problem
	strange []driver.Info
	healthy set
}

// look sorts a host's reports. Of two about one technology the one with a problem counts, and a driver with another
// boundary than the policy's table says cannot be judged by that table.
func (p *Policy) look(host []driver.Info) place {
	h := place{known: make([]*driver.Info, len(p.technologies)), odd: make([]*driver.Problem, len(p.technologies))}
	for n := range host {
		info := &host[n]
		i := p.technology(info.Name)
		if i < 0 {
			h.strange = append(h.strange, *info)
			continue
		}
		if h.known[i] != nil && !h.known[i].Healthy() {
			continue
		}
		h.known[i] = info
		if info.Boundary != p.technologies[i].Boundary && info.Healthy() {
			h.odd[i] = &driver.Problem{
				Text: fmt.Sprintf("its driver gives the boundary %s, and the policy's table says %s", info.Boundary, p.technologies[i].Boundary),
				Mend: "correct the policy's table of technologies",
			}
		}
	}
	for i, info := range h.known {
		if info != nil && info.Healthy() && h.odd[i] == nil {
			h.healthy |= 1 << i
		}
	}
	return h
}

// problem returns what keeps technology i from working here; nil if nothing does.
func (h *place) problem(p *Policy, i int) *driver.Problem {
	switch {
	case h.known[i] == nil:
		return &driver.Problem{Text: "this version of Firebreak has no driver for it", Mend: p.technologies[i].Get}
	case h.odd[i] != nil:
		return h.odd[i]
	case !h.known[i].Healthy():
		return &h.known[i].Problems[0]
	}
	return nil
}

// chooser fills a decision.
type chooser struct {
	verdict
	p     *Policy
	host  place
	limit firebreak.Duration
	d     *Decision
}

func (c *chooser) choose(o Options) {
	switch {
	case c.failed >= 0:
		step := c.steps[c.failed]
		c.refuse(Refusal{Kind: firebreak.KindDenied, Text: fmt.Sprintf("rule %s cannot be evaluated, so nothing is acceptable: %s", step.Rule, step.Error),
			Mend: "correct the rule", Rules: []string{step.Rule}})
	case o.Driver != "":
		c.named(o)
	case o.AcceptWeaker != "":
		c.refuse(Refusal{Kind: firebreak.KindInvalid, Text: "a weaker driver is accepted, but none is named", Mend: "name it: --isolation NAME"})
	default:
		if i := pick(c.order, c.host.healthy); i >= 0 {
			c.take(c.p.technologies[i].Name, c.p.technologies[i].Boundary)
			return
		}
		c.refuse(c.nothing())
	}
}

func (c *chooser) refuse(r Refusal) { c.d.Refusal = &r }

func (c *chooser) take(name string, b firebreak.Boundary) { c.d.Driver, c.d.Boundary = name, b }

// named takes the driver that the caller named, if it may be taken.
func (c *chooser) named(o Options) {
	i := c.p.technology(o.Driver)
	if i < 0 {
		c.stranger(o)
		return
	}
	t := c.p.technologies[i]
	if problem := c.host.problem(c.p, i); problem != nil {
		kind := firebreak.KindHost
		if c.host.known[i] == nil {
			kind = firebreak.KindUnsupported
		}
		c.refuse(Refusal{Kind: kind, Text: fmt.Sprintf("%s cannot run here: %s", t.Name, problem.Text), Mend: problem.Mend})
		return
	}
	if c.accepted.has(i) {
		c.take(t.Name, t.Boundary)
		return
	}
	rules := c.against(c.p, i)
	c.weaker(o, t.Boundary, rules, c.reason(rules))
}

// stranger takes a driver that the policy does not know: never without a reason.
func (c *chooser) stranger(o Options) {
	n := slices.IndexFunc(c.host.strange, func(info driver.Info) bool { return info.Name == o.Driver })
	if n < 0 {
		c.refuse(Refusal{Kind: firebreak.KindUnsupported, Text: fmt.Sprintf("there is no driver %q", o.Driver)})
		return
	}
	if info := c.host.strange[n]; !info.Healthy() {
		c.refuse(Refusal{Kind: firebreak.KindHost, Text: fmt.Sprintf("%s cannot run here: %s", info.Name, info.Problems[0].Text), Mend: info.Problems[0].Mend})
		return
	}
	c.weaker(o, c.host.strange[n].Boundary, nil, "the policy does not know this driver")
}

func (c *chooser) weaker(o Options, b firebreak.Boundary, rules []string, reason string) {
	if o.AcceptWeaker == "" {
		text := fmt.Sprintf("%s (%s) is not acceptable for this workload: %s", o.Driver, b, reason)
		mend := `name no driver, or take the responsibility: --accept-weaker "why"`
		switch {
		case b == firebreak.BoundaryLanguage && c.assumed("needs"):
			mend = "say that the code only computes, if so (--needs compute); " + mend
		case c.assumed("origin"):
			mend = "say who wrote the code if it is not a model (--origin); " + mend
		}
		c.refuse(Refusal{Kind: firebreak.KindDenied, Text: text, Rules: rules, Mend: mend})
		return
	}
	c.d.Override = &Override{Driver: o.Driver, Why: o.AcceptWeaker, Rules: rules}
	c.take(o.Driver, b)
}

// assumed reports whether nobody said this fact.
func (c *chooser) assumed(fact string) bool {
	return slices.ContainsFunc(c.d.Defaults, func(a Assumption) bool { return a.Fact == fact })
}

// reason gives the first rule's reason, with its id.
func (c *chooser) reason(rules []string) string {
	for _, s := range c.steps {
		if len(rules) > 0 && s.Rule == rules[0] {
			return fmt.Sprintf("rule %s: %s", s.Rule, strings.TrimSuffix(s.Reason, "."))
		}
	}
	return "no rule says what this workload needs"
}

// nothing says why there is nothing to choose, and how that could change.
func (c *chooser) nothing() Refusal {
	switch {
	case !c.spoken:
		return Refusal{Kind: firebreak.KindDenied, Text: "no rule of the policy says what this workload needs", Mend: "add a rule with boundaries for it"}
	case len(c.order) == 0:
		rules := c.conflict(c.p)
		return Refusal{Kind: firebreak.KindDenied, Rules: rules, Mend: "change one of the facts that these rules ask for",
			Text: "nothing satisfies these rules together: " + strings.Join(rules, ", ")}
	}
	rules := c.obstacles()
	by := ""
	if len(rules) > 0 {
		by = " by rule " + strings.Join(rules, ", ")
	}
	r := Refusal{Kind: firebreak.KindHost, Rules: rules, Text: fmt.Sprintf("it must run behind %s%s, and nothing here gives that: %s", c.wanted(), by, c.lacking())}
	r.Mend = c.p.technologies[c.order[0]].Get
	for _, i := range c.order {
		if c.host.known[i] == nil {
			continue
		}
		if mend := c.host.problem(c.p, i).Mend; mend != "" {
			r.Mend = mend
			break
		}
	}
	if best := c.strongest(); best != "" {
		r.Mend += fmt.Sprintf(`; or take the responsibility for less: --isolation %s --accept-weaker "why"`, best)
	}
	return r
}

// wanted names the acceptable boundaries, the hardware with them if all of them have it.
func (c *chooser) wanted() string {
	var words []string
	hardware := true
	for _, b := range c.d.Boundaries {
		words = append(words, b.String())
	}
	for _, i := range c.order {
		hardware = hardware && c.p.technologies[i].Hardware
	}
	text := strings.Join(words, " or ")
	if hardware {
		text += " with a hardware boundary"
	}
	return text
}

// lacking says of each acceptable technology why it is not usable, those without a driver together.
func (c *chooser) lacking() string {
	var absent, parts []string
	for _, i := range c.order {
		if c.host.known[i] == nil {
			absent = append(absent, c.p.technologies[i].Name)
			continue
		}
		parts = append(parts, c.p.technologies[i].Name+": "+c.host.problem(c.p, i).Text)
	}
	if len(absent) > 0 {
		parts = append(parts, "this version of Firebreak has no driver for "+strings.Join(absent, ", "))
	}
	return strings.Join(parts, "; ")
}

// obstacles lists the first rule against each wall that this host does have.
func (c *chooser) obstacles() []string {
	var ids []string
	for i, t := range c.p.technologies {
		if c.accepted.has(i) || !c.host.healthy.has(i) || t.Boundary == firebreak.BoundaryNone {
			continue
		}
		if rules := c.against(c.p, i); len(rules) > 0 && !slices.Contains(ids, rules[0]) {
			ids = append(ids, rules[0])
		}
	}
	return ids
}

// strongest names the healthy technology with the strongest boundary that runs what the workload asks for.
func (c *chooser) strongest() string {
	best := -1
	for i, t := range c.p.technologies {
		if !c.host.healthy.has(i) || t.Boundary == firebreak.BoundaryNone || t.Boundary == firebreak.BoundaryLanguage {
			continue
		}
		if emulated := t.Boundary == firebreak.BoundaryVirtualMachine && !t.Hardware; emulated {
			continue
		}
		if best < 0 || t.Boundary > c.p.technologies[best].Boundary {
			best = i
		}
	}
	if best < 0 {
		return ""
	}
	return c.p.technologies[best].Name
}

// others says of everything that was not chosen why it was not.
func (c *chooser) others(o Options) {
	c.d.Others = make([]Other, 0, len(c.p.technologies)+len(c.host.strange))
	for i, t := range c.p.technologies {
		if t.Name == c.d.Driver {
			continue
		}
		other := Other{Driver: t.Name, Boundary: t.Boundary, Problem: c.host.problem(c.p, i)}
		if !c.accepted.has(i) {
			other.Rules = c.against(c.p, i)
		}
		switch {
		case len(other.Rules) > 0:
			other.Text = c.steps[slices.IndexFunc(c.steps, func(s Step) bool { return s.Rule == other.Rules[0] })].Reason
		case !c.accepted.has(i):
			other.Text = "No rule that could be evaluated accepts it."
		case other.Problem != nil:
			other.Text = other.Problem.Text
		case t.Boundary == firebreak.BoundaryNone:
			other.Text = "It is no wall, and is only taken by its name."
		case o.Driver != "":
			other.Text = "It is acceptable, but the caller named " + o.Driver + "."
		default:
			other.Text = "It is acceptable, but " + c.d.Driver + " comes first."
		}
		c.d.Others = append(c.d.Others, other)
	}
	for _, info := range c.host.strange {
		if info.Name != c.d.Driver {
			c.d.Others = append(c.d.Others, Other{Driver: info.Name, Boundary: info.Boundary, Text: "The policy does not know this driver."})
		}
	}
}
