package container

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

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/hostproc"
	"github.com/firebreak-dev/firebreak/internal/driver/oci"
)

// Destroy implements driver.Driver. It goes by what it finds, not by what should be there: Create, or an earlier Destroy,
// may have been killed at any moment.
func (d *Driver) Destroy(ctx context.Context, spec driver.Spec) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := spec.ID.Check(); err != nil {
		return err
	}
	c, err := openClaim(d.claimDir(spec.ID))
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(ownDir(spec)); err != nil {
			return nil // unknown, or a directory that never was
		}
		// The state directory was lost, the sandbox's own was not.
		return d.clear(ctx, spec)
	}
	if err != nil {
		return fmt.Errorf("destroy container %s: %w", spec.ID, err)
	}
	defer c.close()
	err = c.lock(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // another Destroy was faster
	}
	if err == nil {
		err = d.clear(ctx, spec)
	}
	if err != nil {
		return fmt.Errorf("destroy container %s: %w", spec.ID, err)
	}
	return nil
}

// clear removes everything that Create makes, in an order in which it can be interrupted: the claim goes last.
func (d *Driver) clear(ctx context.Context, spec driver.Spec) error {
	own := ownDir(spec)
	if _, err := os.Lstat(own); err == nil {
		if err := os.WriteFile(filepath.Join(own, endedName), nil, 0o600); err != nil {
			return fmt.Errorf("mark: %w", err)
		}
	}
	groups, err := oci.FindCgroups()
	if err != nil {
		return err
	}
	if err := groups.Open(spec.ID).EndFrozen(); err != nil {
		return err
	}
	if err := d.killAll(ctx, spec); err != nil {
		return err
	}
	if err := removeCgroups(ctx, spec.ID); err != nil {
		return err
	}
	if err := unmountBelow(own); err != nil {
		return err
	}
	// The record goes first: who waits takes its absence for the end by Destroy.
	if err := os.Remove(filepath.Join(own, recordName)); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
		return err
	}
	if err := os.RemoveAll(own); err != nil && !errors.Is(err, unix.ENOTDIR) {
		return err
	}
	if err := d.ranges().free(spec.ID); err != nil {
		return err
	}
	return os.RemoveAll(d.claimDir(spec.ID))
}

// killAll ends all processes of a sandbox: the agent, with which the kernel ends all others of its pid namespace, and,
// of half-made containers, whatever has one of the sandbox's ids or works in its directory.
func (d *Driver) killAll(ctx context.Context, spec driver.Spec) error {
	if rec, err := readRecord(spec); err == nil {
		if pidfd, err := rec.open(); err == nil {
			defer pidfd.Close()
			_ = unix.PidfdSendSignal(int(pidfd.Fd()), unix.SIGKILL, nil, 0) // it may have ended meanwhile
			if err := hostproc.Wait(ctx, pidfd); err != nil {
				return err
			}
		}
	}
	bases, err := d.ranges().of(spec.ID)
	if err != nil {
		return err
	}
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		found := members(bases, ownDir(spec))
		if len(found) == 0 {
			return nil
		}
		for _, pid := range found {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended meanwhile
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("end processes %v: %w", found, ctx.Err())
		case <-time.After(pause):
		}
	}
}

// members finds the living processes that have ids of one of the ranges, or whose working directory is own.
func members(bases []uint32, own string) []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	if real, err := filepath.EvalSymlinks(own); err == nil {
		own = real
	}
	var found []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		var st syscall.Stat_t
		if syscall.Stat("/proc/"+e.Name(), &st) != nil {
			continue
		}
		ours := slices.ContainsFunc(bases, func(base uint32) bool { return st.Uid >= base && st.Uid-base < rangeSize })
		if !ours && st.Uid == 0 {
			dir, err := os.Readlink("/proc/" + e.Name() + "/cwd")
			ours = err == nil && strings.TrimSuffix(dir, " (deleted)") == own
		}
		if ours && !zombie(pid) {
			found = append(found, pid)
		}
	}
	return found
}

// zombie tells of a process that has ended and waits for its parent, which nobody can hasten.
func zombie(pid int) bool {
	st, err := hostproc.ReadStat(pid)
	return err != nil || !st.Running()
}

// unmountBelow makes sure that removing a directory removes nothing of what is mounted in it. This driver mounts nothing
// where others can see it, but somebody else may have.
func unmountBelow(dir string) error {
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return fmt.Errorf("read mounts: %w", err)
	}
	for _, m := range slices.Backward(mounts) {
		if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmount %s: %w", m.Mountpoint, err)
		}
	}
	return nil
}
