package cli

import (
	"context"

	"connectrpc.com/connect"

	firebreakv1 "github.com/firebreak-dev/firebreak/internal/api/firebreak/v1"
)

// decided is a decision as a server sends it.
func decided() *firebreakv1.Decision {
	return &firebreakv1.Decision{
		Policy:   "default@1234",
		Workload: &firebreakv1.Workload{Origin: "model", Tenancy: "single", Data: "internal", Needs: []string{"linux"}, Orchestrator: "none", Place: "server"},
		Defaults: []*firebreakv1.Decision_Assumption{{Fact: "origin", Value: "model", Reason: "nobody says otherwise"}},
		Driver:   "gvisor", Boundary: "user-kernel", Boundaries: []string{"user-kernel", "virtual-machine"}, Drivers: []string{"gvisor", "kata"},
		Others: []*firebreakv1.Decision_Other{
			{Driver: "container", Boundary: "shared-kernel", Rules: []string{"model-written"}, Text: "Nobody has read it."},
			{Driver: "kata", Boundary: "virtual-machine", Text: "no driver for it", Problem: &firebreakv1.Problem{Text: "no driver", Mend: "install it"}},
		},
		Duties: []*firebreakv1.Decision_Duty{
			{Duty: "egress-allowlist", Status: "enforced", Text: "It has no network.", Rules: []string{"model-written"}},
			{Duty: "brokered-secrets", Status: "not-enforced-yet", Text: "It brokers none.", Rules: []string{"model-written"}},
		},
		Trace: []*firebreakv1.Decision_Step{
			{Rule: "some-wall", Fired: true, When: "true", Reason: "A wall."},
			{Rule: "model-written", Fired: true, When: "origin == \"model\"", Reason: "Nobody has read it."},
			{Rule: "gpu", When: "gpu", Reason: "A GPU."},
		},
	}
}

func refusedDecision() *firebreakv1.Decision {
	d := decided()
	d.Driver, d.Boundary = "", ""
	d.Refusal = &firebreakv1.Decision_Refusal{Text: "nothing here gives that", Mend: "use another host", Rules: []string{"shared-tenancy"}}
	return d
}

func (s *server) Advise(_ context.Context, req *connect.Request[firebreakv1.AdviseRequest]) (*connect.Response[firebreakv1.AdviseResponse], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, req.Msg)
	d := s.decision
	if d == nil {
		d = decided()
	}
	return connect.NewResponse(&firebreakv1.AdviseResponse{Decision: d}), nil
}

func (s *server) GetPolicy(context.Context, *connect.Request[firebreakv1.GetPolicyRequest]) (*connect.Response[firebreakv1.GetPolicyResponse], error) {
	return connect.NewResponse(s.policy), nil
}

func (s *server) Doctor(_ context.Context, _ *connect.Request[firebreakv1.DoctorRequest], stream *connect.ServerStream[firebreakv1.DoctorResponse]) error {
	if err := stream.Send(&firebreakv1.DoctorResponse{Event: &firebreakv1.DoctorResponse_Progress{Progress: &firebreakv1.Progress{Step: "try"}}}); err != nil {
		return err
	}
	return stream.Send(&firebreakv1.DoctorResponse{Event: &firebreakv1.DoctorResponse_Report{Report: s.report}})
}
