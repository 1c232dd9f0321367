// Package proc runs the processes of a sandbox for the agent: it starts and reaps them, keeps their latest output and
// serves them as process.Process.
package proc

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
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

	keepEnded = 30 * time.Second // for late Connects
	maxEnded  = 256              // that are kept at once
	tagMain   = "main"           // the tag of the process that is kept for as long as the sandbox lives
)

// Config is what a Manager needs.
type Config struct {
	Session *account.Session
	Reaper  *Reaper
	Spawner *Spawner
	Mark    map[string]string // environment that every process gets
	Ring    int               // bytes of output kept per stream; a power of two, 0 for 1 MiB
	Budget  int64             // bytes of output kept in all; 0 for 64 MiB
	Log     *slog.Logger
}

// Manager knows all processes that were started through it.
type Manager struct {
	Config
	budget *Budget
	oom    []byte // what children's oom_score_adj becomes; nil to leave it

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
		Config: c, budget: NewBudget(c.Budget), oom: childrenOOM(),
		live: map[int]*Process{}, open: map[*Process]struct{}{},
	}
}

// childrenOOM makes children likelier victims than the agent when memory runs out: it must live to tell what happened.
func childrenOOM() []byte {
	text, err := os.ReadFile("/proc/self/oom_score_adj")
	own, err2 := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || err2 != nil {
		return nil
	}
	return strconv.AppendInt(nil, int64(min(own+500, 1000)), 10)
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
	prepared, err := m.prepare(user, req.GetProcess())
	if err != nil {
		return nil, nil, err
	}
	reader, err := p.output.Subscribe(nil)
	if err != nil {
		return nil, nil, err
	}
	if err := p.start(prepared, req); err != nil {
		reader.Close()
		return nil, nil, err
	}
	m.work.Go(func() { p.supervise(deadline) })
	return p, reader, nil
}

// prepared is what a process needs before its fork.
type prepared struct {
	file, dir string
	argv, env []string
}

func (m *Manager) prepare(u account.User, c *processv1.ProcessConfig) (*prepared, error) {
	invalid := func(err error) error { return connect.NewError(connect.CodeInvalidArgument, err) }
	for _, arg := range c.GetArgs() {
		if strings.Contains(arg, "\x00") {
			return nil, invalid(fmt.Errorf("argument %q holds a zero byte", arg))
		}
	}
	if strings.Contains(c.GetCwd(), "\x00") {
		return nil, invalid(fmt.Errorf("cwd %q holds a zero byte", c.GetCwd()))
	}
	env, err := environ(u, m.Session.Defaults().Envs, c.GetEnvs(), m.Mark)
	if err != nil {
		return nil, invalid(err)
	}
	p := &prepared{argv: append([]string{c.GetCmd()}, c.GetArgs()...), env: environList(env), dir: m.Session.Path(u, c.GetCwd())}
	err = m.Session.Do(u, func() error {
		err := checkDir(p.dir)
		if err != nil && c.Cwd != nil {
			return err
		}
		if err != nil {
			p.dir = "/" // an account without a home of its own, and nobody asked for a directory
		}
		p.file, err = lookPath(c.GetCmd(), p.dir, env["PATH"])
		return err
	})
	if err != nil {
		return nil, invalid(err)
	}
	return p, nil
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
	m.Reaper.SignalAll(sig)
	m.Reaper.SignalAll(unix.SIGCONT) // a stopped process does not see the other one
	if m.Reaper.Wait(ctx) == nil {
		return
	}
	m.Reaper.SignalAll(unix.SIGKILL)
	ctx, cancel = context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if m.Reaper.Wait(ctx) != nil {
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
