package agent

import (
	"log/slog"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak/internal/agent/account"
	"github.com/firebreak-dev/firebreak/internal/agent/code"
	"github.com/firebreak-dev/firebreak/internal/agent/files"
	"github.com/firebreak-dev/firebreak/internal/agent/proc"
)

// Parts are what an embedded agent serves.
type Parts struct {
	Session  *account.Session // of NewSession; programs and kernels have the same
	Files    files.System
	Programs proc.Launcher
	Code     code.Place
	Place    string       // what the sandbox is, in messages: "a WASM sandbox"
	Usage    func() Usage // what it has taken
	Due      func()       // called when its time is up; nil: Serve tells
	Ring     int          // bytes of output kept per stream of a program; 0 for the default
	Protocol *Protocol    // of this process
	Log      *slog.Logger
}

// Usage is what a sandbox of an embedded agent has taken, and its limits. Sizes are in bytes.
type Usage struct {
	CPU                 time.Duration // since it began
	CPUs                int           // that it may take at one time
	Memory, MemoryLimit uint64
	Disk, DiskLimit     uint64
}

// NewSession returns the session of an embedded agent, in which everything is done by one user.
func NewSession(user account.User) *account.Session {
	return account.NewSession(account.Fixed(user), true)
}

// Embed returns an agent for a sandbox in which no process can run: it is served by the host's own process, over the same
// protocol. There are no ports and no terminals in such a sandbox, and its users are one. Close ends it.
func Embed(p Parts) *Agent {
	a := &Agent{log: p.Log, place: p.Place, onDue: p.Due, protocol: p.Protocol, stop: func() {}}
	last := &lastUsage{of: p.Usage, at: time.Now()}
	a.measure = last.metrics
	a.begin(p.Session, p.Files, proc.Config{Launcher: p.Programs, Ring: p.Ring}, p.Code)
	return a
}

// lastUsage remembers the processor time of the last look: its use is measured from one look to the next.
type lastUsage struct {
	of func() Usage

	mu  sync.Mutex
	cpu time.Duration
	at  time.Time
}

func (l *lastUsage) metrics() metrics {
	l.mu.Lock()
	defer l.mu.Unlock()
	u, now := l.of(), time.Now()
	m := metrics{
		CPUs: u.CPUs, MemTotal: u.MemoryLimit, MemUsed: u.Memory, DiskTotal: u.DiskLimit, DiskUsed: u.Disk,
	}
	if passed := now.Sub(l.at) * time.Duration(max(u.CPUs, 1)); passed > 0 {
		m.CPUUsed = min(100, 100*float64(u.CPU-l.cpu)/float64(passed))
	}
	l.cpu, l.at = u.CPU, now
	return m
}
