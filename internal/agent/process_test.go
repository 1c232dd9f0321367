package agent_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/firebreak-dev/firebreak/internal/agent"
	processv1 "github.com/firebreak-dev/firebreak/internal/api/process"
	"github.com/firebreak-dev/firebreak/internal/guest"
)

func TestEndEvents(t *testing.T) {
	b := inProcess(t, agent.Config{})
	for _, test := range []struct {
		script, status, failure string
		code                    int32
		exited                  bool
	}{
		{"exit 0", "exit status 0", "", 0, true},
		{"exit 3", "exit status 3", "exit status 3", 3, true},
		{"exit 255", "exit status 255", "exit status 255", 255, true},
		{"kill -KILL $$", "signal: killed", "signal: killed", -1, false},
		{"kill -TERM $$", "signal: terminated", "signal: terminated", -1, false},
		{"kill -INT $$", "signal: interrupt", "signal: interrupt", -1, false},
		{"ulimit -c 0; kill -SEGV $$", "signal: segmentation fault", "signal: segmentation fault", -1, false},
	} {
		r, err := b.run(shell(test.script))
		if err != nil {
			t.Fatal(err)
		}
		e := r.end
		if e.GetStatus() != test.status || e.GetError() != test.failure || (e.Error != nil) != (test.failure != "") ||
			e.GetExitCode() != test.code || e.GetExited() != test.exited {
			t.Errorf("%s: %v", test.script, e)
		}
	}
}

func TestStartRefusals(t *testing.T) {
	b := inProcess(t, agent.Config{})
	missing, file := "/no/such/dir", "/etc/passwd"
	for name, test := range map[string]struct {
		config *processv1.ProcessConfig
		text   string
	}{
		"no command":       {nil, "no command"},
		"not in PATH":      {&processv1.ProcessConfig{Cmd: "no-such-program"}, "executable file not found in $PATH"},
		"no such file":     {&processv1.ProcessConfig{Cmd: "/no/such/program"}, "no such file or directory"},
		"not executable":   {&processv1.ProcessConfig{Cmd: "/etc/passwd"}, "permission denied"},
		"a directory":      {&processv1.ProcessConfig{Cmd: "/etc"}, "is a directory"},
		"no such cwd":      {&processv1.ProcessConfig{Cmd: "true", Cwd: &missing}, "cwd '/no/such/dir' does not exist"},
		"cwd is a file":    {&processv1.ProcessConfig{Cmd: "true", Cwd: &file}, "is not a directory"},
		"bad variable":     {&processv1.ProcessConfig{Cmd: "true", Envs: map[string]string{"A=B": "c"}}, "is not one"},
		"zero in argument": {&processv1.ProcessConfig{Cmd: "true", Args: []string{"a\x00b"}}, "zero byte"},
		"too much":         {&processv1.ProcessConfig{Cmd: "true", Args: []string{strings.Repeat("x", 3<<20)}}, "argument list too long"},
	} {
		_, err := b.run(&processv1.StartRequest{Process: test.config})
		wantCode(t, err, connect.CodeInvalidArgument)
		if err == nil || !strings.Contains(err.Error(), test.text) {
			t.Errorf("%s: got %v, want %q", name, err, test.text)
		}
	}
	_, err := b.run(shell("true"), asUser("nobody-of-that-name"))
	wantCode(t, err, connect.CodeUnauthenticated)
}

func TestEnvironmentIsExact(t *testing.T) {
	b := inProcess(t, agent.Config{Mark: "box1"})
	t.Setenv("LEAK", "of the agent's own")
	req := &processv1.StartRequest{Process: &processv1.ProcessConfig{Cmd: "/usr/bin/env", Envs: map[string]string{
		"MINE": "a=b\nc", "FROM_INIT": "mine", "FIREBREAK_SANDBOX_ID": "forged"}}}
	r, err := b.run(req)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for _, line := range strings.Split(r.stdout.String(), "\n") {
		name, _, _ := strings.Cut(line, "=")
		got[name] = true
	}
	for _, want := range []string{"PATH", "HOME", "USER", "LOGNAME", "MINE", "FROM_INIT", "FIREBREAK_SANDBOX_ID"} {
		if !got[want] {
			t.Errorf("%s is missing of %s", want, r.stdout.String())
		}
	}
	if got["LEAK"] || !strings.Contains(r.stdout.String(), "FROM_INIT=mine\n") || !strings.Contains(r.stdout.String(), "FIREBREAK_SANDBOX_ID=box1\n") {
		t.Errorf("environment: %s", r.stdout.String())
	}
}

func TestStdin(t *testing.T) {
	b := inProcess(t, agent.Config{})
	s, r := b.begin(&processv1.StartRequest{Process: &processv1.ProcessConfig{Cmd: "cat"}})
	b.input(r.pid, "one\n")
	r.until(t, s, func() bool { return r.stdout.String() == "one\n" })
	stream := b.Process().StreamInput(t.Context())
	for _, msg := range []*processv1.StreamInputRequest{
		{Event: &processv1.StreamInputRequest_Start{Start: &processv1.StreamInputRequest_StartEvent{Process: byPID(r.pid)}}},
		{Event: &processv1.StreamInputRequest_Keepalive{}},
		{Event: &processv1.StreamInputRequest_Data{Data: &processv1.StreamInputRequest_DataEvent{
			Input: &processv1.ProcessInput{Input: &processv1.ProcessInput_Stdin{Stdin: []byte("two\n")}}}}},
	} {
		if err := stream.Send(msg); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := stream.CloseAndReceive(); err != nil {
		t.Fatal(err)
	}
	for i := range 2 { // closing what is closed does no harm, but the process may have ended by then
		_, err := b.Process().CloseStdin(t.Context(), request(&processv1.CloseStdinRequest{Process: byPID(r.pid)}))
		if err != nil && (i == 0 || connect.CodeOf(err) != connect.CodeNotFound) {
			t.Fatal(err)
		}
	}
	r.until(t, s, func() bool { return r.end != nil })
	if r.stdout.String() != "one\ntwo\n" || r.end.GetExitCode() != 0 {
		t.Errorf("got %q, %v", r.stdout.String(), r.end)
	}
	_, err := b.Process().SendInput(t.Context(), request(&processv1.SendInputRequest{Process: byPID(r.pid),
		Input: &processv1.ProcessInput{Input: &processv1.ProcessInput_Stdin{Stdin: []byte("x")}}}))
	wantCode(t, err, connect.CodeNotFound)
}

func TestStdinOff(t *testing.T) {
	b := inProcess(t, agent.Config{})
	if got := b.output("cat; readlink /proc/self/fd/0"); got != "/dev/null\n" {
		t.Errorf("got %q, want an empty /dev/null", got)
	}
	_, r := b.begin(shell("sleep 100"))
	_, err := b.Process().SendInput(t.Context(), request(&processv1.SendInputRequest{Process: byPID(r.pid),
		Input: &processv1.ProcessInput{Input: &processv1.ProcessInput_Stdin{Stdin: []byte("x")}}}))
	wantCode(t, err, connect.CodeFailedPrecondition)
}

func TestInputThatNobodyReadsEndsWithItsContext(t *testing.T) {
	b := inProcess(t, agent.Config{})
	_, r := b.begin(&processv1.StartRequest{Process: &processv1.ProcessConfig{Cmd: "sleep", Args: []string{"100"}}})
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := b.Process().SendInput(ctx, request(&processv1.SendInputRequest{Process: byPID(r.pid),
		Input: &processv1.ProcessInput{Input: &processv1.ProcessInput_Stdin{Stdin: make([]byte, 1<<20)}}}))
	wantCode(t, err, connect.CodeDeadlineExceeded)
	b.signal(r.pid, processv1.Signal_SIGNAL_SIGKILL)
}

func (b *box) signal(pid uint32, sig processv1.Signal) {
	b.t.Helper()
	if _, err := b.Process().SendSignal(b.t.Context(), request(&processv1.SendSignalRequest{Process: byPID(pid), Signal: sig})); err != nil {
		b.t.Fatal(err)
	}
}

func TestSignalReachesTheGroup(t *testing.T) {
	b := inProcess(t, agent.Config{})
	s, r := b.begin(shell("sleep 1000 & echo $!; wait"))
	r.until(t, s, func() bool { return strings.HasSuffix(r.stdout.String(), "\n") })
	child := strings.TrimSpace(r.stdout.String())
	b.signal(r.pid, processv1.Signal_SIGNAL_SIGTERM)
	r.until(t, s, func() bool { return r.end != nil })
	if r.end.GetStatus() != "signal: terminated" {
		t.Errorf("end %v", r.end)
	}
	eventually(t, func() string {
		if state(child) != "" && state(child) != "Z" {
			return "the child lives: " + state(child)
		}
		return ""
	})
	for _, req := range []*processv1.SendSignalRequest{
		{Process: byPID(r.pid), Signal: processv1.Signal_SIGNAL_SIGKILL},
		{Process: byPID(1 << 30), Signal: processv1.Signal_SIGNAL_SIGKILL},
		{Process: byTag("nobody"), Signal: processv1.Signal_SIGNAL_SIGKILL},
	} {
		_, err := b.Process().SendSignal(t.Context(), request(req))
		wantCode(t, err, connect.CodeNotFound)
	}
}

// state is the letter of a process's state, "" if it is gone.
func state(pid string) string {
	text, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return ""
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	return rest[:1]
}

func TestListAndTags(t *testing.T) {
	b := inProcess(t, agent.Config{})
	tag := "server"
	req := shell("sleep 1000")
	req.Tag = &tag
	s, r := b.begin(req)
	res, err := b.Process().List(t.Context(), request(&processv1.ListRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	list := res.Msg.GetProcesses()
	if len(list) != 1 || list[0].GetPid() != r.pid || list[0].GetTag() != tag || list[0].GetConfig().GetCmd() != "/bin/sh" {
		t.Errorf("list %v", list)
	}
	if _, err := b.Process().SendSignal(t.Context(), request(&processv1.SendSignalRequest{Process: byTag(tag), Signal: processv1.Signal_SIGNAL_SIGKILL})); err != nil {
		t.Fatal(err)
	}
	r.until(t, s, func() bool { return r.end != nil })
	if r.end.GetStatus() != "signal: killed" || r.end.GetError() != "signal: killed" || r.end.GetExitCode() != -1 || r.end.GetExited() {
		t.Errorf("end %v", r.end)
	}
	res, err = b.Process().List(t.Context(), request(&processv1.ListRequest{}))
	if err != nil || len(res.Msg.GetProcesses()) != 0 {
		t.Errorf("list %v, %v after the end", res.Msg, err)
	}
}

func TestDeadlineKills(t *testing.T) {
	b := inProcess(t, agent.Config{})
	start := time.Now()
	// Our own client would end the call by itself at this time; the header alone shows that the agent does.
	r, err := b.run(shell("trap '' TERM; echo before; sleep 1000"), header("Connect-Timeout-Ms", "3000"))
	wantCode(t, err, connect.CodeDeadlineExceeded)
	if r.stdout.String() != "before\n" || r.end != nil {
		t.Errorf("got %q and end %v", r.stdout.String(), r.end)
	}
	if took := time.Since(start); took < 3*time.Second {
		t.Errorf("killed after %v", took)
	}
	late, err := b.Process().Connect(t.Context(), request(&processv1.ConnectRequest{Process: byPID(r.pid), ResumeFrom: &processv1.Offsets{}}))
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	seen, err := collect(t, late)
	if err != nil || seen.end.GetStatus() != "signal: killed" || seen.stdout.String() != "before\n" {
		t.Errorf("who comes late sees %v, %q, %v", seen.end, seen.stdout.String(), err)
	}
}

func TestZeroTimeoutIsNone(t *testing.T) {
	b := inProcess(t, agent.Config{})
	r, err := b.run(shell("sleep 0.2; echo done"), header("Connect-Timeout-Ms", "0"))
	if err != nil || r.stdout.String() != "done\n" {
		t.Errorf("got %v, %v", r, err)
	}
}

func TestDisconnectDoesNotKill(t *testing.T) {
	b := inProcess(t, agent.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	flag := t.TempDir() + "/go"
	stream, err := b.Process().Start(ctx, request(shell("while [ ! -e "+flag+" ]; do sleep 0.05; done; echo lives; sleep 1000")))
	if err != nil || !stream.Receive() {
		t.Fatal(err, stream.Err())
	}
	pid := stream.Msg().GetEvent().GetStart().GetPid()
	cancel()
	for stream.Receive() {
	}
	again, err := b.Process().Connect(t.Context(), request(&processv1.ConnectRequest{Process: byPID(pid)}))
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	r := &result{}
	r.until(t, again, func() bool { return r.pid != 0 })
	must(t, os.WriteFile(flag, nil, 0o600))
	r.until(t, again, func() bool { return r.stdout.String() == "lives\n" })
	b.signal(pid, processv1.Signal_SIGNAL_SIGKILL)
	r.until(t, again, func() bool { return r.end != nil })
}

func TestKeepalive(t *testing.T) {
	b := inProcess(t, agent.Config{})
	stream, err := b.Process().Start(t.Context(), request(shell("sleep 2.5"), header("Keepalive-Ping-Interval", "1")))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	alive := 0
	for stream.Receive() {
		if stream.Msg().GetEvent().GetKeepalive() != nil {
			alive++
		}
	}
	if alive < 1 || stream.Err() != nil {
		t.Errorf("%d keepalives, %v; want one a second", alive, stream.Err())
	}
}

func TestLateConnect(t *testing.T) {
	b := inProcess(t, agent.Config{})
	tag := "main"
	req := shell("echo 0123456789; echo err >&2; exit 7")
	req.Tag = &tag
	r, err := b.run(req)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		from *processv1.Offsets
		want string
	}{
		"what nobody was sent": {nil, ""},
		"from the beginning":   {&processv1.Offsets{Stderr: 4}, "0123456789\n"},
		"from the middle":      {&processv1.Offsets{Stdout: 7, Stderr: 4}, "789\n"},
		"from the end":         {&processv1.Offsets{Stdout: 11, Stderr: 4}, ""},
	} {
		late, err := b.Process().Connect(t.Context(), request(&processv1.ConnectRequest{Process: byTag("main"), ResumeFrom: test.from}))
		if err != nil {
			t.Fatal(err)
		}
		got, err := collect(t, late)
		if err != nil || got.pid != r.pid || got.stdout.String() != test.want || got.stderr.String() != "" || got.end.GetExitCode() != 7 {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	late, err := b.Process().Connect(t.Context(), request(&processv1.ConnectRequest{Process: byTag("main"), ResumeFrom: &processv1.Offsets{Stdout: 12}}))
	if err == nil {
		_, err = collect(t, late)
	}
	wantCode(t, err, connect.CodeOutOfRange)
}

func TestDaemonDoesNotHoldTheEnd(t *testing.T) {
	b := inProcess(t, agent.Config{})
	file := t.TempDir() + "/lives"
	script := fmt.Sprintf("(while :; do echo noise; echo x > %s; sleep 0.05; done) & echo $! >&2", file)
	start := time.Now()
	r, err := b.run(shell(script))
	if err != nil || r.end.GetExitCode() != 0 {
		t.Fatal(r, err)
	}
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("the end came after %v", took)
	}
	eventually(t, func() string {
		if err := os.Remove(file); err != nil {
			return "the daemon never wrote: " + err.Error()
		}
		return ""
	})
	eventually(t, func() string { // it lives on although nobody reads what it writes
		if _, err := os.Stat(file); err != nil {
			return "the daemon died of the end"
		}
		return ""
	})
	b.output("kill -9 " + strings.TrimSpace(r.stderr.String()))
}

func TestWhatComesJustAfterTheEndIsNotLost(t *testing.T) {
	b := inProcess(t, agent.Config{})
	for range 10 {
		got := ""
		for try := 0; try < 5 && got != "early\nlate\n"; try++ { // on a busy machine it may come too late
			got = b.output("(sleep 0.05; echo late) & echo early")
		}
		if got != "early\nlate\n" {
			t.Errorf("got %q", got)
		}
	}
}

// TestInitKeepsWhatRuns: a sandbox that is used again, or resumed, is told its configuration anew at any time.
func TestInitKeepsWhatRuns(t *testing.T) {
	b := inProcess(t, agent.Config{})
	yes := true
	req := &processv1.StartRequest{Stdin: &yes, Process: &processv1.ProcessConfig{Cmd: "/bin/sh", Args: []string{"-c",
		"n=0; while read word; do n=$((n+1)); echo $n $word $STAGE $E2B_SANDBOX_ID; done"}}}
	s, r := b.begin(req)
	want := ""
	for i, stage := range []string{"one", "two", "three"} {
		id := fmt.Sprint("id", i)
		must(t, b.Init(t.Context(), guest.Config{User: me(t), SandboxID: id, TemplateID: "of-all",
			Envs: map[string]string{"STAGE": stage}, Deadline: time.Now().Add(time.Hour)}))
		b.input(r.pid, stage+"\n")
		want += fmt.Sprintf("%d %s\n", i+1, stage) // its environment is that of its start
		r.until(t, s, func() bool { return strings.Count(r.stdout.String(), "\n") == i+1 })
		got := b.output("echo $STAGE $E2B_SANDBOX $E2B_SANDBOX_ID $E2B_TEMPLATE_ID")
		if now := fmt.Sprintf("%s true %s of-all\n", stage, id); got != now {
			t.Errorf("a later process has %q, want %q", got, now)
		}
	}
	if got := r.stdout.String(); got != want {
		t.Errorf("the process that went on said %q, want %q", got, want)
	}
	must(t, b.Init(t.Context(), guest.Config{User: me(t)}))
	if got := b.output("echo $STAGE$E2B_SANDBOX$E2B_SANDBOX_ID$E2B_TEMPLATE_ID"); got != "\n" {
		t.Errorf("after an init without them there is %q", got)
	}
	must(t, b.Init(t.Context(), guest.Config{User: me(t), SandboxID: "s", TemplateID: "t"}))
	mine := shell("echo $E2B_SANDBOX_ID $E2B_TEMPLATE_ID")
	mine.Process.Envs = map[string]string{"E2B_SANDBOX_ID": "of the request"}
	if r, err := b.run(mine); err != nil || r.stdout.String() != "of the request t\n" {
		t.Errorf("with an environment of its own: %q, %v", r.stdout.String(), err)
	}
}
