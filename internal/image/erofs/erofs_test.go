package erofs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	goerofs "github.com/erofs/go-erofs"
	"golang.org/x/sys/unix"
	gvisor "gvisor.dev/gvisor/pkg/erofs"
)

func file(mode uint16, data []byte) *Node {
	return &Node{Mode: TypeRegular | mode, ModTime: 1_700_000_000, Size: int64(len(data)),
		Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }}
}

func dir(mode uint16, entries map[string]*Node) *Node {
	if entries == nil {
		entries = map[string]*Node{}
	}
	return &Node{Mode: TypeDir | mode, ModTime: 1_600_000_000, Entries: entries}
}

func link(target string) *Node { return &Node{Mode: TypeSymlink | 0o777, Target: target} }

func bytesOf(n int, seed uint64) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(seed, 1))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// cornerTree has what an image can get wrong: sizes around a block, names around the limits, directories of several
// blocks, hard links, owners beyond 16 bits, special modes.
func cornerTree() *Node {
	sizes := dir(0o755, nil)
	for i, n := range []int{0, 1, 4031, 4032, 4033, 4095, 4096, 4097, 8192, 1<<20 + 1, 3 << 20} {
		sizes.Entries[fmt.Sprint(n)] = file(0o644, bytesOf(n, uint64(i)))
	}
	many := dir(0o711, nil)
	for i := range 3000 {
		many.Entries[fmt.Sprintf("%s-%d", strings.Repeat("x", i%200), i)] = file(0o600, []byte(fmt.Sprint(i)))
	}
	names := dir(0o755, map[string]*Node{
		"!before-dot": file(0o644, nil), "-": file(0o644, nil), "...": file(0o644, nil), "\xff\xfe": file(0o644, nil),
		"a b\nc": file(0o644, nil), strings.Repeat("n", 255): file(0o644, []byte("long")), ".hidden": dir(0o700, nil),
	})
	links := dir(0o755, nil)
	for _, n := range []int{1, 31, 32, 4031, 4032, 4033, 4095} {
		links.Entries[fmt.Sprint(n)] = link(strings.Repeat("t", n))
	}
	twice := file(0o4755, []byte("one file, three names"))
	owned := file(0o2755, []byte("x"))
	owned.UID, owned.GID = 70000, 4_000_000_000
	deep := dir(0o755, map[string]*Node{"end": twice})
	for i := range 60 {
		deep = dir(0o755, map[string]*Node{fmt.Sprintf("level-%d", i): deep})
	}
	return dir(0o755, map[string]*Node{
		"sizes": sizes, "many": many, "names": names, "links": links, "deep": deep, "empty": dir(0o1777, nil),
		"setuid": twice, "again": twice, "owned": owned, "fifo": {Mode: TypeFIFO | 0o640, UID: 5, GID: 6},
	})
}

func write(t testing.TB, root *Node) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := Write(t.Context(), f, root); err != nil {
		t.Fatal(err)
	}
	return path
}

func content(t testing.TB, n *Node) []byte {
	t.Helper()
	if n.Size == 0 {
		return nil
	}
	r, err := n.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func linkCounts(n *Node, counts map[*Node]int) map[*Node]int {
	for _, c := range n.Entries {
		counts[c]++
		linkCounts(c, counts)
	}
	return counts
}

// TestKernelMount compares every entry, as the kernel shows it, with what was written, both ways.
func TestKernelMount(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	root := cornerTree()
	image, dir := write(t, root), t.TempDir()
	mount(t, image, dir)
	counts := linkCounts(root, map[*Node]int{})
	inodes := map[*Node]uint64{}
	var compare func(path string, n *Node)
	compare = func(path string, n *Node) {
		var st syscall.Stat_t
		if err := syscall.Lstat(path, &st); err != nil {
			t.Fatal(err)
		}
		if uint16(st.Mode) != n.Mode || st.Uid != n.UID || st.Gid != n.GID || st.Mtim.Sec != n.ModTime {
			t.Errorf("%s: mode %o owner %d:%d time %d, want %o %d:%d %d", path, st.Mode, st.Uid, st.Gid, st.Mtim.Sec,
				n.Mode, n.UID, n.GID, n.ModTime)
		}
		if was, ok := inodes[n]; ok && was != st.Ino {
			t.Errorf("%s: hard link became a copy", path)
		}
		inodes[n] = st.Ino
		switch {
		case n.IsDir():
			entries, err := os.ReadDir(path)
			if err != nil {
				t.Fatal(err)
			}
			if len(entries) != len(n.Entries) {
				t.Errorf("%s: %d entries, want %d", path, len(entries), len(n.Entries))
			}
			for name, c := range n.Entries {
				compare(path+"/"+name, c)
			}
		case n.IsRegular():
			got, err := os.ReadFile(path)
			if err != nil || !bytes.Equal(got, content(t, n)) || int(st.Nlink) != counts[n] {
				t.Errorf("%s: %d bytes, %d links, %v; want %d, %d", path, len(got), st.Nlink, err, n.Size, counts[n])
			}
		case n.IsSymlink():
			if got, err := os.Readlink(path); err != nil || got != n.Target {
				t.Errorf("%s: link to %.40q (%d), %v", path, got, len(got), err)
			}
		}
	}
	compare(dir, root)
}

func mount(t *testing.T, image, dir string) {
	t.Helper()
	err := unix.Mount(image, dir, "erofs", unix.MS_RDONLY, "")
	if errors.Is(err, unix.ENOTBLK) || errors.Is(err, unix.ENODEV) {
		t.Skipf("this kernel mounts no EROFS image from a file: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
}

// TestGVisorReads walks the image with gVisor's own reader and asks of every file what mapping it needs.
func TestGVisorReads(t *testing.T) {
	root := cornerTree()
	f, err := os.Open(write(t, root))
	if err != nil {
		t.Fatal(err)
	}
	image, err := gvisor.OpenImage(f)
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	var compare func(nid uint64, n *Node, path string)
	compare = func(nid uint64, n *Node, path string) {
		i, err := image.Inode(nid)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if i.Mode() != n.Mode || i.UID() != n.UID || i.GID() != n.GID || int64(i.Mtime()) != n.ModTime {
			t.Errorf("%s: mode %o", path, i.Mode())
		}
		switch {
		case n.IsDir():
			seen := 0
			if err := i.IterDirents(func(string, uint8, uint64) error { seen++; return nil }); err != nil || seen != len(n.Entries)+2 {
				t.Errorf("%s: %d entries, want %d; %v", path, seen, len(n.Entries)+2, err)
			}
			for name, c := range n.Entries {
				child, err := i.Lookup(name)
				if err != nil {
					t.Fatalf("%s/%s: %v", path, name, err)
				}
				compare(child, c, path+"/"+name)
			}
		case n.IsRegular():
			ranges, err := i.DataRanges()
			if err != nil || !bytes.Equal(ranges[0].Bytes, content(t, n)) {
				t.Errorf("%s: %d bytes, %v", path, len(ranges[0].Bytes), err)
			}
			if at, err := i.DataOffset(); err != nil || at%4096 != 0 {
				t.Errorf("%s cannot be mapped: offset %d, %v", path, at, err)
			}
		case n.IsSymlink():
			if got, err := i.Readlink(); err != nil || got != n.Target {
				t.Errorf("%s: link to %.40q, %v", path, got, err)
			}
		}
	}
	compare(image.RootNid(), root, "")
}

// TestThirdReader reads the image with a reader of other people.
func TestThirdReader(t *testing.T) {
	root := cornerTree()
	f, err := os.Open(write(t, root))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	image, err := goerofs.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	for name, n := range root.Entries["sizes"].Entries {
		got, err := fs.ReadFile(image, "sizes/"+name)
		if err != nil || !bytes.Equal(got, content(t, n)) {
			t.Errorf("sizes/%s: %d bytes, %v", name, len(got), err)
		}
	}
	entries, err := fs.ReadDir(image, "many")
	if err != nil || len(entries) != 3000 {
		t.Errorf("many: %d entries, %v", len(entries), err)
	}
}

// TestSameTreeSameBytes writes the same tree, built anew, again and again: no map order and no clock may show.
func TestSameTreeSameBytes(t *testing.T) {
	sums := map[[32]byte]bool{}
	for range 4 {
		h := sha256.New()
		if err := Write(t.Context(), h, cornerTree()); err != nil {
			t.Fatal(err)
		}
		sums[[32]byte(h.Sum(nil))] = true
	}
	if len(sums) != 1 {
		t.Errorf("%d different images of one tree", len(sums))
	}
}

func TestRefusals(t *testing.T) {
	loop := dir(0o755, nil)
	loop.Entries["again"] = loop
	short, long := file(0o644, []byte("abc")), file(0o644, []byte("abc"))
	short.Size, long.Size = 4, 2
	for name, root := range map[string]*Node{
		"no root":               nil,
		"root is a file":        file(0o644, nil),
		"directory in itself":   loop,
		"device":                dir(0o755, map[string]*Node{"null": {Mode: 0o020666}}),
		"name with 256 bytes":   dir(0o755, map[string]*Node{strings.Repeat("n", 256): file(0, nil)}),
		"name of nothing":       dir(0o755, map[string]*Node{"": file(0, nil)}),
		"name of the parent":    dir(0o755, map[string]*Node{"..": file(0, nil)}),
		"link to nothing":       dir(0o755, map[string]*Node{"l": link("")}),
		"link of 4096 bytes":    dir(0o755, map[string]*Node{"l": link(strings.Repeat("l", 4096))}),
		"file became shorter":   dir(0o755, map[string]*Node{"f": short}),
		"file became longer":    dir(0o755, map[string]*Node{"f": long}),
		"file without data":     dir(0o755, map[string]*Node{"f": {Mode: TypeRegular, Size: 1}}),
		"file of negative size": dir(0o755, map[string]*Node{"f": {Mode: TypeRegular, Size: -1}}),
		"file beyond the format": dir(0o755, map[string]*Node{"f": {Mode: TypeRegular, Size: 1 << 45,
			Open: func() (io.ReadCloser, error) { return nil, fs.ErrClosed }}}),
	} {
		if err := Write(t.Context(), io.Discard, root); err == nil || errors.Is(err, fs.ErrClosed) {
			t.Errorf("%s: written, %v", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Write(ctx, io.Discard, cornerTree()); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestWriteErrorIsTold(t *testing.T) {
	var size counter
	if err := Write(t.Context(), &size, cornerTree()); err != nil {
		t.Fatal(err)
	}
	for _, room := range []int64{0, 1, 4096, int64(size) / 2, int64(size) - 1} {
		if err := Write(t.Context(), &fullAfter{room}, cornerTree()); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("disk full after %d bytes: %v", room, err)
		}
	}
}

type counter int64

func (c *counter) Write(p []byte) (int, error) { *c += counter(len(p)); return len(p), nil }

type fullAfter struct{ left int64 }

func (f *fullAfter) Write(p []byte) (int, error) {
	if f.left -= int64(len(p)); f.left < 0 {
		return 0, unix.ENOSPC
	}
	return len(p), nil
}
