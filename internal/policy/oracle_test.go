package policy

import (
	"time"

	"github.com/firebreak-dev/firebreak"
)

// ruling is a rule of the built-in policy, said once more, in Go: a second opinion that shares nothing with CEL.
type ruling struct {
	fires   func(w firebreak.Workload) bool
	accepts func(w firebreak.Workload, t Technology) bool // nil: all
	duties  []Duty
}

func boundaryIn(list ...firebreak.Boundary) func(firebreak.Workload, Technology) bool {
	return func(_ firebreak.Workload, t Technology) bool {
		for _, b := range list {
			if t.Boundary == b {
				return true
			}
		}
		return false
	}
}

func hardware(_ firebreak.Workload, t Technology) bool {
	return t.Boundary == firebreak.BoundaryVirtualMachine && t.Name != "qemu-tcg"
}

func oracle() map[string]ruling {
	const (
		language, container      = firebreak.BoundaryLanguage, firebreak.BoundarySharedKernel
		userKernel, vm           = firebreak.BoundaryUserKernel, firebreak.BoundaryVirtualMachine
		none                     = firebreak.BoundaryNone
		egress, secrets, limited = DutyEgressAllowlist, DutyBrokeredSecrets, DutyTimeLimit
	)
	always := func(firebreak.Workload) bool { return true }
	cluster := func(t Technology) bool { return t.Name == "kubernetes-gvisor" || t.Name == "kubernetes-kata" }
	heavy := func(w firebreak.Workload) bool { return w.Needs&(firebreak.NeedFileIO|firebreak.NeedSyscalls) != 0 }
	return map[string]ruling{
		"some-wall": {always, func(_ firebreak.Workload, t Technology) bool { return t.Boundary != none }, nil},
		"text-only": {func(w firebreak.Workload) bool { return w.Origin == firebreak.OriginNone },
			boundaryIn(language, container, userKernel, vm), []Duty{DutyHardenedContainer}},
		"trusted-code": {func(w firebreak.Workload) bool { return w.Origin == firebreak.OriginTrusted },
			boundaryIn(language, container, userKernel, vm), []Duty{DutyHardenedContainer, limited}},
		"model-written": {func(w firebreak.Workload) bool { return w.Origin >= firebreak.OriginModel },
			boundaryIn(language, userKernel, vm), []Duty{egress, secrets, limited}},
		"untrusted-code": {func(w firebreak.Workload) bool { return w.Origin == firebreak.OriginUntrusted }, nil, nil},
		"shared-tenancy": {func(w firebreak.Workload) bool { return w.Tenancy == firebreak.TenancyMulti }, hardware, []Duty{DutyIndependentKernel}},
		"regulated-data": {func(w firebreak.Workload) bool { return w.Data >= firebreak.DataRegulated }, hardware,
			[]Duty{DutyIndependentKernel, egress, secrets, limited}},
		"gpu": {func(w firebreak.Workload) bool { return w.GPU }, func(_ firebreak.Workload, t Technology) bool {
			return t.Boundary != language && t.Name != "firecracker" && t.Name != "qemu-tcg"
		}, []Duty{DutyGPUPassthrough}},
		"kubernetes": {func(w firebreak.Workload) bool { return w.Orchestrator == firebreak.OrchestratorKubernetes },
			func(_ firebreak.Workload, t Technology) bool { return cluster(t) }, nil},
		"no-cluster": {func(w firebreak.Workload) bool { return w.Orchestrator == firebreak.OrchestratorNone },
			func(_ firebreak.Workload, t Technology) bool { return !cluster(t) }, nil},
		"start-bound": {func(w firebreak.Workload) bool { return w.StartWithin > 0 }, func(w firebreak.Workload, t Technology) bool {
			return time.Duration(min(t.Start, t.Warm)) <= time.Duration(w.StartWithin)
		}, []Duty{DutyWarmStart}},
		"compute":  {func(w firebreak.Workload) bool { return w.Needs.Has(firebreak.NeedCompute) && !heavy(w) }, nil, nil},
		"heavy-io": {heavy, nil, nil},
		"audit":    {func(w firebreak.Workload) bool { return w.Audit }, hardware, []Duty{DutyAudit, DutyIndependentKernel}},
		"plugin": {func(w firebreak.Workload) bool { return w.Plugin && w.Place == firebreak.PlaceServer },
			boundaryIn(language, userKernel, vm), nil},
		"browser": {func(w firebreak.Workload) bool { return w.Place == firebreak.PlaceBrowser },
			func(_ firebreak.Workload, t Technology) bool { return t.Name == "wasm" }, nil},
		"whole-program": {func(w firebreak.Workload) bool {
			return !w.Plugin && w.Place == firebreak.PlaceServer && w.Needs != firebreak.NeedCompute
		}, boundaryIn(container, userKernel, vm), nil},
		"pure-computation": {func(w firebreak.Workload) bool {
			return w.Place == firebreak.PlaceServer && w.Needs == firebreak.NeedCompute
		}, nil, nil},
		"linux-tools": {func(w firebreak.Workload) bool { return w.Needs&(firebreak.NeedLinux|firebreak.NeedSyscalls) != 0 },
			func(_ firebreak.Workload, t Technology) bool { return t.Boundary != language }, nil},
		"network":   {func(w firebreak.Workload) bool { return w.Needs.Has(firebreak.NeedNetwork) }, nil, []Duty{egress}},
		"emulation": {always, func(_ firebreak.Workload, t Technology) bool { return t.Name != "qemu-tcg" }, nil},
	}
}

// weaker is the order of boundaries by what they keep in. A language runtime is narrow: it is weaker than a virtual
// machine, and neither weaker nor stronger than what lies between.
func weaker(a, b firebreak.Boundary) bool {
	if a == firebreak.BoundaryLanguage || b == firebreak.BoundaryLanguage {
		return a != b && (a == firebreak.BoundaryNone || b == firebreak.BoundaryVirtualMachine)
	}
	return a < b
}
