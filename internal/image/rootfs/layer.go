package rootfs

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"strings"

	"github.com/firebreak-dev/firebreak/internal/image/erofs"
)

// ApplyLayer puts an uncompressed layer of an OCI or Docker image, with its whiteouts, over what the tree holds. It
// reads r to its end.
func (t *Tree) ApplyLayer(ctx context.Context, r io.Reader) error {
	t.fresh = map[place]bool{}
	defer func() { t.fresh = nil }()
	return t.apply(ctx, r, t.addLayerEntry)
}

// ApplyTar puts an uncompressed archive over what the tree holds. Names that would be whiteouts in a layer are plain
// names here. It reads r to its end.
func (t *Tree) ApplyTar(ctx context.Context, r io.Reader) error { return t.apply(ctx, r, t.addEntry) }

// sameRecord is the PAX record of a file whose data the export of a sandbox leaves out, because it is still the template's:
// its size.
const sameRecord = "FIREBREAK.same"

// ApplyExport is ApplyTar for the export of a sandbox that began with the tree base, whose files must stay open until
// this tree's are not needed any more. A file that is said to be the same as in base, and cannot be, is an error that
// wraps ErrNotSame.
func (t *Tree) ApplyExport(ctx context.Context, r io.Reader, base *erofs.Node) error {
	t.base = base
	defer func() { t.base = nil }()
	return t.ApplyTar(ctx, r)
}

// ErrNotSame is of an export that leaves out what its template does not have.
var ErrNotSame = errors.New("the template has no such file")

type addFunc func(ctx context.Context, h *tar.Header, parts []string, data io.Reader) error

func (t *Tree) apply(ctx context.Context, r io.Reader, add addFunc) error {
	in := &budget{r: r, tree: t}
	archive := tar.NewReader(in)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return readError(err)
		}
		parts, err := t.components(h.Name)
		if err != nil {
			return err
		}
		if err := add(ctx, h, parts, archive); err != nil {
			return readError(err)
		}
	}
	// What follows the end mark belongs to the layer's digest all the same.
	if _, err := io.Copy(io.Discard, in); err != nil {
		return readError(err)
	}
	return ctx.Err()
}

// readError makes a malformed archive the input's fault and leaves what the disk or the network did as it is.
func readError(err error) error {
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, tar.ErrFieldTooLong) {
		return invalid("the archive is damaged or cut short: %w", err)
	}
	return err
}

// budget ends a stream that unpacks to more than the tree may read.
type budget struct {
	r    io.Reader
	tree *Tree
}

func (b *budget) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	b.tree.read += int64(n)
	if b.tree.read > b.tree.limits.Bytes {
		return 0, tooMuch("the image unpacks to more than %d bytes", b.tree.limits.Bytes)
	}
	return n, err
}

func (t *Tree) addLayerEntry(ctx context.Context, h *tar.Header, parts []string, data io.Reader) error {
	if len(parts) == 0 {
		return t.addEntry(ctx, h, parts, data)
	}
	last := len(parts) - 1
	hidden, is := strings.CutPrefix(parts[last], whiteout)
	if !is {
		return t.addEntry(ctx, h, parts, data)
	}
	dir, err := t.directory(parts[:last], false)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil // hides what is not there
	case err != nil:
		return err
	case parts[last] == whiteoutAll:
		t.hideAll(dir)
	case strings.HasPrefix(hidden, whiteout): // bookkeeping of the AUFS file system
	case hidden == "" || hidden == "." || hidden == "..":
		return invalid("the whiteout %.200q hides nothing that could be", h.Name)
	default:
		t.hide(dir, hidden)
	}
	return nil
}

// hide removes what lower layers put at name; what this layer put there stays, whichever came first.
func (t *Tree) hide(dir *erofs.Node, name string) {
	child, ok := dir.Entries[name]
	if ok && child.IsDir() {
		t.hideAll(child)
		if len(child.Entries) > 0 {
			return
		}
	}
	if !t.fresh[place{dir, name}] {
		delete(dir.Entries, name)
	}
}

func (t *Tree) hideAll(dir *erofs.Node) {
	for name := range dir.Entries {
		t.hide(dir, name)
	}
}

func (t *Tree) addEntry(ctx context.Context, h *tar.Header, parts []string, data io.Reader) error {
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeFifo, tar.TypeGNUSparse, tar.TypeCont:
	case tar.TypeChar, tar.TypeBlock:
		t.dropped++ // a driver gives a sandbox the few devices it may have
		return nil
	default:
		return nil // global headers and vendors' own records
	}
	if len(parts) == 0 {
		return t.addRoot(h)
	}
	if err := t.charge(parts[len(parts)-1], h.Linkname); err != nil {
		return err
	}
	dir, err := t.directory(parts[:len(parts)-1], true)
	if err != nil {
		return err
	}
	name := parts[len(parts)-1]
	if h.Typeflag == tar.TypeDir {
		return t.addDir(dir, name, h)
	}
	n, err := t.node(ctx, h, data)
	if err != nil {
		return fmt.Errorf("%.200q: %w", h.Name, err)
	}
	t.put(dir, name, n)
	return nil
}

func (t *Tree) addRoot(h *tar.Header) error {
	if h.Typeflag != tar.TypeDir {
		return invalid("%.200q would replace the root directory", h.Name)
	}
	return setMeta(t.root, h)
}

// addDir merges with a directory of that name and replaces anything else.
func (t *Tree) addDir(dir *erofs.Node, name string, h *tar.Header) error {
	n, ok := dir.Entries[name]
	if !ok || !n.IsDir() {
		n = newDir(0)
	}
	if err := setMeta(n, h); err != nil {
		return err
	}
	t.put(dir, name, n)
	return nil
}

func (t *Tree) node(ctx context.Context, h *tar.Header, data io.Reader) (*erofs.Node, error) {
	if h.Typeflag == tar.TypeLink {
		return t.linked(h.Linkname)
	}
	n := &erofs.Node{}
	switch h.Typeflag {
	case tar.TypeSymlink:
		n.Mode, n.Target = erofs.TypeSymlink, h.Linkname
		if n.Target == "" || len(n.Target) > erofs.MaxTarget || strings.ContainsRune(n.Target, 0) {
			return nil, invalid("a symbolic link with a target of %d bytes", len(n.Target))
		}
	case tar.TypeFifo:
		n.Mode = erofs.TypeFIFO
	default:
		n.Mode = erofs.TypeRegular
	}
	if err := setMeta(n, h); err != nil {
		return nil, err
	}
	if !n.IsRegular() {
		return n, nil
	}
	if size, ok := h.PAXRecords[sameRecord]; ok && t.base != nil {
		return n, t.reuse(n, h.Name, size)
	}
	return n, t.store(ctx, n, data, h.Size)
}

// reuse gives n the data of the file of that name in base, if it looks like the same.
func (t *Tree) reuse(n *erofs.Node, name, size string) error {
	parts, err := t.components(name)
	if err != nil {
		return err
	}
	old := t.base
	for _, part := range parts {
		if old = old.Entries[part]; old == nil {
			return ErrNotSame
		}
	}
	if !old.IsRegular() || old.ModTime != n.ModTime || strconv.FormatInt(old.Size, 10) != size {
		return ErrNotSame
	}
	if t.bytes += old.Size; t.bytes > t.limits.Bytes || old.Size > t.limits.FileBytes {
		return tooMuch("the image holds more than %d bytes", t.limits.Bytes)
	}
	n.Size, n.Open = old.Size, old.Open
	return nil
}

// linked returns the node that a hard link points to: a path from the root of the tree, like any other.
func (t *Tree) linked(target string) (*erofs.Node, error) {
	parts, err := t.components(target)
	if err != nil {
		return nil, err
	}
	if len(parts) == 0 {
		return nil, invalid("a hard link to the root directory")
	}
	dir, err := t.directory(parts[:len(parts)-1], false)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err == nil {
		if n, ok := dir.Entries[parts[len(parts)-1]]; ok && !n.IsDir() {
			return n, nil
		}
	}
	return nil, invalid("a hard link to %.200q, which is no file of the image", target)
}

func (t *Tree) store(ctx context.Context, n *erofs.Node, data io.Reader, size int64) error {
	if size < 0 || size > t.limits.FileBytes {
		return tooMuch("a file of %d bytes is larger than the limit of %d", size, t.limits.FileBytes)
	}
	if t.bytes += size; t.bytes > t.limits.Bytes {
		return tooMuch("the image holds more than %d bytes", t.limits.Bytes)
	}
	return t.spool.add(ctx, n, data, size)
}

// setMeta takes owner, permissions and time over. The bits setuid and setgid stay, they mean something inside a sandbox
// only: the store keeps trees where no other user of the host can reach them.
func setMeta(n *erofs.Node, h *tar.Header) error {
	if h.Uid < 0 || h.Gid < 0 || h.Uid > maxOwner || h.Gid > maxOwner {
		return invalid("%.200q belongs to %d:%d, which are no ids", h.Name, h.Uid, h.Gid)
	}
	n.UID, n.GID = uint32(h.Uid), uint32(h.Gid)
	n.Mode = n.Mode&erofs.TypeMask | uint16(h.Mode&0o7777)
	if n.IsSymlink() {
		n.Mode |= 0o777
	}
	n.ModTime = min(max(h.ModTime.Unix(), 0), maxModTime)
	if h.ModTime.IsZero() {
		n.ModTime = fixedTime
	}
	return nil
}
