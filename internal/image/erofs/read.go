package erofs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	maxTree    = 1024     // directories within each other
	maxDirSize = 64 << 20 // bytes of one directory's entries
	window     = 64 << 10 // what is read of inodes at once: they stand in the order of a walk
)

// errDamaged is of an image that Write has not written, or that has changed since.
var errDamaged = errors.New("the image is damaged")

// Read returns the tree of an image that Write wrote. Its files can be opened as long as image can be read. A damaged
// image is an error, or a tree of nonsense; it does no harm.
func Read(image io.ReaderAt) (*Node, error) {
	r := &reader{image: image, nodes: map[uint64]*Node{}}
	super, err := r.at(superOffset, superSize)
	if err != nil {
		return nil, fmt.Errorf("read superblock: %w", err)
	}
	le := binary.LittleEndian
	if le.Uint32(super) != superMagic || super[12] != 12 {
		return nil, fmt.Errorf("read superblock: %w", errDamaged)
	}
	r.left = le.Uint64(super[16:])
	root, err := r.node(uint64(le.Uint16(super[14:])), 0)
	if err == nil && !root.IsDir() {
		err = errDamaged
	}
	if err != nil {
		return nil, fmt.Errorf("read inodes: %w", err)
	}
	return root, nil
}

type reader struct {
	image io.ReaderAt
	nodes map[uint64]*Node
	left  uint64 // inodes that may still come
	buf   []byte
	from  int64 // where buf lies in the image
}

// at returns n bytes at an offset, until the next call.
func (r *reader) at(offset int64, n int) ([]byte, error) {
	if offset >= r.from && offset+int64(n) <= r.from+int64(len(r.buf)) {
		return r.buf[offset-r.from:][:n], nil
	}
	if cap(r.buf) < max(n, window) {
		r.buf = make([]byte, max(n, window))
	}
	got, err := r.image.ReadAt(r.buf[:max(n, window)], offset)
	r.buf, r.from = r.buf[:got], offset
	switch {
	case got >= n:
		return r.buf[:n], nil
	case err == nil || errors.Is(err, io.EOF):
		err = errDamaged
	}
	return nil, err
}

func (r *reader) node(nid uint64, depth int) (*Node, error) {
	if n, ok := r.nodes[nid]; ok {
		if n.IsDir() {
			return nil, errDamaged // it stands in two directories
		}
		return n, nil
	}
	if r.left == 0 || depth > maxTree || nid > 1<<40 {
		return nil, errDamaged
	}
	r.left--
	at := int64(nid * slotSize)
	b, err := r.at(at, inodeSize)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	format, size, block := le.Uint16(b), int64(le.Uint64(b[8:])), int64(le.Uint32(b[16:]))
	n := &Node{Mode: le.Uint16(b[4:]), UID: le.Uint32(b[24:]), GID: le.Uint32(b[28:]), ModTime: int64(le.Uint64(b[32:]))}
	data := block * blockSize
	switch layout := format >> 1; {
	case format&1 == 0 || size < 0 || layout != layoutPlain && layout != layoutInline:
		return nil, errDamaged
	case layout == layoutInline:
		data = at + inodeSize
	}
	r.nodes[nid] = n
	switch n.Mode & TypeMask {
	case TypeRegular:
		n.Size = size
		n.Open = func() (io.ReadCloser, error) { return io.NopCloser(io.NewSectionReader(r.image, data, size)), nil }
	case TypeSymlink:
		err = r.target(n, data, size)
	case TypeDir:
		err = r.entries(n, data, size, depth)
	case TypeFIFO:
	default:
		err = errDamaged
	}
	return n, err
}

func (r *reader) target(n *Node, data, size int64) error {
	if size == 0 || size > MaxTarget {
		return errDamaged
	}
	b, err := r.at(data, int(size))
	n.Target = string(b)
	return err
}

func (r *reader) entries(dir *Node, data, size int64, depth int) error {
	if size > maxDirSize {
		return errDamaged
	}
	b, err := r.at(data, int(size))
	if err != nil {
		return err
	}
	content := bytes.Clone(b) // the walk goes on to use the buffer
	dir.Entries = map[string]*Node{}
	for len(content) > 0 {
		block := content[:min(len(content), blockSize)]
		content = content[len(block):]
		if err := r.block(dir, block, depth); err != nil {
			return err
		}
	}
	return nil
}

// block reads the entries of one block: a table, and then the names.
func (r *reader) block(dir *Node, b []byte, depth int) error {
	le := binary.LittleEndian
	if len(b) < direntSize {
		return errDamaged
	}
	table := int(le.Uint16(b[8:]))
	if table == 0 || table%direntSize != 0 || table > len(b) {
		return errDamaged
	}
	for at := 0; at < table; at += direntSize {
		from, to := int(le.Uint16(b[at+8:])), len(b)
		if next := at + direntSize; next < table {
			to = int(le.Uint16(b[next+8:]))
		}
		if from < table || to < from || to > len(b) {
			return errDamaged
		}
		name := string(bytes.TrimRight(b[from:to], "\x00")) // a block is filled up with zeros
		if name == "." || name == ".." {
			continue
		}
		if name == "" || len(name) > MaxName || bytes.ContainsAny([]byte(name), "/\x00") {
			return errDamaged
		}
		child, err := r.node(le.Uint64(b[at:]), depth+1)
		if err != nil {
			return err
		}
		dir.Entries[name] = child
	}
	return nil
}
