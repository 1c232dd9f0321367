package container

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/oci"
)

// Probe implements driver.Driver: it makes a container and destroys it.
func (d *Driver) Probe(ctx context.Context) (driver.Info, error) {
	info := driver.Info{Name: "container", Boundary: firebreak.BoundarySharedKernel, Forms: forms()}
	if err := ctx.Err(); err != nil {
		return info, err
	}
	groups, err := oci.FindCgroups()
	if err != nil {
		return info, fmt.Errorf("probe container: %w", err)
	}
	info.Caps = caps(groups)
	info.Warnings = warnings(groups)
	info.Problems = hostProblems("/proc")
	t, err := d.findRuntime(ctx)
	if err == nil {
		info.Version = t.Name + " " + t.Version
	} else {
		info.Problems = append(info.Problems, problem(err))
	}
	if info.Healthy() {
		pauses, err := d.try(ctx, groups)
		if err != nil {
			info.Problems = append(info.Problems, problem(err))
		} else if pauses != nil {
			info.Caps &^= driver.CapPause
			info.Warnings = append(info.Warnings, driver.Problem{Text: "a sandbox cannot be paused here: " + pauses.Error(),
				Mend: "mount the cgroup hierarchy of the freezer where the runtime finds it, or " + useGVisor})
		}
	}
	return info, ctx.Err()
}

// problem tells an error and its mend apart.
func problem(err error) driver.Problem {
	p := driver.Problem{Text: err.Error()}
	var e *firebreak.Error
	if errors.As(err, &e) && e.Mend != "" {
		p.Mend = e.Mend
		p.Text = strings.Replace(p.Text, "; to mend it: "+e.Mend, "", 1)
	}
	return p
}

const useGVisor = "use --isolation gvisor"

// hostProblems are those that can be seen without a try, and whose cause a failed try would not tell.
func hostProblems(proc string) []driver.Problem {
	var problems []driver.Problem
	if ids, err := os.ReadFile(filepath.Join(proc, "self/uid_map")); err != nil || strings.Join(strings.Fields(string(ids)), " ") != "0 0 4294967295" || os.Geteuid() != 0 {
		problems = append(problems, driver.Problem{Text: "it needs root of the host: ids of its own for every sandbox, cgroups and mounts",
			Mend: "run firebreak as root, or " + useGVisor})
	}
	if _, err := os.Stat(filepath.Join(proc, "self/ns/user")); err != nil {
		problems = append(problems, driver.Problem{Text: "this kernel has no user namespaces", Mend: "use a kernel with CONFIG_USER_NS, or " + useGVisor})
	} else if most, err := os.ReadFile(filepath.Join(proc, "sys/user/max_user_namespaces")); err == nil && strings.TrimSpace(string(most)) == "0" {
		problems = append(problems, driver.Problem{Text: "user namespaces are switched off: user.max_user_namespaces is 0",
			Mend: "sysctl -w user.max_user_namespaces=15000, or " + useGVisor})
	}
	return problems
}

func warnings(groups *oci.Cgroups) []driver.Problem {
	var w []driver.Problem
	all := driver.CapLimitCPU | driver.CapLimitMemory | driver.CapLimitPIDs
	if missing := driver.Missing(groups.Caps(), all); missing != 0 {
		w = append(w, driver.Problem{
			Text: fmt.Sprintf("this host lets us make no cgroup for %v, so that one sandbox can starve all others", missing.Names()),
			Mend: "mount cgroup2 with the controllers cpu, memory and pids, writable, at /sys/fs/cgroup"})
	}
	if !diskInFile() {
		w = append(w, driver.Problem{Text: "what sandboxes write to disk is kept in memory, and counts towards their memory limit",
			Mend: "apt-get install e2fsprogs, and let firebreak use /dev/loop-control"})
	}
	return w
}

// probeDir holds what tries start from; List does not show it.
const probeDir = ".probe"

// try makes a container from an empty tree: only the agent is in it. Pauses says why it could not be paused, although
// there is a freezer.
func (d *Driver) try(ctx context.Context, groups *oci.Cgroups) (pauses, err error) {
	d.sweepProbes()
	id := driver.ID("probe" + strings.ToLower(rand.Text()[:12]))
	dir := filepath.Join(d.cfg.StateDir, probeDir, string(id))
	spec := driver.Spec{ID: id, Dir: filepath.Join(dir, "sandbox"),
		Root: driver.Root{Form: driver.FormDirectory, Path: filepath.Join(dir, "tree")}, Limits: firebreak.Limits{Disk: 16 << 20}}
	if groups.Caps().Has(driver.CapLimitMemory) {
		spec.Limits.Memory = 128 << 20
	}
	if groups.Caps().Has(driver.CapLimitPIDs) {
		spec.Limits.PIDs = 128
	}
	if groups.Caps().Has(driver.CapLimitCPU) {
		spec.Limits.CPUs = 1
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := errors.Join(os.MkdirAll(spec.Dir, 0o700), os.MkdirAll(spec.Root.Path, 0o755)); err != nil {
		return nil, fmt.Errorf("try a container: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, cleanupLimit)
	defer cancel()
	sb, err := d.Create(ctx, spec)
	if err != nil {
		return nil, err
	}
	if p, err := driver.As[driver.Pauser](sb); err == nil {
		if pauses = p.Pause(ctx); pauses == nil {
			pauses = p.Resume(ctx)
		}
	}
	undo, stop := context.WithTimeout(context.WithoutCancel(ctx), cleanupLimit)
	defer stop()
	return pauses, d.Destroy(undo, spec)
}

// sweepProbes removes what killed tries have left, once nobody can be at work there any more.
func (d *Driver) sweepProbes() {
	entries, err := os.ReadDir(filepath.Join(d.cfg.StateDir, probeDir))
	if err != nil {
		return
	}
	for _, e := range entries {
		st, err := e.Info()
		_, claimed := os.Lstat(d.claimDir(driver.ID(e.Name())))
		if err == nil && claimed != nil && time.Since(st.ModTime()) > 10*time.Minute {
			if err := os.RemoveAll(filepath.Join(d.cfg.StateDir, probeDir, e.Name())); err != nil {
				d.log.Debug("what a probe left was not removed", "error", err)
			}
		}
	}
}
