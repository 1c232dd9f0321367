// Package manager makes, finds and ends sandboxes. It is the only writer of their records: every change of state goes
// through lifecycle's table and into the store before and after the driver acts, so that whatever a dying process leaves
// is found and finished by the next one; what leaves nothing is recorded once it runs. Several processes, each with a
// manager, share one state directory.
package manager

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/event"
	"github.com/firebreak-dev/firebreak/internal/image"
	"github.com/firebreak-dev/firebreak/internal/lifecycle"
	"github.com/firebreak-dev/firebreak/internal/metrics"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/internal/trace"
)

// Images is what the manager needs of the templates.
type Images interface {
	Get(name string) (image.Template, error)
	// Has is for names that are often missing: it costs next to nothing.
	Has(name string) bool
	RootOf(ctx context.Context, t image.Template, forms []driver.Form) (driver.Root, error)
}

// Drivers is the set of drivers that this program knows.
type Drivers interface {
	// Names lists them all.
	Names() []string
	// Keeper returns a driver that can do all but Create: it costs next to nothing. fs.ErrNotExist for an unknown name.
	Keeper(name string) (driver.Driver, error)
	// Maker returns a driver that can Create too, for which the agent's program must be found or built.
	Maker(ctx context.Context, name string) (driver.Driver, error)
}

// Config is what a manager is made of. What may be nil or zero says so.
type Config struct {
	StateDir string
	Store    *store.Store
	Images   Images
	Drivers  Drivers
	Policy   string           // file of the policy; empty: the built-in one
	Metrics  *metrics.Metrics // nil: nobody counts
	Tracer   *trace.Tracer    // nil: nobody wants to know where the time of a create goes
	Events   *event.Log       // keeps refusals; nil: nobody does
	Adopt    bool             // take over the detached sandboxes that no living process has; for a process that stays
	Log      *slog.Logger
}

const (
	// How long ended sandboxes are told of, and how many of them.
	keepEnded    = 7 * 24 * time.Hour
	keepEndedMax = 1000

	createTimeout  = 2 * time.Minute  // a create that takes longer has hung
	answerTimeout  = 30 * time.Second // for a fresh agent to take its configuration
	destroyTimeout = 30 * time.Second
	usageTimeout   = 2 * time.Second
	recoverTimeout = 2 * time.Minute
	destroyAtOnce  = 8 // how many sandboxes are destroyed at the same time
)

// Manager makes, finds and ends sandboxes. It may be used concurrently.
type Manager struct {
	cfg   Config
	log   *slog.Logger
	owner *owner
	step  func(string) // told of the steps of Create, to die there in a test

	ctx    context.Context // done when Close begins
	cancel context.CancelFunc
	work   sync.WaitGroup // calls and watches under way

	recovered chan struct{} // closed when what earlier processes left has been seen to

	mu     sync.Mutex
	closed bool               // guarded by mu
	boxes  map[driver.ID]*box // guarded by mu: the living sandboxes with a handle

	limiter auth.Limiter
	pools   *pools

	rules  rules
	key    func() (string, error) // what probes and decisions depend on besides themselves
	trying sync.Mutex             // held while drivers are tried

	probing sync.Mutex
	infos   map[string]probed // guarded by probing

	decided decided
}

// New makes a manager and starts, beside its first calls, to see to what earlier processes left.
func New(cfg Config) (*Manager, error) { return newManager(cfg, func(string) {}) }

func newManager(cfg Config, step func(string)) (*Manager, error) {
	for _, dir := range []string{"owners", "sandboxes", "probes/decisions"} {
		if err := os.MkdirAll(filepath.Join(cfg.StateDir, dir), 0o700); err != nil {
			return nil, stateDirError(cfg.StateDir, err)
		}
	}
	// Mounts and their sources are compared with it by path.
	dir, err := filepath.EvalSymlinks(cfg.StateDir)
	if err == nil {
		cfg.StateDir, err = filepath.Abs(dir)
	}
	if err != nil {
		return nil, stateDirError(cfg.StateDir, err)
	}
	owner, err := newOwner(filepath.Join(cfg.StateDir, "owners"))
	if err != nil {
		return nil, stateDirError(cfg.StateDir, err)
	}
	m := &Manager{cfg: cfg, log: cfg.Log, owner: owner, step: step, recovered: make(chan struct{}),
		pools: newPools(), boxes: map[driver.ID]*box{}, infos: map[string]probed{}, rules: newRules(cfg.Policy), key: sync.OnceValues(probeKey)}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	m.work.Go(func() {
		defer close(m.recovered)
		ctx, cancel := context.WithTimeout(context.Background(), recoverTimeout)
		defer cancel()
		m.recover(ctx)
	})
	return m, nil
}

func stateDirError(dir string, err error) error {
	e := &firebreak.Error{Kind: firebreak.KindHost, Op: "use state directory " + dir, Err: err,
		Mend: "use one that you may write (--state-dir or FIREBREAK_STATE_DIR)"}
	if noSpace(err) {
		e.Kind, e.Mend = firebreak.KindExhausted, "free space there, or use another state directory (--state-dir or FIREBREAK_STATE_DIR)"
	}
	return e
}

// Close destroys the sandboxes that are not detached, and returns when all that the manager started has ended. The
// others live on, for the next process to find.
func (m *Manager) Close() error {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return nil
	}
	m.closed = true
	m.mu.Unlock()
	m.cancel()
	ctx, cancel := context.WithTimeout(context.Background(), destroyTimeout)
	defer cancel()
	err := closeAll(ctx, m.pools.list())
	m.work.Wait()
	err = errors.Join(err, m.destroyOwn())
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, b := range m.boxes {
		b.guest.Close()
		delete(m.boxes, id)
	}
	return errors.Join(err, m.owner.release())
}

func (m *Manager) destroyOwn() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*destroyTimeout)
	defer cancel()
	all, err := m.cfg.Store.List(ctx, everybody())
	if err != nil {
		return err
	}
	var mu sync.Mutex
	errs := []error{}
	each(all, func(r store.Record) {
		if r.Owner != m.owner.name || r.Detached {
			return
		}
		if _, err := m.end(ctx, r, lifecycle.EventDeleted, driver.Exit{Reason: firebreak.EndDestroyed, Code: -1}, nil); err != nil {
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, err)
		}
	})
	return errors.Join(errs...)
}

// each calls do for all, some at a time, and returns when all calls have.
func each[T any](all []T, do func(T)) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, destroyAtOnce)
	for _, v := range all {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			do(v)
		})
	}
	wg.Wait()
}

// begin counts a call, so that Close waits for it, and ends its context when Close begins.
func (m *Manager) begin(ctx context.Context) (context.Context, func(), error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, nil, &firebreak.Error{Kind: firebreak.KindUnavailable, Err: errors.New("firebreak is shutting down")}
	}
	m.work.Add(1)
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(m.ctx, cancel)
	return ctx, func() {
		stop()
		cancel()
		m.work.Done()
	}, nil
}

// dir is where the sandbox of this ID has its files.
func (m *Manager) dir(id driver.ID) string {
	return filepath.Join(m.cfg.StateDir, "sandboxes", string(id))
}

// driverError explains an unknown driver.
func (m *Manager) driverError(name string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return &firebreak.Error{Kind: firebreak.KindInvalid, Op: "choose driver",
			Err: fmt.Errorf("there is no driver %q", name), Mend: fmt.Sprintf("choose one of %v", m.cfg.Drivers.Names())}
	}
	return err
}
