package container

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/hostproc"
	"github.com/firebreak-dev/firebreak/internal/driver/oci"
)

var _ driver.Pauser = pausable{}

// pausable is a sandbox whose cgroup can be frozen: all its processes stop, whatever they do, and take no processor time.
// The kernel's clocks go on: after a pause, programs see that time has passed, and timers that were due meanwhile fire at
// once.
type pausable struct{ *sandbox }

// handle returns the sandbox as what this host lets it be.
func (d *Driver) handle(spec driver.Spec, rec record, groups *oci.Cgroups) driver.Sandbox {
	sb := &sandbox{spec: spec, rec: rec, claim: d.claimDir(spec.ID)}
	if groups.Caps().Has(driver.CapPause) {
		return pausable{sb}
	}
	return sb
}

// Pause implements driver.Pauser.
func (s pausable) Pause(ctx context.Context) error {
	if err := s.alter(ctx, func(g *oci.Cgroup) error { return g.Freeze(ctx) }); err != nil {
		return fmt.Errorf("pause container %s: %w", s.spec.ID, err)
	}
	return nil
}

// Resume implements driver.Pauser.
func (s pausable) Resume(ctx context.Context) error {
	if err := s.alter(ctx, (*oci.Cgroup).Thaw); err != nil {
		return fmt.Errorf("resume container %s: %w", s.spec.ID, err)
	}
	return nil
}

// alter does something to the sandbox's cgroup while nobody else does such things, or destroys it. fs.ErrNotExist if it
// has ended.
func (s pausable) alter(ctx context.Context, do func(*oci.Cgroup) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	c, err := openClaim(s.claim)
	if err != nil {
		return err
	}
	defer c.close()
	if err := c.lock(ctx); err != nil {
		return err
	}
	pidfd, err := s.rec.open()
	if err != nil {
		return err
	}
	defer pidfd.Close()
	if destroying(s.spec) {
		return fmt.Errorf("it is half destroyed: %w", fs.ErrNotExist)
	}
	groups, err := oci.FindCgroups()
	if err != nil {
		return err
	}
	g := groups.Open(s.spec.ID)
	if !g.Freezes(s.rec.PID) {
		err = fmt.Errorf("it is in no cgroup that can be frozen: %w", errors.ErrUnsupported)
	} else {
		err = do(g)
	}
	if hostproc.Ended(pidfd) { // which no frozen process can
		return fmt.Errorf("the agent has ended: %w", fs.ErrNotExist)
	}
	return err
}
