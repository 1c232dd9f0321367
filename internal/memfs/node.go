package memfs

import (
	"errors"
	"io/fs"
	"path"
	"syscall"
	"time"
)

// node is one file, directory or link. The file system's lock guards it.
type node struct {
	ino   uint64
	mode  fs.FileMode // type and permissions
	mtime time.Time
	atime time.Time
	links int // names of it; 0: removed, and alive while it is open
	opens int

	data     []byte // of a file
	target   string // of a link
	metadata map[string]string

	parent   *node // of a directory; the root is its own
	name     string
	children map[string]*node

	below string // of a directory that was not read yet, or a file that was not changed yet: its path in the lower tree
	size  int64  // of such a file
	lower bool   // counts for no limit of files
}

func (f *FS) newNode(mode fs.FileMode) *node {
	f.lastIno++
	n := &node{ino: f.lastIno, mode: mode, links: 1, mtime: f.now()}
	n.atime = n.mtime
	if mode.IsDir() {
		n.children = map[string]*node{}
	}
	return n
}

// load reads a directory of the lower tree when it is first needed.
func (f *FS) load(dir *node) error {
	if dir.below == "" {
		return nil
	}
	entries, err := fs.ReadDir(f.lower, dir.below)
	if err != nil {
		return lowerError(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			return lowerError(err)
		}
		at := path.Join(dir.below, e.Name())
		n := f.newNode(info.Mode() & (fs.ModeType | fs.ModePerm))
		n.mtime, n.atime, n.lower = info.ModTime(), info.ModTime(), true
		switch {
		case info.Mode().IsRegular():
			n.below, n.size = at, info.Size()
		case info.IsDir():
			n.below, n.parent, n.name = at, dir, e.Name()
		case info.Mode().Type() == fs.ModeSymlink:
			if n.target, err = fs.ReadLink(f.lower, at); err != nil {
				return lowerError(err)
			}
		default:
			continue // a device or a pipe is nothing that can be had here
		}
		dir.children[e.Name()] = n
	}
	dir.below = ""
	return nil
}

// lowerError has an errno in it for sure.
func lowerError(err error) error {
	if errno := syscall.Errno(0); errors.As(err, &errno) {
		return errno
	}
	if errors.Is(err, fs.ErrNotExist) {
		return syscall.ENOENT
	}
	return syscall.EIO
}

// add gives a directory a new entry, within the limits.
func (f *FS) add(at place, n *node) error {
	if f.used.Files >= f.limits.Files {
		return syscall.ENOSPC
	}
	if at.dir != f.root && at.dir.links == 0 {
		return syscall.ENOENT // a removed directory that somebody is still in
	}
	if n.mode.IsDir() {
		if at.dir.depth() >= f.limits.Depth {
			return syscall.ENAMETOOLONG
		}
		n.parent, n.name = at.dir, at.name
	}
	f.used.Files++
	at.dir.children[at.name] = n
	at.dir.mtime = f.now()
	return nil
}

// drop takes one name of n away, and n with the last.
func (f *FS) drop(dir *node, name string, n *node) {
	delete(dir.children, name)
	dir.mtime = f.now()
	if n.links--; n.links == 0 && n.opens == 0 {
		f.release(n)
	}
}

// release gives back what n took.
func (f *FS) release(n *node) {
	if !n.lower {
		f.used.Files--
	}
	f.used.Bytes -= n.held()
	n.data, n.metadata, n.target = nil, nil, ""
}

// held is what n takes of the quota.
func (n *node) held() int64 {
	size := int64(cap(n.data)) + metadataSize(n.metadata)
	if !n.lower {
		size += int64(len(n.target))
	}
	return size
}

func metadataSize(m map[string]string) (size int64) {
	for key, value := range m {
		size += int64(len(key) + len(value))
	}
	return size
}

func (n *node) depth() (depth int) {
	for ; n.parent != n; n = n.parent {
		depth++
	}
	return depth
}

// height is how many directories lie below each other from n on. What was not read of the lower tree does not count.
func (n *node) height() int {
	tallest := 0
	for _, child := range n.children {
		if child.mode.IsDir() {
			tallest = max(tallest, child.height())
		}
	}
	return tallest + 1
}

func (n *node) path() string {
	name := ""
	for ; n.parent != n; n = n.parent {
		name = "/" + n.name + name
	}
	if name == "" {
		return "/"
	}
	return name
}

// within reports whether n is dir or lies below it.
func (n *node) within(dir *node) bool {
	for ; n != dir; n = n.parent {
		if n.parent == n {
			return false
		}
	}
	return true
}

func (n *node) length() int64 {
	switch {
	case n.mode.Type() == fs.ModeSymlink:
		return int64(len(n.target))
	case n.below != "" && n.mode.IsRegular():
		return n.size
	}
	return int64(len(n.data))
}

// info is what is known of a node at one moment.
type info struct {
	name string
	size int64
	mode fs.FileMode
	time time.Time
	stat syscall.Stat_t
}

func (f *FS) info(name string, n *node) info {
	stat := syscall.Stat_t{Ino: n.ino, Nlink: uint64(n.links), Uid: f.uid, Gid: f.gid, Size: n.length()}
	stat.Mtim, stat.Atim = syscall.NsecToTimespec(n.mtime.UnixNano()), syscall.NsecToTimespec(n.atime.UnixNano())
	stat.Ctim = stat.Mtim
	return info{name: path.Base("/" + name), size: n.length(), mode: n.mode, time: n.mtime, stat: stat}
}

func (i info) Name() string       { return i.name }
func (i info) Size() int64        { return i.size }
func (i info) Mode() fs.FileMode  { return i.mode }
func (i info) ModTime() time.Time { return i.time }
func (i info) IsDir() bool        { return i.mode.IsDir() }
func (i info) Sys() any           { return &i.stat } // *syscall.Stat_t, with Ino, Nlink, Uid, Gid and times
