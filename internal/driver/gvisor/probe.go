package gvisor

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/oci"
)

// Probe implements driver.Driver: it boots a sandbox with nothing in it but the agent.
func (d *Driver) Probe(ctx context.Context) (driver.Info, error) {
	info := driver.Info{
		Name: "gvisor", Version: version(), Boundary: firebreak.BoundaryUserKernel,
		Forms: []driver.Form{driver.FormDisk, driver.FormDirectory},
	}
	host, err := oci.FindCgroups()
	if err != nil {
		info.Problems = append(info.Problems, driver.Problem{Text: err.Error(), Mend: "mount /proc"})
		return info, ctx.Err()
	}
	info.Caps = caps(host)
	want := driver.CapLimitCPU | driver.CapLimitMemory | driver.CapLimitPIDs
	if missing := driver.Missing(host.Caps(), want); missing != 0 {
		info.Warnings = append(info.Warnings, driver.Problem{
			Text: fmt.Sprintf("no cgroup can be made here for %v: a sandbox can take what the host has", missing.Names()),
			Mend: "run as root, or in a service with Delegate=yes",
		})
	}
	if rootless() {
		info.Warnings = append(info.Warnings, driver.Problem{
			Text: "an ordinary user has one user id: in directories that a sandbox is given, only its root can make files",
			Mend: "run programs there as root of the sandbox, or run firebreak as root",
		})
	}
	if err := isStatic(d.cfg.Exe); err != nil {
		info.Problems = append(info.Problems, problem(err))
		return info, ctx.Err()
	}
	pauses, err := d.tryOne(ctx)
	if ctx.Err() != nil {
		return driver.Info{}, ctx.Err()
	}
	if err != nil {
		info.Problems = append(info.Problems, problem(err))
	} else if pauses != nil {
		info.Caps &^= driver.CapPause
		info.Warnings = append(info.Warnings, driver.Problem{Text: "a sandbox cannot be paused here: " + pauses.Error()})
	}
	return info, nil
}

// isStatic returns an error unless the program can run in the empty root of a sandbox, where no loader is.
func isStatic(exe string) error {
	file, err := elf.Open(exe)
	if err != nil {
		return fmt.Errorf("read %s: %w", exe, err)
	}
	defer file.Close()
	for _, part := range file.Progs {
		if part.Type == elf.PT_INTERP {
			return &firebreak.Error{Kind: firebreak.KindHost, Op: "start gVisor",
				Err: fmt.Errorf("%s is linked dynamically", exe), Mend: "build firebreak with CGO_ENABLED=0"}
		}
	}
	return nil
}

// tryOne makes a sandbox and removes it, with a state of its own that List does not see. Pauses says why it could not be
// paused in between.
func (d *Driver) tryOne(ctx context.Context) (pauses, err error) {
	if err := os.MkdirAll(d.cfg.StateDir, 0o700); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(d.cfg.StateDir, ".probe-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	spec := driver.Spec{ID: probeID(dir), Dir: filepath.Join(dir, "dir"),
		Root: driver.Root{Form: driver.FormDirectory, Path: filepath.Join(dir, "root")}}
	for _, sub := range []string{spec.Dir, spec.Root.Path} {
		if err := os.Mkdir(sub, 0o755); err != nil {
			return nil, err
		}
	}
	cfg := d.cfg
	cfg.StateDir = filepath.Join(dir, "state")
	try := New(cfg)
	sb, err := try.Create(ctx, spec)
	if err != nil {
		return nil, err
	}
	pauses = tryPause(ctx, sb)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupLimit)
	defer cancel()
	return pauses, try.Destroy(ctx, spec)
}

// tryPause returns nil if sb can be paused, and answers again after that.
func tryPause(ctx context.Context, sb driver.Sandbox) error {
	p, err := driver.As[driver.Pauser](sb)
	if err != nil {
		return err
	}
	if err := p.Pause(ctx); err != nil {
		return err
	}
	if err := p.Resume(ctx); err != nil {
		return err
	}
	conn, err := sb.Dial(ctx)
	if err != nil {
		return err
	}
	return conn.Close()
}

// probeID is an ID of this probe alone: cgroups know no state directories.
func probeID(dir string) driver.ID {
	return driver.ID(fmt.Sprintf("probe%d", os.Getpid()) + filepath.Base(dir)[len(".probe-"):])
}

// problem says how to mend what kept the probe from its sandbox.
func problem(err error) driver.Problem {
	p := driver.Problem{Text: err.Error()}
	var e *firebreak.Error
	if errors.As(err, &e) && e.Mend != "" {
		p = driver.Problem{Text: fmt.Sprintf("%s: %v", e.Op, e.Err), Mend: e.Mend}
	}
	switch {
	case p.Mend != "":
	case strings.Contains(p.Text, unix.ENOSPC.Error()): // gVisor says it only in words
		p.Mend = "free space on the disk of the state directory, or use another one (--state-dir or FIREBREAK_STATE_DIR)"
	case os.Geteuid() != 0:
		p.Mend = "run as root, or let ordinary users make user namespaces: " +
			"sysctl -w kernel.unprivileged_userns_clone=1 user.max_user_namespaces=10000"
	default:
		p.Mend = "use Linux 5.12 or later, and allow namespaces, seccomp and ptrace to this process"
	}
	return p
}

// version is that of the gVisor that is linked in.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, dep := range info.Deps {
		if dep.Path == "gvisor.dev/gvisor" {
			return dep.Version
		}
	}
	return ""
}
