package rpc

import (
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/firebreak-dev/firebreak"
	firebreakv1 "github.com/firebreak-dev/firebreak/internal/api/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/manager"
	"github.com/firebreak-dev/firebreak/internal/store"
)

func requestOf(msg *firebreakv1.CreateSandboxRequest) (manager.Request, error) {
	l := msg.GetLimits()
	workload, err := workloadOf(msg.GetWorkload())
	req := manager.Request{
		Template: msg.GetTemplate(), Language: msg.GetLanguage(), Options: msg.GetOptions(), Driver: msg.GetDriver(), Envs: msg.GetEnvs(), Timeout: msg.GetTimeout().AsDuration(),
		Limits:   firebreak.Limits{CPUs: l.GetCpus(), Memory: l.GetMemoryBytes(), Disk: l.GetDiskBytes(), PIDs: l.GetPids()},
		Detached: msg.GetDetached(), Name: msg.GetName(), Command: msg.GetCommand(),
		Workload: workload, AcceptWeaker: msg.GetAcceptWeaker(),
		Metadata: msg.GetMetadata(), OnTimeout: firebreak.TimeoutAction(msg.GetOnTimeout()), AutoResume: msg.GetAutoResume(),
	}
	for _, m := range msg.GetMounts() {
		req.Mounts = append(req.Mounts, driver.Mount{Source: m.GetSource(), Target: m.GetTarget(), ReadOnly: m.GetReadOnly()})
	}
	return req, err
}

// sandboxMessage tells all of a record but what is the server's own: the agent's token, the owner, the places.
func sandboxMessage(r store.Record) *firebreakv1.Sandbox {
	l := r.Spec.Limits
	msg := &firebreakv1.Sandbox{
		Id: string(r.ID), State: string(r.State), Template: r.Template, Driver: r.Driver, Boundary: r.Boundary.String(),
		Name: r.Name, Detached: r.Detached, CreatedAt: timestamp(r.Created), Deadline: timestamp(r.Deadline),
		Limits:    &firebreakv1.Limits{Cpus: l.CPUs, MemoryBytes: l.Memory, DiskBytes: l.Disk, Pids: l.PIDs},
		EndReason: string(r.Exit.Reason), EndDetail: r.Exit.Detail, EndedAt: timestamp(r.Ended), Elsewhere: r.Elsewhere, Warnings: r.Warnings, Command: r.Command,
		Metadata: r.Metadata, Tenant: r.Tenant, PausedAt: timestamp(r.Paused), OnTimeout: string(r.OnTimeout), AutoResume: r.AutoResume,
	}
	for _, m := range r.Spec.Mounts {
		msg.Mounts = append(msg.Mounts, &firebreakv1.Mount{Source: m.Source, Target: m.Target, ReadOnly: m.ReadOnly})
	}
	return msg
}

func usageMessage(u driver.Usage) *firebreakv1.Usage {
	return &firebreakv1.Usage{Cpu: durationpb.New(u.CPU), MemoryBytes: u.Memory, MemoryPeakBytes: u.MemoryPeak,
		Pids: u.PIDs, OomKills: u.OOMKills, PidsDenied: u.PIDsDenied}
}

func timingsMessage(t manager.Timings) *firebreakv1.Timings {
	return &firebreakv1.Timings{Image: durationpb.New(t.Image), Create: durationpb.New(t.Create), Agent: durationpb.New(t.Agent)}
}

func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}
