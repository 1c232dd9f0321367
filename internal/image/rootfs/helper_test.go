package rootfs

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"testing"

	"github.com/firebreak-dev/firebreak/internal/image/erofs"
)

// entry is a line of an archive: a header, and for files the content.
type entry struct {
	tar.Header
	body string
}

func reg(name, body string) entry {
	return entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(body))}, body}
}
func dir(name string) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}}
}
func sym(name, target string) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}}
}
func hard(name, target string) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target}}
}
func special(kind byte, name string) entry {
	return entry{Header: tar.Header{Typeflag: kind, Name: name, Mode: 0o666, Devmajor: 1, Devminor: 3}}
}

func archive(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatalf("%s: %v", e.Name, err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func newTree(t testing.TB, limits Limits) *Tree {
	t.Helper()
	spool, err := os.Create(filepath.Join(t.TempDir(), "spool"))
	if err != nil {
		t.Fatal(err)
	}
	tree := New(spool, limits)
	t.Cleanup(func() {
		_ = tree.Close()
		_ = spool.Close()
	})
	return tree
}

// listing describes a tree, one line per name.
func listing(t testing.TB, root *erofs.Node) map[string]string {
	t.Helper()
	lines := map[string]string{}
	var walk func(p string, n *erofs.Node)
	walk = func(p string, n *erofs.Node) {
		switch {
		case n.IsDir():
			lines[p] = fmt.Sprintf("dir %o", n.Mode&0o7777)
		case n.IsSymlink():
			lines[p] = "-> " + n.Target
		case n.IsRegular():
			lines[p] = fmt.Sprintf("file %o %q", n.Mode&0o7777, text(t, n))
		default:
			lines[p] = fmt.Sprintf("other %o", n.Mode)
		}
		for name, c := range n.Entries {
			walk(path.Join(p, name), c)
		}
	}
	walk("/", root)
	delete(lines, "/")
	return lines
}

func text(t testing.TB, n *erofs.Node) string {
	t.Helper()
	if n.Size == 0 {
		return ""
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
	return string(b)
}

func sameListing(t testing.TB, what string, got, want map[string]string) {
	t.Helper()
	for _, p := range slices.Sorted(maps.Keys(got)) {
		if got[p] != want[p] {
			t.Errorf("%s: %s is %s, want %q", what, p, got[p], want[p])
		}
	}
	for _, p := range slices.Sorted(maps.Keys(want)) {
		if _, ok := got[p]; !ok {
			t.Errorf("%s: %s is missing, want %s", what, p, want[p])
		}
	}
}
