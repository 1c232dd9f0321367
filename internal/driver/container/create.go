package container

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/hostproc"
	"github.com/firebreak-dev/firebreak/internal/driver/oci"
)

// Create implements driver.Driver. The claim comes first and is what List and Destroy go by.
func (d *Driver) Create(ctx context.Context, spec driver.Spec) (driver.Sandbox, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	groups, err := oci.FindCgroups()
	if err != nil {
		return nil, fmt.Errorf("create container: %w", err)
	}
	if err := check(spec, groups); err != nil {
		return nil, err
	}
	if p := hostProblems("/proc"); len(p) > 0 {
		return nil, &firebreak.Error{Kind: firebreak.KindHost, Op: "create container", Err: errors.New(p[0].Text), Mend: p[0].Mend}
	}
	t, err := d.findRuntime(ctx)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(d.cfg.StateDir, 0o700); err != nil {
		return nil, fmt.Errorf("create container: %w", err)
	}
	c, err := newClaim(ctx, d.claimDir(spec.ID))
	if err != nil {
		return nil, fmt.Errorf("create container %s: %w", spec.ID, err)
	}
	defer c.close()
	sb, err := d.create(ctx, spec, t, groups, c)
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		if errors.Is(err, unix.ENOSPC) {
			err = &firebreak.Error{Kind: firebreak.KindExhausted, Err: err, Mend: "free space where " + spec.Dir + " and " + d.cfg.StateDir + " lie"}
		}
		return nil, fmt.Errorf("create container %s: %w", spec.ID, errors.Join(err, d.undo(ctx, spec, c)))
	}
	return sb, nil
}

func (d *Driver) create(ctx context.Context, spec driver.Spec, t tool, groups *oci.Cgroups, c *claim) (driver.Sandbox, error) {
	if err := os.Mkdir(ownDir(spec), 0o700); err != nil {
		return nil, fmt.Errorf("use its directory: %w", err)
	}
	std, filter, err := d.start(ctx, spec, t, groups.Caps() != 0)
	defer std.close()
	if err != nil {
		return nil, err
	}
	rec, err := newRecord(spec)
	if err != nil {
		return nil, fmt.Errorf("start agent: %w: %s", err, tail(std.out))
	}
	if err := verifyLimits(spec, rec, groups); err != nil {
		return nil, err
	}
	if err := rec.write(spec); err != nil {
		return nil, err
	}
	c.unlock() // so that Destroy can end a sandbox whose agent never listens
	if err := rec.await(ctx); err != nil {
		return nil, fmt.Errorf("wait for agent: %w: %s", err, tail(std.out))
	}
	// The runtime may be done before it has become the agent, which it does under the filter.
	if filtered, err := isFiltered(rec.PID); err != nil || !filtered {
		return nil, errors.Join(err, errors.New("the runtime has not limited the system calls of the sandbox"))
	}
	d.keepFilter(filter, rec.PID)
	return d.handle(spec, rec, groups), nil
}

// start prepares disk, ids and configuration, and has the runtime start the container.
func (d *Driver) start(ctx context.Context, spec driver.Spec, t tool, limited bool) (std stdio, filter string, err error) {
	defer oci.Stir()()
	at, err := d.stageDir(spec, t.Path)
	if err != nil {
		return std, "", err
	}
	var (
		side    sync.WaitGroup
		diskErr error
	)
	if diskInFile() {
		side.Go(func() {
			diskErr = d.makeDisk(ctx, filepath.Join(ownDir(spec), diskName), spec.Limits.Disk)
		})
	}
	base, userns, err := d.identity(spec.ID)
	if userns != nil {
		defer userns.Close()
	}
	if err == nil {
		filter, err = d.writeConfig(spec, t, at, base)
	}
	side.Wait()
	if err = errors.Join(err, diskErr); err != nil {
		return std, "", err
	}
	err = inOwnMounts(func() (err error) {
		if std, err = d.stage(spec, at, base, userns); err != nil {
			return err
		}
		if err := hideUnified(); err != nil {
			return err
		}
		return d.run(ctx, t, spec, limited, std)
	})
	return std, filter, err
}

// identity gives a sandbox its ids, and a user namespace with their map.
func (d *Driver) identity(id driver.ID) (base uint32, userns *os.File, err error) {
	if base, err = d.ranges().take(id); err != nil {
		return 0, nil, err
	}
	userns, err = userNamespace(base)
	return base, userns, err
}

// verifyLimits makes sure that the runtime has put the sandbox where its limits are set and are read.
func verifyLimits(spec driver.Spec, rec record, groups *oci.Cgroups) error {
	if groups.Caps() == 0 {
		return nil
	}
	pids, err := groups.Open(spec.ID).Processes()
	if err != nil {
		return fmt.Errorf("look at cgroup: %w", err)
	}
	for _, pid := range pids {
		if pid == rec.PID {
			return nil
		}
	}
	return fmt.Errorf("the runtime has not put the sandbox into its cgroup %s", cgroupPath(spec.ID))
}

// await returns when the agent takes connections.
func (r record) await(ctx context.Context) error {
	pidfd, err := r.open()
	if err != nil {
		return err
	}
	defer pidfd.Close()
	for {
		var conn net.Conn
		if conn, err = dial(ctx, pidfd); err == nil {
			return conn.Close()
		}
		if !errors.Is(err, unix.ECONNREFUSED) {
			return err
		}
		if hostproc.Ended(pidfd) {
			return errors.New("it has ended")
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(500 * time.Microsecond):
		}
	}
}

// undo clears what a failed Create left, also when ctx has ended. If the claim is no longer ours, a Destroy has cleared
// it all, and another sandbox may have taken the name.
func (d *Driver) undo(ctx context.Context, spec driver.Spec, c *claim) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupLimit)
	defer cancel()
	err := c.lock(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return d.clear(ctx, spec)
}
