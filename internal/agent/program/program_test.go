package program_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/firebreak-dev/firebreak/internal/agent/account"
	"github.com/firebreak-dev/firebreak/internal/agent/proc"
	"github.com/firebreak-dev/firebreak/internal/agent/program"
	processv1 "github.com/firebreak-dev/firebreak/internal/api/process"
	"github.com/firebreak-dev/firebreak/internal/api/process/processconnect"
	"github.com/firebreak-dev/firebreak/internal/memfs"
)

// late tells the program of this name that it has ended, and gets what comes of its writing nevertheless.
var late = make(chan error)

// programs are what the tests run.
func programs(args []string) (program.Func, error) {
	run, ok := map[string]program.Func{
		"echo": func(_ context.Context, c program.Call) int {
			fmt.Fprintln(c.Stdout, strings.Join(c.Args[1:], " "))
			fmt.Fprint(c.Stderr, c.Dir, " ", c.Env["A"], " ", c.Env["USER"])
			return 0
		},
		"cat": func(_ context.Context, c program.Call) int {
			if _, err := io.Copy(c.Stdout, c.Stdin); err != nil {
				return 9
			}
			return 3
		},
		"line": func(_ context.Context, c program.Call) int {
			line, _ := bufio.NewReader(c.Stdin).ReadString('\n')
			fmt.Fprint(c.Stdout, line)
			return 0
		},
		"sleep": func(ctx context.Context, c program.Call) int { fmt.Fprint(c.Stdout, "ready"); <-ctx.Done(); return 0 },
		"yes": func(_ context.Context, c program.Call) int {
			for {
				if _, err := fmt.Fprintln(c.Stdout, "y"); err != nil {
					return 1
				}
			}
		},
		"late": func(_ context.Context, c program.Call) int {
			go func() {
				<-late
				_, err := c.Stdout.Write([]byte("late"))
				late <- err
			}()
			return 0
		},
		"panic": func(context.Context, program.Call) int { panic("as asked") },
	}[args[0]]
	if !ok {
		return nil, fmt.Errorf("%q is no program of the test", args[0])
	}
	return run, nil
}

func serve(t *testing.T, most int) (processconnect.ProcessClient, *program.Launcher) {
	t.Helper()
	memory := memfs.New(memfs.Options{})
	if err := memory.MkdirAll("/home/user", 0o755); err != nil {
		t.Fatal(err)
	}
	session := account.NewSession(account.Fixed(account.User{Name: "user", UID: 1000, GID: 1000, Home: "/home/user"}), true)
	log := slog.New(slog.DiscardHandler)
	launcher := program.New(program.Config{Session: session, Place: "a test", Find: programs, Max: most, Log: log,
		Stat: func(path string) (fs.FileInfo, error) { return memory.Stat(path) }})
	m := proc.New(proc.Config{Session: session, Launcher: launcher, Log: log})
	_, handler := proc.Handler(func(context.Context) *proc.Manager { return m })
	srv := httptest.NewUnstartedServer(handler)
	srv.EnableHTTP2 = true
	srv.StartTLS()
	t.Cleanup(func() { m.Close(); srv.Close() })
	return processconnect.NewProcessClient(srv.Client(), srv.URL), launcher
}

func start(cmd string, args ...string) *processv1.StartRequest {
	no := false
	return &processv1.StartRequest{Process: &processv1.ProcessConfig{Cmd: cmd, Args: args}, Stdin: &no}
}

type events interface {
	Receive() bool
	Msg() *processv1.StartResponse
	Err() error
	Close() error
}

func open(t *testing.T, c processconnect.ProcessClient, req *processv1.StartRequest) (events, uint32) {
	t.Helper()
	s, err := c.Start(t.Context(), connect.NewRequest(req))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	if !s.Receive() {
		t.Fatal(s.Err())
	}
	return s, s.Msg().GetEvent().GetStart().GetPid()
}

// rest reads what a program writes until it ends.
func rest(s events) (stdout, stderr string, end *processv1.ProcessEvent_EndEvent, err error) {
	for s.Receive() {
		e := s.Msg().GetEvent()
		stdout += string(e.GetData().GetStdout())
		stderr += string(e.GetData().GetStderr())
		if e.GetEnd() != nil {
			end = e.GetEnd()
		}
	}
	return stdout, stderr, end, s.Err()
}

func TestRun(t *testing.T) {
	c, _ := serve(t, 0)
	cwd := "/"
	with := start("/bin/bash", "-l", "-c", "A=1 echo 'a  b' c")
	with.Process.Envs, with.Process.Cwd = map[string]string{"A": "0"}, &cwd
	for _, test := range []struct {
		req            *processv1.StartRequest
		stdout, stderr string
		code           int32
	}{
		{start("echo", "x"), "x\n", "/home/user  user", 0},
		{with, "a  b c\n", "/ 1 user", 0},
		{start("cat"), "", "", 3},
	} {
		s, _ := open(t, c, test.req)
		stdout, stderr, end, err := rest(s)
		if err != nil || stdout != test.stdout || stderr != test.stderr || end.GetExitCode() != test.code || !end.GetExited() {
			t.Errorf("%v: %q %q %v, %v", test.req.GetProcess(), stdout, stderr, end, err)
		}
	}
	s, _ := open(t, c, start("panic"))
	if _, _, end, err := rest(s); err != nil || end.GetExited() || end.GetStatus() != "signal: aborted" {
		t.Errorf("a panic: %v, %v", end, err)
	}
}

func TestInputAndSignals(t *testing.T) {
	c, launcher := serve(t, 0)
	ctx, yes := t.Context(), true
	selector := func(pid uint32) *processv1.ProcessSelector {
		return &processv1.ProcessSelector{Selector: &processv1.ProcessSelector_Pid{Pid: pid}}
	}
	req := start("cat")
	req.Stdin = &yes
	s, pid := open(t, c, req)
	input := &processv1.ProcessInput{Input: &processv1.ProcessInput_Stdin{Stdin: []byte("in")}}
	if _, err := c.SendInput(ctx, connect.NewRequest(&processv1.SendInputRequest{Process: selector(pid), Input: input})); err != nil {
		t.Fatal(err)
	}
	list, err := c.List(ctx, connect.NewRequest(&processv1.ListRequest{}))
	if err != nil || len(list.Msg.GetProcesses()) != 1 || list.Msg.GetProcesses()[0].GetPid() != pid || launcher.Live() != 1 {
		t.Errorf("%v, %v", list, err)
	}
	if _, err := c.CloseStdin(ctx, connect.NewRequest(&processv1.CloseStdinRequest{Process: selector(pid)})); err != nil {
		t.Fatal(err)
	}
	if stdout, _, end, err := rest(s); err != nil || stdout != "in" || end.GetExitCode() != 3 {
		t.Errorf("%q %v, %v", stdout, end, err)
	}
	for cmd, signal := range map[string]processv1.Signal{"sleep": processv1.Signal_SIGNAL_SIGTERM, "line": processv1.Signal_SIGNAL_SIGKILL, "yes": processv1.Signal_SIGNAL_SIGKILL} {
		req := start(cmd)
		req.Stdin = &yes
		s, pid := open(t, c, req)
		if _, err := c.SendSignal(ctx, connect.NewRequest(&processv1.SendSignalRequest{Process: selector(pid), Signal: signal})); err != nil {
			t.Fatal(cmd, err)
		}
		if _, _, end, err := rest(s); err != nil || end.GetExited() || !strings.HasPrefix(end.GetStatus(), "signal: ") {
			t.Errorf("%s: %v, %v", cmd, end, err)
		}
		if _, err := c.SendSignal(ctx, connect.NewRequest(&processv1.SendSignalRequest{Process: selector(pid), Signal: signal})); connect.CodeOf(err) != connect.CodeNotFound {
			t.Errorf("%s, once more: %v", cmd, err)
		}
	}
}

// TestLate: what a program leaves behind writes nothing once it has ended.
func TestLate(t *testing.T) {
	c, _ := serve(t, 0)
	s, _ := open(t, c, start("late"))
	stdout, _, end, err := rest(s)
	late <- nil
	if wrote := <-late; err != nil || !end.GetExited() || stdout != "" || !errors.Is(wrote, os.ErrClosed) {
		t.Errorf("%q %v, %v; it wrote: %v", stdout, end, err, wrote)
	}
}

// TestUnread: what nobody reads holds a program and can be killed nevertheless.
func TestUnread(t *testing.T) {
	c, launcher := serve(t, 0)
	_, pid := open(t, c, start("yes"))
	for launcher.Live() != 1 {
		t.Fatal("it is gone")
	}
	_, err := c.SendSignal(t.Context(), connect.NewRequest(&processv1.SendSignalRequest{
		Process: &processv1.ProcessSelector{Selector: &processv1.ProcessSelector_Pid{Pid: pid}}, Signal: processv1.Signal_SIGNAL_SIGKILL}))
	if err != nil {
		t.Fatal(err)
	}
	if err := launcher.Wait(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestDeadline(t *testing.T) {
	c, _ := serve(t, 0)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	s, err := c.Start(ctx, connect.NewRequest(start("sleep")))
	if err == nil {
		defer s.Close() //nolint:errcheck // it has failed
		for s.Receive() {
		}
		err = s.Err()
	}
	if connect.CodeOf(err) != connect.CodeDeadlineExceeded {
		t.Error(err)
	}
}

func TestRefusals(t *testing.T) {
	c, launcher := serve(t, 2)
	missing, file := "/nowhere", "bad\x00"
	in := func(req *processv1.StartRequest, cwd *string) *processv1.StartRequest {
		req.Process.Cwd = cwd
		return req
	}
	terminal := start("echo")
	terminal.Pty = &processv1.PTY{}
	env := start("echo")
	env.Process.Envs = map[string]string{"a=b": ""}
	refused := func(req *processv1.StartRequest, code connect.Code, want string) {
		t.Helper()
		s, err := c.Start(t.Context(), connect.NewRequest(req))
		if err == nil {
			defer s.Close() //nolint:errcheck // it was refused
			if s.Receive() {
				t.Errorf("%v: %v", req, s.Msg())
			}
			err = s.Err()
		}
		if connect.CodeOf(err) != code || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v", req, err)
		}
	}
	refused(start("ls"), connect.CodeInvalidArgument, `"ls" is no program of the test`)
	refused(start("bash", "-c", "echo a | cat"), connect.CodeUnimplemented, "there is no shell in a test: pipes")
	refused(terminal, connect.CodeUnimplemented, "no terminal in a test")
	refused(env, connect.CodeInvalidArgument, "is not one")
	refused(in(start("echo"), &missing), connect.CodeInvalidArgument, "does not exist")
	refused(in(start("echo"), &file), connect.CodeInvalidArgument, "zero byte")
	open(t, c, start("sleep"))
	open(t, c, start("sleep"))
	refused(start("sleep"), connect.CodeResourceExhausted, "2 programs run already")
	if !launcher.SignalAll(9) {
		t.Error("nobody was there")
	}
	if err := launcher.Wait(t.Context()); err != nil || launcher.Live() != 0 {
		t.Error(err)
	}
}

// TestLeaks: no descriptor stays.
func TestLeaks(t *testing.T) {
	c, _ := serve(t, 0)
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	yes := true
	run := func() {
		req := start("echo")
		req.Stdin = &yes
		s, _ := open(t, c, req)
		if _, _, _, err := rest(s); err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
	}
	run()
	before := count()
	for range 50 {
		run()
	}
	until := time.Now().Add(time.Minute)
	for count() > before+5 && time.Now().Before(until) { // the last one's are closed soon after its end
		time.Sleep(10 * time.Millisecond)
	}
	if after := count(); after > before+5 {
		t.Errorf("%d descriptors, then %d", before, after)
	}
}
