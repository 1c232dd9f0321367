// Package program runs programs that are functions of this process, as process.Process knows them, where no process can
// run: interpreters and modules in WebAssembly, scripts in an isolate.
package program

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"runtime/debug"
	"strings"
	"sync"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/agent/account"
	"github.com/firebreak-dev/firebreak/internal/agent/proc"
	processv1 "github.com/firebreak-dev/firebreak/internal/api/process"
)

// Call is what a program is started with.
type Call struct {
	Args           []string // the program's name first
	Env            map[string]string
	Dir            string // absolute; a directory when the program was asked for
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// Func is a program. It returns its exit status, soon after ctx is done at the latest: it was killed then, or its time is
// up. What it writes after that goes nowhere.
type Func func(ctx context.Context, c Call) int

// Config is what programs need.
type Config struct {
	Session *account.Session
	Place   string // what there is no shell in, for messages: "a WASM sandbox"
	// Find returns the program for a command line, whose first word is its name. Errors say what there is instead.
	Find func(args []string) (Func, error)
	Stat func(path string) (fs.FileInfo, error) // of the sandbox's files
	Max  int                                    // programs that may run at one time; 0 for no limit
	Log  *slog.Logger
}

// Launcher starts programs for a proc.Manager.
type Launcher struct {
	Config

	mu   sync.Mutex
	last int
	live map[int]context.CancelCauseFunc
	idle chan struct{} // closed and replaced whenever one has ended
}

var _ proc.Launcher = (*Launcher)(nil)

// New returns a launcher of programs.
func New(c Config) *Launcher {
	return &Launcher{Config: c, live: map[int]context.CancelCauseFunc{}, idle: make(chan struct{})}
}

// killed is why a program's context ended.
type killed struct{ signal unix.Signal }

func (k killed) Error() string { return "killed by " + unix.SignalName(k.signal) }

// Prepare implements proc.Launcher.
func (l *Launcher) Prepare(u account.User, req *processv1.StartRequest) (proc.Launch, error) {
	if req.GetPty() != nil {
		return nil, connect.NewError(connect.CodeUnimplemented, fmt.Errorf("there is no terminal in %s: nothing in it makes system calls; run the command without one", l.Place))
	}
	config := req.GetProcess()
	line := append([]string{config.GetCmd()}, config.GetArgs()...)
	for _, word := range append(line, config.GetCwd()) {
		if strings.Contains(word, "\x00") {
			return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("%q holds a zero byte", word))
		}
	}
	args, assigned, err := l.unshell(line)
	if err != nil {
		return nil, connect.NewError(connect.CodeUnimplemented, err)
	}
	env, err := proc.Environ(u, proc.DefaultPath, l.Session.Defaults().Envs, config.GetEnvs(), assigned)
	if err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, err)
	}
	dir, err := l.dir(u, config)
	if err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, err)
	}
	run, err := l.Find(args)
	if coded := new(connect.Error); err != nil && !errors.As(err, &coded) {
		err = connect.NewError(connect.CodeInvalidArgument, err)
	}
	if err != nil {
		return nil, err
	}
	return func(io *proc.Stdio, started func(int), ended func(unix.WaitStatus)) error {
		return l.start(run, Call{Args: args, Env: env, Dir: dir}, io, started, ended)
	}, nil
}

// dir is where the program begins: in the root if nobody asked for a directory and the user's own does not exist.
func (l *Launcher) dir(u account.User, config *processv1.ProcessConfig) (string, error) {
	dir := l.Session.Path(u, config.GetCwd())
	info, err := l.Stat(dir)
	switch {
	case err == nil && info.IsDir():
		return dir, nil
	case config.Cwd == nil:
		return "/", nil
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("cwd '%s' does not exist", dir)
	case err != nil:
		return "", fmt.Errorf("cwd '%s': %w", dir, err)
	}
	return "", fmt.Errorf("cwd '%s' is not a directory", dir)
}

func (l *Launcher) start(run Func, c Call, io *proc.Stdio, started func(int), ended func(unix.WaitStatus)) (err error) {
	ctx, cancel := context.WithCancelCause(context.Background())
	pid, err := l.enter(cancel)
	if err == nil {
		c.Stdin, c.Stdout, c.Stderr, err = io.Streams(ctx)
	}
	if err != nil {
		l.leave(pid)
		cancel(nil)
		return err
	}
	started(pid)
	go func() {
		status := l.run(ctx, run, c)
		l.leave(pid)
		cancel(nil) // what it left behind writes no more
		ended(status)
	}()
	return nil
}

// enter counts one more program, which cancel ends.
func (l *Launcher) enter(cancel context.CancelCauseFunc) (pid int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.Max > 0 && len(l.live) >= l.Max {
		return 0, connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("%d programs run already, and no more are allowed", l.Max))
	}
	l.last++
	l.live[l.last] = cancel
	return l.last, nil
}

// leave is for a program that has ended; 0 is none.
func (l *Launcher) leave(pid int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.live, pid)
	close(l.idle)
	l.idle = make(chan struct{})
}

// run runs the program. One that panics takes nobody with it.
func (l *Launcher) run(ctx context.Context, run Func, c Call) (status unix.WaitStatus) {
	defer func() {
		if p := recover(); p != nil {
			l.Log.Error("a program panicked", "program", c.Args[0], "panic", p, "stack", string(debug.Stack()))
			status = unix.WaitStatus(unix.SIGABRT)
		}
	}()
	code := run(ctx, c)
	if k := (killed{}); errors.As(context.Cause(ctx), &k) {
		return unix.WaitStatus(k.signal)
	}
	return unix.WaitStatus(code & 0xff << 8)
}

// Signal implements proc.Launcher. Whatever ends a process by default ends a program; there is nothing else that one
// could do to it.
func (l *Launcher) Signal(pid int, sig unix.Signal) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	cancel := l.live[pid]
	switch {
	case cancel == nil:
		return unix.ESRCH
	case sig == 0:
	case !ends(sig):
		return connect.NewError(connect.CodeUnimplemented, fmt.Errorf("%s cannot be sent in %s: only signals that end a program can", unix.SignalName(sig), l.Place))
	default:
		cancel(killed{sig})
	}
	return nil
}

func ends(sig unix.Signal) bool {
	return sig == unix.SIGKILL || sig == unix.SIGTERM || sig == unix.SIGINT || sig == unix.SIGHUP || sig == unix.SIGQUIT
}

// SignalAll implements proc.Launcher.
func (l *Launcher) SignalAll(sig unix.Signal) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, cancel := range l.live {
		if ends(sig) {
			cancel(killed{sig})
		}
	}
	return len(l.live) > 0
}

// Wait implements proc.Launcher.
func (l *Launcher) Wait(ctx context.Context) error {
	for {
		l.mu.Lock()
		left, idle := len(l.live), l.idle
		l.mu.Unlock()
		if left == 0 {
			return nil
		}
		select {
		case <-idle:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Live is how many programs run.
func (l *Launcher) Live() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.live)
}
