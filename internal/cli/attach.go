package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"connectrpc.com/connect"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/client"
	"github.com/firebreak-dev/firebreak/internal/api/process"
	"github.com/firebreak-dev/firebreak/internal/api/process/processconnect"
)

// mainTag names the program for which a sandbox was made.
const mainTag = "main"

// graceful is how long a program may take to end after SIGTERM or SIGHUP, and killed after SIGKILL.
const (
	graceful = 10 * time.Second
	killed   = 2 * time.Second
)

// program is what to start in a sandbox and what to join it to.
type program struct {
	command []string
	envs    map[string]string
	cwd     string
	user    string
	tag     string
	tty     bool
	input   bool          // our standard input is its
	timeout time.Duration // zero: none
	stdout  io.Writer
	stderr  io.Writer
}

// result is how a program ended.
type result struct {
	code   int            // what a shell would say
	signal syscall.Signal // that killed it; zero if it exited
}

var (
	errTimeLimit  = errors.New("time limit")
	errPipeClosed = errors.New("nobody reads the output any more")
)

// attached is a running program joined to our files and signals.
type attached struct {
	app     *app
	program program
	process processconnect.ProcessClient
	cancel  context.CancelCauseFunc
	pid     uint32
	offsets *process.Offsets // of the bytes passed on so far
	work    sync.WaitGroup   // input and signals on their way
	input   *inputReader
}

// attach starts p in the sandbox id and returns when it has ended. An error means that its exit status is not known:
// errTimeLimit, a *signalError, a *startFailure, errOutput, or what befell the sandbox.
func (a *app) attach(ctx context.Context, c *client.Client, id string, p program) (result, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if p.timeout > 0 { // no deadline of ctx: Connect would tell the agent that one instead of the limit
		overdue := time.AfterFunc(p.timeout+overdue, func() { cancel(errTimeLimit) })
		defer overdue.Stop()
	}
	s := &attached{app: a, program: p, process: c.Process(id), cancel: cancel, offsets: &process.Offsets{}}
	start := time.Now()
	req := request(p.user, s.startRequest())
	if p.timeout > 0 {
		req.Header().Set("Connect-Timeout-Ms", strconv.FormatInt(max(1, p.timeout.Milliseconds()), 10))
	}
	stream, err := s.process.Start(ctx, req)
	if err != nil {
		return result{}, s.failure(ctx, err)
	}
	end, err := s.follow(ctx, startEvents(stream))
	s.finish(cancel)
	if err != nil {
		return result{}, s.failure(ctx, err)
	}
	res := resultOf(end)
	if p.timeout > 0 && res.signal == syscall.SIGKILL && time.Since(start)+timeUncertain >= p.timeout {
		return res, errTimeLimit // the agent was first
	}
	return res, nil
}

// overdue is how long we wait beyond the time limit for the agent, which keeps it: the last output may be on its way.
const overdue = 2 * time.Second

// timeUncertain is how much earlier than here the agent may see a time limit: it travels in whole milliseconds.
const timeUncertain = 5 * time.Millisecond

// request adds the user of the sandbox to a message.
func request[T any](user string, message *T) *connect.Request[T] {
	req := connect.NewRequest(message)
	if user != "" {
		name, value := client.UserHeader(user)
		req.Header().Set(name, value)
	}
	return req
}

func (s *attached) startRequest() *process.StartRequest {
	p := s.program
	req := &process.StartRequest{
		Process: &process.ProcessConfig{Cmd: p.command[0], Args: p.command[1:], Envs: p.envs},
		Stdin:   &p.input,
	}
	if p.cwd != "" {
		req.Process.Cwd = &p.cwd
	}
	if p.tag != "" {
		req.Tag = &p.tag
	}
	if p.tty {
		req.Pty = terminalSize(s.app.in)
	}
	return req
}

// events yields a program's events until io.EOF. Who has the context of the call cancels it: closing a stream by itself
// would read on for what may still come.
type events func() (*process.ProcessEvent, error)

func startEvents(stream *connect.ServerStreamForClient[process.StartResponse]) events {
	return func() (*process.ProcessEvent, error) {
		if !stream.Receive() {
			return nil, streamEnd(stream.Err())
		}
		return stream.Msg().GetEvent(), nil
	}
}

func connectEvents(stream *connect.ServerStreamForClient[process.ConnectResponse]) events {
	return func() (*process.ProcessEvent, error) {
		if !stream.Receive() {
			return nil, streamEnd(stream.Err())
		}
		return stream.Msg().GetEvent(), nil
	}
}

func streamEnd(err error) error {
	if err == nil {
		return io.EOF
	}
	return err
}

// follow passes a program's output on until it ends. A stream that breaks off while the sandbox lives is taken up
// again where it broke.
func (s *attached) follow(ctx context.Context, from events) (*process.ProcessEvent_EndEvent, error) {
	for attempt := 0; ; attempt++ {
		before := s.received()
		end, err := s.drain(ctx, from)
		if end != nil || ctx.Err() != nil || errors.Is(err, errOutput) || s.pid == 0 || firebreak.KindOf(err) != firebreak.KindUnavailable {
			return end, err
		}
		if s.received() > before {
			attempt = 0
		}
		if attempt == 3 {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(50 * time.Millisecond << attempt):
		}
		again, connectErr := s.process.Connect(ctx, request(s.program.user, &process.ConnectRequest{
			Process: bySelector(s.pid), ResumeFrom: s.offsets,
		}))
		if connectErr != nil {
			return nil, err
		}
		from = connectEvents(again)
	}
}

func (s *attached) received() uint64 { return s.offsets.Stdout + s.offsets.Stderr + s.offsets.Pty }

// errOutput marks an error of our own standard output or standard error.
var errOutput = errors.New("write the program's output")

func (s *attached) drain(ctx context.Context, from events) (*process.ProcessEvent_EndEvent, error) {
	for {
		event, err := from()
		if errors.Is(err, io.EOF) {
			return nil, &firebreak.Error{Kind: firebreak.KindUnavailable, Err: errors.New("its output ended before it did")}
		}
		if err != nil {
			return nil, err
		}
		switch e := event.GetEvent().(type) {
		case *process.ProcessEvent_Start:
			if s.pid == 0 {
				s.pid = e.Start.GetPid()
				s.begin(ctx)
			}
		case *process.ProcessEvent_Data:
			if err := s.pass(e.Data); err != nil {
				return nil, err
			}
		case *process.ProcessEvent_End:
			return e.End, nil
		}
	}
}

// pass writes one piece of output where it belongs.
func (s *attached) pass(data *process.ProcessEvent_DataEvent) error {
	w, bytes, offset := s.program.stdout, data.GetStdout(), &s.offsets.Stdout
	switch data.GetOutput().(type) {
	case *process.ProcessEvent_DataEvent_Stderr:
		w, bytes, offset = s.program.stderr, data.GetStderr(), &s.offsets.Stderr
	case *process.ProcessEvent_DataEvent_Pty:
		bytes, offset = data.GetPty(), &s.offsets.Pty
	}
	if _, err := w.Write(bytes); err != nil {
		if errors.Is(err, syscall.EPIPE) {
			return fmt.Errorf("%w: %w", errOutput, errPipeClosed)
		}
		return fmt.Errorf("%w: %w", errOutput, err)
	}
	*offset = max(*offset, data.GetOffset()) + uint64(len(bytes))
	return nil
}

// begin joins our standard input and signals to the program, which has just started.
func (s *attached) begin(ctx context.Context) {
	if s.program.input {
		if in, err := newInputReader(s.app.in); err != nil {
			s.cancel(err)
		} else {
			s.input = in
			s.work.Go(func() {
				defer s.app.restoreOnPanic()
				s.pump(ctx)
			})
		}
	}
	s.app.signals.handle(s.onSignal(ctx))
}

// finish ends what begin began. Input that the program did not take stays where it is.
func (s *attached) finish(cancel context.CancelCauseFunc) {
	s.app.signals.handle(nil)
	if s.input != nil {
		s.input.Stop()
	}
	cancel(nil)
	s.work.Wait()
	if s.input != nil {
		s.input.Close()
	}
}

// pump sends our standard input. It reads no faster than the program does: the stream holds it back.
func (s *attached) pump(ctx context.Context) {
	stream := s.process.StreamInput(ctx)
	if s.program.user != "" {
		name, value := client.UserHeader(s.program.user)
		stream.RequestHeader().Set(name, value)
	}
	err := stream.Send(&process.StreamInputRequest{Event: &process.StreamInputRequest_Start{
		Start: &process.StreamInputRequest_StartEvent{Process: bySelector(s.pid)},
	}})
	buf := make([]byte, 32<<10)
	var readErr error
	for err == nil && readErr == nil {
		var n int
		if n, readErr = s.input.Read(buf); n > 0 {
			err = stream.Send(s.inputMessage(buf[:n]))
		}
	}
	if _, closeErr := stream.CloseAndReceive(); err == nil || errors.Is(err, io.EOF) {
		err = closeErr // Send only says io.EOF
	}
	switch kind := firebreak.KindOf(err); {
	case readErr != nil && !errors.Is(readErr, io.EOF):
		s.cancel(readErr)
	case ctx.Err() != nil, err != nil && (kind == firebreak.KindState || kind == firebreak.KindNotFound):
		// The program has ended, or takes no more input and may well go on.
	case err != nil:
		s.cancel(fmt.Errorf("send input: %w", err)) // it would wait for the rest for ever
	case !s.program.tty:
		_, _ = s.process.CloseStdin(ctx, request(s.program.user, &process.CloseStdinRequest{Process: bySelector(s.pid)})) // it may have ended
	}
}

func (s *attached) inputMessage(b []byte) *process.StreamInputRequest {
	in := &process.ProcessInput{Input: &process.ProcessInput_Stdin{Stdin: b}}
	if s.program.tty {
		in = &process.ProcessInput{Input: &process.ProcessInput_Pty{Pty: b}}
	}
	return &process.StreamInputRequest{Event: &process.StreamInputRequest_Data{
		Data: &process.StreamInputRequest_DataEvent{Input: in},
	}}
}

// onSignal returns what to do with signals while the program runs. With a terminal the keys travel as bytes, so that a
// signal comes from outside and ends the command. Without one the first signal goes to the program, and the second
// kills it.
func (s *attached) onSignal(ctx context.Context) func(syscall.Signal) bool {
	signalled := false
	return func(sig syscall.Signal) bool {
		switch {
		case sig == syscall.SIGWINCH || sig == syscall.SIGCONT:
			if s.program.tty {
				s.resize(ctx, sig)
			}
		case sig == syscall.SIGPIPE: // shows as an error of the write
		case sig == syscall.SIGUSR1 || sig == syscall.SIGUSR2:
			s.send(ctx, sig, 0)
		case s.program.tty:
			return false
		case signalled:
			s.send(ctx, syscall.SIGKILL, killed)
		default:
			signalled = true
			wait := graceful
			if sig == syscall.SIGINT || sig == syscall.SIGQUIT {
				wait = 0 // the program may take Ctrl-C for something else than its end
			}
			s.send(ctx, sig, wait)
		}
		return true
	}
}

func (s *attached) resize(ctx context.Context, sig syscall.Signal) {
	if sig == syscall.SIGCONT {
		s.app.makeRawAgain()
	}
	req := request(s.program.user, &process.UpdateRequest{Process: bySelector(s.pid), Pty: terminalSize(s.app.in)})
	s.work.Go(func() {
		defer s.app.restoreOnPanic()
		_, _ = s.process.Update(ctx, req) // the program may have ended meanwhile
	})
}

// send passes a signal to the program, and gives up on the program if it still runs after wait (zero: never).
func (s *attached) send(ctx context.Context, sig syscall.Signal, wait time.Duration) {
	s.work.Go(func() {
		defer s.app.restoreOnPanic()
		req := &process.SendSignalRequest{Process: bySelector(s.pid), Signal: process.Signal(sig)}
		_, _ = s.process.SendSignal(ctx, request(s.program.user, req)) // the program may have ended meanwhile
		if wait == 0 {
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
			s.cancel(&signalError{sig})
		}
	})
}

// failure says why following the program failed, and ends the program where it would otherwise run on.
func (s *attached) failure(ctx context.Context, err error) error {
	cause := context.Cause(ctx)
	var sig *signalError
	switch {
	case errors.Is(err, errOutput):
		s.hangUp(ctx, syscall.SIGKILL)
		return err
	case errors.As(cause, &sig):
		s.hangUp(ctx, syscall.SIGHUP)
		return sig
	case errors.Is(cause, errTimeLimit), s.program.timeout > 0 && firebreak.KindOf(err) == firebreak.KindDeadline:
		return errTimeLimit
	case cause != nil && !errors.Is(cause, context.Canceled):
		s.hangUp(ctx, syscall.SIGHUP)
		return cause
	case s.pid == 0:
		return startError(s.program.command[0], err)
	}
	return err
}

// hangUp ends the program when nobody listens to it any more.
func (s *attached) hangUp(ctx context.Context, sig syscall.Signal) {
	if s.pid == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killed)
	defer cancel()
	req := &process.SendSignalRequest{Process: bySelector(s.pid), Signal: process.Signal(sig)}
	_, _ = s.process.SendSignal(ctx, request(s.program.user, req)) // it may have ended meanwhile
}

func bySelector(pid uint32) *process.ProcessSelector {
	return &process.ProcessSelector{Selector: &process.ProcessSelector_Pid{Pid: pid}}
}

func byTag(tag string) *process.ProcessSelector {
	return &process.ProcessSelector{Selector: &process.ProcessSelector_Tag{Tag: tag}}
}

// resultOf reads the end of a program the way a shell does.
func resultOf(end *process.ProcessEvent_EndEvent) result {
	if end.GetExited() {
		return result{code: int(end.GetExitCode()) & 0xff}
	}
	text, _, _ := strings.Cut(strings.TrimPrefix(end.GetStatus(), "signal: "), " (core dumped)")
	for sig := syscall.Signal(1); sig <= 64; sig++ {
		if sig.String() == text {
			return result{code: 128 + int(sig), signal: sig}
		}
	}
	return result{code: 128 + int(syscall.SIGKILL), signal: syscall.SIGKILL}
}

// startFailure is a program that could not be started; its exit status is the shell's for that.
type startFailure struct {
	err  *firebreak.Error
	code int
}

func (e *startFailure) Error() string { return e.err.Error() }

func (e *startFailure) Unwrap() error { return e.err }

func (e *startFailure) ExitCode() int { return e.code }

// startError tells a missing program (127) from one that cannot be executed (126) and from all else (125).
func startError(command string, err error) error {
	text := err.Error()
	has := func(parts ...string) bool {
		for _, p := range parts {
			if strings.Contains(text, p) {
				return true
			}
		}
		return false
	}
	switch {
	case firebreak.KindOf(err) != firebreak.KindInvalid || has("cwd '"):
		return err
	case has("permission denied", "exec format error", "is a directory"):
		return &startFailure{code: 126, err: &firebreak.Error{Kind: firebreak.KindInvalid,
			Err: fmt.Errorf("%s cannot be executed: %w", command, fs.ErrPermission), Mend: notExecutableMend(text)}}
	case has("not found", "no such file", "not a directory"):
		return &startFailure{code: 127, err: &firebreak.Error{Kind: firebreak.KindNotFound,
			Err: fmt.Errorf("%s: not found in the sandbox", command), Mend: notFoundMend(command)}}
	}
	return err
}

func notExecutableMend(text string) string {
	if strings.Contains(text, "exec format error") {
		return "it is no program of this kind of machine, or a script without #!"
	}
	return "make it executable (chmod +x) or name its interpreter"
}

func notFoundMend(command string) string {
	if strings.ContainsAny(command, " \t") {
		return "separate its words, or run sh -c '" + command + "'"
	}
	return "check the spelling, or choose a --template that has it"
}
