package rpc

import (
	"context"
	"fmt"
	"time"

	"connectrpc.com/connect"

	"github.com/firebreak-dev/firebreak"
	firebreakv1 "github.com/firebreak-dev/firebreak/internal/api/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/auth"
)

type sandboxService struct{ cfg Config }

func (s *sandboxService) CreateSandbox(ctx context.Context, req *connect.Request[firebreakv1.CreateSandboxRequest]) (*connect.Response[firebreakv1.CreateSandboxResponse], error) {
	asked, err := requestOf(req.Msg)
	if err == nil {
		asked.Timeout, err = s.bounded(ctx, asked.Timeout, true)
	}
	if err != nil {
		return nil, err
	}
	asked.Detached = asked.Detached || s.cfg.Detach
	rec, t, err := s.cfg.Sandboxes.Create(ctx, asked)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&firebreakv1.CreateSandboxResponse{Sandbox: decidedMessage(rec), Timings: timingsMessage(t)}), nil
}

// bounded holds the time that a tenant asks for to the longest that there is; none becomes that if it stands for for ever.
func (s *sandboxService) bounded(ctx context.Context, d time.Duration, forEver bool) (time.Duration, error) {
	most := s.cfg.MaxTimeout
	c, err := auth.CallerOf(ctx)
	switch {
	case err != nil || c.Operator || most == 0:
		return d, err
	case d == 0 && forEver:
		return most, nil
	case d > most:
		return d, &firebreak.Error{Kind: firebreak.KindInvalid, Err: fmt.Errorf("a timeout of %s is longer than %s", d, most),
			Mend: "ask for less, and for more again before it is over"}
	}
	return d, nil
}

func (s *sandboxService) GetSandbox(ctx context.Context, req *connect.Request[firebreakv1.GetSandboxRequest]) (*connect.Response[firebreakv1.GetSandboxResponse], error) {
	rec, err := s.cfg.Sandboxes.Get(ctx, req.Msg.GetId())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&firebreakv1.GetSandboxResponse{Sandbox: decidedMessage(rec), Usage: usageMessage(rec.Usage)}), nil
}

func (s *sandboxService) ListSandboxes(ctx context.Context, req *connect.Request[firebreakv1.ListSandboxesRequest]) (*connect.Response[firebreakv1.ListSandboxesResponse], error) {
	p, err := pageOf(req.Msg)
	if err != nil {
		return nil, err
	}
	all, err := s.cfg.Sandboxes.List(ctx)
	if err != nil {
		return nil, err
	}
	resp := &firebreakv1.ListSandboxesResponse{}
	for _, rec := range all {
		if !p.wants(rec) {
			continue
		}
		if p.full(len(resp.Sandboxes)) {
			resp.NextPageToken = p.token(resp.Sandboxes[len(resp.Sandboxes)-1])
			break
		}
		resp.Sandboxes = append(resp.Sandboxes, sandboxMessage(rec))
	}
	return connect.NewResponse(resp), nil
}

func (s *sandboxService) WaitSandbox(ctx context.Context, req *connect.Request[firebreakv1.WaitSandboxRequest]) (*connect.Response[firebreakv1.WaitSandboxResponse], error) {
	rec, err := s.cfg.Sandboxes.Wait(ctx, req.Msg.GetId())
	if err != nil {
		return nil, ended(ctx, err)
	}
	return connect.NewResponse(&firebreakv1.WaitSandboxResponse{Sandbox: sandboxMessage(rec)}), nil
}

// ended makes the end of a request that somebody else ended an error that is worth another try.
func ended(ctx context.Context, err error) error {
	cause := context.Cause(ctx)
	if cause == nil || cause == ctx.Err() {
		return err // the client went away, or its time was up
	}
	return &firebreak.Error{Kind: firebreak.KindUnavailable, Err: cause, Mend: "ask again in a moment"}
}

func (s *sandboxService) DeleteSandbox(ctx context.Context, req *connect.Request[firebreakv1.DeleteSandboxRequest]) (*connect.Response[firebreakv1.DeleteSandboxResponse], error) {
	rec, err := s.cfg.Sandboxes.Delete(ctx, req.Msg.GetId())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&firebreakv1.DeleteSandboxResponse{Sandbox: sandboxMessage(rec), Usage: usageMessage(rec.Usage)}), nil
}

func (s *sandboxService) PauseSandbox(ctx context.Context, req *connect.Request[firebreakv1.PauseSandboxRequest]) (*connect.Response[firebreakv1.PauseSandboxResponse], error) {
	rec, err := s.cfg.Lives.Pause(ctx, req.Msg.GetId())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&firebreakv1.PauseSandboxResponse{Sandbox: sandboxMessage(rec)}), nil
}

func (s *sandboxService) ResumeSandbox(ctx context.Context, req *connect.Request[firebreakv1.ResumeSandboxRequest]) (*connect.Response[firebreakv1.ResumeSandboxResponse], error) {
	d, err := s.bounded(ctx, req.Msg.GetTimeout().AsDuration(), false)
	if err != nil {
		return nil, err
	}
	rec, resumed, err := s.cfg.Lives.Resume(ctx, req.Msg.GetId(), d)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&firebreakv1.ResumeSandboxResponse{Sandbox: sandboxMessage(rec), Resumed: resumed}), nil
}

func (s *sandboxService) SetSandboxTimeout(ctx context.Context, req *connect.Request[firebreakv1.SetSandboxTimeoutRequest]) (*connect.Response[firebreakv1.SetSandboxTimeoutResponse], error) {
	d, err := s.bounded(ctx, req.Msg.GetTimeout().AsDuration(), false)
	if err != nil {
		return nil, err
	}
	rec, err := s.cfg.Lives.SetTimeout(ctx, req.Msg.GetId(), d, req.Msg.GetExtendOnly())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&firebreakv1.SetSandboxTimeoutResponse{Sandbox: sandboxMessage(rec)}), nil
}
