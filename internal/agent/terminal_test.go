package agent_test

import (
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/firebreak-dev/firebreak/internal/agent"
	processv1 "github.com/firebreak-dev/firebreak/internal/api/process"
)

func terminal(script string) *processv1.StartRequest {
	return &processv1.StartRequest{
		Process: &processv1.ProcessConfig{Cmd: "/bin/sh", Args: []string{"-c", script}, Envs: map[string]string{"TERM": "xterm-256color"}},
		Pty:     &processv1.PTY{Size: &processv1.PTY_Size{Cols: 91, Rows: 17}},
	}
}

func bash(script string) *processv1.StartRequest {
	req := terminal(script)
	req.Process.Cmd = "/bin/bash"
	return req
}

func (b *box) keys(pid uint32, text string) error {
	_, err := b.Process().SendInput(b.t.Context(), request(&processv1.SendInputRequest{
		Process: byPID(pid), Input: &processv1.ProcessInput{Input: &processv1.ProcessInput_Pty{Pty: []byte(text)}}}))
	return err
}

func TestTerminal(t *testing.T) {
	b := inProcess(t, agent.Config{})
	// dash would take a signal for the end of its input
	s, r := b.begin(bash("trap 'stty size' WINCH; stty size; test -t 0 && test -t 1 && test -t 2 && echo all; while read line; do echo got:$line; done; echo bye"))
	r.until(t, s, func() bool { return strings.Contains(r.pty.String(), "17 91\r\nall\r\n") })
	if err := b.keys(r.pid, "hello\r"); err != nil {
		t.Fatal(err)
	}
	r.until(t, s, func() bool { return strings.Contains(r.pty.String(), "hello\r\ngot:hello\r\n") }) // echoed too
	_, err := b.Process().Update(t.Context(), request(&processv1.UpdateRequest{Process: byPID(r.pid),
		Pty: &processv1.PTY{Size: &processv1.PTY_Size{Cols: 120, Rows: 40}}}))
	if err != nil {
		t.Fatal(err)
	}
	if err := b.keys(r.pid, "more\r"); err != nil {
		t.Fatal(err)
	}
	r.until(t, s, func() bool {
		return strings.Contains(r.pty.String(), "40 120\r\n") && strings.Contains(r.pty.String(), "got:more")
	})
	_, err = b.Process().CloseStdin(t.Context(), request(&processv1.CloseStdinRequest{Process: byPID(r.pid)}))
	wantCode(t, err, connect.CodeUnimplemented)
	_, err = b.Process().SendInput(t.Context(), request(&processv1.SendInputRequest{
		Process: byPID(r.pid), Input: &processv1.ProcessInput{Input: &processv1.ProcessInput_Stdin{Stdin: []byte("x")}}}))
	wantCode(t, err, connect.CodeInvalidArgument)
	if err := b.keys(r.pid, "\x04"); err != nil { // Ctrl-D
		t.Fatal(err)
	}
	r.until(t, s, func() bool { return r.end != nil })
	if !strings.HasSuffix(r.pty.String(), "bye\r\n") || r.end.GetExitCode() != 0 || r.stdout.Len() > 0 {
		t.Errorf("ended with %q, %v", tail(r.pty), r.end)
	}
}

func TestTerminalInterrupt(t *testing.T) {
	b := inProcess(t, agent.Config{})
	// Not through a shell: dash loses an interrupt that comes while it forks.
	s, r := b.begin(&processv1.StartRequest{Process: &processv1.ProcessConfig{Cmd: "cat"}, Pty: &processv1.PTY{}})
	if err := b.keys(r.pid, "ready\r"); err != nil {
		t.Fatal(err)
	}
	r.until(t, s, func() bool { return strings.Count(r.pty.String(), "ready") == 2 }) // its echo, and its copy
	if err := b.keys(r.pid, "\x03"); err != nil {                                     // Ctrl-C
		t.Fatal(err)
	}
	r.until(t, s, func() bool { return r.end != nil })
	if r.end.GetStatus() != "signal: interrupt" {
		t.Errorf("end %v", r.end)
	}
}

func TestTerminalOutputIsComplete(t *testing.T) {
	b := inProcess(t, agent.Config{Ring: 64 << 10})
	r, err := b.run(terminal("stty -opost; seq 1 100000"))
	if err != nil || r.pty.Len() != 588895 || !strings.HasSuffix(tail(r.pty), "\n100000\n") {
		t.Errorf("%d bytes ending in %q, %v", r.pty.Len(), tail(r.pty), err)
	}
}

func TestTerminalOfAnotherUser(t *testing.T) {
	needRoot(t)
	b := inProcess(t, agent.Config{})
	r, err := b.run(terminal("tty=$(tty); stat -c %U $tty; echo through > $tty; exec 3<>/dev/tty && echo own"), asUser("nobody"))
	if err != nil || r.pty.String() != "nobody\r\nthrough\r\nown\r\n" {
		t.Errorf("got %q, %v", r.pty.String(), err)
	}
}

func TestNoTerminalToResize(t *testing.T) {
	b := inProcess(t, agent.Config{})
	_, r := b.begin(shell("sleep 1000"))
	_, err := b.Process().Update(t.Context(), request(&processv1.UpdateRequest{Process: byPID(r.pid), Pty: &processv1.PTY{Size: &processv1.PTY_Size{Cols: 1, Rows: 1}}}))
	wantCode(t, err, connect.CodeFailedPrecondition)
	b.signal(r.pid, processv1.Signal_SIGNAL_SIGKILL)
}
