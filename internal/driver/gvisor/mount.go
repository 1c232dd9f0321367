package gvisor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/driver"
)

// Where the gofer, in its own mount namespace, puts together what the sandbox's file server serves.
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
	// Only here: the record itself stays as it is.
	if err := unix.Mount("tmpfs", r.Record, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755,size=1m"); err != nil {
		return fmt.Errorf("mount place for the root: %w", err)
	}
	root := r.rootPath()
	if err := os.Mkdir(root, 0o755); err != nil {
		return fmt.Errorf("make root: %w", err)
	}
	if r.Spec.Root.Form == driver.FormDirectory {
		if err := r.mountRoot(root); err != nil {
			return err
		}
	}
	for i, m := range r.Spec.Mounts {
		if err := r.bindSource(i, m); err != nil {
			return err
		}
	}
	if r.Spec.Root.Form == driver.FormDisk {
		return nil
	}
	return seal(root)
}

// mountRoot mounts the template's tree at root. Where mounts are asked for, a layer for their mount points lies on it.
func (r request) mountRoot(root string) error {
	if len(r.Spec.Mounts) == 0 {
		if err := bind(r.Spec.Root.Path, root); err != nil {
			return err
		}
	} else if err := r.mountLayered(); err != nil {
		return err
	}
	for _, m := range r.Spec.Root.Binds {
		if err := bindWithin(root, m); err != nil {
			return err
		}
	}
	return nil
}

// mountLayered names directories relative to the record's, whose path may have in it what separates options.
func (r request) mountLayered() error {
	if err := os.Chdir(r.Record); err != nil {
		return err
	}
	defer os.Chdir("/")
	for _, dir := range []string{"lower", "upper", "work"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	if err := bind(r.Spec.Root.Path, "lower"); err != nil {
		return err
	}
	options := "lowerdir=lower,upperdir=upper,workdir=work,userxattr" // the gofer is in a user namespace
	if err := unix.Mount("overlay", rootName, "overlay", 0, options); err != nil {
		return fmt.Errorf("lay mount points over %s: %w", r.Spec.Root.Path, err)
	}
	return nil
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

// bindSource binds a mount's source at a place of ours, which is made like it, and makes its mount point in the root.
func (r request) bindSource(i int, m driver.Mount) error {
	info, err := os.Stat(m.Source)
	if err != nil {
		return fmt.Errorf("mount %s: %w", m.Source, err)
	}
	at := r.mountPath(i)
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
	if err := makeWithin(r.rootPath(), m.Target, info.IsDir()); err != nil {
		return fmt.Errorf("make mount point %s: %w", m.Target, err)
	}
	if err := bind(m.Source, at); err != nil || !m.ReadOnly {
		return err
	}
	return seal(at)
}

// makeWithin makes a directory or an empty file in root, with the directories above it; no link in root can lead it out
// of there.
func makeWithin(root, target string, isDir bool) error {
	dir, err := os.Open(root)
	if err != nil {
		return err
	}
	defer dir.Close()
	at := int(dir.Fd())
	names := strings.Split(strings.TrimPrefix(target, "/"), "/")
	for i, name := range names {
		path := strings.Join(names[:i+1], "/")
		fd, err := openWithin(int(dir.Fd()), path)
		if errors.Is(err, unix.ENOENT) {
			if isDir || i < len(names)-1 {
				err = unix.Mkdirat(at, name, 0o755)
			} else {
				err = unix.Mknodat(at, name, unix.S_IFREG|0o644, 0)
			}
			if err != nil {
				return &fs.PathError{Op: "make", Path: "/" + path, Err: err}
			}
			fd, err = openWithin(int(dir.Fd()), path)
		}
		if err != nil {
			return &fs.PathError{Op: "open", Path: "/" + path, Err: err}
		}
		defer unix.Close(fd)
		at = fd
	}
	return nil
}

func openWithin(root int, path string) (int, error) {
	return unix.Openat2(root, path, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
}

// bindWithin binds a part of the host onto its place in root; no link in root can lead it out of there.
func bindWithin(root string, m driver.Mount) error {
	dir, err := os.Open(root)
	if err != nil {
		return err
	}
	defer dir.Close()
	fd, err := openWithin(int(dir.Fd()), strings.TrimPrefix(m.Target, "/"))
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
