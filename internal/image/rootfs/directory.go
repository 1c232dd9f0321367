package rootfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/image/erofs"
)

// AddDirectory puts a directory of the host over what the tree holds, without what is mounted below it and without the
// directory exclude, which may be nil. The files are read only when the tree is written, so the directory must not
// change until then; it may hold anything, because no symbolic link in it is followed.
//
// Ordinary users give their own files to root, as a fresh root file system has them; root's imports keep all owners.
func (t *Tree) AddDirectory(ctx context.Context, dir string, exclude os.FileInfo) error {
	return t.addDirectory(ctx, t.root, dir, exclude)
}

// AddDirectoryAt is AddDirectory for what is to lie at the path at of the tree, which is made.
func (t *Tree) AddDirectoryAt(ctx context.Context, at, dir string, exclude os.FileInfo) error {
	parts, err := t.components(at)
	if err != nil {
		return err
	}
	into, err := t.directory(parts, true)
	if err != nil {
		return err
	}
	return t.addDirectory(ctx, into, dir, exclude)
}

func (t *Tree) addDirectory(ctx context.Context, into *erofs.Node, dir string, exclude os.FileInfo) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	t.closers = append(t.closers, root)
	info, err := root.Lstat(".")
	if err != nil {
		return err
	}
	w := &walk{tree: t, top: root, exclude: exclude, device: statOf(info).Dev, links: map[inodeID]*erofs.Node{}}
	w.meta(into, info)
	return w.entries(ctx, root, ".", into)
}

type inodeID struct{ device, inode uint64 }

type walk struct {
	tree    *Tree
	top     *os.Root
	exclude os.FileInfo
	device  uint64
	links   map[inodeID]*erofs.Node // files with several names
	depth   int
}

func statOf(info os.FileInfo) *syscall.Stat_t { return info.Sys().(*syscall.Stat_t) }

func (w *walk) meta(n *erofs.Node, info os.FileInfo) {
	st := statOf(info)
	n.Mode = n.Mode&erofs.TypeMask | uint16(st.Mode&0o7777)
	n.UID, n.GID = st.Uid, st.Gid
	if uid := os.Geteuid(); uid != 0 {
		if int(n.UID) == uid {
			n.UID = 0
		}
		if int(n.GID) == os.Getegid() {
			n.GID = 0
		}
	}
	n.ModTime = min(max(info.ModTime().Unix(), 0), maxModTime)
}

func (w *walk) entries(ctx context.Context, dir *os.Root, rel string, into *erofs.Node) error {
	if w.depth++; w.depth > maxDepth {
		return invalid("%.200q lies more than %d directories deep", rel, maxDepth)
	}
	defer func() { w.depth-- }()
	f, err := dir.Open(".")
	if err != nil {
		return err
	}
	names, err := f.Readdirnames(-1)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("read %s: %w", rel, err)
	}
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := w.entry(ctx, dir, path.Join(rel, name), name, into); err != nil {
			return err
		}
	}
	return nil
}

func (w *walk) entry(ctx context.Context, dir *os.Root, rel, name string, into *erofs.Node) error {
	info, err := dir.Lstat(name)
	if err != nil {
		return fmt.Errorf("read %s: %w", rel, err)
	}
	if w.exclude != nil && os.SameFile(info, w.exclude) {
		return nil
	}
	st := statOf(info)
	id := inodeID{st.Dev, st.Ino}
	if n, ok := w.links[id]; ok {
		w.tree.put(into, name, n)
		return w.tree.charge(name, "")
	}
	n, err := w.node(dir, rel, name, info)
	if n == nil || err != nil {
		return err
	}
	if err := w.tree.charge(name, n.Target); err != nil {
		return err
	}
	w.meta(n, info)
	if n.IsSymlink() {
		n.Mode = erofs.TypeSymlink | 0o777
	}
	w.tree.put(into, name, n)
	if !n.IsDir() {
		if st.Nlink > 1 {
			w.links[id] = n
		}
		return nil
	}
	if st.Dev != w.device {
		return nil // something is mounted here: the mount point alone belongs to the directory
	}
	sub, err := dir.OpenRoot(name)
	if err != nil {
		return fmt.Errorf("read %s: %w", rel, err)
	}
	defer sub.Close()
	return w.entries(ctx, sub, rel, n)
}

// node returns the bare node for an entry, nil for what images do not hold.
func (w *walk) node(dir *os.Root, rel, name string, info os.FileInfo) (*erofs.Node, error) {
	switch info.Mode().Type() {
	case fs.ModeDir:
		return newDir(0), nil
	case fs.ModeNamedPipe:
		return &erofs.Node{Mode: erofs.TypeFIFO}, nil
	case fs.ModeSymlink:
		target, err := dir.Readlink(name)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", rel, err)
		}
		return &erofs.Node{Mode: erofs.TypeSymlink, Target: target}, nil
	case 0:
		return w.file(rel, info)
	}
	w.tree.dropped++
	return nil, nil
}

func (w *walk) file(rel string, info os.FileInfo) (*erofs.Node, error) {
	t, size := w.tree, info.Size()
	if size > t.limits.FileBytes {
		return nil, tooMuch("%s has %d bytes, more than the limit of %d", rel, size, t.limits.FileBytes)
	}
	if t.bytes += size; t.bytes > t.limits.Bytes {
		return nil, tooMuch("the directory holds more than %d bytes", t.limits.Bytes)
	}
	open := func() (io.ReadCloser, error) {
		// Non-blocking, or a FIFO put in its place would hang us.
		f, err := w.top.OpenFile(rel, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
		if err != nil {
			return nil, err
		}
		now, err := f.Stat()
		if err != nil || !os.SameFile(now, info) {
			f.Close()
			return nil, errors.Join(err, errors.New("it was replaced while it was being read"))
		}
		return f, nil
	}
	return &erofs.Node{Mode: erofs.TypeRegular, Size: size, Open: open}, nil
}
