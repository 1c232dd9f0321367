package client_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/client"
	"github.com/firebreak-dev/firebreak/internal/api/process"
	"github.com/firebreak-dev/firebreak/internal/api/process/processconnect"
)

// hostile is a sandbox that answers calls as no plugin of ours does. TestCallsFromGo in cmd/firebreak has real ones.
type hostile struct {
	processconnect.UnimplementedProcessHandler
	events func(ctx context.Context, send func(*process.ProcessEvent)) error
	killed chan string // tags
	closes func(context.Context)
}

func (h *hostile) Start(ctx context.Context, _ *connect.Request[process.StartRequest], out *connect.ServerStream[process.StartResponse]) error {
	return h.events(ctx, func(e *process.ProcessEvent) { _ = out.Send(&process.StartResponse{Event: e}) })
}

func (h *hostile) StreamInput(_ context.Context, in *connect.ClientStream[process.StreamInputRequest]) (*connect.Response[process.StreamInputResponse], error) {
	for in.Receive() {
	}
	return connect.NewResponse(&process.StreamInputResponse{}), in.Err()
}

func (h *hostile) CloseStdin(ctx context.Context, _ *connect.Request[process.CloseStdinRequest]) (*connect.Response[process.CloseStdinResponse], error) {
	if h.closes != nil {
		h.closes(ctx)
	}
	return connect.NewResponse(&process.CloseStdinResponse{}), nil
}

func (h *hostile) SendSignal(_ context.Context, req *connect.Request[process.SendSignalRequest]) (*connect.Response[process.SendSignalResponse], error) {
	if req.Msg.GetSignal() == process.Signal_SIGNAL_SIGKILL {
		h.killed <- req.Msg.GetProcess().GetTag()
	}
	return connect.NewResponse(&process.SendSignalResponse{}), nil
}

func (h *hostile) serve(t *testing.T) *client.Client {
	mux := http.NewServeMux()
	mux.Handle(processconnect.NewProcessHandler(h))
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return client.New(server.URL, server.Client())
}

func started() *process.ProcessEvent {
	return &process.ProcessEvent{Event: &process.ProcessEvent_Start{Start: &process.ProcessEvent_StartEvent{Pid: 7}}}
}

func stdout(b []byte) *process.ProcessEvent {
	return &process.ProcessEvent{Event: &process.ProcessEvent_Data{Data: &process.ProcessEvent_DataEvent{Output: &process.ProcessEvent_DataEvent_Stdout{Stdout: b}}}}
}

func stderr(text string) *process.ProcessEvent {
	return &process.ProcessEvent{Event: &process.ProcessEvent_Data{Data: &process.ProcessEvent_DataEvent{Output: &process.ProcessEvent_DataEvent_Stderr{Stderr: []byte(text)}}}}
}

func exited(code int32) *process.ProcessEvent {
	return &process.ProcessEvent{Event: &process.ProcessEvent_End{End: &process.ProcessEvent_EndEvent{Exited: true, ExitCode: code}}}
}

func TestCallsOfHostileSandboxes(t *testing.T) {
	killed := &process.ProcessEvent{Event: &process.ProcessEvent_End{End: &process.ProcessEvent_EndEvent{Status: "signal: killed"}}}
	say := func(events ...*process.ProcessEvent) func(context.Context, func(*process.ProcessEvent)) error {
		return func(_ context.Context, send func(*process.ProcessEvent)) error {
			for _, e := range events {
				send(e)
			}
			return nil
		}
	}
	for name, c := range map[string]struct {
		events func(context.Context, func(*process.ProcessEvent)) error
		kind   firebreak.Kind
		is     error
		text   string
		kills  bool
	}{
		"no end":          {say(started()), firebreak.KindUnavailable, nil, "ended before it did", true},
		"nothing":         {say(), firebreak.KindUnavailable, nil, "ended before it did", true},
		"empty events":    {say(&process.ProcessEvent{}, started(), started(), &process.ProcessEvent{}), firebreak.KindUnavailable, nil, "ended before it did", true},
		"killed":          {say(started(), killed), firebreak.KindUnavailable, nil, "signal: killed", false},
		"another program": {say(started(), exited(3)), firebreak.KindUnsupported, errors.ErrUnsupported, "", false},
		"a long tale":     {say(started(), stderr(strings.Repeat("x", 1<<20)+"\nprinted\n"), stderr("call: trap: unreachable\n"), exited(134)), firebreak.KindInvalid, client.ErrTrap, `call "f": trap: unreachable`, false},
		"no letters":      {say(started(), stderr("\xff\xfe"), exited(134)), firebreak.KindInvalid, client.ErrTrap, "�", false},
		"one long line":   {say(started(), stderr(strings.Repeat("x", 1<<20)), exited(134)), firebreak.KindInvalid, client.ErrTrap, "xxx", false},
		"endless": {func(ctx context.Context, send func(*process.ProcessEvent)) error {
			send(started())
			for piece := stdout(make([]byte, 1<<20)); ctx.Err() == nil; {
				send(piece)
			}
			return ctx.Err()
		}, firebreak.KindExhausted, nil, "more than the 67108864 bytes", true},
		"refused": {func(context.Context, func(*process.ProcessEvent)) error {
			return connect.NewError(connect.CodeInvalidArgument, errors.New("call: not found"))
		}, firebreak.KindUnsupported, errors.ErrUnsupported, "holds no plugin", true},
	} {
		t.Run(name, func(t *testing.T) {
			h := &hostile{events: c.events, killed: make(chan string, 1)}
			out, err := h.serve(t).Call(t.Context(), "box", "f", []byte("in"))
			if out != nil || firebreak.KindOf(err) != c.kind || c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.text) || len(err.Error()) > 2000 {
				t.Errorf("%d bytes, %.2000v, of kind %v", len(out), err, firebreak.KindOf(err))
			}
			if kills := len(h.killed) == 1; kills != c.kills {
				t.Errorf("killed: %v, want %v", kills, c.kills)
			}
		})
	}
	h := &hostile{events: say(started(), stdout([]byte("a")), stderr("beside"), stdout([]byte("b")), exited(0)), killed: make(chan string, 1)}
	if out, err := h.serve(t).Call(t.Context(), "box", "f", bytes.Repeat([]byte("in"), 3<<20)); err != nil || string(out) != "ab" {
		t.Errorf("%q, %v", out, err)
	}
}

// TestCallEndsWithItsContext, and what runs in the sandbox is killed by the tag that it was started with.
func TestCallEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	h := &hostile{killed: make(chan string, 1), events: func(ctx context.Context, send func(*process.ProcessEvent)) error {
		send(started())
		cancel()
		<-ctx.Done()
		return io.ErrUnexpectedEOF
	}}
	_, err := h.serve(t).Call(ctx, "box", "f", nil)
	if !errors.Is(err, context.Canceled) || firebreak.KindOf(err) != firebreak.KindCanceled {
		t.Errorf("%v", err)
	}
	if tag := <-h.killed; !strings.HasPrefix(tag, "call-") {
		t.Errorf("killed %q", tag)
	}
}

// TestCallEndsItsInput is about a program that ends before the request that closed its input does. That one must not be
// canceled: its connection may be another request's already, see outlast.
func TestCallEndsItsInput(t *testing.T) {
	closed, canceled := make(chan struct{}), make(chan error, 1)
	h := &hostile{killed: make(chan string, 1), events: func(_ context.Context, send func(*process.ProcessEvent)) error {
		send(started())
		<-closed
		send(exited(0))
		return nil
	}, closes: func(ctx context.Context) {
		close(closed)
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
		canceled <- ctx.Err()
	}}
	if _, err := h.serve(t).Call(t.Context(), "box", "f", []byte("in")); err != nil {
		t.Error(err)
	}
	if err := <-canceled; err != nil {
		t.Errorf("what closed the input: %v", err)
	}
}
