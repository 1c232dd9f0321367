package rootfs

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/image/erofs"
)

type m = map[string]string

// hostileLayers are archives that mean harm, and what must become of them: an error of a kind, or a tree.
func hostileLayers() []struct {
	name    string
	layers  [][]entry
	limits  Limits
	want    m
	kind    firebreak.Kind
	dropped int
} {
	owned := reg("f", "")
	owned.Uid = 1 << 32
	suid := reg("s", "x")
	suid.Mode = 0o6755
	return []struct {
		name    string
		layers  [][]entry
		limits  Limits
		want    m
		kind    firebreak.Kind
		dropped int
	}{
		{name: "climbs", layers: [][]entry{{reg("../../etc/passwd", "x")}}, kind: firebreak.KindInvalid},
		{name: "climbs in the middle", layers: [][]entry{{reg("a/../../x", "x")}}, kind: firebreak.KindInvalid},
		{name: "absolute", layers: [][]entry{{reg("/etc/passwd", "x")}}, want: m{"/etc": "dir 755", "/etc/passwd": `file 644 "x"`}},
		{name: "through a link to the root", layers: [][]entry{{sym("out", "/"), reg("out/etc/x", "1")}},
			want: m{"/out": "-> /", "/etc": "dir 755", "/etc/x": `file 644 "1"`}},
		{name: "through a link that climbs", layers: [][]entry{{dir("d"), sym("d/up", "../../../.."), reg("d/up/x", "1")}},
			want: m{"/d": "dir 755", "/d/up": "-> ../../../..", "/x": `file 644 "1"`}},
		{name: "through a link of a lower layer", layers: [][]entry{{dir("usr/lib"), sym("lib", "usr/lib")}, {reg("lib/so", "1")}},
			want: m{"/usr": "dir 755", "/usr/lib": "dir 755", "/lib": "-> usr/lib", "/usr/lib/so": `file 644 "1"`}},
		{name: "through a dangling link", layers: [][]entry{{sym("l", "/no/where"), reg("l/x", "1")}},
			want: m{"/l": "-> /no/where", "/no": "dir 755", "/no/where": "dir 755", "/no/where/x": `file 644 "1"`}},
		{name: "loop of links", layers: [][]entry{{sym("a", "b"), sym("b", "a"), reg("a/x", "")}}, kind: firebreak.KindInvalid},
		{name: "links that multiply", layers: [][]entry{{sym("a", strings.Repeat("./", 2000)+"b"), sym("b", strings.Repeat("./", 2000)+"c"),
			sym("c", strings.Repeat("./", 2000)+"d"), reg("a/x", "")}}, kind: firebreak.KindInvalid},
		{name: "overwrites a link, not its target", layers: [][]entry{{reg("t", "old"), sym("l", "t")}, {reg("l", "new")}},
			want: m{"/t": `file 644 "old"`, "/l": `file 644 "new"`}},
		{name: "hard link out", layers: [][]entry{{hard("h", "../../etc/shadow")}}, kind: firebreak.KindInvalid},
		{name: "hard link to nothing", layers: [][]entry{{hard("h", "/etc/shadow")}}, kind: firebreak.KindInvalid},
		{name: "hard link to a directory", layers: [][]entry{{dir("d"), hard("h", "d")}}, kind: firebreak.KindInvalid},
		{name: "hard link to the root", layers: [][]entry{{hard("h", "/")}}, kind: firebreak.KindInvalid},
		{name: "hard link through a link out", layers: [][]entry{{sym("out", "/"), reg("f", "1"), hard("h", "out/f")}},
			want: m{"/out": "-> /", "/f": `file 644 "1"`, "/h": `file 644 "1"`}},
		{name: "hard link to a link", layers: [][]entry{{sym("l", "/etc/shadow"), hard("h", "l")}},
			want: m{"/l": "-> /etc/shadow", "/h": "-> /etc/shadow"}},
		{name: "devices", layers: [][]entry{{special(tar.TypeChar, "null"), special(tar.TypeBlock, "dev/sda"), special(tar.TypeFifo, "p")}},
			want: m{"/p": "other 10666"}, dropped: 2},
		{name: "setuid stays in the image", layers: [][]entry{{suid}}, want: m{"/s": `file 6755 "x"`}},
		{name: "owner beyond 32 bits", layers: [][]entry{{owned}}, kind: firebreak.KindInvalid},
		{name: "below a file", layers: [][]entry{{reg("f", ""), reg("f/x", "")}}, kind: firebreak.KindInvalid},
		{name: "root becomes a link", layers: [][]entry{{sym("./", "/etc")}}, kind: firebreak.KindInvalid},
		{name: "root becomes a file", layers: [][]entry{{reg(".", "x")}}, kind: firebreak.KindInvalid},
		{name: "long name", layers: [][]entry{{reg(strings.Repeat("n", 256), "")}}, kind: firebreak.KindInvalid},
		{name: "long path", layers: [][]entry{{reg(strings.Repeat("n/", 2100)+"n", "")}}, kind: firebreak.KindInvalid},
		{name: "deep", layers: [][]entry{{dir(strings.Repeat("n/", 600))}}, kind: firebreak.KindInvalid},
		{name: "deep by links", layers: [][]entry{{dir(strings.Repeat("n/", 400)), sym("l", strings.Repeat("n/", 400)),
			dir("l/" + strings.Repeat("n/", 400))}}, kind: firebreak.KindInvalid},
		{name: "link to a long name", layers: [][]entry{{sym("l", strings.Repeat("n", 300)), reg("l/x", "")}}, kind: firebreak.KindInvalid},
		{name: "too many", layers: [][]entry{{reg("1", ""), reg("2", ""), reg("3", "")}}, limits: Limits{Entries: 2}, kind: firebreak.KindExhausted},
		{name: "too many by parents", layers: [][]entry{{reg("1/2/3", "")}}, limits: Limits{Entries: 2}, kind: firebreak.KindExhausted},
		{name: "too many over layers", layers: [][]entry{{reg("1", "")}, {reg("1", "")}, {reg("1", "")}}, limits: Limits{Entries: 2}, kind: firebreak.KindExhausted},
		{name: "large file", layers: [][]entry{{reg("f", "12345")}}, limits: Limits{FileBytes: 4}, kind: firebreak.KindExhausted},
		{name: "much in sum", layers: [][]entry{{reg("f", strings.Repeat("x", 9000))}, {reg("f", strings.Repeat("x", 9000))}},
			limits: Limits{Bytes: 20000}, kind: firebreak.KindExhausted},
		{name: "whiteout", layers: [][]entry{{reg("a/x", "1"), reg("a/y", "2")}, {reg("a/.wh.x", "")}},
			want: m{"/a": "dir 755", "/a/y": `file 644 "2"`}},
		{name: "whiteout after what replaces it", layers: [][]entry{{reg("x", "1")}, {reg("x", "2"), reg(".wh.x", "")}}, want: m{"/x": `file 644 "2"`}},
		{name: "whiteout before what replaces it", layers: [][]entry{{reg("x", "1")}, {reg(".wh.x", ""), reg("x", "2")}}, want: m{"/x": `file 644 "2"`}},
		{name: "whiteout of a directory that is made anew", layers: [][]entry{{reg("d/old", "1")}, {dir("d"), reg("d/new", "2"), reg(".wh.d", "")}},
			want: m{"/d": "dir 755", "/d/new": `file 644 "2"`}},
		{name: "opaque first", layers: [][]entry{{reg("d/old", "1"), reg("d/s/old", "1")}, {reg("d/.wh..wh..opq", ""), reg("d/s/new", "2")}},
			want: m{"/d": "dir 755", "/d/s": "dir 755", "/d/s/new": `file 644 "2"`}},
		{name: "opaque last", layers: [][]entry{{reg("d/old", "1"), reg("d/s/old", "1")}, {reg("d/s/new", "2"), reg("d/.wh..wh..opq", "")}},
			want: m{"/d": "dir 755", "/d/s": "dir 755", "/d/s/new": `file 644 "2"`}},
		{name: "opaque root", layers: [][]entry{{reg("old", "1")}, {reg(".wh..wh..opq", ""), reg("new", "2")}}, want: m{"/new": `file 644 "2"`}},
		{name: "whiteout of nothing", layers: [][]entry{{reg("a/b/.wh.c", ""), reg(".wh.d", "")}}, want: m{}},
		{name: "whiteout of the parent", layers: [][]entry{{reg("a/x", "")}, {reg("a/.wh...", "")}}, kind: firebreak.KindInvalid},
		{name: "whiteout of itself", layers: [][]entry{{reg("a/x", "")}, {reg("a/.wh..", "")}}, kind: firebreak.KindInvalid},
		{name: "whiteout without a name", layers: [][]entry{{reg("a/.wh.", "")}, {reg("a/x", "")}, {reg("a/.wh.", "")}}, kind: firebreak.KindInvalid},
		{name: "whiteout through a link out", layers: [][]entry{{sym("out", "/"), reg("x", "1"), reg("y", "1")}, {reg("out/.wh.x", "")}},
			want: m{"/out": "-> /", "/y": `file 644 "1"`}},
		{name: "bookkeeping of AUFS", layers: [][]entry{{reg(".wh..wh.plnk/1", ""), reg("x", "")}, {reg(".wh..wh.aufs", "")}},
			want: m{"/x": `file 644 ""`, "/.wh..wh.plnk": "dir 755", "/.wh..wh.plnk/1": `file 644 ""`}},
		{name: "whiteout, then a directory in its place", layers: [][]entry{{reg("b", "1")}, {reg(".wh.b", ""), reg("b/c", "2")}},
			want: m{"/b": "dir 755", "/b/c": `file 644 "2"`}},
		{name: "file over directory", layers: [][]entry{{reg("d/x", "1")}, {reg("d", "2")}}, want: m{"/d": `file 644 "2"`}},
		{name: "directory over file", layers: [][]entry{{reg("d", "1")}, {dir("d"), reg("d/x", "2")}}, want: m{"/d": "dir 755", "/d/x": `file 644 "2"`}},
		{name: "directory over link", layers: [][]entry{{sym("d", "/")}, {dir("d"), reg("d/x", "2")}}, want: m{"/d": "dir 755", "/d/x": `file 644 "2"`}},
	}
}

func TestHostileLayers(t *testing.T) {
	for _, c := range hostileLayers() {
		t.Run(c.name, func(t *testing.T) {
			tree := newTree(t, c.limits)
			var err error
			for _, l := range c.layers {
				if err = tree.ApplyLayer(t.Context(), bytes.NewReader(archive(t, l...))); err != nil {
					break
				}
			}
			if c.want == nil {
				if err == nil || firebreak.KindOf(err) != c.kind {
					t.Fatalf("got %v, want an error of kind %v; tree %v", err, c.kind, listing(t, tree.Root()))
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			sameListing(t, c.name, listing(t, tree.Root()), c.want)
			if tree.Dropped() != c.dropped {
				t.Errorf("%d dropped, want %d", tree.Dropped(), c.dropped)
			}
			if err := erofs.Write(t.Context(), io.Discard, tree.Root()); err != nil {
				t.Errorf("no image of it: %v", err)
			}
		})
	}
}

func TestPlainArchiveHasNoWhiteouts(t *testing.T) {
	tree := newTree(t, Limits{})
	if err := tree.ApplyTar(t.Context(), bytes.NewReader(archive(t, reg("x", "1"), reg(".wh.x", "2")))); err != nil {
		t.Fatal(err)
	}
	sameListing(t, "plain", listing(t, tree.Root()), m{"/x": `file 644 "1"`, "/.wh.x": `file 644 "2"`})
}

// rawHeader makes a header that archive/tar's writer refuses to write.
func rawHeader(kind byte, name string, size int64) []byte {
	b := make([]byte, 512)
	copy(b, name)
	copy(b[100:], "0000644\x000000000\x000000000\x00")
	copy(b[124:], fmt.Sprintf("%011o\x00", size))
	copy(b[136:], "00000000000\x00        ")
	b[156] = kind
	copy(b[257:], "ustar\x0000")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

// sparseBomb is an archive of 2 KiB whose only file says it has size bytes, all of them in a hole.
func sparseBomb(size int64) []byte {
	var records string
	for _, kv := range []string{"GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=bomb", fmt.Sprintf("GNU.sparse.realsize=%d", size)} {
		n := len(kv) + 2
		n += len(fmt.Sprint(n + len(fmt.Sprint(n))))
		records += fmt.Sprintf("%d %s\n", n, kv)
	}
	pax := append(rawHeader('x', "PaxHeader", int64(len(records))), append([]byte(records), make([]byte, 512-len(records))...)...)
	data := make([]byte, 512)
	copy(data, "0\n")
	return append(append(append(pax, rawHeader('0', "GNUSparseFile.0/bomb", 512)...), data...), make([]byte, 1024)...)
}

func TestSparseBomb(t *testing.T) {
	tree := newTree(t, Limits{})
	err := tree.ApplyLayer(t.Context(), bytes.NewReader(sparseBomb(1<<40)))
	if firebreak.KindOf(err) != firebreak.KindExhausted {
		t.Fatalf("a file of 1 TiB: %v", err)
	}
	tree = newTree(t, Limits{})
	if err := tree.ApplyLayer(t.Context(), bytes.NewReader(sparseBomb(1<<30))); err != nil {
		t.Fatalf("a file of 1 GiB: %v", err)
	}
	info, err := tree.spool.file.Stat()
	if err != nil || info.Size() != 1<<30 || diskBlocks(info) > 1<<20 {
		t.Errorf("1 GiB of nothing takes %d bytes of disk, %v", diskBlocks(info), err)
	}
}

func TestDamagedArchives(t *testing.T) {
	good := archive(t, reg("a", strings.Repeat("x", 3000)), reg("b", "y"))
	for name, data := range map[string][]byte{
		"cut in a header": good[:200], "cut in a file": good[:1500], "cut in the next header": good[:3584+100],
		"noise": bytes.Repeat([]byte("noise "), 1000),
	} {
		err := newTree(t, Limits{}).ApplyLayer(t.Context(), bytes.NewReader(data))
		if firebreak.KindOf(err) != firebreak.KindInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	broken := errors.New("disk broke")
	err := newTree(t, Limits{}).ApplyLayer(t.Context(), io.MultiReader(bytes.NewReader(good[:1500]), failing{broken}))
	if !errors.Is(err, broken) || firebreak.KindOf(err) == firebreak.KindInvalid {
		t.Errorf("an error of the disk became %v", err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestTrailingBytesCount(t *testing.T) {
	endless := io.MultiReader(bytes.NewReader(archive(t, reg("a", "x"))), zeros{})
	err := newTree(t, Limits{Bytes: 10 << 20}).ApplyLayer(t.Context(), endless)
	if firebreak.KindOf(err) != firebreak.KindExhausted {
		t.Errorf("endless zeros after the archive: %v", err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := newTree(t, Limits{}).ApplyLayer(ctx, bytes.NewReader(archive(t, reg("a", "x")))); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestRandomLayers compares the flattener with a model that needs no order: hide first what the layer hides below,
// then add what it adds.
func TestRandomLayers(t *testing.T) {
	for seed := range uint64(400) {
		r := rand.New(rand.NewPCG(seed, 7))
		tree, model := newTree(t, Limits{}), m{}
		for range 1 + r.IntN(4) {
			layer := randomLayer(r)
			if !modelApply(model, layer) {
				continue // it asks for a name below a file
			}
			r.Shuffle(len(layer), func(i, j int) {
				if isWhiteout(layer[i]) != isWhiteout(layer[j]) { // whiteouts may stand anywhere, the rest keeps its order
					return
				}
				if isWhiteout(layer[i]) {
					layer[i], layer[j] = layer[j], layer[i]
				}
			})
			if err := tree.ApplyLayer(t.Context(), bytes.NewReader(archive(t, layer...))); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
		}
		sameListing(t, fmt.Sprintf("seed %d", seed), listing(t, tree.Root()), model)
		if t.Failed() {
			return
		}
	}
}

func isWhiteout(e entry) bool { return strings.HasPrefix(path.Base(e.Name), ".wh.") }

func randomPath(r *rand.Rand) string {
	parts := make([]string, 1+r.IntN(3))
	for i := range parts {
		parts[i] = string(rune('a' + r.IntN(3)))
	}
	return strings.Join(parts, "/")
}

func randomLayer(r *rand.Rand) []entry {
	var layer []entry
	for i := range 1 + r.IntN(8) {
		p := randomPath(r)
		e := reg(p, fmt.Sprint(r.Uint32()))
		switch r.IntN(5) {
		case 0:
			e = dir(p)
		case 1:
			e = reg(path.Join(path.Dir(p), ".wh."+path.Base(p)), "")
		case 2:
			e = reg(path.Join(p, ".wh..wh..opq"), "")
		}
		at := len(layer)
		if isWhiteout(e) {
			at = r.IntN(i + 1)
		}
		layer = append(layer[:at], append([]entry{e}, layer[at:]...)...)
	}
	return layer
}

// modelApply changes model as the layer says and reports whether it could; if not, model is as before.
func modelApply(model m, layer []entry) bool {
	next := m{}
	for p, v := range model {
		next[p] = v
	}
	hidden := func(p string, children bool) {
		for q := range next {
			if strings.HasPrefix(q, p+"/") || q == p && !children {
				delete(next, q)
			}
		}
	}
	for _, e := range layer {
		p := "/" + e.Name
		if !isWhiteout(e) {
			continue
		}
		for up := path.Dir(p); up != "/"; up = path.Dir(up) {
			if v, ok := model[up]; ok && !strings.HasPrefix(v, "dir") {
				return false
			}
		}
		if path.Base(p) == whiteoutAll {
			hidden(path.Dir(p), true)
		} else {
			hidden(path.Join(path.Dir(p), strings.TrimPrefix(path.Base(p), whiteout)), false)
		}
	}
	below := m{}
	for _, e := range layer {
		p := "/" + e.Name
		if isWhiteout(e) {
			continue
		}
		for up := path.Dir(p); up != "/"; up = path.Dir(up) {
			if v, ok := model[up]; ok && !strings.HasPrefix(v, "dir") {
				return false // it would depend on whether the whiteout came first
			}
			if v, ok := next[up]; ok && !strings.HasPrefix(v, "dir") {
				return false
			}
			next[up] = "dir 755"
		}
		if e.Typeflag == tar.TypeDir {
			next[p] = "dir 755"
			continue
		}
		hidden(p, false)
		next[p] = fmt.Sprintf("file 644 %q", e.body)
		below[p] = ""
	}
	for _, e := range layer { // a whiteout below what this layer makes a file would be refused, or not, by its place
		if isWhiteout(e) {
			for up := path.Dir("/" + e.Name); up != "/"; up = path.Dir(up) {
				if _, ok := below[up]; ok {
					return false
				}
			}
		}
	}
	clear(model)
	for p, v := range next {
		model[p] = v
	}
	return true
}

// FuzzApplyLayer feeds noise that looks like layers: whatever is accepted must make an image.
func FuzzApplyLayer(f *testing.F) {
	for _, c := range hostileLayers() {
		for _, l := range c.layers {
			f.Add(archive(f, l...))
		}
	}
	f.Add(sparseBomb(1 << 40))
	f.Fuzz(func(t *testing.T, data []byte) {
		tree := newTree(t, Limits{Bytes: 1 << 20, FileBytes: 1 << 20, Entries: 1000})
		for range 2 {
			if err := tree.ApplyLayer(t.Context(), bytes.NewReader(data)); err != nil {
				if firebreak.KindOf(err) != firebreak.KindInvalid && firebreak.KindOf(err) != firebreak.KindExhausted {
					t.Fatalf("the input's fault became %v", err)
				}
				return
			}
		}
		if err := erofs.Write(t.Context(), io.Discard, tree.Root()); err != nil {
			t.Fatalf("accepted, but no image of it: %v", err)
		}
	})
}
