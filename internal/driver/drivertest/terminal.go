package drivertest

import (
	"context"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/firebreak-dev/firebreak/internal/api/process"
)

// terminal is a shell on a terminal of the sandbox, as a person would use it.
type terminal struct {
	b   *box
	pid uint32

	mu   sync.Mutex
	seen strings.Builder // guarded by mu

	ended sync.WaitGroup
	res   result // valid after ended
	err   error  // valid after ended
}

// terminal starts a shell; it ends with the check at the latest.
func (b *box) terminal(p program) *terminal {
	b.c.Helper()
	t := &terminal{b: b}
	ctx, cancel := context.WithCancel(b.c.ctx)
	up := make(chan uint32, 1)
	p.size = &process.PTY_Size{Cols: 80, Rows: 24}
	p.started = func(pid uint32) { up <- pid }
	p.output = func(chunk []byte) {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.seen.Write(chunk)
	}
	t.ended.Go(func() {
		defer close(up)
		t.res, t.err = b.run(ctx, p)
	})
	b.c.Cleanup(func() {
		cancel()
		t.ended.Wait()
	})
	pid, ok := <-up
	if !ok {
		b.c.Fatalf("start on a terminal: %v", t.err)
	}
	t.pid = pid
	return t
}

func (t *terminal) selector() *process.ProcessSelector {
	return &process.ProcessSelector{Selector: &process.ProcessSelector_Pid{Pid: t.pid}}
}

func (t *terminal) typeIn(keys string) {
	t.b.c.Helper()
	_, err := t.b.guest.Process().SendInput(t.b.c.ctx, connect.NewRequest(&process.SendInputRequest{
		Process: t.selector(), Input: &process.ProcessInput{Input: &process.ProcessInput_Pty{Pty: []byte(keys)}},
	}))
	if err != nil {
		t.b.c.Fatalf("type %q: %v", keys, err)
	}
}

// shows waits until the terminal has shown text.
func (t *terminal) shows(text string) {
	t.b.c.Helper()
	t.b.c.eventually("the terminal does not show "+text, func() bool {
		t.mu.Lock()
		defer t.mu.Unlock()
		return strings.Contains(t.seen.String(), text)
	})
}

func checkTerminal(c *C) {
	b := c.box(c.spec())
	t := b.terminal(program{cmd: "/bin/sh", envs: map[string]string{"PS1": "> "}})
	// What is typed is echoed, so the expected answers are ones that the typed text does not hold.
	t.typeIn("test -t 0 && test -t 1 && echo it-is-a-$((40+2))\n")
	t.shows("it-is-a-42")
	t.typeIn("echo size: $(stty size)\n")
	t.shows("size: 24 80")
	_, err := b.guest.Process().Update(c.ctx, connect.NewRequest(&process.UpdateRequest{
		Process: t.selector(), Pty: &process.PTY{Size: &process.PTY_Size{Cols: 132, Rows: 43}},
	}))
	if err != nil {
		c.Fatalf("resize: %v", err)
	}
	t.typeIn("echo size: $(stty size)\n")
	t.shows("size: 43 132")
	t.typeIn("exit 5\n")
	t.ended.Wait()
	if t.err != nil || t.res.code != 5 || !t.res.exited {
		c.Errorf("the shell ended with %+v, %v", t.res, t.err)
	}
}

// checkTerminalInterrupt: Ctrl-C reaches the program in the foreground, not the shell.
func checkTerminalInterrupt(c *C) {
	b := c.box(c.spec())
	t := b.terminal(program{cmd: "/bin/sh", envs: map[string]string{"PS1": "> "}})
	t.typeIn("trap : INT; echo begin-$((1+1)); sleep 1000; echo status-$?\n")
	t.shows("begin-2")
	// Sleep may not have started yet: an interrupt before it is swallowed, so it is repeated. Not at once, since each
	// takes what the terminal has not shown yet.
	var pressed time.Time
	c.eventually("Ctrl-C does not end the program", func() bool {
		t.mu.Lock()
		shown := strings.Contains(t.seen.String(), "status-130")
		t.mu.Unlock()
		if !shown && time.Since(pressed) > time.Second {
			t.typeIn("\x03")
			pressed = time.Now()
		}
		return shown
	})
	t.typeIn("exit\n")
	t.ended.Wait()
	if t.err != nil {
		c.Errorf("the shell: %v", t.err)
	}
}
