package container

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// inOwnMounts runs do on a thread with a mount namespace of its own, which dies with the last process that do started
// from that thread. Nothing that do mounts can be seen from outside, or outlive a kill at whatever moment.
func inOwnMounts(do func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The first thread of a program does not end with its goroutine: let another one do it.
			defer runtime.UnlockOSThread()
			done <- inOwnMounts(do)
			return
		}
		// Never unlocked: the thread ends with this goroutine.
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
				return fmt.Errorf("make mount namespace: %w", err)
			}
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return fmt.Errorf("make mounts private: %w", err)
			}
			return do()
		}()
	}()
	return <-done
}

// tree is a mount, or a tree of them, that is attached nowhere yet.
type tree struct{ *os.File }

// newTree mounts a file system of this kind. Options are flags or key=value.
func newTree(kind string, attrs int, options ...string) (tree, error) {
	fd, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return tree{}, fmt.Errorf("open file system %s: %w", kind, err)
	}
	defer unix.Close(fd)
	for _, option := range options {
		key, value, set := strings.Cut(option, "=")
		if set {
			err = unix.FsconfigSetString(fd, key, value)
		} else {
			err = unix.FsconfigSetFlag(fd, key)
		}
		if err != nil {
			return tree{}, fmt.Errorf("set %s of %s: %w", option, kind, err)
		}
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return tree{}, fmt.Errorf("make file system %s: %w", kind, err)
	}
	mount, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return tree{}, fmt.Errorf("mount %s: %w", kind, err)
	}
	return tree{os.NewFile(uintptr(mount), kind)}, nil
}

// cloneTree is a copy of the mounts at a path of the host.
func cloneTree(name string) (tree, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, name, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return tree{}, &fs.PathError{Op: "clone mount", Path: name, Err: err}
	}
	return tree{os.NewFile(uintptr(fd), name)}, nil
}

func (t tree) set(attrs uint64) error {
	attr := &unix.MountAttr{Attr_set: attrs, Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(int(t.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, attr); err != nil {
		return fmt.Errorf("set attributes of mount %s: %w", t.Name(), err)
	}
	return nil
}

// shift makes files owned by 0 to 65535 appear as owned by the same ids of the user namespace.
func (t tree) shift(userns *os.File) error {
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userns.Fd())}
	if err := unix.MountSetattr(int(t.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, attr); err != nil {
		return fmt.Errorf("map owners of mount %s: %w", t.Name(), err)
	}
	return nil
}

// unshiftable tells of a file system that cannot map owners, from errors that mean something else.
func unshiftable(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP)
}

func (t tree) attach(dir string) error {
	if err := unix.MoveMount(int(t.Fd()), "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach mount %s: %w", t.Name(), err)
	}
	return nil
}

// attachIn attaches t at a path below root, which is made if it is missing. The path is looked up as if root were the
// file system's root: what a template's symbolic links say stays within.
func (t tree) attachIn(root *os.File, target string, owner uint32) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(t.Fd()), &st); err != nil {
		return fmt.Errorf("look at mount %s: %w", t.Name(), err)
	}
	at, err := mountPoint(root, target, st.Mode&unix.S_IFMT == unix.S_IFDIR, owner)
	if err != nil {
		return err
	}
	defer unix.Close(at)
	flags := unix.MOVE_MOUNT_F_EMPTY_PATH | unix.MOVE_MOUNT_T_EMPTY_PATH
	if err := unix.MoveMount(int(t.Fd()), "", at, "", flags); err != nil {
		return fmt.Errorf("attach mount %s at %s: %w", t.Name(), target, err)
	}
	return nil
}

// mountPoint opens the directory or file at target below root, and makes what is missing of it for owner.
func mountPoint(root *os.File, target string, dir bool, owner uint32) (int, error) {
	at, err := openIn(root, target)
	if !errors.Is(err, fs.ErrNotExist) {
		return at, err
	}
	parent, err := mountPoint(root, path.Dir(target), true, owner)
	if err != nil {
		return -1, err
	}
	defer unix.Close(parent)
	name := path.Base(target)
	if dir {
		if err = unix.Mkdirat(parent, name, 0o755); err == nil {
			err = unix.Fchmodat(parent, name, 0o755, 0) // whatever our umask
		}
	} else {
		var fd int
		if fd, err = unix.Openat(parent, name, unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_WRONLY, 0o644); err == nil {
			unix.Close(fd)
		}
	}
	if err == nil {
		err = unix.Fchownat(parent, name, int(owner), int(owner), unix.AT_SYMLINK_NOFOLLOW)
	}
	if err != nil {
		return -1, &fs.PathError{Op: "make mount point", Path: target, Err: err}
	}
	return openIn(root, target)
}

func openIn(root *os.File, target string) (int, error) {
	at, err := unix.Openat2(int(root.Fd()), filepath.Clean("/"+target), &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return -1, &fs.PathError{Op: "open mount point", Path: target, Err: err}
	}
	return at, nil
}
