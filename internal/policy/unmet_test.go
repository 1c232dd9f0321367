package policy

import (
	"slices"
	"testing"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
)

func TestWhatNobodyGetsIsRefused(t *testing.T) {
	p, err := Default()
	if err != nil {
		t.Fatal(err)
	}
	host := []driver.Info{{Name: "gvisor", Boundary: firebreak.BoundaryUserKernel}, {Name: "process", Boundary: firebreak.BoundaryNone}}
	for name, c := range map[string]struct {
		w     firebreak.Workload
		o     Options
		unmet Duty
	}{
		"nothing is said":     {},
		"network":             {w: firebreak.Workload{Needs: firebreak.NeedNetwork}, unmet: DutyEgressAllowlist},
		"GPU":                 {w: firebreak.Workload{GPU: true}, unmet: DutyGPUPassthrough},
		"the host's network":  {w: firebreak.Workload{Needs: firebreak.NeedNetwork}, o: Options{Driver: "process", AcceptWeaker: "a test"}},
		"refused all the way": {w: firebreak.Workload{Tenancy: firebreak.TenancyMulti, GPU: true}},
	} {
		d := DecideFor(p, c.w, host, c.o)
		unmet := d.Unmet()
		if (unmet == nil) != (c.unmet == "") {
			t.Errorf("%s: unmet is %+v", name, unmet)
			continue
		}
		if unmet == nil {
			continue
		}
		d.RefuseUnmet()
		if unmet.Duty != c.unmet || d.Driver != "" || d.Boundary != 0 || d.Refusal.Mend == "" || !slices.Equal(d.Refusal.Rules, unmet.Rules) || firebreak.KindOf(d.Err()) != firebreak.KindUnsupported {
			t.Errorf("%s: %+v", name, d)
		}
	}
}

func TestFiredAreThoseOfTheTrace(t *testing.T) {
	p, err := Default()
	if err != nil {
		t.Fatal(err)
	}
	d := Decide(p, firebreak.Workload{Origin: firebreak.OriginTrusted, Audit: true}, nil)
	if got := d.Fired(); !slices.Contains(got, "trusted-code") || !slices.Contains(got, "audit") || slices.Contains(got, "model-written") {
		t.Errorf("fired %v", got)
	}
}
