package gvisor

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/driver"
)

// Where the maker, in its own mount namespace, puts together what the sandbox's file server serves.
const (
	rootName   = "root"
	mountsName = "mounts"
)

// mount puts the root and its binds together into one tree, so that gVisor serves one mount instead of one for each,
// and makes it, and every mount that was asked for read-only, read-only at every depth. Only this mount namespace
// sees it, so it ends with the sandbox.
func (r request) mount() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := os.MkdirAll(filepath.Join(r.Spec.Dir, layerName), 0o700); err != nil {
		return fmt.Errorf("make directory for the writable layer: %w", err)
	}
	for i, m := range r.Spec.Mounts {
		if err := bindSource(m, r.mountPath(i)); err != nil {
			return err
		}
	}
	root := r.rootPath()
	if err := os.Mkdir(root, 0o755); err != nil {
		return fmt.Errorf("make root: %w", err)
	}
	if r.Spec.Root.Form == driver.FormDisk {
		return nil
	}
	if err := bind(r.Spec.Root.Path, root); err != nil {
		return err
	}
	for _, m := range r.Spec.Root.Binds {
		if err := bindWithin(root, m); err != nil {
			return err
		}
	}
	return seal(root)
}

func (r request) rootPath() string { return filepath.Join(r.Record, rootName) }

func (r request) mountPath(i int) string {
	return filepath.Join(r.Record, mountsName, strconv.Itoa(i))
}

func bind(source, target string) error {
	if err := unix.Mount(source, target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("mount %s: %w", source, err)
	}
	return nil
}

// bindSource binds a mount's source at a place of ours, which is made like it.
func bindSource(m driver.Mount, at string) error {
	info, err := os.Stat(m.Source)
	if err != nil {
		return fmt.Errorf("mount %s: %w", m.Source, err)
	}
	if err := os.MkdirAll(filepath.Dir(at), 0o700); err != nil {
		return err
	}
	if info.IsDir() {
		err = os.Mkdir(at, 0o700)
	} else {
		err = os.WriteFile(at, nil, 0o600)
	}
	if err != nil {
		return err
	}
	if err := bind(m.Source, at); err != nil || !m.ReadOnly {
		return err
	}
	return seal(at)
}

// bindWithin binds a part of the host onto its place in root; no link in root can lead it out of there.
func bindWithin(root string, m driver.Mount) error {
	dir, err := os.Open(root)
	if err != nil {
		return err
	}
	defer dir.Close()
	fd, err := unix.Openat2(int(dir.Fd()), strings.TrimPrefix(m.Target, "/"), &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return fmt.Errorf("find %s in the template: %w", m.Target, err)
	}
	defer unix.Close(fd)
	return bind(m.Source, fmt.Sprintf("/proc/self/fd/%d", fd))
}

// seal makes all mounts at and below path read-only.
func seal(path string) error {
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOSUID}
	if err := unix.MountSetattr(unix.AT_FDCWD, path, unix.AT_RECURSIVE, &attr); err != nil {
		return fmt.Errorf("make %s read-only: %w", path, err)
	}
	return nil
}
