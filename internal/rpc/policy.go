package rpc

import (
	"context"

	"connectrpc.com/connect"

	firebreakv1 "github.com/firebreak-dev/firebreak/internal/api/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/manager"
	"github.com/firebreak-dev/firebreak/internal/policy"
)

// Advisor says what code must run behind, and what the host can do.
type Advisor interface {
	Advise(ctx context.Context, q manager.Question) (policy.Decision, error)
	Policy() (*policy.Policy, []byte, error)
	Doctor(ctx context.Context, fresh bool, tell func(step string)) (manager.Report, error)
}

type policyService struct{ advisor Advisor }

func (s *policyService) Advise(ctx context.Context, req *connect.Request[firebreakv1.AdviseRequest]) (*connect.Response[firebreakv1.AdviseResponse], error) {
	w, err := workloadOf(req.Msg.GetWorkload())
	if err != nil {
		return nil, err
	}
	template, err := visibleName(ctx, req.Msg.GetTemplate())
	if err != nil {
		return nil, err
	}
	d, err := s.advisor.Advise(ctx, manager.Question{Workload: w, Driver: req.Msg.GetDriver(), AcceptWeaker: req.Msg.GetAcceptWeaker(),
		TimeLimit: req.Msg.GetTimeLimit().AsDuration(), Template: template, Language: req.Msg.GetLanguage()})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&firebreakv1.AdviseResponse{Decision: decisionMessage(d)}), nil
}

func (s *policyService) GetPolicy(context.Context, *connect.Request[firebreakv1.GetPolicyRequest]) (*connect.Response[firebreakv1.GetPolicyResponse], error) {
	p, text, err := s.advisor.Policy()
	if err != nil {
		return nil, err
	}
	resp := &firebreakv1.GetPolicyResponse{Name: p.Name(), Version: p.Version(), Yaml: string(text)}
	if p.Extends() {
		resp.ExtendsYaml = string(policy.DefaultYAML())
	}
	for _, r := range p.Rules() {
		resp.Rules = append(resp.Rules, &firebreakv1.Rule{Id: r.ID, Number: int32(r.Number), Asks: r.Asks, When: r.When,
			Boundaries: texts(r.Boundaries), Require: r.Require, Prefer: r.Prefer, Duties: plainTexts(r.Duties), Reason: r.Reason,
			Corrects: r.Corrects, Source: r.Source})
	}
	return connect.NewResponse(resp), nil
}

type hostService struct{ advisor Advisor }

func (s *hostService) Doctor(ctx context.Context, req *connect.Request[firebreakv1.DoctorRequest], stream *connect.ServerStream[firebreakv1.DoctorResponse]) error {
	if err := onlyOperator(ctx, "look at the host"); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	tell := func(step string) {
		event := &firebreakv1.DoctorResponse_Progress{Progress: &firebreakv1.Progress{Step: step}}
		if err := stream.Send(&firebreakv1.DoctorResponse{Event: event}); err != nil {
			cancel(err) // nobody listens any more
		}
	}
	report, err := s.advisor.Doctor(ctx, req.Msg.GetFresh(), tell)
	if err != nil {
		return err
	}
	return stream.Send(&firebreakv1.DoctorResponse{Event: &firebreakv1.DoctorResponse_Report{Report: reportMessage(report)}})
}
