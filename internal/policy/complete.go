package policy

import (
	"github.com/firebreak-dev/firebreak"
)

// Assumption is a fact that the caller left unset, and the careful word that was taken for it.
type Assumption struct {
	Fact   string `json:"fact"`
	Value  string `json:"value"`
	Reason string `json:"reason"`
}

// Complete sets each unset fact of w to the careful word and says which it set. It is no part of the file of rules, so
// that no file can make it careless.
func Complete(w firebreak.Workload) (firebreak.Workload, []Assumption) {
	var taken []Assumption
	take := func(fact, value, reason string) { taken = append(taken, Assumption{fact, value, reason}) }
	if w.Origin == firebreak.OriginUnset {
		w.Origin = firebreak.OriginModel
		take("origin", w.Origin.String(), "nobody says that a person has read the code")
	}
	if w.Tenancy == firebreak.TenancyUnset {
		w.Tenancy = firebreak.TenancySingle
		take("tenancy", w.Tenancy.String(), "nobody says that tenants share this host")
	}
	if w.Data == firebreak.DataUnset {
		w.Data = firebreak.DataInternal
		take("data", w.Data.String(), "nobody says that the data is public")
	}
	if w.Orchestrator == firebreak.OrchestratorUnset {
		w.Orchestrator = firebreak.OrchestratorNone
		take("orchestrator", w.Orchestrator.String(), "nobody names a cluster")
	}
	if w.Place == firebreak.PlaceUnset {
		w.Place = firebreak.PlaceServer
		take("place", w.Place.String(), "nobody says that it runs in a browser")
	}
	if w.Needs == 0 && !w.Plugin && w.Place == firebreak.PlaceServer {
		w.Needs = firebreak.NeedLinux
		take("needs", w.Needs.String(), "nobody says that the code is a module that could do without programs")
	}
	return w, taken
}
