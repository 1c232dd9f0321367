package drivertest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/firebreak-dev/firebreak/internal/api/process"
	"github.com/firebreak-dev/firebreak/internal/driver"
)

func execChecks() []check {
	const runs = driver.CapProcesses
	return []check{
		{name: "exec-table", needs: runs, run: checkExecTable},
		{name: "exec-errors", needs: runs, run: checkExecErrors},
		{name: "exec-many", needs: runs, run: checkExecMany},
		{name: "exec-timeout", needs: runs, run: checkExecTimeout},
		{name: "exec-disconnect", needs: runs, run: checkExecDisconnect},
		{name: "exec-signals", needs: runs, run: checkExecSignals},
		{name: "exec-after-reopen", needs: runs, run: checkExecAfterReopen},
		{name: "exec-ids", needs: runs, run: checkExecIDs},
		{name: "users", needs: runs | driver.CapUsers, run: checkUsers},
		{name: "root-user", needs: runs | driver.CapRootUser | driver.CapUsers, run: checkRootUser},
		{name: "ports", needs: runs, run: checkPorts},
		{name: "terminal", needs: runs | driver.CapTerminal, run: checkTerminal},
		{name: "terminal-interrupt", needs: runs | driver.CapTerminal, run: checkTerminalInterrupt},
	}
}

func checkExecTable(c *C) {
	b := c.box(c.spec())
	big := strings.Repeat("x", 100_000)
	work := c.Work(b.spec)
	for name, tc := range map[string]struct {
		p    program
		want result
	}{
		"output":         {sh("echo out; echo err >&2"), result{stdout: "out\n", stderr: "err\n", exited: true, status: "exit status 0"}},
		"exit code":      {sh("exit 3"), result{code: 3, exited: true, status: "exit status 3", err: "exit status 3"}},
		"killed":         {sh("kill -9 $$"), result{code: -1, status: "signal: killed", err: "signal: killed"}},
		"arguments":      {program{cmd: "/bin/echo", args: []string{"-n", "a b", "", "ü$x"}}, result{stdout: "a b  ü$x", exited: true, status: "exit status 0"}},
		"found on PATH":  {program{cmd: "echo", args: []string{"found"}}, result{stdout: "found\n", exited: true, status: "exit status 0"}},
		"directory":      {program{cmd: "/bin/pwd", cwd: "/usr"}, result{stdout: "/usr\n", exited: true, status: "exit status 0"}},
		"default dir":    {program{cmd: "/bin/pwd"}, result{stdout: work + "\n", exited: true, status: "exit status 0"}},
		"environment":    {program{cmd: "/bin/sh", args: []string{"-c", "echo $MINE $FROM_INIT $WHO_WINS"}, envs: map[string]string{"MINE": "mine", "WHO_WINS": "request"}}, result{stdout: "mine init request\n", exited: true, status: "exit status 0"}},
		"input":          {program{cmd: "/bin/cat", stdin: []byte("to cat")}, result{stdout: "to cat", exited: true, status: "exit status 0"}},
		"no input":       {program{cmd: "/bin/cat"}, result{exited: true, status: "exit status 0"}},
		"all bytes":      {sh(`printf '\000\001\377\n\r'`), result{stdout: "\x00\x01\xff\n\r", exited: true, status: "exit status 0"}},
		"large argument": {program{cmd: "/bin/echo", args: []string{big}}, result{stdout: big + "\n", exited: true, status: "exit status 0"}},
	} {
		got, err := b.run(c.ctx, tc.p)
		if err != nil {
			c.Errorf("%s: %v", name, err)
			continue
		}
		tc.want.ended, tc.want.pid = true, got.pid
		tc.want.bytes = int64(len(tc.want.stdout) + len(tc.want.stderr))
		if got != tc.want || got.pid == 0 {
			c.Errorf("%s: got %.200v, want %.200v", name, fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", tc.want))
		}
	}
}

func checkExecErrors(c *C) {
	b := c.box(c.spec())
	for name, tc := range map[string]struct {
		p    program
		want connect.Code
	}{
		"no such program":   {program{cmd: "/no/such/program"}, connect.CodeInvalidArgument},
		"not on PATH":       {program{cmd: "no-such-program"}, connect.CodeInvalidArgument},
		"no such directory": {program{cmd: "/bin/true", cwd: "/no/such/directory"}, connect.CodeInvalidArgument},
		"no such user":      {program{cmd: "/bin/true", user: "nosuchuser"}, connect.CodeUnauthenticated},
	} {
		if _, err := b.run(c.ctx, tc.p); !codeIs(err, tc.want) {
			c.Errorf("%s: %v, want %v", name, err, tc.want)
		}
	}
	b.must(program{cmd: "/bin/true"})
}

func checkExecMany(c *C) {
	b := c.box(c.spec())
	const programs = 20
	errs := make([]error, programs)
	var all sync.WaitGroup
	for i := range programs {
		all.Go(func() {
			want := strings.Repeat(strconv.Itoa(i)+"\n", 200)
			res, err := b.run(c.ctx, sh(fmt.Sprintf("i=0; while [ $i -lt 200 ]; do echo %d; i=$((i+1)); done", i)))
			if err == nil && (res.stdout != want || res.code != 0) {
				err = fmt.Errorf("program %d: %d bytes, code %d", i, res.bytes, res.code)
			}
			errs[i] = err
		})
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		c.Error(err)
	}
}

func (b *box) running() []*process.ProcessInfo {
	b.c.Helper()
	resp, err := b.guest.Process().List(b.c.ctx, connect.NewRequest(&process.ListRequest{}))
	if err != nil {
		b.c.Fatalf("list programs: %v", err)
	}
	return resp.Msg.GetProcesses()
}

// checkExecTimeout: the deadline of the call is the program's own.
func checkExecTimeout(c *C) {
	b := c.box(c.spec())
	ctx, cancel := context.WithTimeout(c.ctx, 700*time.Millisecond)
	defer cancel()
	if _, err := b.run(ctx, program{cmd: "/bin/sleep", args: []string{"1000"}}); !codeIs(err, connect.CodeDeadlineExceeded) {
		c.Errorf("a program past its time: %v, want %v", err, connect.CodeDeadlineExceeded)
	}
	c.eventually("a program lives past its time", func() bool { return len(b.running()) == 0 })
}

// checkExecDisconnect: a caller that goes away kills nothing, and whoever comes later sees all of the output.
func checkExecDisconnect(c *C) {
	b := c.box(c.spec())
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	// It waits for a file, so that nothing here depends on speed.
	gate := c.Work(b.spec) + "/gate"
	p := sh("echo before; while [ ! -e " + gate + " ]; do sleep 0.05; done; echo after; exit 7")
	p.tag = "kept"
	p.started = func(uint32) { cancel() }
	if _, err := b.run(ctx, p); !codeIs(err, connect.CodeCanceled) {
		c.Errorf("a call that went away: %v, want %v", err, connect.CodeCanceled)
	}
	infos := b.running()
	if len(infos) != 1 || infos[0].GetTag() != "kept" {
		c.Fatalf("after its caller went away: %v, want the one program", infos)
	}
	b.put(gate, []byte{})
	stream, err := b.guest.Process().Connect(c.ctx, connect.NewRequest(&process.ConnectRequest{
		Process:    &process.ProcessSelector{Selector: &process.ProcessSelector_Tag{Tag: "kept"}},
		ResumeFrom: &process.Offsets{},
	}))
	if err != nil {
		c.Fatalf("connect: %v", err)
	}
	defer stream.Close()
	var res result
	for stream.Receive() {
		res.add(stream.Msg().GetEvent(), false)
	}
	if err := stream.Err(); err != nil || res.stdout != "before\nafter\n" || res.code != 7 {
		c.Errorf("the late subscriber got %+v, %v", res, err)
	}
}

func (b *box) signal(pid uint32, sig process.Signal) error {
	_, err := b.guest.Process().SendSignal(b.c.ctx, connect.NewRequest(&process.SendSignalRequest{
		Process: &process.ProcessSelector{Selector: &process.ProcessSelector_Pid{Pid: pid}}, Signal: sig,
	}))
	return err
}

func checkExecSignals(c *C) {
	b := c.box(c.spec())
	p := program{cmd: "/bin/sleep", args: []string{"1000"}}
	p.started = func(pid uint32) {
		if err := b.signal(pid, process.Signal_SIGNAL_SIGTERM); err != nil {
			c.Errorf("SIGTERM: %v", err)
		}
	}
	if res, err := b.run(c.ctx, p); err != nil || res.exited || res.status != "signal: terminated" {
		c.Errorf("a program after SIGTERM: %+v, %v", res, err)
	}
	if err := b.signal(1<<22-1, process.Signal_SIGNAL_SIGKILL); !codeIs(err, connect.CodeNotFound) {
		c.Errorf("a signal to no program: %v, want %v", err, connect.CodeNotFound)
	}
}

// checkExecAfterReopen: programs outlive the driver that made their sandbox, and are found through another.
func checkExecAfterReopen(c *C) {
	spec := c.spec()
	b := c.box(spec)
	ctx, cancel := context.WithCancel(c.ctx)
	p := program{cmd: "/bin/sleep", args: []string{"1000"}, tag: "sleeper", started: func(uint32) { cancel() }}
	if _, err := b.run(ctx, p); !codeIs(err, connect.CodeCanceled) {
		c.Fatalf("start: %v", err)
	}
	sb, err := c.open(c.place).Open(c.ctx, spec)
	if err != nil {
		c.Fatalf("Open: %v", err)
	}
	again, err := c.enter(c.ctx, spec, sb)
	if err != nil {
		c.Fatal(err)
	}
	defer again.guest.Close()
	if infos := again.running(); len(infos) != 1 || infos[0].GetTag() != "sleeper" {
		c.Errorf("through a second driver: %v, want the sleeper", infos)
	}
	again.must(program{cmd: "/bin/true"})
}

// checkExecIDs: programs find where they are, as in E2B; in a file only where that is the sandbox's own.
func checkExecIDs(c *C) {
	b := c.box(c.spec())
	want := "true " + string(b.spec.ID) + " of-the-suite\n"
	if got := b.must(sh("echo $E2B_SANDBOX $E2B_SANDBOX_ID $E2B_TEMPLATE_ID")).stdout; got != want {
		c.Errorf("the environment says %q, want %q", got, want)
	}
	if !c.info.Caps.Has(driver.CapPrivateRoot) {
		if _, err := os.Stat("/run/e2b"); err == nil {
			c.Error("the ids were written onto the host")
		}
		return
	}
	want = string(b.spec.ID) + " of-the-suite"
	if got := b.must(sh("echo -n $(cat /run/e2b/.E2B_SANDBOX_ID) $(cat /run/e2b/.E2B_TEMPLATE_ID)")).stdout; got != want {
		c.Errorf("the files say %q, want %q", got, want)
	}
}

func checkUsers(c *C) {
	b := c.box(c.spec())
	for user, want := range map[string]string{"root": "0", "": b.uid(c.User), c.User: b.uid(c.User)} {
		p := program{cmd: "/usr/bin/id", args: []string{"-u"}, user: user}
		if got := strings.TrimSpace(b.must(p).stdout); got != want {
			c.Errorf("as user %q the uid is %s, want %s", user, got, want)
		}
	}
}

func (b *box) uid(user string) string {
	b.c.Helper()
	uid := strings.TrimSpace(b.must(program{cmd: "/usr/bin/id", args: []string{"-u", user}, user: "root"}).stdout)
	if uid == "0" {
		b.c.Fatalf("user %s is root", user)
	}
	return uid
}

// checkRootUser: the sandbox's root may do to its files what root may.
func checkRootUser(c *C) {
	b := c.box(c.spec())
	at := c.Work(b.spec) + "/root-made"
	p := sh("echo x >" + at + " && chmod 600 " + at + " && chown " + c.User + " " + at + " && stat -c %U " + at)
	p.user = "root"
	if got := strings.TrimSpace(b.must(p).stdout); got != c.User {
		c.Errorf("a file that root gave away belongs to %q, want %q", got, c.User)
	}
	if c.info.Caps.Has(driver.CapPrivateRoot) {
		b.must(program{cmd: "/bin/sh", args: []string{"-c", "echo x >/usr/local/bin/installed && rm /usr/local/bin/installed"}, user: "root"})
	}
}

// checkPorts: any TCP port of the sandbox's loopback can be reached through its agent.
func checkPorts(c *C) {
	b := c.box(c.spec())
	ctx, cancel := context.WithCancel(c.ctx)
	p := b.inside("listen")
	port := make(chan string, 1)
	var all sync.WaitGroup
	p.output = func(chunk []byte) {
		select {
		case port <- strings.TrimSpace(string(chunk)):
		default:
		}
	}
	all.Go(func() { _, _ = b.run(ctx, p) }) // until this check goes away, which is no error here
	defer all.Wait()
	defer cancel()
	var number uint64
	select {
	case line := <-port:
		n, err := strconv.ParseUint(line, 10, 16)
		if err != nil {
			c.Fatalf("the listener said %q", line)
		}
		number = n
	case <-c.ctx.Done():
		c.Fatal("the listener said nothing")
	}
	conn, err := b.guest.DialPort(c.ctx, uint16(number))
	if err != nil {
		c.Fatalf("dial port %d: %v", number, err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("hello")); err != nil {
		c.Fatalf("write to port %d: %v", number, err)
	}
	if got, err := io.ReadAll(conn); err != nil || string(got) != "echo hello" {
		c.Errorf("port %d answers %q, %v", number, got, err)
	}
	if conn, err := b.guest.DialPort(c.ctx, 1); err == nil {
		_ = conn.Close()
		c.Error("a port on which nobody listens was opened")
	}
}
