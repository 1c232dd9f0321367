// Package container is the driver that isolates with the kernel's own means, through an OCI runtime on PATH: a user
// namespace per sandbox with ids of its own, no capabilities for programs, a default-deny list of system calls, and
// limits by cgroup. Everything that is mounted for a sandbox lives in a mount namespace that dies with it.
package container

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/hostproc"
	"github.com/firebreak-dev/firebreak/internal/driver/oci"
)

var _ driver.Driver = (*Driver)(nil)

// cleanupLimit bounds what must be undone although the caller has gone.
const cleanupLimit = 30 * time.Second

// What lies in Spec.Dir, all in the one directory dirName.
const (
	dirName    = "container"
	recordName = "sandbox.json"
	diskName   = "disk.img"
	pidName    = "pid"
	logName    = "runtime.log"
	endedName  = "destroyed" // Destroy has begun
)

// Config is what the driver needs to know.
type Config struct {
	StateDir string // absolute; StateDir/<id> is this driver's claim on a sandbox
	Agent    string // absolute path of the agent executable
	Runtime  string // path or name of the OCI runtime; "": the first good one of crun, runc and youki on PATH
	Log      *slog.Logger
}

// Driver runs sandboxes as containers.
type Driver struct {
	cfg Config
	log *slog.Logger
}

// New returns a driver. It touches nothing before it is asked to.
func New(cfg Config) *Driver {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Driver{cfg: cfg, log: cfg.Log.With("driver", "container")}
}

// forms are the roots that the driver takes; a disk image costs no walk through a tree.
func forms() []driver.Form { return []driver.Form{driver.FormDisk, driver.FormDirectory} }

// caps is what the driver offers beside the limits and the freezer that cgroups give. Programs have no capabilities, so that even the
// sandbox's root may neither chown nor install: there is no CapRootUser.
func caps(groups *oci.Cgroups) driver.Caps {
	return groups.Caps() | driver.CapLimitDisk | driver.CapMounts | driver.CapProcesses | driver.CapTerminal |
		driver.CapUsers | driver.CapPrivateRoot | driver.CapPrivatePIDs | driver.CapPrivateNet | driver.CapDetach
}

// check refuses what this driver cannot do on this host.
func check(spec driver.Spec, groups *oci.Cgroups) error {
	if err := oci.Check(spec, driver.OptionExclusive); err != nil {
		return err
	}
	if !slices.Contains(forms(), spec.Root.Form) {
		return unsupported(fmt.Errorf("a container cannot start from a root of form %s", spec.Root.Form))
	}
	if missing := driver.Missing(caps(groups), spec.Needs()); missing != 0 {
		return &firebreak.Error{Kind: firebreak.KindHost, Op: "create container",
			Err:  fmt.Errorf("this host lets us make no cgroup that could enforce %v: %w", missing.Names(), errors.ErrUnsupported),
			Mend: "leave the limit out, or use --isolation gvisor"}
	}
	return nil
}

func unsupported(err error) error {
	return &firebreak.Error{Kind: firebreak.KindUnsupported, Op: "create container",
		Err: fmt.Errorf("%w: %w", err, errors.ErrUnsupported)}
}

// Open implements driver.Driver.
func (d *Driver) Open(ctx context.Context, spec driver.Spec) (driver.Sandbox, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := spec.ID.Check(); err != nil {
		return nil, err
	}
	rec, err := readRecord(spec)
	if err != nil {
		return nil, fmt.Errorf("open container %s: %w", spec.ID, err)
	}
	pidfd, err := rec.open()
	if err != nil {
		return nil, fmt.Errorf("open container %s: %w", spec.ID, err)
	}
	defer pidfd.Close()
	if destroying(spec) || hostproc.Ended(pidfd) {
		return nil, fmt.Errorf("open container %s: it has ended: %w", spec.ID, fs.ErrNotExist)
	}
	groups, err := oci.FindCgroups()
	if err != nil {
		return nil, fmt.Errorf("open container %s: %w", spec.ID, err)
	}
	return d.handle(spec, rec, groups), nil
}

// List implements driver.Driver. A sandbox's claim is the first thing that Create makes and the last that Destroy removes.
func (d *Driver) List(ctx context.Context) ([]driver.ID, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(d.cfg.StateDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	var ids []driver.ID
	for _, e := range entries {
		if id := driver.ID(e.Name()); e.IsDir() && id.Check() == nil {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// claimDir is the directory that says that id lives; the runtime keeps its state in it.
func (d *Driver) claimDir(id driver.ID) string { return filepath.Join(d.cfg.StateDir, string(id)) }

func ownDir(spec driver.Spec) string { return filepath.Join(spec.Dir, dirName) }
