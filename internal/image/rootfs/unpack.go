package rootfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/image/erofs"
)

// Unpack writes the tree under root into the empty directory dir. It returns for how many names an owner could not be
// set, because the caller may not or because this user namespace lacks the id; they belong to the caller then.
func Unpack(ctx context.Context, root *erofs.Node, dir string) (strangers int, err error) {
	top, err := os.OpenRoot(dir)
	if err != nil {
		return 0, err
	}
	defer top.Close()
	u := &unpacker{top: top, done: map[*erofs.Node]string{}, buf: make([]byte, 256<<10)}
	if err := u.fill(ctx, top, root, "."); err != nil {
		return 0, err
	}
	return u.strangers, u.meta(top, ".", root)
}

type unpacker struct {
	top       *os.Root
	done      map[*erofs.Node]string // where each file already stands, for its further names
	strangers int
	buf       []byte
}

func (u *unpacker) fill(ctx context.Context, dir *os.Root, n *erofs.Node, rel string) error {
	for name, child := range n.Entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		err := u.add(ctx, dir, name, child, path.Join(rel, name))
		if err != nil && !child.IsDir() {
			err = fmt.Errorf("%s: %w", path.Join(rel, name), err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (u *unpacker) add(ctx context.Context, dir *os.Root, name string, n *erofs.Node, rel string) error {
	if first, ok := u.done[n]; ok {
		return u.top.Link(first, rel)
	}
	var err error
	switch {
	case n.IsDir():
		err = u.addDir(ctx, dir, name, n, rel)
	case n.IsSymlink():
		err = dir.Symlink(n.Target, name)
	case n.IsRegular():
		err = u.addFile(dir, name, n)
	default:
		err = mkfifo(dir, name)
	}
	if err != nil {
		return err
	}
	if !n.IsDir() {
		u.done[n] = rel
	}
	return u.meta(dir, name, n)
}

func (u *unpacker) addDir(ctx context.Context, dir *os.Root, name string, n *erofs.Node, rel string) error {
	if err := dir.Mkdir(name, 0o700); err != nil {
		return err
	}
	sub, err := dir.OpenRoot(name)
	if err != nil {
		return err
	}
	defer sub.Close()
	return u.fill(ctx, sub, n, rel)
}

func (u *unpacker) addFile(dir *os.Root, name string, n *erofs.Node) (err error) {
	f, err := dir.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if n.Size == 0 {
		return nil
	}
	r, err := n.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	w := &SparseWriter{File: f}
	if _, err := io.CopyBuffer(w, io.LimitReader(onlyReader{r}, n.Size), u.buf); err != nil {
		return err
	}
	if w.Offset != n.Size {
		return io.ErrUnexpectedEOF
	}
	return w.Finish()
}

// onlyReader hides a WriteTo that would not use our buffer.
type onlyReader struct{ io.Reader }

func mkfifo(dir *os.Root, name string) error {
	f, err := dir.Open(".")
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Mkfifoat(int(f.Fd()), name, 0o600)
}

// meta sets owner, then permissions (changing the owner clears setuid), then time.
func (u *unpacker) meta(dir *os.Root, name string, n *erofs.Node) error {
	err := dir.Lchown(name, int(n.UID), int(n.GID))
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EINVAL) {
		u.strangers, err = u.strangers+1, nil
	}
	if err != nil || n.IsSymlink() {
		return err
	}
	if err := dir.Chmod(name, modeOf(n)); err != nil {
		return err
	}
	when := time.Unix(n.ModTime, 0)
	return dir.Chtimes(name, when, when)
}

func modeOf(n *erofs.Node) fs.FileMode {
	mode := fs.FileMode(n.Mode & 0o777)
	for bit, m := range map[uint16]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if n.Mode&bit != 0 {
			mode |= m
		}
	}
	return mode
}
