package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/firebreak-dev/firebreak"
)

// Markdown writes the policy as a page for people: the tree, the table, the rules, the technologies and the duties. What
// is acceptable in it is what Decide says.
func (p *Policy) Markdown() string {
	var b strings.Builder
	b.WriteString("What code must run behind follows from facts about it, each asked for by itself. " +
		"What nobody says is taken to be the careful word; a decision names the words it took:\n\n")
	w, taken := Complete(firebreak.Workload{})
	for _, a := range taken {
		fmt.Fprintf(&b, "- %s: **%s**, as %s\n", a.Fact, a.Value, a.Reason)
	}
	fmt.Fprintf(&b, "\nSo code about which nothing is said may run behind %s.\n", joinBoundaries(Decide(p, w, nil).Boundaries, " or "))
	if p.tree != nil {
		b.WriteString("\n## In short\n\n```mermaid\n" + p.Mermaid() + "```\n\nThe rules below may take more away than the picture shows, and never less.\n")
	}
	p.writeTable(&b)
	p.writeRules(&b)
	p.writeTechnologies(&b)
	p.writeDuties(&b)
	return b.String()
}

// Mermaid draws the tree as text for Mermaid's flow charts.
func (p *Policy) Mermaid() string {
	var b strings.Builder
	b.WriteString("flowchart TD\n")
	drawn := 0
	var draw func(n *node) string
	draw = func(n *node) string {
		drawn++
		id := fmt.Sprintf("n%d", drawn)
		if n.ask == "" {
			fmt.Fprintf(&b, "    %s([\"%s\"])\n", id, label(n.leaf))
			return id
		}
		fmt.Fprintf(&b, "    %s{\"%s\"}\n", id, label(n.ask))
		fmt.Fprintf(&b, "    %s -- yes --> %s\n", id, draw(n.yes))
		fmt.Fprintf(&b, "    %s -- no --> %s\n", id, draw(n.no))
		return id
	}
	if p.tree != nil {
		draw(p.tree)
	}
	return b.String()
}

// label makes text fit between Mermaid's quotes.
func label(text string) string { return strings.NewReplacer(`"`, "#quot;", "\n", " ").Replace(text) }

// cell makes text fit between the bars of a table.
func cell(text string) string {
	return strings.NewReplacer("|", `\|`, "\n", " ").Replace(text)
}

func code(text string) string {
	if text == "" {
		return ""
	}
	return "`" + cell(text) + "`"
}

func joinBoundaries(list []firebreak.Boundary, by string) string {
	words := make([]string, len(list))
	for i, b := range list {
		words[i] = b.String()
	}
	return strings.Join(words, by)
}

func joinDuties(list []Duty) string {
	words := make([]string, len(list))
	for i, d := range list {
		words[i] = string(d)
	}
	return strings.Join(words, ", ")
}

func (p *Policy) writeTable(b *strings.Builder) {
	if len(p.table) == 0 {
		return
	}
	b.WriteString("\n## What for which agent\n\n| agent | said of it | acceptable, the preferred first | what comes with it | rules |\n|---|---|---|---|---|\n")
	for _, r := range p.table {
		d := Decide(p, r.workload, nil)
		var owed, fired []string
		for _, s := range d.Duties {
			owed = append(owed, string(s.Duty))
		}
		for i, s := range d.Trace {
			if speaks := p.rules[i].When != "true" && s.Rule != "no-cluster"; s.Fired && speaks {
				fired = append(fired, s.Rule)
			}
		}
		fmt.Fprintf(b, "| %s | %s | %s | %s | %s |\n", cell(r.capability), said(r.workload), strings.Join(d.Drivers, ", "),
			strings.Join(owed, ", "), strings.Join(fired, ", "))
	}
}

// said lists the facts of w that a caller gave.
func said(w firebreak.Workload) string {
	var facts []string
	for _, f := range []struct {
		unset bool
		text  string
	}{
		{w.Origin == 0, "origin " + w.Origin.String()}, {w.Tenancy == 0, "tenancy " + w.Tenancy.String()}, {w.Data == 0, "data " + w.Data.String()},
		{!w.GPU, "GPU"}, {!w.Plugin, "plugin"}, {w.Needs == 0, "needs " + w.Needs.String()}, {!w.Audit, "audit"},
		{w.StartWithin == 0, "start within " + w.StartWithin.String()}, {w.Orchestrator == 0, "orchestrator " + w.Orchestrator.String()},
		{w.Place == 0, "place " + w.Place.String()},
	} {
		if !f.unset {
			facts = append(facts, f.text)
		}
	}
	return strings.Join(facts, ", ")
}

func (p *Policy) writeRules(b *strings.Builder) {
	b.WriteString("\n## Rules\n\nA rule whose condition holds takes away what it does not accept. If no rule names boundaries for a workload, or one cannot be " +
		"evaluated, nothing is acceptable.\n\n| rule | when | accepts | prefers | duties | why |\n|---|---|---|---|---|---|\n")
	for _, r := range p.numberedFirst() {
		id := "**" + r.ID + "**"
		if r.Number > 0 {
			id = fmt.Sprintf("%d. %s<br>%s", r.Number, id, cell(r.Asks))
		}
		accepts := joinBoundaries(r.Boundaries, ", ")
		if r.Require != "" {
			accepts = strings.TrimPrefix(accepts+"<br>", "<br>") + code(r.Require)
		}
		why := cell(r.Reason)
		if r.Corrects != "" {
			why += " *Correction:* " + cell(r.Corrects)
		}
		fmt.Fprintf(b, "| %s | %s | %s | %s | %s | %s (%s) |\n", id, code(r.When), accepts, code(r.Prefer), joinDuties(r.Duties), why, cell(r.Source))
	}
}

// numberedFirst lists the numbered rules by their number, then the others as they stand.
func (p *Policy) numberedFirst() []Rule {
	rules := p.Rules()
	slices.SortStableFunc(rules, func(a, b Rule) int {
		switch {
		case a.Number > 0 && b.Number > 0:
			return a.Number - b.Number
		case a.Number > 0:
			return -1
		case b.Number > 0:
			return 1
		}
		return 0
	})
	return rules
}

func (p *Policy) writeTechnologies(b *strings.Builder) {
	b.WriteString("\n## Technologies\n\nThe lightest first. Times are orders of magnitude: measure on your host.\n\n" +
		"| driver | technology | boundary | hardware boundary | GPU | snapshot | cold start | claim of one made ahead | note |\n|---|---|---|---|---|---|---|---|---|\n")
	yes := map[bool]string{true: "yes", false: ""}
	for _, t := range p.technologies {
		fmt.Fprintf(b, "| %s | %s | %s | %s | %s | %s | %s | %s | %s |\n", t.Name, cell(t.Title), t.Boundary, yes[t.Hardware], yes[t.GPU],
			yes[t.Snapshot], t.Start, t.Warm, cell(t.Note))
	}
}

// writeDuties shows what this version does about each duty, as a sandbox behind a wall gets it.
func (p *Policy) writeDuties(b *strings.Builder) {
	b.WriteString("\n## Duties, and what this version does about them\n\n| duty | status | |\n|---|---|---|\n")
	for _, duty := range Duties() {
		c := chooser{p: p, d: &Decision{Driver: "gvisor", Boundary: firebreak.BoundaryUserKernel}}
		if duty == DutyHardenedContainer {
			c.d = &Decision{Driver: "container", Boundary: firebreak.BoundarySharedKernel}
		}
		status, text := c.status(duty)
		switch duty {
		case DutyWarmStart:
			text = warmStart + "."
		case DutyTimeLimit:
			status, text = StatusEnforced, "A sandbox is destroyed after the time limit that it is given; one without is said to have none."
		}
		fmt.Fprintf(b, "| %s | %s | %s |\n", duty, status, text)
	}
}
