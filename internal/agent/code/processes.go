package code

import (
	"errors"
	"log/slog"
	"net/http"
	"path/filepath"
	"sync"

	"connectrpc.com/connect"

	"github.com/firebreak-dev/firebreak/internal/agent/account"
	"github.com/firebreak-dev/firebreak/internal/agent/proc"
	processv1 "github.com/firebreak-dev/firebreak/internal/api/process"
)

// Processes is the place of interpreters that are programs of the sandbox. Its kernels are processes that work for the
// agent.
type Processes struct {
	linux *proc.Linux
	users *account.Session
	log   *slog.Logger

	mu     sync.Mutex
	closed bool
	work   sync.WaitGroup // of the kernels
}

// NewProcesses returns a place for kernels among the processes of the machine.
func NewProcesses(users *account.Session, linux *proc.Linux, log *slog.Logger) *Processes {
	return &Processes{linux: linux, users: users, log: log}
}

var _ Place = (*Processes)(nil)

// Language implements Place.
func (p *Processes) Language(name string) (Language, error) {
	l, err := languageOf(name)
	return Language{Name: l.name, Shell: l.shell}, err
}

// Offers implements Place.
func (p *Processes) Offers(which Language) bool {
	l, err := languageOf(which.Name)
	user, err2 := p.users.User("")
	if err != nil || err2 != nil {
		return false
	}
	_, err = p.linux.LookPath(user, l.programs...)
	return err == nil
}

// Close implements Place.
func (p *Processes) Close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.work.Wait()
}

// Start implements Place.
func (p *Processes) Start(o Options) (Kernel, error) {
	l, err := languageOf(o.Language.Name)
	if err != nil {
		return nil, err
	}
	program, err := p.linux.LookPath(o.User, l.programs...)
	if err != nil {
		return nil, fail(http.StatusBadRequest, "%s cannot be run here: %w", l.name, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, fail(http.StatusServiceUnavailable, "the sandbox ends")
	}
	child, err := p.linux.Spawn(o.User, &processv1.ProcessConfig{Cmd: program, Args: l.args, Cwd: &o.Dir}, l.channels)
	if err != nil {
		return nil, startError(l, err)
	}
	k := &kernel{
		begun: make(chan struct{}),
		child: child, program: filepath.Base(program), language: l, log: p.log.With("kernel", l.name, "pid", child.PID()),
		buf: make([]byte, maxText), done: make(chan struct{}, 1), gone: make(chan struct{}),
	}
	p.work.Go(k.serve)
	if err := k.send(l.preamble()); err != nil {
		k.Kill("it does not take our program: " + err.Error())
	}
	return k, nil
}

// startError blames the client for what it named, as a directory.
func startError(l language, err error) error {
	status := http.StatusInternalServerError
	var coded *connect.Error
	if errors.As(err, &coded) {
		if err = errors.New(coded.Message()); coded.Code() == connect.CodeInvalidArgument {
			status = http.StatusBadRequest
		}
	}
	return fail(status, "start %s: %w", l.name, err)
}
