package guest

import (
	"context"
	"sync"

	"connectrpc.com/connect"

	"github.com/firebreak-dev/firebreak/internal/api/process"
	"github.com/firebreak-dev/firebreak/internal/api/process/processconnect"
)

// processClient is the generated one, but that each method's part is made when it is first called: all of them take longer
// than a short program, and most sandboxes are only asked to start one.
type processClient struct {
	list        func() *connect.Client[process.ListRequest, process.ListResponse]
	start       func() *connect.Client[process.StartRequest, process.StartResponse]
	connect     func() *connect.Client[process.ConnectRequest, process.ConnectResponse]
	update      func() *connect.Client[process.UpdateRequest, process.UpdateResponse]
	streamInput func() *connect.Client[process.StreamInputRequest, process.StreamInputResponse]
	sendInput   func() *connect.Client[process.SendInputRequest, process.SendInputResponse]
	sendSignal  func() *connect.Client[process.SendSignalRequest, process.SendSignalResponse]
	closeStdin  func() *connect.Client[process.CloseStdinRequest, process.CloseStdinResponse]
}

var _ processconnect.ProcessClient = (*processClient)(nil)

func newProcessClient(h connect.HTTPClient) processconnect.ProcessClient {
	return &processClient{
		list:        method[process.ListRequest, process.ListResponse](h, processconnect.ProcessListProcedure),
		start:       method[process.StartRequest, process.StartResponse](h, processconnect.ProcessStartProcedure),
		connect:     method[process.ConnectRequest, process.ConnectResponse](h, processconnect.ProcessConnectProcedure),
		update:      method[process.UpdateRequest, process.UpdateResponse](h, processconnect.ProcessUpdateProcedure),
		streamInput: method[process.StreamInputRequest, process.StreamInputResponse](h, processconnect.ProcessStreamInputProcedure),
		sendInput:   method[process.SendInputRequest, process.SendInputResponse](h, processconnect.ProcessSendInputProcedure),
		sendSignal:  method[process.SendSignalRequest, process.SendSignalResponse](h, processconnect.ProcessSendSignalProcedure),
		closeStdin:  method[process.CloseStdinRequest, process.CloseStdinResponse](h, processconnect.ProcessCloseStdinProcedure),
	}
}

func method[Req, Res any](h connect.HTTPClient, procedure string) func() *connect.Client[Req, Res] {
	return sync.OnceValue(func() *connect.Client[Req, Res] { return connect.NewClient[Req, Res](h, base+procedure, limits()...) })
}

func (c *processClient) List(ctx context.Context, r *connect.Request[process.ListRequest]) (*connect.Response[process.ListResponse], error) {
	return c.list().CallUnary(ctx, r)
}

func (c *processClient) Start(ctx context.Context, r *connect.Request[process.StartRequest]) (*connect.ServerStreamForClient[process.StartResponse], error) {
	return c.start().CallServerStream(ctx, r)
}

func (c *processClient) Connect(ctx context.Context, r *connect.Request[process.ConnectRequest]) (*connect.ServerStreamForClient[process.ConnectResponse], error) {
	return c.connect().CallServerStream(ctx, r)
}

func (c *processClient) Update(ctx context.Context, r *connect.Request[process.UpdateRequest]) (*connect.Response[process.UpdateResponse], error) {
	return c.update().CallUnary(ctx, r)
}

func (c *processClient) StreamInput(ctx context.Context) *connect.ClientStreamForClient[process.StreamInputRequest, process.StreamInputResponse] {
	return c.streamInput().CallClientStream(ctx)
}

func (c *processClient) SendInput(ctx context.Context, r *connect.Request[process.SendInputRequest]) (*connect.Response[process.SendInputResponse], error) {
	return c.sendInput().CallUnary(ctx, r)
}

func (c *processClient) SendSignal(ctx context.Context, r *connect.Request[process.SendSignalRequest]) (*connect.Response[process.SendSignalResponse], error) {
	return c.sendSignal().CallUnary(ctx, r)
}

func (c *processClient) CloseStdin(ctx context.Context, r *connect.Request[process.CloseStdinRequest]) (*connect.Response[process.CloseStdinResponse], error) {
	return c.closeStdin().CallUnary(ctx, r)
}
