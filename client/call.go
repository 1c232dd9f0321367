package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/api/process"
	"github.com/firebreak-dev/firebreak/internal/api/process/processconnect"
)

// MaxCall is the most that a function of a plugin takes, and the most that it returns, in bytes.
const MaxCall = 64 << 20

// ErrTrap is in the error of a call whose plugin failed: it did what its machine forbids, called what it is not allowed, or
// ended itself.
var ErrTrap = errors.New("the plugin failed")

const (
	maxDiagnosis = 1 << 10         // bytes of what is told about a call that failed
	callChunk    = 1 << 20         // bytes of one message of input
	killTime     = 5 * time.Second // for telling a call that is given up to end
)

// Call calls a function that the plugin in a sandbox exports with the bytes of input, and returns those that the function
// returns; at most MaxCall bytes either way. Each call is a new instance of the plugin, which shares nothing with others but the
// sandbox's files, so any number may be made at once, up to the programs that the sandbox may run (64, unless it was made with
// another limit). What the plugin prints is not returned.
//
// When ctx ends, the call ends, and the plugin with it. It is not tried again by itself. The error is a *firebreak.Error, and
// errors.Is finds in it:
//
//   - fs.ErrNotExist: there is no such sandbox, or the plugin exports no such function
//   - fs.ErrInvalid: the function takes or returns something else than bytes
//   - errors.ErrUnsupported: the sandbox holds no plugin
//   - ErrTrap: the plugin failed
//   - context.DeadlineExceeded: the time of ctx was up, or the sandbox's own for each call
//   - context.Canceled: ctx was canceled
//
// Its kind is KindExhausted if input, result, instructions, memory or calls at once are more than there may be, and
// KindUnavailable if the sandbox or the server went away meanwhile.
func (c *Client) Call(ctx context.Context, id, function string, input []byte) ([]byte, error) {
	fail := func(kind firebreak.Kind, err error) ([]byte, error) {
		return nil, &firebreak.Error{Kind: kind, Op: fmt.Sprintf("call %.80q", function), Err: err}
	}
	switch {
	case function == "" || strings.ContainsRune(function, 0):
		return fail(firebreak.KindInvalid, fmt.Errorf("it is no name of a function: %w", fs.ErrInvalid))
	case len(input) > MaxCall:
		return fail(firebreak.KindExhausted, fmt.Errorf("%d bytes are more than the %d that can be passed", len(input), MaxCall))
	}
	p := &pluginCall{process: c.Process(id), tag: "call-" + rand.Text()}
	out, err := p.do(ctx, function, input)
	switch kind := firebreak.KindOf(err); {
	case err == nil:
		return out, nil
	case ctx.Err() != nil:
		return fail(firebreak.KindOf(ctx.Err()), ctx.Err())
	case !p.started && kind == firebreak.KindInvalid:
		return fail(firebreak.KindUnsupported, fmt.Errorf("the sandbox holds no plugin: %w", errors.ErrUnsupported))
	case kind == firebreak.KindNotFound && !errors.Is(err, fs.ErrNotExist):
		return fail(kind, fmt.Errorf("%w: %w", err, fs.ErrNotExist))
	default:
		return fail(kind, err)
	}
}

// pluginCall is one call: the program "call FUNCTION" of the sandbox, whose input and output are the bytes.
type pluginCall struct {
	process   processconnect.ProcessClient
	tag       string // by which it is known before its number is
	started   bool
	ended     bool
	out       bytes.Buffer
	diagnosis []byte // the end of what it wrote to standard error
}

func (p *pluginCall) do(ctx context.Context, function string, input []byte) ([]byte, error) {
	run, cancel := context.WithCancelCause(ctx)
	var sending sync.WaitGroup
	defer func() {
		cancel(nil)
		sending.Wait()
		if !p.ended {
			p.kill(ctx)
		}
	}()
	takes := true
	stream, err := p.process.Start(run, connect.NewRequest(&process.StartRequest{
		Process: &process.ProcessConfig{Cmd: "call", Args: []string{function}}, Tag: &p.tag, Stdin: &takes}))
	if err != nil {
		return nil, err
	}
	for stream.Receive() {
		switch e := stream.Msg().GetEvent().GetEvent().(type) {
		case *process.ProcessEvent_Start:
			if !p.started {
				p.started = true
				sending.Go(func() { p.send(run, input, cancel) })
			}
		case *process.ProcessEvent_Data:
			if err := p.take(e.Data); err != nil {
				return nil, err
			}
		case *process.ProcessEvent_End:
			p.ended = true
			return p.out.Bytes(), p.outcome(e.End)
		}
	}
	if cause := context.Cause(run); cause != nil {
		return nil, cause
	}
	if err := stream.Err(); err != nil {
		return nil, err
	}
	return nil, &firebreak.Error{Kind: firebreak.KindUnavailable, Err: errors.New("its output ended before it did")}
}

// send passes the input on. A program that has ended takes no more, and how it ended says why.
func (p *pluginCall) send(ctx context.Context, input []byte, cancel context.CancelCauseFunc) {
	stream := p.process.StreamInput(ctx)
	err := stream.Send(&process.StreamInputRequest{Event: &process.StreamInputRequest_Start{
		Start: &process.StreamInputRequest_StartEvent{Process: p.which()}}})
	for err == nil && len(input) > 0 {
		n := min(len(input), callChunk)
		err = stream.Send(&process.StreamInputRequest{Event: &process.StreamInputRequest_Data{Data: &process.StreamInputRequest_DataEvent{
			Input: &process.ProcessInput{Input: &process.ProcessInput_Stdin{Stdin: input[:n]}}}}})
		input = input[n:]
	}
	_, err = stream.CloseAndReceive() // Send only says io.EOF
	if err == nil {
		_, err = p.process.CloseStdin(ctx, connect.NewRequest(&process.CloseStdinRequest{Process: p.which()}))
	}
	if kind := firebreak.KindOf(err); err != nil && kind != firebreak.KindState && kind != firebreak.KindNotFound {
		cancel(err) // it would wait for the rest for ever
	}
}

func (p *pluginCall) which() *process.ProcessSelector {
	return &process.ProcessSelector{Selector: &process.ProcessSelector_Tag{Tag: p.tag}}
}

// take keeps a piece of output, of which a sandbox may send as much as it likes.
func (p *pluginCall) take(data *process.ProcessEvent_DataEvent) error {
	p.out.Write(data.GetStdout())
	p.diagnosis = append(p.diagnosis, data.GetStderr()...)
	if over := len(p.diagnosis) - maxDiagnosis; over > 0 {
		p.diagnosis = append(p.diagnosis[:0], p.diagnosis[over:]...)
	}
	if p.out.Len() > MaxCall {
		return &firebreak.Error{Kind: firebreak.KindExhausted, Err: fmt.Errorf("it returns more than the %d bytes that can be passed", MaxCall)}
	}
	return nil
}

// outcome is the error that an exit status of call stands for, with the last line that it wrote.
func (p *pluginCall) outcome(end *process.ProcessEvent_EndEvent) error {
	line := strings.TrimSpace(strings.ToValidUTF8(string(p.diagnosis), "�"))
	line = strings.TrimPrefix(line[strings.LastIndexByte(line, '\n')+1:], "call: ")
	fail := func(kind firebreak.Kind, is error) error {
		return &firebreak.Error{Kind: kind, Err: &callError{line, is}}
	}
	switch code := end.GetExitCode(); {
	case !end.GetExited():
		return &firebreak.Error{Kind: firebreak.KindUnavailable, Err: fmt.Errorf("it was ended from outside: %.80s", end.GetStatus())}
	case code == 0:
		return nil
	case code == 124:
		return fail(firebreak.KindDeadline, context.DeadlineExceeded)
	case code == 126:
		return fail(firebreak.KindInvalid, fs.ErrInvalid)
	case code == 127:
		return fail(firebreak.KindNotFound, fs.ErrNotExist)
	case code == 134:
		return fail(firebreak.KindInvalid, ErrTrap)
	case code == 137:
		return fail(firebreak.KindExhausted, nil)
	default:
		return fail(firebreak.KindUnsupported, errors.ErrUnsupported) // some other program of this name
	}
}

// callError is what a sandbox told of a call, and what errors.Is finds in it.
type callError struct {
	text string
	is   error
}

func (e *callError) Error() string { return e.text }

func (e *callError) Unwrap() error { return e.is }

// kill ends what nobody waits for any more.
func (p *pluginCall) kill(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTime)
	defer cancel()
	_, _ = p.process.SendSignal(ctx, connect.NewRequest(&process.SendSignalRequest{Process: p.which(), Signal: process.Signal_SIGNAL_SIGKILL})) // it may have ended, or never begun
}
