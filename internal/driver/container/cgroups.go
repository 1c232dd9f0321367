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
)

// cgroupPath is the cgroup that the runtime makes, in every hierarchy of the host; package oci looks for it there.
func cgroupPath(id driver.ID) string { return "/firebreak/" + string(id) }

// hideUnified takes the version 2 hierarchy out of the calling thread's mount namespace on a host that has both, which
// crun 1.8 refuses to serve if version 2 has any controller. The limits are then all in version 1.
func hideUnified() error {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return fmt.Errorf("find cgroups: %w", err)
	}
	if !slices.ContainsFunc(mounts, func(m *mountinfo.Info) bool { return m.FSType == "cgroup" }) {
		return nil
	}
	for _, m := range mounts {
		if m.FSType != "cgroup2" {
			continue
		}
		if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("hide %s: %w", m.Mountpoint, err)
		}
	}
	return nil
}

// removeCgroups ends what is left in the cgroups of a sandbox and removes them. Runtimes make one in every hierarchy of
// version 1, also in those that limit nothing.
func removeCgroups(ctx context.Context, id driver.ID) error {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return fmt.Errorf("find cgroups: %w", err)
	}
	for _, m := range mounts {
		if err := removeCgroup(ctx, filepath.Join(m.Mountpoint, cgroupPath(id))); err != nil {
			return err
		}
	}
	return nil
}

func removeCgroup(ctx context.Context, dir string) error {
	for pause := 100 * time.Microsecond; ; pause = min(2*pause, 20*time.Millisecond) {
		err := syscall.Rmdir(dir)
		if err == nil || errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.EROFS) {
			return nil
		}
		if !errors.Is(err, syscall.EBUSY) && !errors.Is(err, syscall.ENOTEMPTY) {
			return fmt.Errorf("remove cgroup %s: %w", dir, err)
		}
		if err := killIn(dir); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("remove cgroup %s: %w", dir, ctx.Err())
		case <-time.After(pause):
		}
	}
}

func killIn(dir string) error {
	text, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENODEV) {
		return fmt.Errorf("read cgroup: %w", err)
	}
	for field := range strings.FieldsSeq(string(text)) {
		if pid, err := strconv.Atoi(field); err == nil && pid > 1 {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended meanwhile
		}
	}
	return nil
}
