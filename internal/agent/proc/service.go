package proc

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/agent/account"
	processv1 "github.com/firebreak-dev/firebreak/internal/api/process"
	"github.com/firebreak-dev/firebreak/internal/api/process/processconnect"
)

// The wrappers of Connect, whose full names would fill every line.
type (
	request[T any]      = connect.Request[T]
	response[T any]     = connect.Response[T]
	stream[T any]       = connect.ServerStream[T]
	clientStream[T any] = connect.ClientStream[T]
)

// Service serves process.Process for the manager of each request, which it finds by the request's context.
type Service func(context.Context) *Manager

var _ processconnect.ProcessHandler = Service(nil)

// Handler returns the path of the service and its handler, which serves the managers that of returns.
func Handler(of func(context.Context) *Manager, opts ...connect.HandlerOption) (string, http.Handler) {
	path, h := processconnect.NewProcessHandler(Service(of), opts...)
	return path, withLifetime(h)
}

type lifetimeKey struct{}

// withLifetime takes the time limit of Start out of Connect's hands: there it is the time that the process has, and
// the stream goes on until the last output of the killed process is sent. A limit of zero means none, for all calls.
func withLifetime(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		const header = "Connect-Timeout-Ms"
		text := r.Header.Get(header)
		ms, err := strconv.ParseUint(text, 10, 34) // ten digits at most; Connect itself refuses what is malformed
		switch {
		case err != nil || len(text) > 10:
		case ms == 0:
			r.Header.Del(header)
		case r.URL.Path == processconnect.ProcessStartProcedure:
			r.Header.Del(header)
			deadline := time.Now().Add(time.Duration(ms) * time.Millisecond)
			r = r.WithContext(context.WithValue(r.Context(), lifetimeKey{}, deadline))
		}
		next.ServeHTTP(w, r)
	})
}

// lifetime is when a process that is started now must end; gRPC's limit is still the context's.
func lifetime(ctx context.Context) time.Time {
	deadline, ok := ctx.Value(lifetimeKey{}).(time.Time)
	if !ok {
		deadline, _ = ctx.Deadline()
	}
	return deadline
}

// keepalive is how long a stream may be silent.
func keepalive(h http.Header) time.Duration {
	seconds, err := strconv.Atoi(h.Get("Keepalive-Ping-Interval"))
	if err != nil || seconds <= 0 || seconds > 3600 {
		seconds = 90
	}
	return time.Duration(seconds) * time.Second
}

// List implements process.Process.
func (s Service) List(ctx context.Context, _ *request[processv1.ListRequest]) (*response[processv1.ListResponse], error) {
	res := &processv1.ListResponse{}
	for _, p := range s(ctx).List() {
		res.Processes = append(res.Processes, p.Info())
	}
	return connect.NewResponse(res), nil
}

// Start implements process.Process.
func (s Service) Start(ctx context.Context, req *request[processv1.StartRequest], out *stream[processv1.StartResponse]) error {
	m := s(ctx)
	user, err := m.Session.User(account.HeaderUser(req.Header()))
	if err != nil {
		return connect.NewError(connect.CodeUnauthenticated, err)
	}
	p, reader, err := m.Start(ctx, user, req.Msg, lifetime(ctx))
	if err != nil {
		return err
	}
	defer reader.Close()
	return p.follow(ctx, reader, keepalive(req.Header()), true, func(e *processv1.ProcessEvent) error {
		return out.Send(&processv1.StartResponse{Event: e})
	})
}

// Connect implements process.Process.
func (s Service) Connect(ctx context.Context, req *request[processv1.ConnectRequest], out *stream[processv1.ConnectResponse]) error {
	p, err := s(ctx).Find(req.Msg.GetProcess())
	if err != nil {
		return err
	}
	var from *Offsets
	if o := req.Msg.GetResumeFrom(); o != nil {
		from = &Offsets{o.GetStdout(), o.GetStderr(), o.GetPty()}
	}
	reader, err := p.output.Subscribe(from)
	if err != nil {
		return connect.NewError(connect.CodeOutOfRange, err)
	}
	defer reader.Close()
	return p.follow(ctx, reader, keepalive(req.Header()), false, func(e *processv1.ProcessEvent) error {
		return out.Send(&processv1.ConnectResponse{Event: e})
	})
}

type event = processv1.ProcessEvent

// follow sends the start, what the reader reads, and the end. The one who started the process learns of its deadline
// as an error; others see how it ended.
func (p *Process) follow(ctx context.Context, r *Reader, silence time.Duration, starter bool, send func(*event) error) error {
	if err := send(p.startEvent(r)); err != nil {
		return err
	}
	tick := time.NewTimer(silence)
	defer tick.Stop()
	buf := make([]byte, minChunk)
	for {
		chunk, err := r.Read(ctx, tick.C, buf)
		switch {
		case errors.Is(err, errEnded) && starter && p.expired.Load():
			return connect.NewError(connect.CodeDeadlineExceeded, errors.New("the process was killed at its deadline"))
		case errors.Is(err, errEnded):
			return send(&processv1.ProcessEvent{Event: &processv1.ProcessEvent_End{End: EndEvent(p.status)}})
		case err != nil:
			return err
		}
		if err := send(chunk.event()); err != nil {
			return err
		}
		r.Sent(chunk)
		if n := len(chunk.Data); n == len(buf) && n < pipeChunk {
			buf = make([]byte, 2*n)
		}
		tick.Reset(silence)
	}
}

func (p *Process) startEvent(r *Reader) *processv1.ProcessEvent {
	at := r.Next()
	return &processv1.ProcessEvent{Event: &processv1.ProcessEvent_Start{Start: &processv1.ProcessEvent_StartEvent{
		Pid: uint32(p.pid), Offsets: &processv1.Offsets{Stdout: at[Stdout], Stderr: at[Stderr], Pty: at[PTY]},
	}}}
}

// event makes a data event, or a keepalive of an empty chunk.
func (c Chunk) event() *processv1.ProcessEvent {
	if len(c.Data) == 0 {
		return &processv1.ProcessEvent{Event: &processv1.ProcessEvent_Keepalive{Keepalive: &processv1.ProcessEvent_KeepAlive{}}}
	}
	data := &processv1.ProcessEvent_DataEvent{Offset: c.Offset}
	switch c.Stream {
	case Stdout:
		data.Output = &processv1.ProcessEvent_DataEvent_Stdout{Stdout: c.Data}
	case Stderr:
		data.Output = &processv1.ProcessEvent_DataEvent_Stderr{Stderr: c.Data}
	default:
		data.Output = &processv1.ProcessEvent_DataEvent_Pty{Pty: c.Data}
	}
	return &processv1.ProcessEvent{Event: &processv1.ProcessEvent_Data{Data: data}}
}

// SendInput implements process.Process.
func (s Service) SendInput(ctx context.Context, req *request[processv1.SendInputRequest]) (*response[processv1.SendInputResponse], error) {
	p, err := s.running(ctx, req.Msg.GetProcess())
	if err != nil {
		return nil, err
	}
	if err := p.Input(ctx, req.Msg.GetInput()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&processv1.SendInputResponse{}), nil
}

// StreamInput implements process.Process.
func (s Service) StreamInput(ctx context.Context, in *clientStream[processv1.StreamInputRequest]) (*response[processv1.StreamInputResponse], error) {
	var p *Process
	for in.Receive() {
		var err error
		switch e := in.Msg().GetEvent().(type) {
		case *processv1.StreamInputRequest_Start:
			p, err = s.running(ctx, e.Start.GetProcess())
		case *processv1.StreamInputRequest_Data:
			if p == nil {
				return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("input comes before the process it is for"))
			}
			err = p.Input(ctx, e.Data.GetInput())
		}
		if err != nil {
			return nil, err
		}
	}
	if err := in.Err(); err != nil {
		return nil, err
	}
	return connect.NewResponse(&processv1.StreamInputResponse{}), nil
}

// SendSignal implements process.Process.
func (s Service) SendSignal(ctx context.Context, req *request[processv1.SendSignalRequest]) (*response[processv1.SendSignalResponse], error) {
	p, err := s.running(ctx, req.Msg.GetProcess())
	if err != nil {
		return nil, err
	}
	sig := req.Msg.GetSignal()
	if _, known := processv1.Signal_name[int32(sig)]; !known || sig == processv1.Signal_SIGNAL_UNSPECIFIED {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("no such signal"))
	}
	err = p.manager.Launcher.Signal(p.pid, unix.Signal(sig))
	if errors.Is(err, unix.ESRCH) {
		return nil, connect.NewError(connect.CodeNotFound, errors.New("process has ended"))
	}
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&processv1.SendSignalResponse{}), nil
}

// CloseStdin implements process.Process.
func (s Service) CloseStdin(ctx context.Context, req *request[processv1.CloseStdinRequest]) (*response[processv1.CloseStdinResponse], error) {
	p, err := s.running(ctx, req.Msg.GetProcess())
	if err != nil {
		return nil, err
	}
	if err := p.CloseInput(ctx); err != nil {
		return nil, err
	}
	return connect.NewResponse(&processv1.CloseStdinResponse{}), nil
}

// Update implements process.Process.
func (s Service) Update(ctx context.Context, req *request[processv1.UpdateRequest]) (*response[processv1.UpdateResponse], error) {
	p, err := s.running(ctx, req.Msg.GetProcess())
	if err != nil {
		return nil, err
	}
	if size := req.Msg.GetPty().GetSize(); size != nil {
		if err := p.Resize(size); err != nil {
			return nil, err
		}
	}
	return connect.NewResponse(&processv1.UpdateResponse{}), nil
}

func (s Service) running(ctx context.Context, sel *processv1.ProcessSelector) (*Process, error) {
	p, err := s(ctx).Find(sel)
	if err != nil {
		return nil, err
	}
	select {
	case <-p.exited:
		return nil, connect.NewError(connect.CodeNotFound, errors.New("process has ended"))
	default:
		return p, nil
	}
}

// EndEvent says how a process ended in the protocol's words, which are Go's.
func EndEvent(status unix.WaitStatus) *processv1.ProcessEvent_EndEvent {
	end := &processv1.ProcessEvent_EndEvent{ExitCode: -1}
	switch {
	case status.Exited():
		end.ExitCode, end.Exited = int32(status.ExitStatus()), true
		end.Status = "exit status " + strconv.Itoa(status.ExitStatus())
	case status.CoreDump():
		end.Status = "signal: " + status.Signal().String() + " (core dumped)"
	default:
		end.Status = "signal: " + status.Signal().String()
	}
	if end.ExitCode != 0 {
		end.Error = &end.Status
	}
	return end
}
