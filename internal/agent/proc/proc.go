// Package proc runs the processes of a sandbox for the agent: it starts and reaps them, keeps their latest output and
// serves them as process.Process.
package proc

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/agent/account"
	processv1 "github.com/firebreak-dev/firebreak/internal/api/process"
)

const (
	pipeChunk = 32 << 10 // the largest pieces of output that clients of the protocol are used to
	ptyChunk  = 16 << 10
	minChunk  = 4 << 10 // that a buffer begins with: most processes say little

	keepEnded = 30 * time.Second // for late Connects
	maxEnded  = 256              // that are kept at once
	tagMain   = "main"           // the tag of the process that is kept for as long as the sandbox lives
)

// Config is what a Manager needs.
type Config struct {
	Session  *account.Session
	Launcher Launcher
	Ring     int   // bytes of output kept per stream; a power of two, 0 for 1 MiB
	Budget   int64 // bytes of output kept in all; 0 for 64 MiB
	Log      *slog.Logger
}

// Launcher starts what a Manager manages: processes of the machine (Linux), or programs that are functions of the agent's
// own process. All methods may be called concurrently.
type Launcher interface {
	// Prepare looks at what is asked for, before anything is opened for it. Errors are Connect's.
	Prepare(u account.User, req *processv1.StartRequest) (Launch, error)
	// Signal sends sig to a process and what belongs to it. unix.ESRCH if it has ended.
	Signal(pid int, sig unix.Signal) error
	// SignalAll sends sig to all there are, and reports whether there was anybody.
	SignalAll(sig unix.Signal) bool
	// Wait returns once nobody is left whom SignalAll would reach, or with ctx's error.
	Wait(ctx context.Context) error
}

// Launch starts what was prepared, once. Started is called with the new pid before it can end, ended once when it has and
// writes no more.
type Launch func(io *Stdio, started func(pid int), ended func(unix.WaitStatus)) error

// Manager knows all processes that were started through it.
type Manager struct {
	Config
	budget *Budget

	mu    sync.Mutex
	live  map[int]*Process
	ended []*Process            // the oldest first
	open  map[*Process]struct{} // whose files are open, because something that they left behind may be alive
	work  sync.WaitGroup
}

// New returns a manager without processes.
func New(c Config) *Manager {
	if c.Ring == 0 {
		c.Ring = 1 << 20
	}
	if c.Budget == 0 {
		c.Budget = 64 << 20
	}
	return &Manager{
		Config: c, budget: NewBudget(c.Budget),
		live: map[int]*Process{}, open: map[*Process]struct{}{},
	}
}

// Start starts a process and a reader of its output from the first byte on. The process outlives ctx; at deadline,
// unless that is zero, it is killed.
func (m *Manager) Start(
	ctx context.Context, user account.User, req *processv1.StartRequest, deadline time.Time,
) (*Process, *Reader, error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	p := &Process{
		manager: m, user: user, config: req.GetProcess(), tag: req.Tag, output: newOutput(m.Ring, m.budget),
		input: make(chan struct{}, 1), exited: make(chan struct{}), ended: make(chan struct{}),
	}
	launch, err := m.Launcher.Prepare(user, req)
	if err != nil {
		return nil, nil, err
	}
	reader, err := p.output.Subscribe(nil)
	if err != nil {
		return nil, nil, err
	}
	if err := p.start(launch, req); err != nil {
		reader.Close()
		return nil, nil, err
	}
	m.work.Go(func() { p.supervise(deadline) })
	return p, reader, nil
}

// List returns the processes that run.
func (m *Manager) List() []*Process {
	m.mu.Lock()
	defer m.mu.Unlock()
	list := make([]*Process, 0, len(m.live))
	for _, p := range m.live {
		list = append(list, p)
	}
	slices.SortFunc(list, func(a, b *Process) int { return a.pid - b.pid })
	return list
}

// Find returns the process with that pid, or else the latest with that tag: one that runs before one that has ended.
func (m *Manager) Find(sel *processv1.ProcessSelector) (*Process, error) {
	match := func(p *Process) bool { return p.pid == int(sel.GetPid()) }
	what := fmt.Sprintf("pid %d", sel.GetPid())
	if t, ok := sel.GetSelector().(*processv1.ProcessSelector_Tag); ok {
		match = func(p *Process) bool { return p.tag != nil && *p.tag == t.Tag }
		what = fmt.Sprintf("tag '%s'", t.Tag)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var found *Process
	for _, p := range m.live {
		if match(p) && (found == nil || p.born.After(found.born)) {
			found = p
		}
	}
	for _, p := range slices.Backward(m.ended) {
		if found == nil && match(p) {
			found = p
		}
	}
	if found == nil {
		return nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("process with %s not found", what))
	}
	return found, nil
}

func (m *Manager) add(p *Process) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.live[p.pid] = p
	m.open[p] = struct{}{}
}

func (m *Manager) closed(p *Process) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.open, p)
}

// retire moves a process to those that have ended, and forgets the oldest of these if they are too many.
func (m *Manager) retire(p *Process) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.live[p.pid] == p {
		delete(m.live, p.pid)
	}
	m.ended = append(m.ended, p)
	if len(m.ended) > maxEnded {
		i := max(0, slices.IndexFunc(m.ended, func(p *Process) bool { return !p.isMain() }))
		m.ended[i].output.release()
		m.ended = slices.Delete(m.ended, i, i+1)
	}
	if !p.isMain() {
		time.AfterFunc(keepEnded, func() { m.forget(p) })
	}
}

func (m *Manager) forget(p *Process) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if i := slices.Index(m.ended, p); i >= 0 {
		m.ended = slices.Delete(m.ended, i, i+1)
		p.output.release()
	}
}

// Stop asks all processes to end with sig, kills after grace those that did not, and waits for them.
func (m *Manager) Stop(sig unix.Signal, grace time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	m.Launcher.SignalAll(sig)
	m.Launcher.SignalAll(unix.SIGCONT) // a stopped process does not see the other one
	if m.Launcher.Wait(ctx) == nil {
		return
	}
	m.Launcher.SignalAll(unix.SIGKILL)
	ctx, cancel = context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if m.Launcher.Wait(ctx) != nil {
		m.Log.Warn("processes survive SIGKILL; leaving them to the kernel")
	}
}

// Drain waits, once all processes have ended, until those who follow their output have all of it, or ctx ends.
func (m *Manager) Drain(ctx context.Context) {
	for m.followed() {
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return
		}
	}
}

func (m *Manager) followed() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for p := range m.open {
		if p.output.followed() {
			return true
		}
	}
	return slices.ContainsFunc(m.ended, func(p *Process) bool { return p.output.followed() })
}

// Close kills all processes and waits for everything that was started for them.
func (m *Manager) Close() {
	m.Stop(unix.SIGKILL, time.Second)
	m.mu.Lock()
	for p := range m.open {
		p.close()
	}
	m.mu.Unlock()
	m.work.Wait()
}
