package step

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak"
)

func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// packed is a compressed archive: names that end in a slash are directories.
func packed(t testing.TB, pairs ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for i := 0; i < len(pairs); i += 2 {
		h := &tar.Header{Name: pairs[i], Mode: 0o644, Size: int64(len(pairs[i+1])), ModTime: time.Unix(1e9, 0)}
		if strings.HasSuffix(h.Name, "/") {
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		}
		must(t, w.WriteHeader(h))
		_, err := io.WriteString(w, pairs[i+1])
		must(t, err)
	}
	must(t, w.Close(), z.Close())
	return b.Bytes()
}

// archive makes an uncompressed archive of headers; files hold their names.
func archive(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if h.Typeflag == 0 {
			h.Typeflag, h.Size = tar.TypeReg, int64(len(h.Name))
		}
		must(t, w.WriteHeader(&h))
		if h.Typeflag == tar.TypeReg {
			_, err := io.WriteString(w, h.Name)
			must(t, err)
		}
	}
	must(t, w.Close())
	return b.Bytes()
}

func dir(name string) tar.Header { return tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755} }

func file(name string) tar.Header { return tar.Header{Name: name, Mode: 0o644} }

func link(kind byte, name, target string) tar.Header {
	return tar.Header{Name: name, Typeflag: kind, Linkname: target}
}

// passed returns what would be sent into a sandbox: "name" or "name>target", and the name of the only file.
func passed(packed []byte, source string) (names []string, single string, err error) {
	u, err := OpenUpload(bytes.NewReader(packed), source, 1<<20)
	if err != nil {
		return nil, "", err
	}
	var b bytes.Buffer
	single = u.Single()
	if err := u.Pass(&b); err != nil {
		return nil, single, err
	}
	for r := tar.NewReader(&b); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return names, single, nil
		}
		if err != nil {
			return names, single, err
		}
		text := h.Name
		if h.Linkname != "" {
			text += ">" + h.Linkname
		}
		names = append(names, text)
	}
}

func TestUploads(t *testing.T) {
	src := []tar.Header{dir("src/"), file("src/a"), dir("src/sub"), file("src/sub/b"), link(tar.TypeSymlink, "src/l", "../out"), link(tar.TypeLink, "src/h", "src/a"), file("srcother"), file("z")}
	for _, c := range []struct {
		source string
		in     []tar.Header
		want   string
		single string
	}{
		{"src", src, "[./ a sub/ sub/b l>../out h>a]", ""},
		{"src/sub", src, "[./ b]", ""},
		{"src/a", src, "[a]", "a"},
		{"src/l", src, "[l>../out]", "l"},
		{"z", src, "[z]", "z"},
		{".", []tar.Header{dir("./"), file("./a"), file("b")}, "[./ a b]", ""},
		{".", []tar.Header{file("x/a")}, "[x/a]", ""},
		{"x", []tar.Header{file("x/a"), dir("x")}, "[a ./]", ""},
	} {
		names, single, err := passed(archive(t, c.in...), c.source)
		if err != nil || fmt.Sprint(names) != c.want || single != c.single {
			t.Errorf("%s of %d: %v, %q, %v, want %s", c.source, len(c.in), names, single, err, c.want)
		}
	}
	for about, in := range map[string][]tar.Header{
		"nothing of that name": {file("other")}, "nothing": {}, "a way up": {dir("src"), file("src/../../a")}, "a way up elsewhere": {dir("src"), file("../a")},
		"an absolute name": {dir("src"), file("/src/a")}, "a file behind its own link": {dir("src"), link(tar.TypeSymlink, "src/l", "/etc"), file("src/l/passwd")},
		"a link to nothing": {dir("src"), link(tar.TypeLink, "src/h", "src/none")}, "a link out": {dir("src"), file("a"), link(tar.TypeLink, "src/h", "a")},
		"a link up":        {dir("src"), link(tar.TypeLink, "src/h", "../../etc/passwd")},
		"a link to a link": {dir("src"), link(tar.TypeSymlink, "src/l", "/etc/shadow"), link(tar.TypeLink, "src/h", "src/l")},
		"a device":         {dir("src"), {Name: "src/d", Typeflag: tar.TypeChar}}, "a FIFO": {dir("src"), {Name: "src/d", Typeflag: tar.TypeFifo}},
		"a file and files below it": {file("src"), file("src/a")}, "a file twice": {file("src"), file("src")},
	} {
		if names, _, err := passed(archive(t, in...), "src"); firebreak.KindOf(err) != firebreak.KindInvalid {
			t.Errorf("%s: %v, %v", about, names, err)
		}
	}
	for about, data := range map[string][]byte{
		"no archive": []byte(strings.Repeat("text ", 1000)), "half an archive": archive(t, dir("src"), file("src/a"))[:1026],
		"half a compressed one": packed(t, "src/", "", "src/a", "text")[:40], "nothing compressed": {0x1f, 0x8b, 8},
	} {
		if names, _, err := passed(data, "src"); firebreak.KindOf(err) != firebreak.KindInvalid {
			t.Errorf("%s: %v, %v", about, names, err)
		}
	}
	bomb := packed(t, "src/", "", "src/zeros", strings.Repeat("\x00", 2<<20))
	if _, _, err := passed(bomb, "src"); len(bomb) > 100<<10 || firebreak.KindOf(err) != firebreak.KindExhausted {
		t.Errorf("a bomb of %d bytes: %v", len(bomb), err)
	}
}

// TestHoles: a file with holes is as large as its archive says, and the archive is small.
func TestHoles(t *testing.T) {
	dir := t.TempDir()
	f, err := os.Create(dir + "/src")
	must(t, err, f.Truncate(1<<40), f.Close())
	for _, format := range []string{"pax", "gnu"} {
		data, err := exec.Command("tar", "--create", "--sparse", "--format="+format, "--directory="+dir, "src").Output()
		must(t, err)
		if _, _, err := passed(data, "src"); len(data) > 64<<10 || firebreak.KindOf(err) != firebreak.KindExhausted {
			t.Errorf("%s, %d bytes: %v", format, len(data), err)
		}
	}
}

func FuzzUpload(f *testing.F) {
	f.Add(archive(f, dir("src"), file("src/a"), link(tar.TypeSymlink, "src/l", ".."), link(tar.TypeLink, "src/h", "src/a")), "src")
	f.Add(archive(f, file("a")), "a")
	f.Add(packed(f, "src/", "", "src/a", "text"), ".")
	f.Fuzz(func(t *testing.T, data []byte, source string) {
		clean, err := sourceOf(source)
		if err != nil {
			return
		}
		names, single, err := passed(data, clean)
		if err != nil {
			return
		}
		links := map[string]bool{}
		for _, text := range names {
			name, _, isLink := strings.Cut(text, ">")
			name = strings.TrimSuffix(name, "/")
			for part := range strings.SplitSeq(name, "/") {
				if part == ".." || part == "" {
					t.Errorf("the name %q", name)
				}
			}
			for at := range links {
				if strings.HasPrefix(name, at+"/") {
					t.Errorf("%q lies behind %q", name, at)
				}
			}
			if isLink {
				links[name] = true
			}
		}
		if single != "" && len(names) != 1 {
			t.Errorf("%d entries, and one was promised", len(names))
		}
	})
}
