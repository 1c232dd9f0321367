package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"connectrpc.com/connect"
	"github.com/creack/pty"

	"github.com/firebreak-dev/firebreak/internal/api/process"
)

// proc is a program that runs, and everything it has written.
type proc struct {
	tag   string
	cmd   *exec.Cmd
	stdin io.WriteCloser
	tty   *os.File

	mu     sync.Mutex // guards what follows
	grown  *sync.Cond
	events []*process.ProcessEvent
}

func (p *proc) add(e *process.ProcessEvent) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.events = append(p.events, e)
	p.grown.Broadcast()
}

func (p *proc) at(i int) *process.ProcessEvent {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.events) <= i {
		p.grown.Wait()
	}
	return p.events[i]
}

func (p *proc) silentAt(i int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.events) <= i
}

// copy turns what r yields into events.
func (p *proc) copy(r io.Reader, event func(b []byte, offset uint64) *process.ProcessEvent_DataEvent) {
	var offset uint64
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			data := event(append([]byte{}, buf[:n]...), offset)
			offset += uint64(n)
			p.add(&process.ProcessEvent{Event: &process.ProcessEvent_Data{Data: data}})
		}
		if err != nil {
			return
		}
	}
}

func (s *server) Start(ctx context.Context, req *connect.Request[process.StartRequest], stream *connect.ServerStream[process.StartResponse]) error {
	c := req.Msg.Process
	cmd := exec.Command(c.Cmd, c.Args...)
	cmd.Dir = s.host(c.GetCwd())
	if strings.HasPrefix(c.Cmd, "missing") || contains(s.absent, c.Cmd) {
		return connect.NewError(connect.CodeInvalidArgument, errors.New(`exec: "`+c.Cmd+`": executable file not found in $PATH`))
	}
	if c.Cmd == "useradd" {
		return connect.NewError(connect.CodeInvalidArgument, errors.New("exec /usr/sbin/useradd: not a directory"))
	}
	if c.Cmd == "notexecutable" {
		return connect.NewError(connect.CodeInvalidArgument, errors.New("fork/exec notexecutable: permission denied"))
	}
	if _, err := os.Stat(cmd.Dir); err != nil {
		return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("cwd '%s' does not exist", c.GetCwd()))
	}
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	s.mu.Lock()
	for _, created := range s.created {
		for k, v := range created.Envs {
			cmd.Env = append(cmd.Env, k+"="+v)
		}
	}
	s.users = append(s.users, req.Header().Get("Authorization"))
	s.mu.Unlock()
	for k, v := range c.Envs {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	p := &proc{cmd: cmd, tag: req.Msg.GetTag()}
	p.grown = sync.NewCond(&p.mu)
	if err := s.launch(p, req.Msg); err != nil {
		return err
	}
	pid := uint32(cmd.Process.Pid)
	s.mu.Lock()
	s.procs[pid], s.all = p, append(s.all, p)
	s.mu.Unlock()
	stop := context.AfterFunc(ctx, func() {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		}
	})
	defer stop()
	if err := stream.Send(&process.StartResponse{Event: startEvent(pid)}); err != nil {
		return err
	}
	return s.replay(ctx, p, &process.Offsets{}, func(e *process.ProcessEvent) error { return stream.Send(&process.StartResponse{Event: e}) })
}

func startEvent(pid uint32) *process.ProcessEvent {
	return &process.ProcessEvent{Event: &process.ProcessEvent_Start{Start: &process.ProcessEvent_StartEvent{Pid: pid}}}
}

// launch starts the program and the goroutines that collect its output.
func (s *server) launch(p *proc, req *process.StartRequest) (err error) {
	var wg sync.WaitGroup
	if size := req.GetPty().GetSize(); size != nil {
		if p.tty, err = pty.StartWithSize(p.cmd, &pty.Winsize{Cols: uint16(size.Cols), Rows: uint16(size.Rows)}); err != nil {
			return err
		}
		wg.Go(func() {
			p.copy(p.tty, func(b []byte, o uint64) *process.ProcessEvent_DataEvent {
				return &process.ProcessEvent_DataEvent{Output: &process.ProcessEvent_DataEvent_Pty{Pty: b}, Offset: o}
			})
		})
	} else {
		p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		stdout, _ := p.cmd.StdoutPipe()
		stderr, _ := p.cmd.StderrPipe()
		if req.Stdin == nil || req.GetStdin() {
			p.stdin, _ = p.cmd.StdinPipe()
		}
		if err := p.cmd.Start(); err != nil {
			return connect.NewError(connect.CodeInvalidArgument, err)
		}
		wg.Go(func() {
			p.copy(stdout, func(b []byte, o uint64) *process.ProcessEvent_DataEvent {
				return &process.ProcessEvent_DataEvent{Output: &process.ProcessEvent_DataEvent_Stdout{Stdout: b}, Offset: o}
			})
		})
		wg.Go(func() {
			p.copy(stderr, func(b []byte, o uint64) *process.ProcessEvent_DataEvent {
				return &process.ProcessEvent_DataEvent{Output: &process.ProcessEvent_DataEvent_Stderr{Stderr: b}, Offset: o}
			})
		})
	}
	go func() {
		wg.Wait()
		_ = p.cmd.Wait() // the status says it
		state := p.cmd.ProcessState
		p.add(&process.ProcessEvent{Event: &process.ProcessEvent_End{End: &process.ProcessEvent_EndEvent{
			ExitCode: int32(state.ExitCode()), Exited: state.Exited(), Status: state.String()}}})
	}()
	return nil
}

// replay sends what a program has written since from and goes on until it ends.
func (s *server) replay(ctx context.Context, p *proc, from *process.Offsets, send func(*process.ProcessEvent) error) error {
	sent := 0
	for i := 0; ; i++ {
		if i > 0 && p.silentAt(i) {
			if err := send(&process.ProcessEvent{Event: &process.ProcessEvent_Keepalive{Keepalive: &process.ProcessEvent_KeepAlive{}}}); err != nil {
				return err
			}
		}
		e := p.at(i)
		if d := e.GetData(); d != nil {
			d, skip := &process.ProcessEvent_DataEvent{Output: d.Output, Offset: d.Offset}, uint64(0)
			switch o := d.Output.(type) {
			case *process.ProcessEvent_DataEvent_Stdout:
				if skip = from.Stdout - min(from.Stdout, d.Offset); skip > 0 {
					d.Output = &process.ProcessEvent_DataEvent_Stdout{Stdout: o.Stdout[min(skip, uint64(len(o.Stdout))):]}
				}
				sent += len(d.GetStdout())
			}
			e = &process.ProcessEvent{Event: &process.ProcessEvent_Data{Data: d}}
		}
		if err := send(e); err != nil {
			return err
		}
		if e.GetEnd() != nil {
			return nil
		}
		s.mu.Lock()
		breakNow := s.breakAfter > 0 && sent >= s.breakAfter
		if breakNow {
			s.breakAfter = 0
			if s.onEnd != nil {
				s.procs = nil // the sandbox is dead
			}
		}
		s.mu.Unlock()
		if breakNow {
			return connect.NewError(connect.CodeUnavailable, errors.New("the line is cut"))
		}
		if ctx.Err() != nil {
			return connect.NewError(connect.CodeDeadlineExceeded, ctx.Err())
		}
	}
}

func (s *server) proc(sel *process.ProcessSelector) (*proc, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.procs[sel.GetPid()]; p != nil {
		return p, nil
	}
	for _, p := range s.procs {
		if sel.GetTag() != "" && p.tag == sel.GetTag() {
			return p, nil
		}
	}
	return nil, connect.NewError(connect.CodeNotFound, errors.New("no such process"))
}

func (s *server) Connect(ctx context.Context, req *connect.Request[process.ConnectRequest], stream *connect.ServerStream[process.ConnectResponse]) error {
	p, err := s.proc(req.Msg.Process)
	if err != nil {
		return err
	}
	send := func(e *process.ProcessEvent) error { return stream.Send(&process.ConnectResponse{Event: e}) }
	if req.Msg.ResumeFrom == nil {
		req.Msg.ResumeFrom = &process.Offsets{Stdout: s.oldest + s.oldest/2}
	}
	if req.Msg.ResumeFrom.Stdout < s.oldest {
		return connect.NewError(connect.CodeOutOfRange, errors.New("this part of the output is gone"))
	}
	first := startEvent(uint32(p.cmd.Process.Pid))
	first.GetStart().Offsets = req.Msg.ResumeFrom
	if err := send(first); err != nil {
		return err
	}
	if req.Header().Get("Keepalive-Ping-Interval") != "" {
		time.Sleep(50 * time.Millisecond) // for the program to have written something
	}
	return s.replay(ctx, p, req.Msg.GetResumeFrom(), send)
}

func (s *server) StreamInput(_ context.Context, stream *connect.ClientStream[process.StreamInputRequest]) (*connect.Response[process.StreamInputResponse], error) {
	var p *proc
	for stream.Receive() {
		var err error
		if start := stream.Msg().GetStart(); start != nil {
			p, err = s.proc(start.Process)
		} else if in := stream.Msg().GetData().GetInput(); p.tty != nil {
			_, err = p.tty.Write(in.GetPty())
		} else {
			_, err = p.stdin.Write(in.GetStdin())
		}
		if s.cutInput {
			return nil, connect.NewError(connect.CodeUnavailable, errors.New("the line is cut"))
		}
		if err != nil {
			return nil, connect.NewError(connect.CodeFailedPrecondition, err)
		}
	}
	return connect.NewResponse(&process.StreamInputResponse{}), stream.Err()
}

func (s *server) CloseStdin(_ context.Context, req *connect.Request[process.CloseStdinRequest]) (*connect.Response[process.CloseStdinResponse], error) {
	p, err := s.proc(req.Msg.Process)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&process.CloseStdinResponse{}), p.stdin.Close()
}

func (s *server) SendSignal(_ context.Context, req *connect.Request[process.SendSignalRequest]) (*connect.Response[process.SendSignalResponse], error) {
	p, err := s.proc(req.Msg.Process)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&process.SendSignalResponse{}), syscall.Kill(p.cmd.Process.Pid, syscall.Signal(req.Msg.Signal))
}

func (s *server) Update(_ context.Context, req *connect.Request[process.UpdateRequest]) (*connect.Response[process.UpdateResponse], error) {
	p, err := s.proc(req.Msg.Process)
	if err != nil {
		return nil, err
	}
	size := req.Msg.GetPty().GetSize()
	return connect.NewResponse(&process.UpdateResponse{}), pty.Setsize(p.tty, &pty.Winsize{Cols: uint16(size.Cols), Rows: uint16(size.Rows)})
}
