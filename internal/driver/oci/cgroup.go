package oci

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
)

// cgroupParent holds the cgroups of all sandboxes, so that one look at the host finds them.
const cgroupParent = "firebreak"

// Cgroups is where this host lets us make cgroups: version 1, version 2, or the mixture that systemd calls hybrid.
type Cgroups struct {
	v1   map[string]string // controller to the directory of its hierarchy; version 1
	v2   string            // directory under which cgroups are made; "" without version 2
	caps driver.Caps

	freezer string // of version 1; "" without
}

// FindCgroups looks for the hierarchies of this host. It changes nothing but the parent cgroup of all sandboxes, which
// it makes in order to see whether it may.
func FindCgroups() (*Cgroups, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, fmt.Errorf("read own cgroup: %w", err)
	}
	return findCgroups(string(text), string(own)), nil
}

func findCgroups(mountinfo, own string) *Cgroups {
	c := &Cgroups{v1: map[string]string{}}
	for line := range strings.Lines(mountinfo) {
		before, after, ok := strings.Cut(line, " - ")
		fields, kind := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 5 || len(kind) < 3 {
			continue
		}
		switch kind[0] {
		case "cgroup2":
			if c.v2 == "" {
				c.v2 = unifiedParent(fields[4], own)
			}
		case "cgroup":
			for _, controller := range strings.Split(kind[2], ",") {
				c.add1(controller, fields[4])
			}
		}
	}
	c.caps = c.find()
	return c
}

// add1 takes the hierarchy of a version 1 controller if we may make cgroups in it.
func (c *Cgroups) add1(controller, dir string) {
	switch controller {
	case "memory", "cpu", "cpuacct", "pids":
		parent := filepath.Join(dir, cgroupParent)
		if c.v1[controller] == "" && makeWritable(parent) {
			c.v1[controller] = parent
		}
	case "freezer": // kept apart, since only container runtimes put processes into it
		if parent := filepath.Join(dir, cgroupParent); c.freezer == "" && makeWritable(parent) {
			c.freezer = parent
		}
	}
}

// unifiedParent is the directory for our cgroups of version 2: below the root of the hierarchy, or beside the cgroup of
// this process, which is where a service manager delegates to. A cgroup with processes cannot limit its children, so
// our own is none.
func unifiedParent(mount, own string) string {
	roots := []string{mount}
	for line := range strings.Lines(own) {
		if rel, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok && rel != "/" {
			roots = append(roots, filepath.Join(mount, filepath.Dir(rel)))
		}
	}
	for _, root := range roots {
		text, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
		if err != nil || len(strings.Fields(string(text))) == 0 {
			continue
		}
		parent := filepath.Join(root, cgroupParent)
		if enable(root) == nil && makeWritable(parent) && enable(parent) == nil {
			return parent
		}
	}
	return ""
}

// enable hands the controllers that we need on to the children of a version 2 cgroup.
func enable(dir string) error {
	have, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return err
	}
	on, err := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
	if err != nil {
		return err
	}
	for _, controller := range []string{"memory", "cpu", "pids"} {
		if !slices.Contains(strings.Fields(string(have)), controller) || slices.Contains(strings.Fields(string(on)), controller) {
			continue
		}
		if err := writeFile(dir, "cgroup.subtree_control", "+"+controller); err != nil {
			return err
		}
	}
	return nil
}

func makeWritable(dir string) bool {
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return false
	}
	return syscall.Access(dir, 2 /* W_OK */) == nil
}

// find says what the hierarchies can do, and forgets the one of version 2 if it enforces no limit: each that a process
// has to be moved in takes time.
func (c *Cgroups) find() driver.Caps {
	var caps driver.Caps
	needed := false
	on, _ := os.ReadFile(filepath.Join(c.v2, "cgroup.subtree_control"))
	for controller, bit := range map[string]driver.Caps{
		"memory": driver.CapLimitMemory, "cpu": driver.CapLimitCPU, "pids": driver.CapLimitPIDs,
	} {
		switch {
		case c.v1[controller] != "":
			caps |= bit
		case c.v2 != "" && slices.Contains(strings.Fields(string(on)), controller):
			caps |= bit
			needed = true
		}
	}
	if !needed {
		c.v2 = ""
	}
	if (&Cgroup{v2: c.v2, freezer: c.freezer}).canFreeze() {
		caps |= driver.CapPause
	}
	return caps
}

// Caps is what limits cgroups can enforce here, and whether they can be frozen; none where nothing lets us make cgroups.
// A runtime has to put processes into the freezer of version 1: Create and Join do not.
func (c *Cgroups) Caps() driver.Caps { return c.caps }

// Create makes the cgroup of a sandbox, which must not exist.
func (c *Cgroups) Create(id driver.ID, limits firebreak.Limits) (*Cgroup, error) {
	g := c.Open(id)
	for i, dir := range g.dirs() {
		if err := os.Mkdir(dir, 0o755); err != nil {
			for _, made := range slices.Backward(g.dirs()[:i]) {
				_ = os.Remove(made)
			}
			return nil, fmt.Errorf("make cgroup: %w", err)
		}
	}
	if err := g.limit(limits); err != nil {
		return nil, errors.Join(fmt.Errorf("limit cgroup: %w", err), g.Remove(context.Background()))
	}
	return g, nil
}

// Open returns the cgroup of a sandbox, whether it exists or not.
func (c *Cgroups) Open(id driver.ID) *Cgroup {
	g := &Cgroup{v1: map[string]string{}}
	if c.freezer != "" {
		g.freezer = filepath.Join(c.freezer, string(id))
	}
	for controller, dir := range c.v1 {
		g.v1[controller] = filepath.Join(dir, string(id))
	}
	if c.v2 != "" {
		g.v2 = filepath.Join(c.v2, string(id))
	}
	return g
}

// Cgroup is the cgroup of one sandbox, in all hierarchies.
type Cgroup struct {
	v1      map[string]string
	v2      string
	freezer string
}

// dirs are the directories of g, each once, in a fixed order: controllers may share a hierarchy of version 1.
func (g *Cgroup) dirs() []string {
	var dirs []string
	for _, dir := range g.v1 {
		dirs = append(dirs, dir)
	}
	if g.v2 != "" {
		dirs = append(dirs, g.v2)
	}
	for i, dir := range dirs {
		if real, err := filepath.EvalSymlinks(filepath.Dir(dir)); err == nil {
			dirs[i] = filepath.Join(real, filepath.Base(dir))
		}
	}
	slices.Sort(dirs)
	return slices.Compact(dirs)
}

// Join puts a process into g; its later children are born there. PID 0 is the caller.
func (g *Cgroup) Join(pid int) error {
	for _, dir := range g.dirs() {
		if err := writeFile(dir, "cgroup.procs", strconv.Itoa(pid)); err != nil {
			return fmt.Errorf("join cgroup: %w", err)
		}
	}
	return nil
}

// Directory opens the directory in which a process can be born into g (CLONE_INTO_CGROUP), which spares moving it. Nil
// with version 1, where there is more than one, and where g is in none.
func (g *Cgroup) Directory() (*os.File, error) {
	if g.v2 == "" || len(g.v1) > 0 {
		return nil, nil
	}
	return os.Open(g.v2)
}

// Processes returns the ids of the processes in g; none if g is gone.
func (g *Cgroup) Processes() ([]int, error) {
	var pids []int
	for _, dir := range g.dirs() {
		in, err := processesIn(dir)
		if err != nil {
			return nil, err
		}
		pids = append(pids, in...)
	}
	slices.Sort(pids)
	return slices.Compact(pids), nil
}

func processesIn(dir string) ([]int, error) {
	text, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil && !gone(err) {
		return nil, fmt.Errorf("read cgroup: %w", err)
	}
	var pids []int
	for field := range strings.FieldsSeq(string(text)) {
		if pid, err := strconv.Atoi(field); err == nil && pid > 0 { // 0: in another pid namespace
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// gone reports whether err is of a cgroup that does not exist, or of one that is just being removed.
func gone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) }

// Remove kills whatever is in g and removes it. Nil if g is gone.
func (g *Cgroup) Remove(ctx context.Context) error {
	if g.v2 != "" {
		_ = writeFile(g.v2, "cgroup.kill", "1") // since Linux 5.14; the loop below serves all
	}
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		pids, err := g.Processes()
		if err != nil {
			return err
		}
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended meanwhile
		}
		err = g.rmdir()
		if !errors.Is(err, syscall.EBUSY) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("remove cgroup: %w", ctx.Err())
		case <-time.After(pause):
		}
	}
}

func (g *Cgroup) rmdir() error {
	for _, dir := range g.dirs() {
		if err := syscall.Rmdir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove cgroup: %w", &fs.PathError{Op: "rmdir", Path: dir, Err: err})
		}
	}
	return nil
}

func writeFile(dir, name, text string) error {
	return os.WriteFile(filepath.Join(dir, name), []byte(text), 0)
}
