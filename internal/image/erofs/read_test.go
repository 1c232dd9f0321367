package erofs

import (
	"bytes"
	"io"
	"maps"
	"slices"
	"testing"
)

func image(t testing.TB, root *Node) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := Write(t.Context(), &b, root); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// same compares two trees, hard links as such.
func same(t *testing.T, got, want *Node, path string, seen map[*Node]*Node) {
	t.Helper()
	if other, ok := seen[want]; ok {
		if other != got {
			t.Errorf("%s: not the same file under another name", path)
		}
		return
	}
	seen[want] = got
	if got.Mode != want.Mode || got.UID != want.UID || got.GID != want.GID || got.ModTime != want.ModTime || got.Target != want.Target || got.Size != want.Size {
		t.Errorf("%s: %+v, want %+v", path, got, want)
	}
	switch {
	case want.IsRegular() && !bytes.Equal(content(t, got), content(t, want)):
		t.Errorf("%s: other data", path)
	case want.IsDir():
		names := slices.Sorted(maps.Keys(want.Entries))
		if found := slices.Sorted(maps.Keys(got.Entries)); !slices.Equal(found, names) {
			t.Fatalf("%s: %d entries, want %d", path, len(found), len(names))
		}
		for _, name := range names {
			same(t, got.Entries[name], want.Entries[name], path+"/"+name, seen)
		}
	}
}

func TestRead(t *testing.T) {
	root := cornerTree()
	got, err := Read(bytes.NewReader(image(t, root)))
	if err != nil {
		t.Fatal(err)
	}
	same(t, got, root, "", map[*Node]*Node{})
}

func TestReadDamaged(t *testing.T) {
	whole := image(t, cornerTree())
	for _, size := range []int{0, 1024, 1151, 4096} {
		if _, err := Read(bytes.NewReader(whole[:size])); err == nil {
			t.Errorf("the first %d bytes passed", size)
		}
	}
	for name, change := range map[string]func(b []byte){
		"magic": func(b []byte) { b[superOffset]++ }, "block size": func(b []byte) { b[superOffset+12] = 9 },
		"no inodes": func(b []byte) { clear(b[superOffset+16 : superOffset+24]) }, "root elsewhere": func(b []byte) { b[superOffset+15] = 0xff },
	} {
		b := bytes.Clone(whole)
		change(b)
		if _, err := Read(bytes.NewReader(b)); err == nil {
			t.Errorf("%s passed", name)
		}
	}
}

// FuzzRead: whatever an image holds, reading it ends.
func FuzzRead(f *testing.F) {
	f.Add(image(f, dir(0o755, map[string]*Node{"f": file(0o644, []byte("data")), "l": link("f"), "d": dir(0o700, map[string]*Node{"x": file(0o600, nil)})})), 1200, byte(1))
	f.Fuzz(func(t *testing.T, b []byte, at int, value byte) {
		b = bytes.Clone(b)
		if at >= 0 && at < len(b) {
			b[at] = value
		}
		root, err := Read(bytes.NewReader(b))
		if err != nil {
			return
		}
		var walk func(n *Node)
		walk = func(n *Node) {
			for _, child := range n.Entries {
				walk(child)
			}
			if n.IsRegular() {
				r, err := n.Open()
				if err != nil {
					return
				}
				_, _ = io.CopyN(io.Discard, r, 1<<20)
			}
		}
		walk(root)
	})
}
