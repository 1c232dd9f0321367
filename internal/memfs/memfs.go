// Package memfs is a private file system in memory, for sandboxes in which no system call can be made: directories,
// files, links, quotas and events of changes, over a read-only tree such as the library of a language.
//
// Nothing of it is a path of the host, so that nothing can lead out: an absolute link starts at this root, and ".." of the
// root is the root. Permission bits are kept and shown and not enforced: whoever is inside is the only user and owns
// everything.
//
// Errors are *fs.PathError or *os.LinkError around the errno that Linux would give. All methods may be called concurrently.
package memfs

import (
	"io/fs"
	"math"
	"path"
	"strings"
	"sync"
	"syscall"
	"time"
)

// What holds for every path, as on Linux.
const (
	maxPath  = 4096 // bytes
	maxName  = 255  // bytes
	maxLinks = 40   // that one path may lead through
)

// Limits bound what a file system holds. Zero is "none but the machine's", except for Depth.
type Limits struct {
	Bytes    int64 // of contents, as they lie in memory, names of links and metadata: ENOSPC
	Files    int64 // files, directories and links, without those of the lower tree: ENOSPC
	FileSize int64 // bytes of one file: EFBIG
	Open     int64 // files that are open at one time: ENFILE
	Depth    int   // of directories: ENAMETOOLONG; 0 is 128
}

// Usage is what of the limits is taken.
type Usage struct {
	Bytes, Files, Open int64
}

// Options are how New makes a file system. The zero value is an empty one without limits.
type Options struct {
	Limits Limits
	Lower  fs.FS            // read-only; what is changed is copied first. It must not change any more
	Now    func() time.Time // time.Now if nil
	UID    uint32           // whose everything is
	GID    uint32
}

// FS is a file system.
type FS struct {
	limits   Limits
	lower    fs.FS
	now      func() time.Time
	uid, gid uint32

	mu       sync.Mutex
	used     Usage
	lastIno  uint64
	root     *node
	watchers map[*Watcher]struct{}
}

// New makes a file system.
func New(o Options) *FS {
	f := &FS{limits: o.Limits, lower: o.Lower, now: o.Now, uid: o.UID, gid: o.GID, watchers: map[*Watcher]struct{}{}}
	for _, limit := range []*int64{&f.limits.Bytes, &f.limits.Files, &f.limits.FileSize, &f.limits.Open} {
		if *limit == 0 {
			*limit = math.MaxInt64
		}
	}
	if f.limits.Depth == 0 {
		f.limits.Depth = 128
	}
	if f.now == nil {
		f.now = time.Now
	}
	f.root = f.newNode(fs.ModeDir | 0o755)
	f.root.parent = f.root
	if f.lower != nil {
		f.root.below = "."
	}
	return f
}

// Usage reports what is taken now.
func (f *FS) Usage() Usage {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.used
}

// charge takes bytes of the quota, or gives them back.
func (f *FS) charge(bytes int64) error {
	if bytes > 0 && bytes > f.limits.Bytes-f.used.Bytes {
		return syscall.ENOSPC
	}
	f.used.Bytes += bytes
	return nil
}

// place is where a path leads: to a name in a directory, and to what is there, if anything is.
type place struct {
	dir   *node
	name  string // "" for the root
	node  *node  // nil: nothing
	slash bool   // the path asks for a directory
}

// walk finds where name leads. The last component's link is followed only if the path asks for a directory or follow.
func (f *FS) walk(name string, follow bool) (place, error) {
	if len(name) > maxPath {
		return place{}, syscall.ENAMETOOLONG
	}
	if name == "" {
		return place{}, syscall.ENOENT
	}
	if strings.Contains(name, "\x00") {
		return place{}, syscall.EINVAL
	}
	at := place{dir: f.root, node: f.root}
	links := 0
	for rest := name; ; {
		part, more, found := strings.Cut(rest, "/")
		last := strings.Trim(more, "/") == ""
		at.slash = found && last || part == "." || part == ".."
		if err := f.step(&at, part); err != nil {
			return place{}, err
		}
		if at.node != nil && at.node.mode.Type() == fs.ModeSymlink && (!last || follow || at.slash) {
			if links++; links > maxLinks {
				return place{}, syscall.ELOOP
			}
			target := at.node.target
			at = place{dir: at.dir, node: at.dir}
			if strings.HasPrefix(target, "/") {
				at = place{dir: f.root, node: f.root}
			}
			if rest = target; found {
				rest += "/" + more
			}
			continue
		}
		if last {
			return at, at.whole()
		}
		if at.node == nil {
			return place{}, syscall.ENOENT
		}
		rest = more
	}
}

// whole refuses a path that asks for a directory and leads to something else.
func (at place) whole() error {
	if at.slash && at.node != nil && !at.node.mode.IsDir() {
		return syscall.ENOTDIR
	}
	return nil
}

// step goes on by one component.
func (f *FS) step(at *place, part string) error {
	if !at.node.mode.IsDir() {
		return syscall.ENOTDIR
	}
	dir := at.node
	if err := f.load(dir); err != nil {
		return err
	}
	switch {
	case part == "" || part == ".":
		return nil
	case part == "..":
		at.node = dir.parent
		at.dir, at.name = at.node.parent, at.node.name
		return nil
	case len(part) > maxName:
		return syscall.ENAMETOOLONG
	}
	at.dir, at.name, at.node = dir, part, dir.children[part]
	return nil
}

// existing is walk for what must be there.
func (f *FS) existing(name string, follow bool) (place, error) {
	at, err := f.walk(name, follow)
	if err == nil && at.node == nil {
		err = syscall.ENOENT
	}
	return at, err
}

// free is walk for what must not be there. A slash at the end means nothing yet.
func (f *FS) free(name string) (place, error) {
	bare := strings.TrimRight(name, "/")
	if bare == "" && name != "" {
		return place{}, syscall.EEXIST // the root
	}
	at, err := f.walk(bare, false)
	if err == nil && at.node != nil {
		err = syscall.EEXIST
	}
	return at, err
}

// Resolve returns the path without links that name leads to. What does not exist is ENOENT.
func (f *FS) Resolve(name string) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	at, err := f.existing(name, true)
	if err != nil {
		return "", wrap("resolve", name, err)
	}
	if at.node == f.root {
		return "/", nil
	}
	return path.Join(at.dir.path(), at.name), nil
}

func wrap(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: name, Err: err}
}
