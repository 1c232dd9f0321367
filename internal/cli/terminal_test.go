package cli

import (
	"context"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// typist sits before a terminal.
type typist struct {
	t      *testing.T
	screen *os.File // the side of the person
	tty    *os.File // the side of the program
	before *unix.Termios

	mu    sync.Mutex
	shown string // guarded by mu
}

func newTypist(t *testing.T) *typist {
	screen, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	if err := pty.Setsize(screen, &pty.Winsize{Cols: 111, Rows: 22}); err != nil {
		t.Fatal(err)
	}
	p := &typist{t: t, screen: screen, tty: tty}
	p.before = p.settings()
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 4096)
		for {
			n, err := screen.Read(buf)
			if err != nil {
				return
			}
			p.mu.Lock()
			p.shown += string(buf[:n])
			p.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		tty.Close()
		screen.Close()
		<-done
	})
	return p
}

func (p *typist) settings() *unix.Termios {
	settings, err := unix.IoctlGetTermios(int(p.tty.Fd()), unix.TCGETS)
	if err != nil {
		p.t.Fatal(err)
	}
	return settings
}

func (p *typist) awaits(text string) {
	p.t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		p.mu.Lock()
		seen := strings.Contains(p.shown, text)
		p.mu.Unlock()
		if seen {
			return
		}
	}
	p.t.Fatalf("%q never came, but %q", text, p.shown)
}

func (p *typist) types(text string) {
	if _, err := p.screen.WriteString(text); err != nil {
		p.t.Error(err)
	}
}

func (p *typist) wantRestored() {
	p.t.Helper()
	if after := p.settings(); *after != *p.before {
		p.t.Errorf("the terminal is %+v, was %+v", after, p.before)
	}
}

// start runs the command line with the terminal, and returns a function that waits for its exit status.
func (p *typist) start(s *server, signals chan os.Signal, args ...string) func() int {
	done := make(chan int, 1)
	go func() {
		done <- run{s: s, stdin: p.tty, out: p.tty, signals: signals, env: map[string]string{"TERM": "xterm-test"}}.do(p.t, args...).code
	}()
	return func() int {
		select {
		case code := <-done:
			return code
		case <-time.After(time.Minute):
			p.t.Fatal("it never ends")
			return 0
		}
	}
}

func TestTerminalIsTheSandboxs(t *testing.T) {
	p, signals := newTypist(t), make(chan os.Signal)
	wait := p.start(newServer(t), signals, "run", "-t", "--", "sh", "-c",
		`tty >/dev/null && echo "size $(stty size) $TERM"; trap 'echo "size now $(stty size)"' WINCH; trap 'echo caught' INT; read a; echo "got $a"; b=; while [ -z "$b" ]; do read b; done; echo "got $b"; exit 9`)
	p.awaits("size 22 111 xterm-test\r\n")
	p.types("hello\r")
	p.awaits("got hello")
	p.types("\x03") // a byte in raw mode: the terminal in the sandbox makes a signal of it
	p.awaits("caught")
	if err := pty.Setsize(p.screen, &pty.Winsize{Cols: 77, Rows: 33}); err != nil {
		t.Fatal(err)
	}
	signals <- syscall.SIGWINCH
	p.awaits("size now 33 77")
	if *p.settings() == *p.before {
		t.Error("the terminal is not raw")
	}
	p.types("end\r")
	if code := wait(); code != 9 {
		t.Errorf("exit status %d", code)
	}
	p.wantRestored()
}

func TestTerminalIsRestoredAfterASignal(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGHUP} {
		p, signals, s := newTypist(t), make(chan os.Signal), newServer(t)
		wait := p.start(s, signals, "run", "-it", "--", "sh", "-c", "trap '' TERM HUP; echo ready; while :; do sleep 0.05; done")
		p.awaits("ready")
		signals <- sig
		if code := wait(); code != 128+int(sig) {
			t.Errorf("%s: exit status %d", sig, code)
		}
		p.wantRestored()
		if len(s.deleted) != 1 {
			t.Errorf("%s: the sandbox is left", sig)
		}
	}
}

func TestTerminalIsRestoredWhenTheProgramIsMissing(t *testing.T) {
	p := newTypist(t)
	if code := p.start(newServer(t), nil, "run", "-it", "--", "missing-program")(); code != 127 {
		t.Errorf("exit status %d", code)
	}
	p.wantRestored()
}

func TestTerminalIsRestoredAfterAPanic(t *testing.T) {
	p := newTypist(t)
	a := &app{in: p.tty, out: p.tty, errOut: p.tty}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic was swallowed")
			}
		}()
		defer a.restoreOnPanic()
		if err := a.makeRaw(); err != nil {
			t.Fatal(err)
		}
		panic("a bug")
	}()
	p.wantRestored()
}

func TestTTYNeedsATerminal(t *testing.T) {
	run{s: newServer(t)}.do(t, "run", "-t", "--", "sh").wantError(t, 125, "run: --tty needs a terminal", "leave --tty out")
}

func TestSecondSignalEndsTheProcess(t *testing.T) {
	signals, aborted := make(chan os.Signal), make(chan int, 1)
	ctx, cancel := context.WithCancelCause(context.Background())
	var r signalRouter
	stop := r.start(func() (<-chan os.Signal, func()) { return signals, func() {} }, cancel, func(code int) { aborted <- code })
	signals <- syscall.SIGWINCH
	if ctx.Err() != nil {
		t.Error("a harmless signal cancelled")
	}
	signals <- syscall.SIGTERM
	<-ctx.Done()
	signals <- syscall.SIGINT
	if code := <-aborted; code != 130 {
		t.Errorf("aborted with %d", code)
	}
	stop()
}

func TestWaitingShowsItself(t *testing.T) {
	p := newTypist(t)
	a := &app{errOut: p.tty}
	stop := a.waiting("doing something slow")
	p.awaits("doing something slow… ")
	stop()
	p.awaits("\r\x1b[K")
	quick := a.waiting("doing something quick")
	quick()
	p.mu.Lock()
	defer p.mu.Unlock()
	if strings.Contains(p.shown, "quick") {
		t.Error("what takes no time was shown")
	}
}

func TestColourOnlyOnATerminal(t *testing.T) {
	p := newTypist(t)
	env := map[string]string{"TERM": "xterm"}
	a := &app{errOut: p.tty, lookupEnv: func(name string) (string, bool) { v, ok := env[name]; return v, ok }}
	a.say(red, "with colour")
	p.awaits("\x1b[1;31mfirebreak:\x1b[0m with colour")
	env["NO_COLOR"] = "1"
	a.say(red, "without colour")
	p.awaits("\nfirebreak: without colour")
}
