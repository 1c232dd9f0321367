package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/firebreak-dev/firebreak"
)

// Duty is what must come with a boundary.
type Duty string

// The duties.
const (
	DutyHardenedContainer Duty = "hardened-container" // no capabilities, a list of system calls, a read-only root
	DutyIndependentKernel Duty = "independent-kernel" // the sandbox has a kernel of its own
	DutyEgressAllowlist   Duty = "egress-allowlist"   // connections leave only to what is listed
	DutyBrokeredSecrets   Duty = "brokered-secrets"   // secrets are put in at egress and never enter the sandbox
	DutyTimeLimit         Duty = "time-limit"         // it ends by itself
	DutyAudit             Duty = "audit"              // a record that cannot be changed unseen
	DutyGPUPassthrough    Duty = "gpu-passthrough"    // the sandbox sees a GPU
	DutyWarmStart         Duty = "warm-start"         // it is booted, restored or forked ahead
)

// Duties lists all duties.
func Duties() []Duty {
	return []Duty{DutyHardenedContainer, DutyIndependentKernel, DutyEgressAllowlist, DutyBrokeredSecrets, DutyTimeLimit, DutyAudit,
		DutyGPUPassthrough, DutyWarmStart}
}

// Status says what becomes of a duty.
type Status string

// The statuses.
const (
	StatusEnforced Status = "enforced"         // it holds for this sandbox
	StatusRefused  Status = "refused"          // what would need it is not given at all
	StatusNotYet   Status = "not-enforced-yet" // this version does not do it
	StatusWaived   Status = "waived"           // the accepted weaker driver gives it up
)

// DutyStatus is one duty of a decision. It is what this version of Firebreak does: no file of rules can claim more.
type DutyStatus struct {
	Duty   Duty     `json:"duty"`
	Status Status   `json:"status"`
	Text   string   `json:"text"`
	Rules  []string `json:"rules"` // those that ask for it
}

// dutyStatuses fills the decision's duties, in the order of Duties.
func (c *chooser) dutyStatuses() {
	for _, duty := range Duties() {
		if i := slices.IndexFunc(c.duties, func(d demand) bool { return d.duty == duty }); i >= 0 {
			status, text := c.status(duty)
			c.d.Duties = append(c.d.Duties, DutyStatus{duty, status, text, c.duties[i].rules})
		}
	}
}

func (c *chooser) status(duty Duty) (Status, string) {
	switch duty {
	case DutyHardenedContainer, DutyIndependentKernel:
		return c.wallStatus(duty)
	case DutyEgressAllowlist:
		switch {
		case c.d.Boundary == firebreak.BoundaryNone:
			return StatusWaived, c.d.Driver + " shares the host's network."
		case c.d.Workload.Needs.Has(firebreak.NeedNetwork):
			return StatusRefused, "This version gives a sandbox no network, so the one that it needs is refused."
		}
		return StatusEnforced, "A sandbox has no network but its own loopback, so nothing leaves."
	case DutyBrokeredSecrets:
		return StatusNotYet, "This version brokers no secrets: hand none to the sandbox, since code inside can read its environment."
	case DutyTimeLimit:
		if c.limit <= 0 {
			return StatusNotYet, "Nobody gave this sandbox a time limit: give it one with --timeout."
		}
		return StatusEnforced, fmt.Sprintf("The sandbox is destroyed after %s.", c.limit)
	case DutyAudit:
		return StatusNotYet, "This version keeps no record that shows tampering."
	case DutyGPUPassthrough:
		return StatusRefused, "This version passes no GPU to a sandbox."
	case DutyWarmStart:
		return StatusNotYet, warmStart + c.coldStart()
	}
	return StatusNotYet, "This version does not know this duty."
}

const warmStart = "Only a server's pools make sandboxes ahead, and no rule looks whether one is ready"

// wallStatus is the status of the duties that the boundary itself fulfils.
func (c *chooser) wallStatus(duty Duty) (Status, string) {
	b := c.d.Boundary
	switch {
	case c.d.Driver == "":
		return StatusRefused, "No sandbox is made without it."
	case b >= firebreak.BoundaryUserKernel:
		return StatusEnforced, c.d.Driver + " brings a kernel of its own."
	case duty == DutyHardenedContainer && b == firebreak.BoundarySharedKernel:
		return StatusEnforced, "Programs have no capabilities, gain none, and may make only listed system calls."
	case duty == DutyHardenedContainer && b == firebreak.BoundaryLanguage:
		return StatusEnforced, c.d.Driver + " offers the code no system calls."
	}
	return StatusWaived, c.d.Driver + " does not give it."
}

func (c *chooser) coldStart() string {
	i := c.p.technology(c.d.Driver)
	if i < 0 {
		return "."
	}
	t, fits := c.p.technologies[i], "is over"
	if t.Start <= c.d.Workload.StartWithin {
		fits = "is within"
	}
	return fmt.Sprintf(": the cold start of %s takes about %s, which %s the bound of %s.", t.Name, milliseconds(t.Start), fits, milliseconds(c.d.Workload.StartWithin))
}

// Unmet returns the first duty of a decision that chose something, although this version gives no sandbox what the duty
// is about: nothing may be made then. Nil if there is none.
func (d *Decision) Unmet() *DutyStatus {
	for i, s := range d.Duties {
		if d.Driver != "" && s.Status == StatusRefused {
			return &d.Duties[i]
		}
	}
	return nil
}

// RefuseUnmet takes the choice back if a duty is unmet.
func (d *Decision) RefuseUnmet() {
	unmet := d.Unmet()
	if unmet == nil {
		return
	}
	r := Refusal{Kind: firebreak.KindUnsupported, Text: fmt.Sprintf("%s would be chosen, but the duty %s is not met: %s", d.Driver, unmet.Duty, strings.TrimSuffix(unmet.Text, ".")),
		Mend: "do without what the duty is about", Rules: unmet.Rules}
	switch unmet.Duty {
	case DutyEgressAllowlist:
		r.Mend = "leave the need for a network out: the code then runs without one"
	case DutyGPUPassthrough:
		r.Mend = "leave the GPU out: the code then runs without one"
	}
	d.Driver, d.Boundary, d.Override, d.Refusal = "", 0, nil, &r
}
