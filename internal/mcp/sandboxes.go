package mcp

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/manager"
	"github.com/firebreak-dev/firebreak/internal/policy"
)

type createIn struct {
	Template  string `json:"template,omitempty" jsonschema:"what it starts from; default: the session's"`
	Isolation string `json:"isolation,omitempty" jsonschema:"driver to use instead of the one that the policy chooses; advise lists them"`
	Reason    string `json:"reason,omitempty" jsonschema:"why a boundary weaker than the policy accepts would do; the user is asked"`
	Network   bool   `json:"network,omitempty" jsonschema:"the code needs connections to the outside; the user is asked"`
}

type sandboxOut struct {
	Sandbox  string   `json:"sandbox"`
	Template string   `json:"template"`
	Driver   string   `json:"driver"`
	Boundary string   `json:"boundary"`
	Default  bool     `json:"default" jsonschema:"tools that name no sandbox use it"`
	State    string   `json:"state"`
	Ends     string   `json:"ends,omitempty" jsonschema:"when it ends unless a tool uses it before"`
	Warnings []string `json:"warnings,omitempty"`
}

type listOut struct {
	Sandboxes []sandboxOut `json:"sandboxes"`
}

type killIn struct {
	Sandbox string `json:"sandbox" jsonschema:"id, as list_sandboxes shows it"`
}

type killOut struct {
	Sandbox string `json:"sandbox"`
	Killed  bool   `json:"killed"`
}

type none struct{}

func (d *Door) addSandboxTools() {
	add(d, tool{name: "create_sandbox", title: "Make a sandbox",
		about: "Make another sandbox for this session, for instance to try something without touching the first, or from another template. " +
			"Not needed to begin: the other tools make one by themselves. A weaker boundary than the policy accepts, or a network, is given only if the user says yes.",
		limits: limits{"template": longest(255), "isolation": longest(maxID), "reason": longest(500)}},
		(*call).createSandbox)
	add(d, tool{name: "list_sandboxes", title: "List sandboxes", readOnly: true,
		about: "List the sandboxes of this session, with what isolates each."},
		func(c *call, _ none) (result, listOut, error) { return c.listSandboxes() })
	add(d, tool{name: "kill_sandbox", title: "End a sandbox", destructive: true, idempotent: true,
		about: "End a sandbox of this session at once. Its files and everything that runs in it are gone.", limits: limits{"sandbox": longest(maxID)}},
		(*call).killSandbox)
	add(d, tool{name: "advise", title: "Advise on isolation", readOnly: true, idempotent: true,
		about: "Say which isolation code must run behind on this host, and why, without running anything. What is not said is taken to be the careful word.",
		limits: limits{"origin": oneOf(firebreak.OriginWords()...), "tenancy": oneOf(firebreak.TenancyWords()...), "data": oneOf(firebreak.DataWords()...),
			"isolation": longest(maxID)}},
		(*call).advise)
}

func (c *call) createSandbox(in createIn) (result, sandboxOut, error) {
	req := c.door.cfg.Request
	req.Template, req.Driver = cmp.Or(in.Template, req.Template), cmp.Or(in.Isolation, req.Driver)
	if in.Isolation != "" {
		req.AcceptWeaker = "" // what was accepted was another one
	}
	var asks []string
	if in.Network {
		req.Workload.Needs |= firebreak.NeedNetwork
		asks = append(asks, "may its code open connections to the outside")
	}
	weaker, why, err := c.weaker(req)
	if err != nil {
		return result{}, sandboxOut{}, err
	}
	if weaker && in.Reason == "" {
		return result{}, sandboxOut{}, invalid("leave isolation out, or give a reason, and the user is asked", "%s", why)
	}
	if weaker {
		req.AcceptWeaker = in.Reason + " (the model's reason, which the user of the MCP client accepted)"
		asks = append(asks, fmt.Sprintf("may it be isolated by %s only, which is weaker than the policy accepts (%s)? The model's reason: %q", in.Isolation, strings.TrimSuffix(why, "."), in.Reason))
	}
	if len(asks) > 0 {
		ask, err := c.consent("sandbox", "The model asks for a new sandbox: "+strings.Join(asks, "; and "), in, nil)
		if err != nil || ask != nil {
			return result{ask: ask}, sandboxOut{}, err
		}
	}
	b, err := c.newBox(req)
	if err != nil {
		return result{}, sandboxOut{}, err
	}
	out := c.view(b)
	return text("Made %s.%s Name it in sandbox to use it.", describe(out), warningText(out.Warnings)), out, nil
}

// weaker reports whether the request's driver is one that the policy does not accept, and why. Whoever runs this server
// may have accepted it already.
func (c *call) weaker(req manager.Request) (bool, string, error) {
	if req.Driver == "" || req.AcceptWeaker != "" || !c.session.caller.Operator { // a tenant's user has no say in that
		return false, "", nil
	}
	d, err := c.door.cfg.Advisor.Advise(c.ctx, manager.Question{Workload: req.Workload, Driver: req.Driver, TimeLimit: c.door.lease()})
	if err != nil || d.Refusal == nil {
		return false, "", err
	}
	with, err := c.door.cfg.Advisor.Advise(c.ctx, manager.Question{Workload: req.Workload, Driver: req.Driver, TimeLimit: c.door.lease(), AcceptWeaker: "?"})
	if err != nil || with.Refusal != nil {
		return false, "", err // no consent helps: making it says why
	}
	return true, d.Refusal.Text, nil
}

func (c *call) listSandboxes() (result, listOut, error) {
	out := listOut{Sandboxes: []sandboxOut{}}
	var b strings.Builder
	for _, box := range c.session.list() {
		v := c.view(box)
		out.Sandboxes = append(out.Sandboxes, v)
		b.WriteString(describe(v) + "\n")
	}
	if len(out.Sandboxes) == 0 {
		b.WriteString("[none yet: the first tool that needs one makes it]")
	}
	return text("%s", b.String()), out, nil
}

func (c *call) view(b *box) sandboxOut {
	b.mu.Lock()
	until := b.until
	b.mu.Unlock()
	c.session.mu.Lock()
	standard := c.session.standard == b
	c.session.mu.Unlock()
	out := sandboxOut{Sandbox: b.id, Template: b.rec.Template, Driver: b.rec.Driver, Boundary: b.rec.Boundary.String(), Default: standard,
		State: "running", Ends: until.UTC().Format(time.RFC3339), Warnings: b.rec.Warnings}
	if why := b.ended(c); why != "" {
		out.State, out.Ends = "ended ("+why+")", ""
	}
	return out
}

func describe(v sandboxOut) string {
	return fmt.Sprintf("sandbox %s from template %s, isolated by %s (%s), %s", v.Sandbox, v.Template, v.Driver, v.Boundary, v.State)
}

func warningText(all []string) string {
	if len(all) == 0 {
		return ""
	}
	return " Warnings: " + strings.Join(all, "; ") + "."
}

func (c *call) killSandbox(in killIn) (result, killOut, error) {
	b := c.session.find(in.Sandbox)
	if b == nil {
		return text("This session has no sandbox %s; it may have ended.", in.Sandbox), killOut{Sandbox: in.Sandbox}, nil
	}
	if _, err := c.door.cfg.Sandboxes.Delete(c.ctx, b.id); err != nil && firebreak.KindOf(err) != firebreak.KindNotFound {
		return result{}, killOut{}, err
	}
	c.session.forget(b)
	c.log("info", map[string]any{"event": "sandbox ended", "sandbox": b.id})
	return text("Ended %s.", b.id), killOut{Sandbox: b.id, Killed: true}, nil
}

type adviseIn struct {
	Origin    string   `json:"origin,omitempty" jsonschema:"who wrote the code"`
	Tenancy   string   `json:"tenancy,omitempty" jsonschema:"who shares the host"`
	Data      string   `json:"data,omitempty" jsonschema:"what the code may see"`
	Needs     []string `json:"needs,omitempty" jsonschema:"what it needs or does much of: linux, network, file-io, syscalls, compute"`
	GPU       bool     `json:"gpu,omitempty"`
	Plugin    bool     `json:"plugin,omitempty" jsonschema:"it is a module that can do only what it is handed"`
	Isolation string   `json:"isolation,omitempty" jsonschema:"ask about this driver"`
}

type adviseOut struct {
	Driver     string       `json:"driver,omitempty"`
	Boundary   string       `json:"boundary,omitempty"`
	Refused    string       `json:"refused,omitempty"`
	Mend       string       `json:"mend,omitempty"`
	Policy     string       `json:"policy"`
	Reasons    []string     `json:"reasons"`
	Acceptable []string     `json:"acceptable"`
	Others     []notChosen  `json:"others,omitempty"`
	Duties     []adviseDuty `json:"duties,omitempty"`
}

type notChosen struct {
	Driver string `json:"driver"`
	Why    string `json:"why"`
}

type adviseDuty struct {
	Duty   string `json:"duty"`
	Status string `json:"status"`
}

func (c *call) advise(in adviseIn) (result, adviseOut, error) {
	w := firebreak.Workload{GPU: in.GPU, Plugin: in.Plugin}
	for fact, word := range map[interface{ UnmarshalText([]byte) error }]string{&w.Origin: in.Origin, &w.Tenancy: in.Tenancy, &w.Data: in.Data} {
		if err := fact.UnmarshalText([]byte(word)); err != nil {
			return result{}, adviseOut{}, err
		}
	}
	var err error
	if w.Needs, err = firebreak.ReadNeeds(in.Needs...); err != nil {
		return result{}, adviseOut{}, err
	}
	d, err := c.door.cfg.Advisor.Advise(c.ctx, manager.Question{Workload: w.AtLeast(c.session.caller.Tenant.Workload), Driver: in.Isolation})
	if err != nil {
		return result{}, adviseOut{}, err
	}
	out := adviceOf(d)
	return text("%s", adviceText(out)), out, nil
}

func adviceOf(d policy.Decision) adviseOut {
	out := adviseOut{Policy: d.Policy, Reasons: []string{}, Acceptable: slices.Clone(d.Drivers), Driver: d.Driver}
	if d.Driver != "" {
		out.Boundary = d.Boundary.String()
	}
	if d.Refusal != nil {
		out.Refused, out.Mend = d.Refusal.Text, d.Refusal.Mend
	}
	if out.Acceptable == nil {
		out.Acceptable = []string{}
	}
	for _, step := range d.Trace {
		if step.Fired && step.When != "true" {
			out.Reasons = append(out.Reasons, step.Rule+": "+step.Reason)
		}
	}
	for _, o := range d.Others {
		out.Others = append(out.Others, notChosen{o.Driver, o.Text})
	}
	for _, s := range d.Duties {
		out.Duties = append(out.Duties, adviseDuty{string(s.Duty), string(s.Status)})
	}
	return out
}

func adviceText(out adviseOut) string {
	var b strings.Builder
	if out.Driver != "" {
		fmt.Fprintf(&b, "Run it with %s (boundary %s).", out.Driver, out.Boundary)
	} else {
		fmt.Fprintf(&b, "It may not run here: %s", out.Refused)
		if out.Mend != "" {
			fmt.Fprintf(&b, " To mend it: %s.", out.Mend)
		}
	}
	fmt.Fprintf(&b, "\nAcceptable: %s. Policy %s.\n", strings.Join(out.Acceptable, ", "), out.Policy)
	for _, r := range out.Reasons {
		b.WriteString("- " + r + "\n")
	}
	for _, o := range out.Others {
		fmt.Fprintf(&b, "Not %s: %s\n", o.Driver, o.Why)
	}
	return b.String()
}
