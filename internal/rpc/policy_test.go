package rpc_test

import (
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/client"
	firebreakv1 "github.com/firebreak-dev/firebreak/internal/api/firebreak/v1"
)

func TestAdviseDecidesAsCreateDoes(t *testing.T) {
	both(t, func(t *testing.T, c *client.Client) {
		said := &firebreakv1.Workload{Origin: "trusted", Tenancy: "multi", Data: "public", Gpu: true, Plugin: true, Audit: true, Orchestrator: "kubernetes",
			Place: "browser", Needs: []string{"linux", "file-io"}, StartWithin: durationpb.New(10 * time.Millisecond)}
		got, err := c.Policy.Advise(t.Context(), connect.NewRequest(&firebreakv1.AdviseRequest{Workload: said}))
		if err != nil {
			t.Fatal(err)
		}
		d := got.Msg.GetDecision()
		if !proto.Equal(d.GetWorkload(), said) {
			t.Errorf("said %v, decided for %v", said, d.GetWorkload())
		}
		if d.GetDriver() != "fake" || d.GetBoundary() != "language" || d.GetRefusal() != nil || len(d.GetDrivers()) != 2 || len(d.GetOthers()) != 1 ||
			d.GetDuties()[0].GetStatus() != "not-enforced-yet" || !d.GetTrace()[0].GetFired() || d.GetTrace()[1].GetFired() {
			t.Errorf("decision %v", d)
		}
		made, err := c.Sandboxes.CreateSandbox(t.Context(), connect.NewRequest(&firebreakv1.CreateSandboxRequest{Workload: said}))
		if err != nil {
			t.Fatal(err)
		}
		sb := made.Msg.GetSandbox()
		if !proto.Equal(sb.GetDecision(), d) {
			t.Errorf("advised %v, created by %v", d, sb.GetDecision())
		}
		again, err := c.Sandboxes.GetSandbox(t.Context(), connect.NewRequest(&firebreakv1.GetSandboxRequest{Id: sb.GetId()}))
		if err != nil || !proto.Equal(again.Msg.GetSandbox().GetDecision(), d) {
			t.Errorf("the sandbox keeps %v, %v", again.Msg.GetSandbox().GetDecision(), err)
		}
		list, err := c.Sandboxes.ListSandboxes(t.Context(), connect.NewRequest(&firebreakv1.ListSandboxesRequest{}))
		if err != nil || list.Msg.GetSandboxes()[0].GetDecision() != nil {
			t.Errorf("a list carries decisions: %v, %v", list, err)
		}
	})
}

func TestRefusalIsAnAnswerAndAnError(t *testing.T) {
	both(t, func(t *testing.T, c *client.Client) {
		said := &firebreakv1.Workload{Data: "health"}
		got, err := c.Policy.Advise(t.Context(), connect.NewRequest(&firebreakv1.AdviseRequest{Workload: said}))
		if err != nil {
			t.Fatal(err)
		}
		d := got.Msg.GetDecision()
		if r := d.GetRefusal(); d.GetDriver() != "" || d.GetBoundary() != "" || r.GetKind() != "host" || !strings.Contains(r.GetText(), "regulated") || r.GetMend() == "" {
			t.Errorf("refusal %v", r)
		}
		_, err = c.Sandboxes.CreateSandbox(t.Context(), connect.NewRequest(&firebreakv1.CreateSandboxRequest{Workload: said}))
		if firebreak.KindOf(err) != firebreak.KindHost || !strings.Contains(err.Error(), d.GetRefusal().GetText()) {
			t.Errorf("create: %v", err)
		}
		req := &firebreakv1.AdviseRequest{Workload: said, Driver: "fake", AcceptWeaker: "a test", TimeLimit: durationpb.New(time.Minute)}
		if got, err = c.Policy.Advise(t.Context(), connect.NewRequest(req)); err != nil || got.Msg.GetDecision().GetOverride().GetWhy() != "a test" {
			t.Errorf("override: %v, %v", got, err)
		}
	})
}

func TestWordsThatAreNone(t *testing.T) {
	both(t, func(t *testing.T, c *client.Client) {
		for want, w := range map[string]*firebreakv1.Workload{
			`"me" is none of none, trusted`: {Origin: "me"}, `"all" is none of single`: {Tenancy: "all"}, `"some" is none of public`: {Data: "some"},
			`"nomad" is none of none`: {Orchestrator: "nomad"}, `"moon" is none of server`: {Place: "moon"}, `"x" is none of linux`: {Needs: []string{"x"}},
		} {
			_, err := c.Policy.Advise(t.Context(), connect.NewRequest(&firebreakv1.AdviseRequest{Workload: w}))
			if firebreak.KindOf(err) != firebreak.KindInvalid || !strings.Contains(err.Error(), want) {
				t.Errorf("advise for %v: %v", w, err)
			}
			_, err = c.Sandboxes.CreateSandbox(t.Context(), connect.NewRequest(&firebreakv1.CreateSandboxRequest{Workload: w}))
			if firebreak.KindOf(err) != firebreak.KindInvalid || !strings.Contains(err.Error(), want) {
				t.Errorf("create for %v: %v", w, err)
			}
		}
		late := &firebreakv1.Workload{StartWithin: durationpb.New(-time.Second)}
		if got, err := c.Policy.Advise(t.Context(), connect.NewRequest(&firebreakv1.AdviseRequest{Workload: late})); err != nil || got.Msg.GetDecision().GetRefusal().GetKind() != "invalid" {
			t.Errorf("a start before the request: %v, %v", got, err)
		}
	})
}

func TestGetPolicy(t *testing.T) {
	both(t, func(t *testing.T, c *client.Client) {
		got, err := c.Policy.GetPolicy(t.Context(), connect.NewRequest(&firebreakv1.GetPolicyRequest{}))
		if err != nil {
			t.Fatal(err)
		}
		p := got.Msg
		if p.GetName() != "anything" || len(p.GetVersion()) != 12 || p.GetYaml() != anything || p.GetExtendsYaml() != "" || len(p.GetRules()) != 2 {
			t.Errorf("policy %v", p)
		}
		if r := p.GetRules()[0]; r.GetId() != "all" || r.GetWhen() != "true" || r.GetBoundaries()[1] != "virtual-machine" || r.GetDuties()[0] != "brokered-secrets" {
			t.Errorf("rule %v", r)
		}
	})
}

func TestDoctor(t *testing.T) {
	both(t, func(t *testing.T, c *client.Client) {
		stream, err := c.Host.Doctor(t.Context(), connect.NewRequest(&firebreakv1.DoctorRequest{Fresh: true}))
		if err != nil {
			t.Fatal(err)
		}
		defer stream.Close()
		var steps []string
		var report *firebreakv1.Report
		for stream.Receive() {
			if p := stream.Msg().GetProgress(); p != nil {
				steps = append(steps, p.GetStep())
			}
			if r := stream.Msg().GetReport(); r != nil {
				report = r
			}
		}
		if err := stream.Err(); err != nil || len(steps) == 0 || report == nil {
			t.Fatalf("%v after %q", err, steps)
		}
		d := report.GetDrivers()[0]
		if d.GetName() != "fake" || d.GetBoundary() != "language" || !d.GetHealthy() || len(d.GetWarnings()) != 1 || d.GetAbilities()[0] != "pause" || d.GetCached() {
			t.Errorf("driver %v", d)
		}
		if h := report.GetHost(); h.GetKernel() == "" || h.GetKvm() == nil || h.GetStateDisk().GetPath() == "" {
			t.Errorf("host %v", h)
		}
		if cases := report.GetCases(); len(cases) != 2 || cases[0].GetDecision().GetRefusal() == nil {
			t.Errorf("common cases %v: the built-in policy knows no fake", cases)
		}
	})
}
