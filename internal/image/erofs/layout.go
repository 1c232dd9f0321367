package erofs

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"path"
	"slices"
)

// inode is a node with its place in the image.
type inode struct {
	node    *Node
	parent  *inode
	name    string
	nid     uint64
	links   uint32
	layout  int
	size    int64
	block   uint32 // first block of the data; 0 if there is none
	content []byte // directories: their entries; symbolic links: their target
}

func (i *inode) path() string {
	if i.parent == nil {
		return "/"
	}
	return path.Join(i.parent.path(), i.name)
}

// plan is where everything in the image lies: one block that begins with the superblock and goes on, as do the
// following ones, with inodes in the order of a walk; then directories too large to stand behind their inode; then
// files.
type plan struct {
	inodes   []*inode
	of       map[*Node]*inode
	metaSize int64
	blocks   uint32
}

func layOut(root *Node) (*plan, error) {
	p := &plan{of: map[*Node]*inode{}}
	if root == nil || !root.IsDir() {
		return nil, fmt.Errorf("the root is not a directory")
	}
	if err := p.collect(root, nil, "/"); err != nil {
		return nil, err
	}
	p.placeInodes()
	if err := p.placeData(); err != nil {
		return nil, err
	}
	for _, i := range p.inodes { // only now are all inode numbers known
		if i.node.IsDir() {
			i.content = p.dirents(i)
		}
	}
	return p, nil
}

func (p *plan) collect(n *Node, parent *inode, name string) error {
	if known, ok := p.of[n]; ok {
		if n.IsDir() {
			return fmt.Errorf("directory %s is in the tree twice", known.path())
		}
		known.links++
		return nil
	}
	i := &inode{node: n, parent: parent, name: name, links: 1}
	if err := i.check(); err != nil {
		return fmt.Errorf("%s: %w", i.path(), err)
	}
	p.of[n] = i
	p.inodes = append(p.inodes, i)
	switch n.Mode & TypeMask {
	case TypeRegular:
		i.size = n.Size
	case TypeSymlink:
		i.content, i.size = []byte(n.Target), int64(len(n.Target))
	case TypeDir:
		i.links, i.size = 2, direntsSize(n)
		for _, name := range slices.Sorted(maps.Keys(n.Entries)) {
			child := n.Entries[name]
			if child.IsDir() {
				i.links++
			}
			if err := p.collect(child, i, name); err != nil {
				return err
			}
		}
	}
	return nil
}

func (i *inode) check() error {
	n := i.node
	switch n.Mode & TypeMask {
	case TypeDir, TypeFIFO:
	case TypeRegular:
		if n.Size > 0 && n.Open == nil {
			return fmt.Errorf("nothing to read its data from")
		}
		if _, err := blocksOf(n.Size); err != nil {
			return err
		}
	case TypeSymlink:
		if n.Target == "" || len(n.Target) > MaxTarget {
			return fmt.Errorf("symbolic link with a target of %d bytes", len(n.Target))
		}
	default:
		return fmt.Errorf("file type %#o is not for images", n.Mode&TypeMask)
	}
	if i.parent != nil && (i.name == "" || i.name == "." || i.name == ".." || len(i.name) > MaxName) {
		return fmt.Errorf("bad name of %d bytes", len(i.name))
	}
	return nil
}

// placeInodes numbers the inodes. Each is aligned to its own size, so that none crosses a block, and small directories
// and links follow theirs within the block.
func (p *plan) placeInodes() {
	at := int64(superOffset + superSize)
	for _, i := range p.inodes {
		behind := int64(0)
		if !i.node.IsRegular() && i.size > 0 && i.size <= blockSize-inodeSize {
			i.layout, behind = layoutInline, i.size
		}
		at = roundUp(at, inodeSize)
		if at%blockSize+inodeSize+behind > blockSize {
			at = roundUp(at, blockSize)
		}
		i.nid = uint64(at / slotSize)
		at += inodeSize + behind
	}
	p.metaSize = roundUp(at, blockSize)
}

func (p *plan) placeData() error {
	next := uint64(p.metaSize / blockSize)
	for _, files := range []bool{false, true} {
		for _, i := range p.inodes {
			if i.layout == layoutInline || i.size == 0 || i.node.IsRegular() != files {
				continue
			}
			n, err := blocksOf(i.size)
			if err != nil || next+uint64(n) > math.MaxUint32 {
				return fmt.Errorf("%s: the image would be larger than 16 TiB", i.path())
			}
			i.block = uint32(next)
			next += uint64(n)
		}
	}
	p.blocks = uint32(next)
	return nil
}

// direntBlocks groups the sorted names of a directory, with "." and "..", as they share blocks.
func direntBlocks(n *Node) [][]string {
	names := slices.AppendSeq([]string{".", ".."}, maps.Keys(n.Entries))
	slices.Sort(names)
	var blocks [][]string
	start, used := 0, 0
	for k, name := range names {
		if used+direntSize+len(name) > blockSize {
			blocks = append(blocks, names[start:k])
			start, used = k, 0
		}
		used += direntSize + len(name)
	}
	return append(blocks, names[start:])
}

func direntsSize(n *Node) int64 {
	blocks := direntBlocks(n)
	size := int64(len(blocks)-1) * blockSize
	for _, name := range blocks[len(blocks)-1] {
		size += direntSize + int64(len(name))
	}
	return size
}

// dirents returns the content of a directory: in each block a table of entries, then their names.
func (p *plan) dirents(i *inode) []byte {
	out := make([]byte, 0, i.size)
	le := binary.LittleEndian
	for k, names := range direntBlocks(i.node) {
		out = append(out, make([]byte, k*blockSize-len(out))...)
		nameAt := len(names) * direntSize
		for _, name := range names {
			target := p.entry(i, name)
			out = le.AppendUint64(out, target.nid)
			out = le.AppendUint16(out, uint16(nameAt))
			out = append(out, fileType(target.node), 0)
			nameAt += len(name)
		}
		for _, name := range names {
			out = append(out, name...)
		}
	}
	return out
}

func (p *plan) entry(dir *inode, name string) *inode {
	switch {
	case name == "." || name == ".." && dir.parent == nil:
		return dir
	case name == "..":
		return dir.parent
	}
	return p.of[dir.node.Entries[name]]
}

func fileType(n *Node) byte {
	switch n.Mode & TypeMask {
	case TypeRegular:
		return 1
	case TypeDir:
		return 2
	case TypeFIFO:
		return 5
	default:
		return 7
	}
}
