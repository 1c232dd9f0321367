package memfs

import (
	"io/fs"
	"maps"
	"os"
	"strings"
	"syscall"
	"time"
)

// Stat describes what name leads to.
func (f *FS) Stat(name string) (fs.FileInfo, error) { return f.stat("stat", name, true) }

// Lstat describes name itself, even if it is a link.
func (f *FS) Lstat(name string) (fs.FileInfo, error) { return f.stat("lstat", name, false) }

func (f *FS) stat(op, name string, follow bool) (fs.FileInfo, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	at, err := f.existing(name, follow)
	if err != nil {
		return nil, wrap(op, name, err)
	}
	return f.info(at.name, at.node), nil
}

// Readlink returns where a link leads, as it was written.
func (f *FS) Readlink(name string) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	at, err := f.existing(name, false)
	if err == nil && at.node.mode.Type() != fs.ModeSymlink {
		err = syscall.EINVAL
	}
	if err != nil {
		return "", wrap("readlink", name, err)
	}
	return at.node.target, nil
}

// Mkdir makes one directory.
func (f *FS) Mkdir(name string, perm fs.FileMode) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return wrap("mkdir", name, f.mkdir(name, perm))
}

func (f *FS) mkdir(name string, perm fs.FileMode) error {
	at, err := f.free(name)
	if err != nil {
		return err
	}
	if err := f.add(at, f.newNode(fs.ModeDir|perm.Perm())); err != nil {
		return err
	}
	f.tell(Create, at.dir, at.name)
	return nil
}

// MkdirAll makes a directory with its parents, and is content with one that exists.
func (f *FS) MkdirAll(name string, perm fs.FileMode) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for end := 0; end < len(name); {
		next := strings.IndexByte(name[end:], '/')
		if end += next + 1; next < 0 {
			end = len(name)
		}
		part := name[:end]
		at, err := f.walk(part, true)
		switch {
		case err != nil:
			return wrap("mkdir", name, err)
		case at.node == nil:
			err = f.mkdir(strings.TrimRight(part, "/"), perm)
		case !at.node.mode.IsDir():
			err = syscall.ENOTDIR
		}
		if err != nil {
			return wrap("mkdir", name, err)
		}
	}
	return nil
}

// Symlink makes a link at name that leads to target, which may be anything.
func (f *FS) Symlink(target, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return relink("symlink", target, name, f.symlink(target, name))
}

func (f *FS) symlink(target, name string) error {
	switch {
	case target == "":
		return syscall.ENOENT
	case len(target) > maxPath:
		return syscall.ENAMETOOLONG
	case strings.Contains(target, "\x00"):
		return syscall.EINVAL
	}
	at, err := f.free(name)
	if err != nil {
		return err
	}
	if strings.HasSuffix(name, "/") {
		return syscall.ENOENT
	}
	if err := f.charge(int64(len(target))); err != nil {
		return err
	}
	n := f.newNode(fs.ModeSymlink | 0o777)
	n.target = target
	if err := f.add(at, n); err != nil {
		f.used.Bytes -= int64(len(target))
		return err
	}
	f.tell(Create, at.dir, at.name)
	return nil
}

// Link gives a file another name. A link at old is not followed.
func (f *FS) Link(old, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return relink("link", old, name, f.link(old, name))
}

func (f *FS) link(old, name string) error {
	from, err := f.existing(old, false)
	if err != nil {
		return err
	}
	if from.node.mode.IsDir() {
		return syscall.EPERM
	}
	to, err := f.free(name)
	if err != nil {
		return err
	}
	if strings.HasSuffix(name, "/") {
		return syscall.ENOENT
	}
	if err := f.add(to, from.node); err != nil {
		return err
	}
	f.used.Files-- // counted once, however many names it has
	from.node.links++
	f.tell(Create, to.dir, to.name)
	return nil
}

// Remove removes a file, a link or an empty directory.
func (f *FS) Remove(name string) error { return f.remove(name, func(*node) error { return nil }) }

// Unlink removes anything but a directory: EISDIR.
func (f *FS) Unlink(name string) error {
	return f.remove(name, func(n *node) error {
		if n.mode.IsDir() {
			return syscall.EISDIR
		}
		return nil
	})
}

// Rmdir removes an empty directory, and nothing else: ENOTDIR.
func (f *FS) Rmdir(name string) error {
	return f.remove(name, func(n *node) error {
		if !n.mode.IsDir() {
			return syscall.ENOTDIR
		}
		return nil
	})
}

func (f *FS) remove(name string, refuse func(*node) error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	at, err := f.entry(name)
	if err == nil {
		err = refuse(at.node)
	}
	if err == nil {
		err = f.empty(at.node)
	}
	if err != nil {
		return wrap("remove", name, err)
	}
	f.drop(at.dir, at.name, at.node)
	f.tell(Remove, at.dir, at.name)
	return nil
}

// entry is what can be removed or renamed: an entry that exists, by its own name. A link with a slash after it is none.
func (f *FS) entry(name string) (place, error) {
	bare := strings.TrimRight(name, "/")
	if bare == "" && name != "" {
		return place{}, syscall.EBUSY // the root
	}
	at, err := f.existing(bare, false)
	switch base := bare[strings.LastIndexByte(bare, '/')+1:]; {
	case err != nil:
		return place{}, err
	case at.node == f.root:
		return place{}, syscall.EBUSY
	case base == "." || base == "..":
		return place{}, syscall.EINVAL
	case bare != name && !at.node.mode.IsDir():
		return place{}, syscall.ENOTDIR
	}
	return at, nil
}

// empty refuses a directory with something in it.
func (f *FS) empty(n *node) error {
	if !n.mode.IsDir() {
		return nil
	}
	if err := f.load(n); err != nil {
		return err
	}
	if len(n.children) > 0 {
		return syscall.ENOTEMPTY
	}
	return nil
}

// RemoveAll removes name with all below it, and is content if there is nothing.
func (f *FS) RemoveAll(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	at, err := f.entry(name)
	if err == syscall.ENOENT { //nolint:errorlint // never wrapped here
		return nil
	}
	if err != nil {
		return wrap("remove", name, err)
	}
	f.clear(at.node)
	f.drop(at.dir, at.name, at.node)
	f.tell(Remove, at.dir, at.name)
	return nil
}

func (f *FS) clear(dir *node) {
	if !dir.mode.IsDir() {
		return
	}
	dir.below = ""
	for name, child := range dir.children {
		f.clear(child)
		f.drop(dir, name, child)
		f.tell(Remove, dir, name)
	}
}

// Rename moves old to name, in place of a file or an empty directory that may be there.
func (f *FS) Rename(old, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return relink("rename", old, name, f.rename(old, name))
}

func (f *FS) rename(old, name string) error {
	from, err := f.entry(old)
	if err != nil {
		return err
	}
	bare := strings.TrimRight(name, "/")
	if bare == "" {
		return syscall.EBUSY
	}
	to, err := f.walk(bare, false)
	if err != nil {
		return err
	}
	if to.slash || to.node == f.root {
		return syscall.EBUSY // "." and ".." are no names
	}
	if to.node == from.node {
		return nil
	}
	if err := f.renamable(from, to, bare != name); err != nil {
		return err
	}
	if to.node != nil {
		f.drop(to.dir, to.name, to.node)
	}
	delete(from.dir.children, from.name)
	to.dir.children[to.name] = from.node
	from.dir.mtime, to.dir.mtime = f.now(), f.now()
	f.tell(Rename, from.dir, from.name)
	if from.node.mode.IsDir() {
		from.node.parent, from.node.name = to.dir, to.name
	}
	f.tell(Create, to.dir, to.name)
	return nil
}

// renamable refuses what rename must not do.
func (f *FS) renamable(from, to place, slash bool) error {
	isDir := from.node.mode.IsDir()
	switch {
	case slash && !isDir:
		return syscall.ENOTDIR
	case isDir && to.dir.within(from.node):
		return syscall.EINVAL
	case to.dir != f.root && to.dir.links == 0:
		return syscall.ENOENT
	case isDir && to.dir.depth()+from.node.height() > f.limits.Depth:
		return syscall.ENAMETOOLONG
	case to.node == nil:
		return nil
	case isDir && !to.node.mode.IsDir():
		return syscall.ENOTDIR
	case !isDir && to.node.mode.IsDir():
		return syscall.EISDIR
	}
	return f.empty(to.node)
}

// Chmod sets the permission bits of what name leads to.
func (f *FS) Chmod(name string, mode fs.FileMode) error {
	return f.alter("chmod", name, func(n *node) error {
		n.mode = n.mode.Type() | mode.Perm()
		return nil
	})
}

// Chtimes sets the times of what name leads to. A zero time stays what it is.
func (f *FS) Chtimes(name string, atime, mtime time.Time) error {
	return f.alter("chtimes", name, func(n *node) error {
		n.touch(atime, mtime)
		return nil
	})
}

func (n *node) touch(atime, mtime time.Time) {
	if !atime.IsZero() {
		n.atime = atime
	}
	if !mtime.IsZero() {
		n.mtime = mtime
	}
}

// Metadata returns what SetMetadata was given.
func (f *FS) Metadata(name string) (map[string]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	at, err := f.existing(name, true)
	if err != nil {
		return nil, wrap("metadata", name, err)
	}
	return maps.Clone(at.node.metadata), nil
}

// SetMetadata replaces all metadata of what name leads to.
func (f *FS) SetMetadata(name string, values map[string]string) error {
	return f.alter("metadata", name, func(n *node) error {
		if err := f.charge(metadataSize(values) - metadataSize(n.metadata)); err != nil {
			return err
		}
		n.metadata = maps.Clone(values)
		return nil
	})
}

func (f *FS) alter(op, name string, do func(*node) error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	at, err := f.existing(name, true)
	if err == nil {
		err = do(at.node)
	}
	if err != nil {
		return wrap(op, name, err)
	}
	f.tell(Chmod, at.dir, at.name)
	return nil
}

func relink(op, old, name string, err error) error {
	if err == nil {
		return nil
	}
	return &os.LinkError{Op: op, Old: old, New: name, Err: err}
}
