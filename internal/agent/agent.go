// Package agent is the program inside every sandbox: it runs processes, moves files and opens ports there for the
// host, over E2B's envd protocol. It works as pid 1 and as an ordinary process.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/agent/account"
	"github.com/firebreak-dev/firebreak/internal/agent/archive"
	"github.com/firebreak-dev/firebreak/internal/agent/code"
	"github.com/firebreak-dev/firebreak/internal/agent/files"
	"github.com/firebreak-dev/firebreak/internal/agent/proc"
)

// maxMessage bounds one message of Connect: input for a process is the largest.
const maxMessage = 8 << 20

// minCompressed is from what size on a message is compressed for clients that ask for it.
const minCompressed = 16 << 10

// Config is how an agent is started.
type Config struct {
	Adopt            bool   // reap orphans: as pid 1, or as a subreaper that has the process to itself
	DropCapabilities bool   // children get none, and no new privileges
	PIDsMax          int64  // processes and threads of all children; 0 for no limit
	Mark             string // the sandbox's id in every child's environment; "" for none
	Ring             int    // bytes of output kept per stream; 0 for the default
	Log              *slog.Logger
}

// Agent serves one sandbox.
type Agent struct {
	log     *slog.Logger
	session *account.Session
	procs   *proc.Manager
	files   *files.Service
	code    *code.Service
	claim   claim
	archive *archive.Service
	measure func() metrics
	due     chan struct{} // closed at the deadline
	dueOnce sync.Once
	onDue   func() // called then; nil: nobody wants to be

	protocol *Protocol

	owns     bool      // the file system is the sandbox's own: the agent is its first process
	wrote    [2]string // guarded by claim.mu: the ids that are in its files
	codePort *Listener // connections to the code interpreter
	codeOnce sync.Once // it is served from the first of them on
	requests inflight
	live     context.Context // of all requests and of the connections that were taken over
	hangUp   context.CancelFunc
	stop     context.CancelFunc // ends the reaper, if there is one
	work     sync.WaitGroup

	place string // what the sandbox is if no process can run in it, for messages; "" where processes run
}

// New starts an agent. Close ends it.
func New(c Config) (*Agent, error) {
	prepare, err := c.prepare()
	if err != nil {
		return nil, err
	}
	a := &Agent{log: c.Log, owns: os.Getpid() == 1, protocol: NewProtocol()}
	spawner, err := proc.NewSpawner(prepare...)
	if err != nil {
		return nil, fmt.Errorf("prepare to start processes: %w", err)
	}
	if c.Adopt && os.Getpid() != 1 {
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			c.Log.Warn("orphans of this sandbox go to the host's init", "error", err)
		}
	}
	mark := map[string]string{}
	if c.Mark != "" {
		mark["FIREBREAK_SANDBOX_ID"] = c.Mark
	}
	session, reaper := account.NewSession(account.Open("/"), !a.owns), proc.NewReaper(c.Adopt, c.Log)
	linux := proc.NewLinux(proc.Linux{Session: session, Reaper: reaper, Spawner: spawner, Mark: mark, Log: c.Log})
	a.measure = new(sampler).machine
	ctx, stop := context.WithCancel(context.Background())
	a.stop = func() { spawner.Close(); stop() }
	a.begin(session, files.Host{}, proc.Config{Launcher: linux, Ring: c.Ring}, code.NewProcesses(session, linux, c.Log))
	a.work.Go(func() { reaper.Run(ctx) })
	return a, nil
}

// begin makes the services of their parts, and starts what needs no request.
func (a *Agent) begin(session *account.Session, system files.System, procs proc.Config, place code.Place) {
	procs.Session, procs.Log = session, a.log
	a.session, a.procs, a.files = session, proc.New(procs), files.New(session, system, a.log)
	a.code, a.codePort = code.New(code.Config{Session: session, Place: place, Stat: system.Stat}), NewListener()
	a.archive = archive.New(session, a.owns)
	a.due = make(chan struct{})
	a.live, a.hangUp = context.WithCancel(context.Background())
}

// prepare lists what the thread that starts processes is to be deprived of.
func (c Config) prepare() ([]func() error, error) {
	var steps []func() error
	switch {
	case c.PIDsMax > 0 && os.Getpid() != 1:
		c.Log.Warn("processes are not limited: only the first process of a sandbox can do that")
	case c.PIDsMax > 0:
		enter, err := proc.LimitPIDs(filepath.Join(os.TempDir(), ".firebreak-pids"), c.PIDsMax)
		if err != nil {
			c.Log.Warn("processes are not limited: this kernel does not let the sandbox do it", "error", err)
		} else {
			steps = append(steps, enter)
		}
	}
	if c.DropCapabilities {
		steps = append(steps, proc.DropCapabilities)
	}
	return steps, nil
}

// Serve answers on l until ctx is done, the deadline comes, or l fails; then it cuts all connections.
func (a *Agent) Serve(ctx context.Context, l net.Listener) error {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true) // gRPC needs it
	srv := &http.Server{
		Handler: a, Protocols: protocols, MaxHeaderBytes: 64 << 10,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       5 * time.Minute, // longer than the guest's, so that it is the guest who closes
		BaseContext:       func(net.Listener) context.Context { return a.live },
		ErrorLog:          slog.NewLogLogger(a.log.Handler(), slog.LevelDebug),
	}
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(l) }()
	var err error
	select {
	case err = <-failed:
		a.hangUp()
		a.requests.wait()
		return fmt.Errorf("serve: %w", err)
	case <-a.due:
		err = ErrDeadline
	case <-ctx.Done():
	}
	_ = srv.Close() // cuts streams: those who wait for them learn that the sandbox is gone
	a.hangUp()      // and what was hijacked
	<-failed
	a.requests.wait()
	return err
}

// inflight counts requests, because http.Server does not wait for those whose connection it closed.
type inflight struct {
	mu   sync.Mutex
	n    int
	idle chan struct{} // closed once n is 0; nil while nobody waits
}

func (f *inflight) count(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.add(1)
		defer f.add(-1)
		next.ServeHTTP(w, r)
	})
}

func (f *inflight) add(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.n += n; f.n == 0 && f.idle != nil {
		close(f.idle)
		f.idle = nil
	}
}

func (f *inflight) wait() {
	f.mu.Lock()
	var idle chan struct{}
	if f.n > 0 {
		if f.idle == nil {
			f.idle = make(chan struct{})
		}
		idle = f.idle
	}
	f.mu.Unlock()
	if idle != nil {
		<-idle
	}
}

// ErrDeadline is how Serve ends when the sandbox's time is up.
var ErrDeadline = errors.New("the sandbox's time is up")

// Close kills all processes and waits for everything that New and requests started.
func (a *Agent) Close() {
	a.claim.close()
	a.hangUp() // also of an agent that never served
	a.requests.wait()
	a.files.Close()
	a.code.Close()
	a.procs.Close()
	a.stop()
	a.work.Wait()
}
