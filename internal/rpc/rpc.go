// Package rpc is Firebreak's own door: the control API of firebreak.v1. It translates, and decides nothing.
package rpc

import (
	"context"
	"net/http"

	"connectrpc.com/connect"

	"github.com/firebreak-dev/firebreak/internal/api"
	firebreakv1 "github.com/firebreak-dev/firebreak/internal/api/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/api/firebreak/v1/firebreakv1connect"
	"github.com/firebreak-dev/firebreak/internal/image"
	"github.com/firebreak-dev/firebreak/internal/manager"
	"github.com/firebreak-dev/firebreak/internal/store"
)

// Sandboxes makes, finds and ends sandboxes.
type Sandboxes interface {
	Create(ctx context.Context, req manager.Request) (store.Record, manager.Timings, error)
	Get(ctx context.Context, ref string) (store.Record, error)
	List(ctx context.Context) ([]store.Record, error)
	Wait(ctx context.Context, ref string) (store.Record, error)
	Delete(ctx context.Context, ref string) (store.Record, error)
}

// Guests tells what they start from.
type Guests interface {
	Digests(ctx context.Context) (map[string]bool, error)
}

// Templates makes and keeps what sandboxes start from.
type Templates interface {
	Make(ctx context.Context, src image.Source, opts image.MakeOptions) (image.Template, error)
	Get(name string) (image.Template, error)
	List() ([]image.Template, error)
	Delete(name string) error
	Collect(ctx context.Context, inUse func(digest string) bool) (freed int64, removed int, err error)
}

// maxMessage bounds a request of the control API: the largest part of one is the environment of a sandbox.
const maxMessage = 4 << 20

// New returns the door's handler.
func New(sandboxes Sandboxes, guests Guests, templates Templates, advisor Advisor) http.Handler {
	options := []connect.HandlerOption{connect.WithReadMaxBytes(maxMessage), connect.WithInterceptors(wireErrors{}),
		connect.WithCompressMinBytes(16 << 10)}
	mux := http.NewServeMux()
	mux.Handle(firebreakv1connect.NewSandboxServiceHandler(&sandboxService{sandboxes}, options...))
	mux.Handle(firebreakv1connect.NewTemplateServiceHandler(&templateService{templates, guests}, options...))
	mux.Handle(firebreakv1connect.NewPolicyServiceHandler(&policyService{advisor}, options...))
	mux.Handle(firebreakv1connect.NewHostServiceHandler(&hostService{advisor}, options...))
	return mux
}

type sandboxService struct{ sandboxes Sandboxes }

func (s *sandboxService) CreateSandbox(ctx context.Context, req *connect.Request[firebreakv1.CreateSandboxRequest]) (*connect.Response[firebreakv1.CreateSandboxResponse], error) {
	asked, err := requestOf(req.Msg)
	if err != nil {
		return nil, err
	}
	rec, t, err := s.sandboxes.Create(ctx, asked)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&firebreakv1.CreateSandboxResponse{Sandbox: decidedMessage(rec), Timings: timingsMessage(t)}), nil
}

func (s *sandboxService) GetSandbox(ctx context.Context, req *connect.Request[firebreakv1.GetSandboxRequest]) (*connect.Response[firebreakv1.GetSandboxResponse], error) {
	rec, err := s.sandboxes.Get(ctx, req.Msg.GetId())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&firebreakv1.GetSandboxResponse{Sandbox: decidedMessage(rec), Usage: usageMessage(rec.Usage)}), nil
}

func (s *sandboxService) ListSandboxes(ctx context.Context, _ *connect.Request[firebreakv1.ListSandboxesRequest]) (*connect.Response[firebreakv1.ListSandboxesResponse], error) {
	all, err := s.sandboxes.List(ctx)
	if err != nil {
		return nil, err
	}
	resp := &firebreakv1.ListSandboxesResponse{}
	for _, rec := range all {
		resp.Sandboxes = append(resp.Sandboxes, sandboxMessage(rec))
	}
	return connect.NewResponse(resp), nil
}

func (s *sandboxService) WaitSandbox(ctx context.Context, req *connect.Request[firebreakv1.WaitSandboxRequest]) (*connect.Response[firebreakv1.WaitSandboxResponse], error) {
	rec, err := s.sandboxes.Wait(ctx, req.Msg.GetId())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&firebreakv1.WaitSandboxResponse{Sandbox: sandboxMessage(rec)}), nil
}

func (s *sandboxService) DeleteSandbox(ctx context.Context, req *connect.Request[firebreakv1.DeleteSandboxRequest]) (*connect.Response[firebreakv1.DeleteSandboxResponse], error) {
	rec, err := s.sandboxes.Delete(ctx, req.Msg.GetId())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&firebreakv1.DeleteSandboxResponse{Sandbox: sandboxMessage(rec), Usage: usageMessage(rec.Usage)}), nil
}

// wireErrors gives every error of a handler the form in which it crosses the wire.
type wireErrors struct{}

func (wireErrors) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		resp, err := next(ctx, req)
		return resp, api.ErrorToWire(err)
	}
}

func (wireErrors) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (wireErrors) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		return api.ErrorToWire(next(ctx, conn))
	}
}
