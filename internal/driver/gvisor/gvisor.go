// Package gvisor is the driver behind gVisor: a sandbox is a kernel in user space, and no system call of the code
// inside reaches the host's kernel. gVisor is linked in; the program re-executes itself as its parts.
package gvisor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/oci"
)

var _ driver.Driver = (*Driver)(nil)

const (
	startLimit   = time.Minute      // an agent that does not listen by then never will
	cleanupLimit = 30 * time.Second // for what must be undone although the caller has gone
)

// Config is what the driver needs to know.
type Config struct {
	StateDir string // absolute; StateDir/<id> is this driver's record of a sandbox
	Agent    string // absolute path of the agent executable, statically linked
	Exe      string // the program whose main calls MaybeMain, statically linked, for everybody to execute; "" is the running one
	Log      *slog.Logger
}

// Driver makes gVisor sandboxes.
type Driver struct {
	cfg Config
	log *slog.Logger
}

// New returns a driver. It touches nothing before it is asked to.
func New(cfg Config) *Driver {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Exe == "" {
		cfg.Exe = "/proc/self/exe"
	}
	return &Driver{cfg: cfg, log: cfg.Log.With("driver", "gvisor")}
}

// caps is what sandboxes can do here: gVisor gives all but the limits that only cgroups can enforce.
func caps(host *oci.Cgroups) driver.Caps {
	return host.Caps()&(driver.CapLimitCPU|driver.CapLimitMemory) |
		driver.CapLimitDisk | driver.CapLimitPIDs | driver.CapMounts | driver.CapProcesses | driver.CapTerminal |
		driver.CapUsers | driver.CapRootUser | driver.CapPrivateRoot | driver.CapPrivatePIDs | driver.CapPrivateNet | driver.CapPause |
		driver.CapDetach
}

// Create implements driver.Driver.
func (d *Driver) Create(ctx context.Context, spec driver.Spec) (driver.Sandbox, error) {
	if err := d.check(ctx, spec); err != nil {
		return nil, err
	}
	rec, err := d.reserve(spec.ID)
	if err != nil {
		return nil, err
	}
	defer rec.close()
	sb, err := d.start(ctx, spec, rec)
	if err != nil {
		return nil, errors.Join(err, d.undo(ctx, spec, rec))
	}
	return sb, nil
}

func (d *Driver) start(ctx context.Context, spec driver.Spec, rec *record) (_ *box, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, startLimit, fmt.Errorf("agent does not listen after %v", startLimit))
	defer cancel()
	st, ready, err := d.launch(spec, rec)
	defer func() {
		if err != nil { // they are our children, and nobody else reaps them
			cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupLimit)
			defer cancel()
			err = errors.Join(err, st.kill(cleanup))
		}
	}()
	if err != nil {
		return nil, err
	}
	defer ready.Close()
	// Released before the waits, so that Destroy can end a sandbox that does not boot, or whose agent never listens.
	rec.unlock()
	sb := d.handle(spec, st)
	if err := sb.boot(ctx, ready); err != nil {
		return nil, err
	}
	// Not before: what nobody has booted nobody could reach. A Destroy may have removed the record, and another sandbox have
	// taken its name, so it goes into the directory, not to the path.
	if err := st.save(rec.inside()); err != nil {
		return nil, err
	}
	if err := sb.await(ctx); err != nil {
		return nil, fmt.Errorf("start agent: %w", err)
	}
	return sb, nil
}

func (d *Driver) check(ctx context.Context, spec driver.Spec) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := oci.Check(spec, driver.OptionExclusive); err != nil {
		return err
	}
	switch {
	case spec.Root.Form != driver.FormDirectory && spec.Root.Form != driver.FormDisk:
		return unsupported(fmt.Sprintf("a root of form %v cannot be served", spec.Root.Form), "")
	case spec.Network != driver.NetworkNone:
		return unsupported("only loopback can be offered", "")
	case strings.ContainsAny(spec.Dir, ",:"):
		return &firebreak.Error{Kind: firebreak.KindInvalid, Op: "create gVisor sandbox",
			Err: fmt.Errorf("its directory %q has a comma or a colon in it", spec.Dir), Mend: "use another state directory"}
	}
	host, err := oci.FindCgroups()
	if err != nil {
		return err
	}
	if missing := driver.Missing(caps(host), spec.Needs()); missing != 0 {
		return unsupported(fmt.Sprintf("nothing can enforce %v here", missing.Names()),
			"run as root, or leave the limit out")
	}
	return nil
}

func unsupported(what, mend string) error {
	return &firebreak.Error{Kind: firebreak.KindUnsupported, Op: "create gVisor sandbox",
		Err: fmt.Errorf("%s: %w", what, errors.ErrUnsupported), Mend: mend}
}

// undo clears what a failed Create left, also when ctx has ended. If the record is no longer ours, a Destroy has
// cleared it all, and another sandbox may have taken the name.
func (d *Driver) undo(ctx context.Context, spec driver.Spec, rec *record) error {
	if !rec.current() {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupLimit)
	defer cancel()
	rec.unlock()
	if err := d.Destroy(ctx, spec); err != nil {
		return fmt.Errorf("clear what was begun: %w", err)
	}
	return nil
}

// Open implements driver.Driver.
func (d *Driver) Open(ctx context.Context, spec driver.Spec) (driver.Sandbox, error) {
	if err := errors.Join(ctx.Err(), spec.ID.Check()); err != nil {
		return nil, err
	}
	st, err := readState(d.path(spec.ID))
	if err != nil {
		return nil, fmt.Errorf("open sandbox %s: %w", spec.ID, err)
	}
	sb := d.handle(spec, st)
	if err := sb.reach(ctx); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("open sandbox %s: its agent does not answer (%v): %w", spec.ID, err, fs.ErrNotExist)
	}
	return sb, nil
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

func (d *Driver) path(id driver.ID) string { return filepath.Join(d.cfg.StateDir, string(id)) }
