// Package v8 is the driver that runs JavaScript in isolates of V8: a fresh one for each code context and each program of a
// sandbox, in a workerd that the sandboxes of one tenant share, or in one of the sandbox's own. Workerd is no hardened
// sandbox, as its makers say, so each lives in a sandbox of the strongest driver here that runs processes, without a
// network. The agent's protocol is served by this very process, with a file system in memory, and a sandbox ends with it.
package v8

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/agent"
	"github.com/firebreak-dev/firebreak/internal/driver"
)

const (
	name      = "v8"
	placeName = "a V8 sandbox" // in messages
)

// caps: memory is not limited per sandbox but per isolate, at the same size for all, and CPU time not at all beyond what
// the process has; no program is a process.
const caps = driver.CapLimitDisk | driver.CapLimitPIDs | driver.CapPrivateRoot | driver.CapPrivatePIDs | driver.CapPrivateNet

// What a sandbox has that nobody limits.
const (
	heap            = 128      // MiB of JavaScript values in one isolate
	processMemory   = 1 << 30  // bytes of a process and all that is in its isolates, where the host can limit it
	defaultDisk     = 64 << 20 // bytes, in memory
	defaultPrograms = 32       // at one time
)

// Config is what a Driver needs.
type Config struct {
	StateDir string        // absolute
	Workerd  func() string // finds the program; "" if it is not here
	// TypeScript finds the package of Sucrase, as npm packs it; "" if it is not here.
	TypeScript func() string
	// Inner returns the drivers for the sandboxes of workerd, the strongest first, whose state is this driver's own. It is
	// called when they are first needed, and again after an error.
	Inner    func(context.Context) ([]driver.Driver, error)
	Stall    time.Duration // for which a script may hold the processor of its process; 0: 10 s
	Idle     time.Duration // after which an isolate that nobody uses is ended; 0: 10 min
	Isolates int           // that a process keeps; 0: 200
	Log      *slog.Logger
}

// Driver makes sandboxes in this process. Others see nothing of them.
type Driver struct {
	*host
	mute bool
}

// host is what the drivers of one process share.
type host struct {
	cfg   Config
	log   *slog.Logger
	sweep sync.Once

	protocol func() *agent.Protocol // of all its sandboxes

	mu     sync.Mutex
	boxes  map[driver.ID]*box // nil values are being made
	groups map[string]*group
	inner  driver.Driver // the one that serves here, once it is known
	info   driver.Info   // of inner
}

var _ driver.Driver = (*Driver)(nil)

// New returns a driver. It touches nothing before it is asked to.
func New(cfg Config) *Driver {
	cfg.Stall = cmp.Or(cfg.Stall, 10*time.Second)
	cfg.Idle = cmp.Or(cfg.Idle, 10*time.Minute)
	cfg.Isolates = cmp.Or(cfg.Isolates, 200)
	if cfg.TypeScript == nil {
		cfg.TypeScript = func() string { return "" }
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Driver{host: &host{cfg: cfg, log: cfg.Log.With("driver", name), boxes: map[driver.ID]*box{}, groups: map[string]*group{},
		protocol: sync.OnceValue(agent.NewProtocol)}}
}

// Mute returns another driver of the same sandboxes, for tests: the agents of those that it makes never listen.
func (d *Driver) Mute() *Driver { return &Driver{host: d.host, mute: true} }

// Probe implements driver.Driver: it starts a workerd in its sandbox and calculates something.
func (d *Driver) Probe(ctx context.Context) (driver.Info, error) {
	info := driver.Info{Name: name, Boundary: firebreak.BoundaryLanguage, Forms: []driver.Form{driver.FormScript}, Caps: caps,
		Usual: firebreak.Limits{Disk: defaultDisk, PIDs: defaultPrograms}}
	version, inner, err := d.try(ctx)
	if ctx.Err() != nil {
		return info, ctx.Err()
	}
	info.Version = version
	if err != nil {
		p := driver.Problem{Text: err.Error()}
		if e := new(firebreak.Error); errors.As(err, &e) {
			p = driver.Problem{Text: e.Err.Error(), Mend: e.Mend}
		}
		info.Problems = append(info.Problems, p)
		return info, nil
	}
	if !inner.Caps.Has(driver.CapLimitMemory) {
		info.Warnings = append(info.Warnings, driver.Problem{Text: "the processes of V8 have no limit of memory but that of each isolate's heap, since " + inner.Name + " cannot limit it here"})
	}
	return info, nil
}

func (d *Driver) try(ctx context.Context) (version string, inner driver.Info, err error) {
	if _, err := d.workerd(); err != nil {
		return "", inner, err
	}
	_, inner, err = d.wall(ctx)
	if err != nil {
		return "", inner, err
	}
	version = "workerd " + engineVersion + " in " + inner.Name
	p, err := d.boot(ctx, processMemory)
	if err != nil {
		return version, inner, err
	}
	defer func() {
		p.end("the probe is over")
		<-p.cleared
	}()
	_, err = p.make(ctx)
	return version, inner, err
}

// wall returns the driver for the sandboxes of workerd: the first that can serve here.
func (d *Driver) wall(ctx context.Context) (driver.Driver, driver.Info, error) {
	d.mu.Lock()
	inner, info := d.inner, d.info
	d.mu.Unlock()
	if inner != nil {
		return inner, info, nil
	}
	all, err := d.cfg.Inner(ctx)
	if err != nil {
		return nil, driver.Info{}, err
	}
	d.sweep.Do(func() { d.clearOld(all) })
	var why []error
	for _, inner := range all {
		info, err := inner.Probe(ctx)
		if err == nil {
			err = info.Err()
		}
		if err != nil {
			why = append(why, err)
			continue
		}
		d.mu.Lock()
		d.inner, d.info = inner, info
		d.mu.Unlock()
		return inner, info, nil
	}
	return nil, driver.Info{}, &firebreak.Error{Kind: firebreak.KindHost, Err: fmt.Errorf("workerd needs a sandbox of its own, and none can be made here: %w", errors.Join(why...)),
		Mend: "firebreak doctor says what gvisor and container lack"}
}

// clearOld destroys what processes left that have died without. What lives has its lock.
func (d *Driver) clearOld(all []driver.Driver) {
	ctx, cancel := context.WithTimeout(context.Background(), endLimit)
	defer cancel()
	dir := filepath.Join(d.cfg.StateDir, processesDir)
	locks, err := filepath.Glob(filepath.Join(dir, "*."+lockName))
	if err != nil {
		return // the pattern is ours
	}
	for _, path := range locks {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			continue // it is being cleared
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			spec := driver.Spec{Dir: strings.TrimSuffix(path, "."+lockName)}
			spec.ID = driver.ID(filepath.Base(spec.Dir))
			for _, inner := range all {
				if err := clearAway(ctx, inner, spec); err != nil {
					d.log.Warn("what a V8 process left stays", "process", spec.ID, "error", err)
				}
			}
		}
		_ = f.Close() // which unlocks it
	}
}

// options are the driver's own, of a sandbox.
type options struct {
	exclusive bool // no other sandbox is in its process
}

func parseOptions(given map[string]string) (o options, err error) {
	for key, value := range given {
		switch key {
		case driver.OptionExclusive:
			o.exclusive, err = strconv.ParseBool(value)
		default:
			err = errors.New("the one option is exclusive")
		}
		if err != nil {
			return o, &firebreak.Error{Kind: firebreak.KindInvalid, Op: "read options", Err: fmt.Errorf("the v8 driver's option %s=%q: %w", key, value, err)}
		}
	}
	return o, nil
}

// check refuses what this driver cannot do.
func check(ctx context.Context, spec driver.Spec) (options, error) {
	if err := ctx.Err(); err != nil {
		return options{}, err
	}
	if err := spec.ID.Check(); err != nil {
		return options{}, err
	}
	if missing := driver.Missing(caps, spec.Needs()); missing != 0 {
		return options{}, fmt.Errorf("the v8 driver has no %v: %w", missing.Names(), errors.ErrUnsupported)
	}
	if spec.Root.Form != driver.FormScript && spec.Root.Form != driver.FormInvalid {
		return options{}, &firebreak.Error{Kind: firebreak.KindUnsupported, Op: "create V8 sandbox",
			Err:  fmt.Errorf("the template is a %v, and a V8 sandbox starts from JavaScript: %w", spec.Root.Form, errors.ErrUnsupported),
			Mend: "use a template of scripts, such as v8-javascript (firebreak setup v8)"}
	}
	return parseOptions(spec.Options)
}

// Create implements driver.Driver.
func (d *Driver) Create(ctx context.Context, spec driver.Spec) (driver.Sandbox, error) {
	opts, err := check(ctx, spec)
	if err != nil {
		return nil, err
	}
	if err := d.reserve(spec.ID); err != nil {
		return nil, err
	}
	b, err := d.make(ctx, spec, opts)
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		delete(d.boxes, spec.ID)
		return nil, err
	}
	d.boxes[spec.ID] = b
	return b, nil
}

// make makes a sandbox whose process runs.
func (d *Driver) make(ctx context.Context, spec driver.Spec, opts options) (*box, error) {
	if info, err := os.Stat(spec.Dir); err != nil || !info.IsDir() {
		return nil, fmt.Errorf("the sandbox's directory: %w", cmp.Or(err, error(unix.ENOTDIR)))
	}
	key := "tenant " + spec.Tenant
	if opts.exclusive || spec.Tenant == "" {
		key = "sandbox " + string(spec.ID)
	}
	if d.mute {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	g := d.join(key, processMemory)
	if _, err := g.process(ctx); err != nil {
		g.leave()
		return nil, err
	}
	b, err := d.newBox(spec, g)
	if err != nil {
		g.leave()
		return nil, err
	}
	return b, nil
}

// reserve makes id half-made, so that List shows it and nobody else can take it.
func (d *Driver) reserve(id driver.ID) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.boxes[id]; ok {
		return fmt.Errorf("sandbox %s: %w", id, fs.ErrExist)
	}
	d.boxes[id] = nil
	return nil
}

// Open implements driver.Driver.
func (d *Driver) Open(ctx context.Context, spec driver.Spec) (driver.Sandbox, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if b := d.boxes[spec.ID]; b != nil && !b.Ended() {
		return b, nil
	}
	return nil, fmt.Errorf("sandbox %s: %w", spec.ID, fs.ErrNotExist)
}

// List implements driver.Driver.
func (d *Driver) List(ctx context.Context) ([]driver.ID, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var ids []driver.ID
	for id := range d.boxes {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids, ctx.Err()
}

// Destroy implements driver.Driver. A sandbox that is still being made belongs to its Create.
func (d *Driver) Destroy(ctx context.Context, spec driver.Spec) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	d.mu.Lock()
	b := d.boxes[spec.ID]
	d.mu.Unlock()
	if b == nil {
		return nil
	}
	b.End(driver.Exit{Reason: firebreak.EndDestroyed, Code: -1, Detail: "destroyed"})
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.boxes[spec.ID] == b {
		delete(d.boxes, spec.ID)
	}
	return nil
}
