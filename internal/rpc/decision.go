package rpc

import (
	"encoding"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/firebreak-dev/firebreak"
	firebreakv1 "github.com/firebreak-dev/firebreak/internal/api/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/host"
	"github.com/firebreak-dev/firebreak/internal/manager"
	"github.com/firebreak-dev/firebreak/internal/policy"
	"github.com/firebreak-dev/firebreak/internal/store"
)

func workloadOf(msg *firebreakv1.Workload) (firebreak.Workload, error) {
	w := firebreak.Workload{GPU: msg.GetGpu(), Plugin: msg.GetPlugin(), Audit: msg.GetAudit(),
		StartWithin: firebreak.Duration(msg.GetStartWithin().AsDuration())}
	for _, fact := range []struct {
		into encoding.TextUnmarshaler
		word string
	}{
		{&w.Origin, msg.GetOrigin()}, {&w.Tenancy, msg.GetTenancy()}, {&w.Data, msg.GetData()},
		{&w.Orchestrator, msg.GetOrchestrator()}, {&w.Place, msg.GetPlace()},
	} {
		if err := fact.into.UnmarshalText([]byte(fact.word)); err != nil {
			return w, err
		}
	}
	var err error
	w.Needs, err = firebreak.ReadNeeds(msg.GetNeeds()...)
	return w, err
}

func workloadMessage(w firebreak.Workload) *firebreakv1.Workload {
	msg := &firebreakv1.Workload{Origin: word(w.Origin, w.Origin == 0), Tenancy: word(w.Tenancy, w.Tenancy == 0), Data: word(w.Data, w.Data == 0),
		Gpu: w.GPU, Plugin: w.Plugin, Needs: w.Needs.Words(), Audit: w.Audit, Orchestrator: word(w.Orchestrator, w.Orchestrator == 0),
		Place: word(w.Place, w.Place == 0)}
	if w.StartWithin != 0 {
		msg.StartWithin = durationpb.New(time.Duration(w.StartWithin))
	}
	return msg
}

// word is empty on the wire for what is unset.
func word(v fmt.Stringer, unset bool) string {
	if unset {
		return ""
	}
	return v.String()
}

func texts[T fmt.Stringer](list []T) []string {
	all := make([]string, len(list))
	for i, v := range list {
		all[i] = v.String()
	}
	return all
}

func plainTexts[T ~string](list []T) []string {
	all := make([]string, len(list))
	for i, v := range list {
		all[i] = string(v)
	}
	return all
}

func decisionMessage(d policy.Decision) *firebreakv1.Decision {
	msg := &firebreakv1.Decision{Policy: d.Policy, Workload: workloadMessage(d.Workload), Driver: d.Driver, Boundaries: texts(d.Boundaries), Drivers: d.Drivers}
	if d.Driver != "" {
		msg.Boundary = d.Boundary.String()
	}
	for _, a := range d.Defaults {
		msg.Defaults = append(msg.Defaults, &firebreakv1.Decision_Assumption{Fact: a.Fact, Value: a.Value, Reason: a.Reason})
	}
	if o := d.Override; o != nil {
		msg.Override = &firebreakv1.Decision_Override{Driver: o.Driver, Why: o.Why, Rules: o.Rules}
	}
	if r := d.Refusal; r != nil {
		msg.Refusal = &firebreakv1.Decision_Refusal{Text: r.Text, Mend: r.Mend, Rules: r.Rules, Kind: r.Kind.String()}
	}
	for _, o := range d.Others {
		other := &firebreakv1.Decision_Other{Driver: o.Driver, Boundary: o.Boundary.String(), Rules: o.Rules, Text: o.Text}
		if o.Problem != nil {
			other.Problem = problemMessage(*o.Problem)
		}
		msg.Others = append(msg.Others, other)
	}
	for _, s := range d.Duties {
		msg.Duties = append(msg.Duties, &firebreakv1.Decision_Duty{Duty: string(s.Duty), Status: string(s.Status), Text: s.Text, Rules: s.Rules})
	}
	for _, s := range d.Trace {
		msg.Trace = append(msg.Trace, &firebreakv1.Decision_Step{Rule: s.Rule, Fired: s.Fired, When: s.When, Reason: s.Reason, Error: s.Error})
	}
	return msg
}

// decidedMessage is a sandbox with its decision, which is too long for a list of sandboxes.
func decidedMessage(rec store.Record) *firebreakv1.Sandbox {
	msg := sandboxMessage(rec)
	if rec.Decision != nil { // else an older version made it
		msg.Decision = decisionMessage(*rec.Decision)
	}
	return msg
}

func problemMessage(p driver.Problem) *firebreakv1.Problem {
	return &firebreakv1.Problem{Text: p.Text, Mend: p.Mend}
}

func problemMessages(list []driver.Problem) []*firebreakv1.Problem {
	var all []*firebreakv1.Problem
	for _, p := range list {
		all = append(all, problemMessage(p))
	}
	return all
}

func reportMessage(r manager.Report) *firebreakv1.Report {
	msg := &firebreakv1.Report{Host: hostMessage(r.Host)}
	msg.Host.Kvm.Cached = r.KVMKept
	for _, d := range r.Drivers {
		msg.Drivers = append(msg.Drivers, &firebreakv1.DriverReport{Name: d.Info.Name, Version: d.Info.Version, Boundary: d.Info.Boundary.String(),
			Healthy: d.Info.Healthy(), Problems: problemMessages(d.Info.Problems), Warnings: problemMessages(d.Info.Warnings),
			Abilities: d.Info.Caps.Names(), TriedAt: timestamp(d.At), Took: durationpb.New(d.Took), Cached: d.Kept})
	}
	for _, c := range r.Cases {
		msg.Cases = append(msg.Cases, &firebreakv1.CommonCase{Name: c.Name, Decision: decisionMessage(c.Decision)})
	}
	return msg
}

func hostMessage(f host.Facts) *firebreakv1.Host {
	return &firebreakv1.Host{Kernel: f.Kernel, Arch: f.Arch, Cpus: int32(f.CPUs), MemoryBytes: f.Memory, MemoryFreeBytes: f.MemoryFree,
		Cgroups: f.Cgroups, UserNamespaces: f.UserNamespaces, Lsms: f.LSMs, Gpus: f.GPUs,
		StateDisk: &firebreakv1.Host_Disk{Path: f.StateDisk.Path, TotalBytes: f.StateDisk.Total, FreeBytes: f.StateDisk.Free},
		Kvm:       &firebreakv1.Host_KVM{Present: f.KVM.Present, Usable: f.KVM.Usable, Detail: f.KVM.Detail, Mend: f.KVM.Mend},
		Problems:  problemMessages(f.Problems)}
}
