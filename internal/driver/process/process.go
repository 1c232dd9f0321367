// Package process is the driver without isolation: a sandbox is an agent and its programs as plain processes of the
// host, in the host's own file system and network. It is for trusted code and for comparison.
package process

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/hostproc"
)

var _ driver.Driver = (*Driver)(nil)

// What Create makes in Spec.Dir.
const (
	socketName = "agent.sock"
	logName    = "agent.log"
	workName   = "work"
)

// caps is what a plain process can offer on any host that lacks nothing. Programs run as the account that runs the driver: others of the host's
// accounts have no business here, and could not enter the sandbox's directory.
//
// Nothing pauses: programs may leave any cgroup that we could freeze, as root or through a service manager. SIGSTOP would
// reach those that are found, and their parents would be told, SIGCONT be seen by handlers, and what programs had stopped
// for themselves be started.
const caps = driver.CapProcesses | driver.CapTerminal | driver.CapDetach

const (
	startLimit   = time.Minute      // an agent that does not listen by then never will
	cleanupLimit = 30 * time.Second // for what must be undone although the caller has gone
)

// Config is what the driver needs to know.
type Config struct {
	StateDir string // absolute; StateDir/<id> is this driver's record of a sandbox
	Agent    string // absolute path of the agent executable
	Log      *slog.Logger
}

// Driver runs sandboxes as plain processes.
type Driver struct {
	cfg Config
	log *slog.Logger

	mu       sync.Mutex
	children map[driver.ID]*child // guarded by mu: the agents that this process started and must reap
}

// New returns a driver. It touches nothing before it is asked to.
func New(cfg Config) *Driver {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Driver{cfg: cfg, log: cfg.Log.With("driver", "process"), children: map[driver.ID]*child{}}
}

// Probe implements driver.Driver.
func (d *Driver) Probe(ctx context.Context) (driver.Info, error) {
	info := driver.Info{
		Name:     "process",
		Boundary: firebreak.BoundaryNone,
		Forms:    []driver.Form{driver.FormDirectory},
		Caps:     caps,
		Warnings: []driver.Problem{{
			Text: "no isolation: programs are plain processes of this host, with its files, network and secrets, and nothing limits them",
			Mend: "use --isolation gvisor for code that nobody has read",
		}},
	}
	pidfd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		info.Problems = append(info.Problems, driver.Problem{
			Text: fmt.Sprintf("pidfd_open: %v", err), Mend: "use Linux 5.11 or later",
		})
	} else {
		unix.Close(pidfd)
	}
	if err := unix.CloseRange(math.MaxInt32, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		info.Problems = append(info.Problems, driver.Problem{
			Text: fmt.Sprintf("close_range: %v", err), Mend: "use Linux 5.11 or later",
		})
	}
	if _, err := hostproc.ReadStat(os.Getpid()); err != nil {
		info.Problems = append(info.Problems, driver.Problem{Text: err.Error(), Mend: "mount /proc"})
	}
	if ptmx, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0); err == nil {
		ptmx.Close()
	} else {
		info.Caps &^= driver.CapTerminal
		info.Warnings = append(info.Warnings, driver.Problem{Text: "no terminals: " + err.Error(), Mend: "chmod 666 /dev/pts/ptmx"})
	}
	return info, ctx.Err()
}

// Create implements driver.Driver.
func (d *Driver) Create(ctx context.Context, spec driver.Spec) (driver.Sandbox, error) {
	if err := check(ctx, spec); err != nil {
		return nil, err
	}
	rec, err := d.reserve(ctx, spec.ID)
	if err != nil {
		return nil, fmt.Errorf("create sandbox %s: %w", spec.ID, err)
	}
	defer rec.close()
	c, err := d.start(spec, rec)
	if err == nil {
		// Released before the wait for the agent, so that Destroy can end a sandbox whose agent never listens.
		rec.unlock()
		err = d.await(ctx, spec, c)
	}
	if err != nil {
		return nil, errors.Join(err, d.undo(ctx, spec, rec))
	}
	return d.handle(spec, c.agent, c), nil
}

func check(ctx context.Context, spec driver.Spec) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := spec.ID.Check(); err != nil {
		return err
	}
	for key := range spec.Options {
		return &firebreak.Error{Kind: firebreak.KindInvalid, Op: "read options", Err: fmt.Errorf("the process driver has no option %q", key)}
	}
	if missing := driver.Missing(caps, spec.Needs()); missing != 0 {
		return &firebreak.Error{Kind: firebreak.KindUnsupported, Op: "create plain process",
			Err:  fmt.Errorf("nothing can enforce %v: %w", missing.Names(), errors.ErrUnsupported),
			Mend: "leave it out, or use another isolation"}
	}
	// A root completed by binds of the host is the host template, and "/" is the host itself. Any other root would be
	// silently replaced by the host's own files.
	if r := spec.Root; r.Form > driver.FormDirectory || r.Path != "" && filepath.Clean(r.Path) != "/" && len(r.Binds) == 0 {
		return &firebreak.Error{Kind: firebreak.KindUnsupported, Op: "create plain process",
			Err:  fmt.Errorf("programs would see the host's root, not %s: %w", r.Path, errors.ErrUnsupported),
			Mend: "use the template host, or another isolation"}
	}
	return nil
}

// undo clears what a failed Create left, also when ctx has ended. If the record is no longer ours, a Destroy has
// cleared it all, and another sandbox may have taken the name.
func (d *Driver) undo(ctx context.Context, spec driver.Spec, rec *record) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupLimit)
	defer cancel()
	if err := rec.lock(ctx); err != nil {
		return fmt.Errorf("clear what was begun: %w", err)
	}
	if !rec.current() {
		return nil
	}
	if err := d.clear(ctx, spec, rec); err != nil {
		return fmt.Errorf("clear what was begun: %w", err)
	}
	return nil
}

// Open implements driver.Driver.
func (d *Driver) Open(ctx context.Context, spec driver.Spec) (driver.Sandbox, error) {
	if err := errors.Join(ctx.Err(), spec.ID.Check()); err != nil {
		return nil, err
	}
	agent, err := d.readAgent(spec.ID)
	if err == nil && d.ending(spec.ID) {
		// A Destroy has begun and was perhaps interrupted: its processes are stopped, if not dead.
		err = fmt.Errorf("it is half destroyed: %w", fs.ErrNotExist)
	}
	if err != nil {
		return nil, fmt.Errorf("open sandbox %s: %w", spec.ID, err)
	}
	d.mu.Lock()
	c := d.children[spec.ID]
	d.mu.Unlock()
	if c != nil && c.agent != agent {
		c = nil
	}
	sb := d.handle(spec, agent, c)
	conn, err := sb.Dial(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("open sandbox %s: its agent does not answer (%v): %w", spec.ID, err, fs.ErrNotExist)
	}
	return sb, conn.Close()
}

// List implements driver.Driver.
func (d *Driver) List(ctx context.Context) ([]driver.ID, error) {
	entries, err := os.ReadDir(d.cfg.StateDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list sandboxes: %w", err)
	}
	var ids []driver.ID
	for _, e := range entries {
		if id := driver.ID(e.Name()); e.IsDir() && id.Check() == nil {
			ids = append(ids, id)
		}
	}
	return ids, ctx.Err()
}

// Destroy implements driver.Driver.
func (d *Driver) Destroy(ctx context.Context, spec driver.Spec) error {
	if err := errors.Join(ctx.Err(), spec.ID.Check()); err != nil {
		return err
	}
	rec, err := d.seize(ctx, spec.ID)
	if err != nil {
		return fmt.Errorf("destroy sandbox %s: %w", spec.ID, err)
	}
	defer rec.close()
	if err := d.clear(ctx, spec, rec); err != nil {
		return fmt.Errorf("destroy sandbox %s: %w", spec.ID, err)
	}
	return nil
}

// clear ends a sandbox and removes all of it, the record last. The record is locked.
func (d *Driver) clear(ctx context.Context, spec driver.Spec, rec *record) error {
	if err := rec.markEnding(); err != nil {
		return err
	}
	if err := d.killAll(ctx, spec.ID); err != nil {
		return fmt.Errorf("end its processes: %w", err)
	}
	if err := d.reaped(ctx, spec.ID); err != nil {
		return err
	}
	if err := clearDir(spec.Dir); err != nil {
		return fmt.Errorf("clear its directory: %w", err)
	}
	if err := rec.remove(); err != nil {
		return fmt.Errorf("remove its record: %w", err)
	}
	return nil
}
