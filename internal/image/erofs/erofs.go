// Package erofs writes EROFS images in the one form that the Linux kernel and gVisor can both map into memory:
// uncompressed, file data always in blocks of its own, no extended attributes. It needs no tool and no privilege, and
// the same tree gives the same bytes.
//
// Images come from here and not from a library because gVisor refuses to map files whose data lies beside the inode
// and refuses inodes with extended attributes, and no library can be told to leave both out.
package erofs

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"math"
)

// The type bits of Node.Mode, as in stat(2).
const (
	TypeMask    = 0o170000
	TypeFIFO    = 0o010000
	TypeDir     = 0o040000
	TypeRegular = 0o100000
	TypeSymlink = 0o120000
)

// MaxName is the longest name of a directory entry.
const MaxName = 255

// MaxTarget is the longest target of a symbolic link.
const MaxTarget = 4095

// Node is a file, directory, symbolic link or FIFO. A node that stands in several directories, or under several names,
// is a hard link; a directory must stand in one only.
type Node struct {
	Mode     uint16
	UID, GID uint32
	ModTime  int64 // seconds since 1970
	Size     int64 // regular files: the bytes that Open gives
	Target   string
	Entries  map[string]*Node              // directories
	Open     func() (io.ReadCloser, error) // regular files with Size > 0
}

// IsDir reports whether n is a directory.
func (n *Node) IsDir() bool { return n.Mode&TypeMask == TypeDir }

// IsRegular reports whether n is a regular file.
func (n *Node) IsRegular() bool { return n.Mode&TypeMask == TypeRegular }

// IsSymlink reports whether n is a symbolic link.
func (n *Node) IsSymlink() bool { return n.Mode&TypeMask == TypeSymlink }

const (
	blockSize   = 4096
	superOffset = 1024
	superSize   = 128
	superMagic  = 0xe0f5e1e2
	inodeSize   = 64 // always the extended form: 32-bit owners and a time of its own
	slotSize    = 32 // the unit of inode numbers
	direntSize  = 12

	compatChecksum = 1
	compatMtime    = 2

	layoutPlain  = 0 // data in whole blocks
	layoutInline = 2 // data right behind the inode, in the same block
)

// Write writes the image of the tree under root to w, front to back. It fails if a file does not give exactly its Size
// bytes, or ctx ends.
func Write(ctx context.Context, w io.Writer, root *Node) error {
	p, err := layOut(root)
	if err != nil {
		return fmt.Errorf("lay out image: %w", err)
	}
	if _, err := w.Write(p.metadata()); err != nil {
		return fmt.Errorf("write metadata: %w", err)
	}
	for _, i := range p.inodes {
		if i.block == 0 || i.node.IsRegular() {
			continue
		}
		if _, err := w.Write(padded(i.content)); err != nil {
			return fmt.Errorf("write directories: %w", err)
		}
	}
	return p.writeFiles(ctx, w)
}

func (p *plan) writeFiles(ctx context.Context, w io.Writer) error {
	buf := make([]byte, 1<<20)
	for _, i := range p.inodes {
		if i.block == 0 || !i.node.IsRegular() {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := copyFile(ctx, w, i.node, buf); err != nil {
			return fmt.Errorf("write %s: %w", i.path(), err)
		}
	}
	return nil
}

func copyFile(ctx context.Context, w io.Writer, n *Node, buf []byte) (err error) {
	r, err := n.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	for left := n.Size; left > 0; {
		if err := ctx.Err(); err != nil {
			return err
		}
		part := buf[:min(int64(len(buf)), left)]
		if _, err := io.ReadFull(r, part); err != nil {
			return fmt.Errorf("it is shorter than it was, %d bytes are missing: %w", left, err)
		}
		left -= int64(len(part))
		if left == 0 { // the padding goes along: one write for a small file
			end := roundUp(len(part), blockSize)
			clear(buf[len(part):end])
			part = buf[:end]
		}
		if _, err := w.Write(part); err != nil {
			return err
		}
	}
	if n, _ := r.Read(buf[:1]); n > 0 {
		return fmt.Errorf("it is longer than it was: %w", io.ErrShortBuffer)
	}
	return nil
}

// metadata returns the first blocks of the image: superblock, inodes, and what lies behind inodes.
func (p *plan) metadata() []byte {
	b := make([]byte, p.metaSize)
	for number, i := range p.inodes {
		at := b[i.nid*slotSize:]
		putInode(at, i, uint32(number+1))
		if i.layout == layoutInline {
			copy(at[inodeSize:], i.content)
		}
	}
	le, s := binary.LittleEndian, b[superOffset:]
	le.PutUint32(s[0:], superMagic)
	le.PutUint32(s[8:], compatChecksum|compatMtime)
	s[12] = 12 // log2 of the block size
	le.PutUint16(s[14:], uint16(p.inodes[0].nid))
	le.PutUint64(s[16:], uint64(len(p.inodes)))
	le.PutUint32(s[36:], p.blocks)
	// The checksum covers the rest of the first block, with its own field zero, and is not inverted at the end.
	le.PutUint32(s[4:], ^crc32.Checksum(b[superOffset:blockSize], crc32.MakeTable(crc32.Castagnoli)))
	return b
}

func putInode(b []byte, i *inode, number uint32) {
	le := binary.LittleEndian
	le.PutUint16(b[0:], uint16(i.layout<<1|1)) // bit 0: extended inode
	le.PutUint16(b[4:], i.node.Mode)
	le.PutUint64(b[8:], uint64(i.size))
	le.PutUint32(b[16:], i.block)
	le.PutUint32(b[20:], number)
	le.PutUint32(b[24:], i.node.UID)
	le.PutUint32(b[28:], i.node.GID)
	le.PutUint64(b[32:], uint64(max(i.node.ModTime, 0)))
	le.PutUint32(b[44:], i.links)
}

func padded(b []byte) []byte { return append(b, make([]byte, roundUp(len(b), blockSize)-len(b))...) }

func roundUp[T int | int64](n, unit T) T { return (n + unit - 1) / unit * unit }

func blocksOf(size int64) (uint32, error) {
	n := roundUp(size, blockSize) / blockSize
	if size < 0 || n > math.MaxUint32 {
		return 0, fmt.Errorf("%d bytes do not fit in an image", size)
	}
	return uint32(n), nil
}
