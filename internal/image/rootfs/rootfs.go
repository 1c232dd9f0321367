// Package rootfs flattens hostile archives and directories into one root file system, held in memory with its data in a
// spool file, and unpacks such trees. Nothing that a layer says can reach a path of the host: names are resolved within
// the tree, and sizes, counts and depths are limited.
package rootfs

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/image/erofs"
)

// Limits bound what one tree may cost its host. A zero field means its default.
type Limits struct {
	Bytes     int64 // unpacked data of all layers together, also of files that later layers hide; default 32 GiB
	FileBytes int64 // one file; default 16 GiB
	Entries   int   // names in all layers together; default 1,000,000
	PathBytes int   // one path; default 4096
}

func (l Limits) withDefaults() Limits {
	pick := func(v, d int64) int64 {
		if v > 0 {
			return v
		}
		return d
	}
	return Limits{
		Bytes:     pick(l.Bytes, 32<<30),
		FileBytes: pick(l.FileBytes, 16<<30),
		Entries:   int(pick(int64(l.Entries), 1_000_000)),
		PathBytes: int(pick(int64(l.PathBytes), 4096)),
	}
}

const (
	maxDepth    = 512       // directories within each other
	maxSteps    = 4096      // path components walked for one name, those out of symbolic links included
	maxHops     = 40        // symbolic links followed for one name, as in Linux
	maxNames    = 512 << 20 // memory for names and links of all entries together
	nodeCost    = 256       // about what an entry costs in memory beside its name
	fixedTime   = 946684800 // 2000-01-01, for what no source gives a time: the same input must give the same image
	maxModTime  = 1 << 36
	maxOwner    = 1<<32 - 2 // the last one means "none" to the kernel
	whiteout    = ".wh."
	whiteoutAll = ".wh..wh..opq"
)

// Tree is a root file system being put together. It is not safe for concurrent use.
type Tree struct {
	root    *erofs.Node
	limits  Limits
	spool   *spool
	bytes   int64
	read    int64
	names   int64
	entries int
	dropped int
	fresh   map[place]bool // what the layer being applied has put in place
	base    *erofs.Node    // where the data of files is that an export leaves out
	closers []io.Closer
}

// place is one name in one directory.
type place struct {
	dir  *erofs.Node
	name string
}

// New returns a tree that holds only its root and keeps file data in the file spool, which it neither closes nor
// removes.
func New(spoolFile *os.File, limits Limits) *Tree {
	return &Tree{root: newDir(0o755), limits: limits.withDefaults(), spool: &spool{file: spoolFile}}
}

// Root returns the tree's root. Its files can be opened until Close.
func (t *Tree) Root() *erofs.Node { return t.root }

// Dropped returns how many devices and sockets were left out.
func (t *Tree) Dropped() int { return t.dropped }

// Close lets go of the directories that AddDirectory opened.
func (t *Tree) Close() error {
	for _, c := range t.closers {
		_ = c.Close() // only read from
	}
	t.closers = nil
	return nil
}

func newDir(mode uint16) *erofs.Node {
	return &erofs.Node{Mode: erofs.TypeDir | mode, ModTime: fixedTime, Entries: map[string]*erofs.Node{}}
}

func invalid(format string, args ...any) error {
	return &firebreak.Error{Kind: firebreak.KindInvalid, Err: fmt.Errorf(format, args...)}
}

func tooMuch(format string, args ...any) error {
	return &firebreak.Error{Kind: firebreak.KindExhausted, Err: fmt.Errorf(format, args...),
		Mend: "use a smaller image, or one from a source that you trust more"}
}

// charge counts one more name against the limits.
func (t *Tree) charge(name, target string) error {
	t.entries++
	t.names += nodeCost + int64(len(name)+len(target))
	if t.entries > t.limits.Entries || t.names > maxNames {
		return tooMuch("the image holds more than %d files, or names too long in sum", t.limits.Entries)
	}
	return nil
}

// components splits a path of an archive. It may begin with / or ./ but must not climb.
func (t *Tree) components(p string) ([]string, error) {
	if len(p) > t.limits.PathBytes {
		return nil, invalid("a path of %d bytes, beginning with %.60q, is longer than %d", len(p), p, t.limits.PathBytes)
	}
	var parts []string
	for c := range strings.SplitSeq(p, "/") {
		switch {
		case c == "" || c == ".":
		case c == "..":
			return nil, invalid("the path %.200q climbs out of its directory", p)
		case len(c) > erofs.MaxName || strings.ContainsRune(c, 0):
			return nil, invalid("the path %.60q… has a part of %d bytes or a NUL in it", p, len(c))
		default:
			parts = append(parts, c)
		}
	}
	return parts, nil
}

// directory walks from the root along parts, following symbolic links within the tree as a kernel would with this root,
// and makes missing directories if wanted. fs.ErrNotExist if one is missing.
func (t *Tree) directory(parts []string, create bool) (*erofs.Node, error) {
	chain := []*erofs.Node{t.root}
	todo := parts
	for steps, hops := 0, 0; len(todo) > 0; steps++ {
		if steps > maxSteps || hops > maxHops {
			return nil, invalid("%.200q leads through too many symbolic links", strings.Join(parts, "/"))
		}
		name, dir := todo[0], chain[len(chain)-1]
		todo = todo[1:]
		if name == "" || name == "." {
			continue
		}
		if name == ".." {
			chain = chain[:max(len(chain)-1, 1)]
			continue
		}
		child, err := t.step(dir, name, create)
		switch {
		case err != nil:
			return nil, fmt.Errorf("%.200q: %w", strings.Join(parts, "/"), err)
		case child.IsSymlink():
			hops++
			if strings.HasPrefix(child.Target, "/") {
				chain = chain[:1]
			}
			todo = append(strings.Split(child.Target, "/"), todo...)
		case len(chain) >= maxDepth:
			return nil, invalid("%.200q lies more than %d directories deep", strings.Join(parts, "/"), maxDepth)
		default:
			chain = append(chain, child)
		}
	}
	return chain[len(chain)-1], nil
}

// step returns the directory or symbolic link called name in dir.
func (t *Tree) step(dir *erofs.Node, name string, create bool) (*erofs.Node, error) {
	child, ok := dir.Entries[name]
	switch {
	case ok && (child.IsDir() || child.IsSymlink()):
		return child, nil
	case ok:
		return nil, invalid("%.100q is not a directory", name)
	case !create:
		return nil, fs.ErrNotExist
	case len(name) > erofs.MaxName:
		return nil, invalid("a symbolic link leads to a name of %d bytes", len(name))
	}
	if err := t.charge(name, ""); err != nil {
		return nil, err
	}
	child = newDir(0o755)
	t.put(dir, name, child)
	return child, nil
}

func (t *Tree) put(dir *erofs.Node, name string, n *erofs.Node) {
	dir.Entries[name] = n
	if t.fresh != nil {
		t.fresh[place{dir, name}] = true
	}
}

// Lookup returns what p names, the last symbolic link followed too. fs.ErrNotExist if there is nothing.
func (t *Tree) Lookup(p string) (*erofs.Node, error) {
	todo := p
	for range maxHops {
		parts, err := t.components(todo)
		if err != nil {
			return nil, err
		}
		if len(parts) == 0 {
			return t.root, nil
		}
		last := len(parts) - 1
		dir, err := t.directory(parts[:last], false)
		if err != nil {
			return nil, err
		}
		n, ok := dir.Entries[parts[last]]
		switch {
		case !ok:
			return nil, fmt.Errorf("%s: %w", p, fs.ErrNotExist)
		case !n.IsSymlink():
			return n, nil
		case strings.HasPrefix(n.Target, "/"):
			todo = n.Target
		default:
			todo = strings.Join(parts[:last], "/") + "/" + n.Target
		}
		todo = squash(todo)
	}
	return nil, invalid("%s leads through too many symbolic links", p)
}

// squash removes ".." lexically, which is exact enough for the few well-known files that Lookup is for.
func squash(p string) string {
	var out []string
	for c := range strings.SplitSeq(p, "/") {
		if c == ".." {
			out = out[:max(len(out)-1, 0)]
			continue
		}
		out = append(out, c)
	}
	return strings.Join(out, "/")
}
