package archive

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/agent/account"
)

// archiveOf makes an archive of lines "type name [target or text]".
func archiveOf(t testing.TB, lines ...string) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, line := range lines {
		kind, rest, _ := strings.Cut(line, " ")
		name, text, _ := strings.Cut(rest, " ")
		h := &tar.Header{Name: name, Mode: 0o640, ModTime: time.Unix(1e9, 0)}
		switch kind {
		case "file":
			h.Typeflag, h.Size = tar.TypeReg, int64(len(text))
		case "dir":
			h.Typeflag, h.Mode = tar.TypeDir, 0o750
		case "symlink":
			h.Typeflag, h.Linkname = tar.TypeSymlink, text
		case "link":
			h.Typeflag, h.Linkname = tar.TypeLink, text
		case "fifo":
			h.Typeflag = tar.TypeFifo
		}
		must(t, w.WriteHeader(h))
		if kind == "file" {
			_, err := io.WriteString(w, text)
			must(t, err)
		}
	}
	must(t, w.Close())
	return &b
}

// tree lists what is below dir as "path mode text".
func tree(t testing.TB, dir string) string {
	t.Helper()
	var b strings.Builder
	must(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		fmt.Fprintf(&b, "%s %s", rel, info.Mode())
		switch info.Mode().Type() {
		case fs.ModeSymlink:
			target, _ := os.Readlink(p)
			fmt.Fprintf(&b, " %s", target)
		case 0:
			text, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %s", text)
		}
		b.WriteString("; ")
		return nil
	}))
	return strings.TrimSuffix(b.String(), "; ")
}

func self(t Target) Target {
	t.UID, t.GID = uint32(os.Getuid()), uint32(os.Getgid())
	return t
}

func TestImport(t *testing.T) {
	for _, c := range []struct {
		about   string
		there   func(dir string) error
		to      Target // Path is relative to the test's directory
		archive []string
		want    string
	}{
		{"a directory into a new one", nil, Target{Path: "app/src", Mode: -1},
			[]string{"dir sub", "file sub/a text", "symlink b sub/a", "link c sub/a"},
			"app drwxr-xr-x; app/src drwxr-xr-x; app/src/b Lrwxrwxrwx sub/a; app/src/c -rw-r----- text; app/src/sub drwxr-x---; app/src/sub/a -rw-r----- text"},
		{"a directory into one that is there keeps what that is",
			func(dir string) error {
				return errors.Join(os.MkdirAll(dir+"/app/sub", 0o700), os.WriteFile(dir+"/app/sub/old", []byte("old"), 0o600), os.WriteFile(dir+"/app/sub/a", []byte("old"), 0o600))
			},
			Target{Path: "app", Mode: -1}, []string{"dir .", "dir sub/", "file sub/a new"},
			"app drwx------; app/sub drwx------; app/sub/a -rw-r----- new; app/sub/old -rw------- old"},
		{"a mode for all but links", nil, Target{Path: "app", Mode: 0o555},
			[]string{"dir sub", "file sub/a text", "symlink b sub/a"},
			"app drwxr-xr-x; app/b Lrwxrwxrwx sub/a; app/sub dr-xr-xr-x; app/sub/a -r-xr-xr-x text"},
		{"a file gets the name", nil, Target{Path: "etc/app.conf", Mode: -1, Single: "conf"}, []string{"file conf x=1"},
			"etc drwxr-xr-x; etc/app.conf -rw-r----- x=1"},
		{"a file into a directory by its slash", nil, Target{Path: "etc", Dir: true, Mode: -1, Single: "conf"}, []string{"file conf x=1"},
			"etc drwxr-xr-x; etc/conf -rw-r----- x=1"},
		{"a file into a directory that is there", func(dir string) error { return os.Mkdir(dir+"/etc", 0o755) },
			Target{Path: "etc", Mode: -1, Single: "conf"}, []string{"file conf x=1"},
			"etc drwxr-xr-x; etc/conf -rw-r----- x=1"},
		{"a file takes the place of a link and not of what that leads to",
			func(dir string) error {
				return errors.Join(os.WriteFile(dir+"/kept", []byte("kept"), 0o600), os.Symlink("kept", dir+"/conf"))
			},
			Target{Path: "conf", Mode: 0o600, Single: "conf"}, []string{"file conf x=1"},
			"conf -rw------- x=1; kept -rw------- kept"},
		{"the image's own links to directories are followed",
			func(dir string) error {
				return errors.Join(os.MkdirAll(dir+"/usr/lib", 0o755), os.Symlink("usr/lib", dir+"/lib"))
			},
			Target{Path: ".", Mode: -1}, []string{"dir lib", "file lib/a text"},
			"lib Lrwxrwxrwx usr/lib; usr drwxr-xr-x; usr/lib drwxr-xr-x; usr/lib/a -rw-r----- text"},
		{"parents that the archive does not name", nil, Target{Path: "app", Mode: -1}, []string{"file a/b/c text"},
			"app drwxr-xr-x; app/a drwxr-xr-x; app/a/b drwxr-xr-x; app/a/b/c -rw-r----- text"},
		{"a link of the archive is replaced by a directory's worth of files only after it went", nil, Target{Path: "app", Mode: -1},
			[]string{"symlink a /nowhere", "file a text"}, "app drwxr-xr-x; app/a -rw-r----- text"},
	} {
		dir := t.TempDir()
		if c.there != nil {
			must(t, c.there(dir))
		}
		to := self(c.to)
		to.Path = filepath.Join(dir, to.Path)
		if err := Import(t.Context(), archiveOf(t, c.archive...), to); err != nil {
			t.Errorf("%s: %v", c.about, err)
			continue
		}
		if got := tree(t, dir); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.about, got, c.want)
		}
	}
}

func TestImportSetsTimes(t *testing.T) {
	dir := t.TempDir()
	must(t, Import(t.Context(), archiveOf(t, "dir sub", "file sub/a text", "file sub/b text"), self(Target{Path: dir, Mode: -1})))
	for _, name := range []string{"sub", "sub/a"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.ModTime().Unix() != 1e9 {
			t.Errorf("%s is of %v, %v", name, info.ModTime(), err)
		}
	}
}

func TestImportRefuses(t *testing.T) {
	for _, c := range []struct {
		about   string
		single  string
		archive []string
	}{
		{"a way up", "", []string{"file ../a text"}},
		{"a way up in the middle", "", []string{"file a/../../b text"}},
		{"an absolute name", "", []string{"file /a text"}},
		{"a link of its own on the way", "", []string{"symlink up ..", "file up/a text"}},
		{"a link of its own far up on the way", "", []string{"symlink up ..", "file up/b/c/a text"}},
		{"a directory behind a link of its own", "", []string{"symlink up ..", "dir up/a"}},
		{"a FIFO", "", []string{"fifo a"}},
		{"a hard link out", "", []string{"link a ../secret"}},
		{"a hard link to nothing", "", []string{"link a b"}},
		{"a hard link through a link of its own", "", []string{"symlink up ..", "link a up/secret"}},
		{"a file over a directory", "", []string{"dir a", "file a text"}},
		{"a directory over a file", "", []string{"file a text", "dir a"}},
		{"a file below a file", "", []string{"file a text", "file a/b text"}},
		{"the place itself", "", []string{"symlink . /etc"}},
		{"another entry than the only one", "a", []string{"file a text", "file b text"}},
	} {
		dir := t.TempDir()
		write(t, dir+"/secret", "secret", 0o600)
		err := Import(t.Context(), archiveOf(t, c.archive...), self(Target{Path: dir + "/in/to", Dir: true, Single: c.single, Mode: -1}))
		if !errors.Is(err, errRefused) {
			t.Errorf("%s: %v", c.about, err)
		}
		for line := range strings.SplitSeq(tree(t, dir), "; ") {
			if line != "secret -rw------- secret" && line != "in drwxr-xr-x" && !strings.HasPrefix(line, "in/to") {
				t.Errorf("%s: there is %s", c.about, line)
			}
		}
	}
	whole := archiveOf(t, "file a 0123456789").Bytes()
	if err := Import(t.Context(), bytes.NewReader(whole[:515]), self(Target{Path: t.TempDir(), Mode: -1})); !errors.Is(err, errRefused) {
		t.Errorf("half an archive: %v", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	write(t, file, "", 0o600)
	if err := Import(t.Context(), archiveOf(t, "file a x"), self(Target{Path: file + "/below", Mode: -1})); err == nil {
		t.Error("a place below a file was taken")
	}
}

// TestImportOfHoles: a file with holes would be as large as its archive says.
func TestImportOfHoles(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(dir+"/a", nil, 0o600), os.Truncate(dir+"/a", 1<<40))
	for _, format := range []string{"pax", "gnu"} {
		data, err := exec.Command("tar", "--create", "--sparse", "--format="+format, "--directory="+dir, "a").Output()
		must(t, err)
		if err := Import(t.Context(), bytes.NewReader(data), self(Target{Path: dir + "/to", Mode: -1})); !errors.Is(err, errRefused) {
			t.Errorf("%s: %v", format, err)
		}
	}
}

func FuzzImport(f *testing.F) {
	for _, lines := range [][]string{
		{"dir sub", "file sub/a text", "symlink b sub/a", "link c sub/a"}, {"symlink up ..", "file up/a text"},
		{"file ../a text"}, {"symlink a b", "symlink b /", "link c a"}, {"symlink a/b ..", "dir a/b/.."},
	} {
		f.Add(archiveOf(f, lines...).Bytes(), "")
	}
	f.Add(archiveOf(f, "file conf x=1").Bytes(), "conf")
	f.Fuzz(func(t *testing.T, archive []byte, single string) {
		dir := t.TempDir()
		write(t, dir+"/secret", "secret", 0o600)
		before, err := os.Lstat(dir + "/secret")
		must(t, err, os.Mkdir(dir+"/in", 0o755))
		_ = Import(t.Context(), bytes.NewReader(archive), self(Target{Path: dir + "/in", Single: single, Mode: -1}))
		names, err := os.ReadDir(dir)
		must(t, err)
		after, err := os.Lstat(dir + "/secret")
		if err != nil || len(names) != 2 || after.ModTime() != before.ModTime() || after.Size() != before.Size() || after.Mode() != before.Mode() ||
			after.Sys().(*syscall.Stat_t).Nlink != 1 {
			t.Fatalf("something outside was touched: %v, %v", names, err)
		}
	})
}

func TestTarget(t *testing.T) {
	root := t.TempDir()
	write(t, root+"/etc/passwd", "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n", 0o644)
	write(t, root+"/etc/group", "staff:x:50:\nuser:x:1000:\n", 0o644)
	session := account.NewSession(account.Open(root), false)
	if !session.Switches() {
		t.Skip("only root can give files to others")
	}
	s := New(session, true)
	for _, c := range []struct {
		query string
		want  Target
	}{
		{"path=/app", Target{Path: "/app", UID: 1000, GID: 1000, Mode: -1}},
		{"path=/app/&owner=root", Target{Path: "/app", Dir: true, Mode: -1}},
		{"path=app&cwd=/srv/x&user=web&mode=0755", Target{Path: "/srv/x/app", UID: 33, GID: 34, Mode: 0o755}},
		{"path=app&user=web", Target{Path: "/srv/app", UID: 33, GID: 34, Mode: -1}},
		{"path=.&user=web&owner=user:staff", Target{Path: "/srv", Dir: true, UID: 1000, GID: 50, Mode: -1}},
		{"path=~/app&owner=7:8", Target{Path: "/home/user/app", UID: 7, GID: 8, Mode: -1}},
		{"path=~&single=a", Target{Path: "/home/user", Dir: true, Single: "a", UID: 1000, GID: 1000, Mode: -1}},
		{"path=../../../x&cwd=rel", Target{Path: "/x", UID: 1000, GID: 1000, Mode: -1}},
	} {
		q, err := url.ParseQuery(c.query)
		must(t, err)
		if got, err := s.target(q); err != nil || got != c.want {
			t.Errorf("%s: %+v, %v", c.query, got, err)
		}
	}
	for _, query := range []string{"", "path=%00", "path=/a&cwd=%00", "path=/a&user=ghost", "path=/a&owner=ghost", "path=/a&owner=user:ghost",
		"path=/a&mode=9", "path=/a&mode=-1", "path=/a&mode=17777", "path=/a&mode=u%2Bx"} {
		q, err := url.ParseQuery(query)
		must(t, err)
		if got, err := s.target(q); err == nil {
			t.Errorf("%s: %+v", query, got)
		}
	}
}
