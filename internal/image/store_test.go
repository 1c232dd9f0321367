package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/image/rootfs"
)

func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func openStore(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(dir, slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})))
	must(t, err)
	return s
}

// needRoot skips a test that needs root of the whole machine.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 || (&Store{}).owners() != "" {
		t.Skip("it needs root, outside of user namespaces")
	}
}

// smallTree is a directory to make templates from; text makes it different from others.
func smallTree(t testing.TB, text string) string {
	t.Helper()
	d := t.TempDir()
	second := []unix.Timespec{{Sec: 1e9}, {Sec: 1e9}} // archives round what images cut off
	must(t, os.MkdirAll(d+"/etc", 0o755), os.WriteFile(d+"/etc/motd", []byte(text), 0o644), os.Symlink("etc/motd", d+"/motd"),
		unix.UtimesNanoAt(unix.AT_FDCWD, d+"/motd", second, unix.AT_SYMLINK_NOFOLLOW),
		os.Chtimes(d+"/etc/motd", time.Unix(1e9, 0), time.Unix(1e9, 0)), os.Chtimes(d+"/etc", time.Unix(1e9, 0), time.Unix(1e9, 0)),
		os.Chtimes(d, time.Unix(1e9, 0), time.Unix(1e9, 0)), os.Chmod(d, 0o755))
	return d
}

func tarOf(t testing.TB, dir string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	must(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		target, _ := os.Readlink(p) // "" for all but links
		h, err := tar.FileInfoHeader(info, target)
		if err != nil {
			return err
		}
		h.Name, _ = filepath.Rel(dir, p)
		h.Uid, h.Gid, h.Uname, h.Gname = 0, 0, "", "" // as directories are read by ordinary users too
		if err := w.WriteHeader(h); err != nil || !info.Mode().IsRegular() {
			return err
		}
		data, err := os.ReadFile(p)
		if err == nil {
			_, err = w.Write(data)
		}
		return err
	}), w.Close())
	return b.Bytes()
}

func make1(t testing.TB, s *Store, src Source, opts MakeOptions) Template {
	t.Helper()
	made, err := s.Make(t.Context(), src, opts)
	must(t, err)
	return made
}

func TestLifeOfATemplate(t *testing.T) {
	s := openStore(t, t.TempDir())
	src := Source{Path: smallTree(t, "one")}
	made := make1(t, s, src, MakeOptions{Name: "mine:v1"})
	got, err := s.Get("mine:v1")
	must(t, err)
	if got.Digest != made.Digest || got.Name != "mine:v1" || got.Source != src.Path || got.Size < 4096 || !strings.HasPrefix(got.Digest, "sha256:") {
		t.Errorf("got %+v, made %+v", got, made)
	}
	list, err := s.List()
	if err != nil || len(list) != 2 || list[0].Name != HostName || list[1].Name != "mine:v1" {
		t.Errorf("list %v, %v", list, err)
	}
	root, err := s.Root(t.Context(), "mine:v1", []driver.Form{driver.FormDisk, driver.FormDirectory})
	must(t, err)
	if root.Form != driver.FormDisk || !filepath.IsAbs(root.Path) {
		t.Errorf("root %+v", root)
	}
	if info, err := os.Stat(root.Path); err != nil || info.Size() != made.Size || info.Mode().Perm() != 0o444 {
		t.Errorf("image %v, %v", info, err)
	}
	tree, err := s.Root(t.Context(), "mine:v1", []driver.Form{driver.FormDirectory, driver.FormDisk})
	must(t, err)
	if data, err := os.ReadFile(tree.Path + "/motd"); err != nil || string(data) != "one" {
		t.Errorf("in the directory: %q, %v", data, err)
	}
	if passwd, err := os.ReadFile(tree.Path + "/etc/passwd"); err != nil || !strings.Contains(string(passwd), "\nuser:*:1000:1000:") {
		t.Errorf("accounts: %q, %v", passwd, err)
	}
	again, err := s.Root(t.Context(), "mine:v1", []driver.Form{driver.FormDirectory})
	if err != nil || again.Path != tree.Path {
		t.Errorf("unpacked again to %s, %v", again.Path, err)
	}
	if _, err := s.Root(t.Context(), "mine:v1", nil); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("no form will do: %v", err)
	}
	must(t, s.Delete("mine:v1"))
	if err := s.Delete("mine:v1"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("deleted twice: %v", err)
	}
}

// TestOneContentOneDigest makes the same tree out of all that can hold it.
func TestOneContentOneDigest(t *testing.T) {
	s, dir := openStore(t, t.TempDir()), smallTree(t, "same")
	plain := tarOf(t, dir)
	want := make1(t, s, Source{Path: dir}, MakeOptions{Name: "dir"}).Digest
	for name, data := range map[string][]byte{"tar": plain, "gz": gz(t, plain), "zst": zst(t, plain)} {
		file := filepath.Join(t.TempDir(), name)
		must(t, os.WriteFile(file, data, 0o600))
		if got := make1(t, s, Source{Path: file}, MakeOptions{}).Digest; got != want {
			t.Errorf("%s: %s, the directory has %s", name, got, want)
		}
	}
	blobs, err := os.ReadDir(filepath.Join(s.dir, blobsDir))
	if err != nil || len(blobs) != 1 {
		t.Errorf("%d images of one content, %v", len(blobs), err)
	}
	if make1(t, s, Source{Path: smallTree(t, "other")}, MakeOptions{Name: "other"}).Digest == want {
		t.Error("other content has the same digest")
	}
}

func TestNames(t *testing.T) {
	for _, good := range []string{"a", "base", "my-app:v2", "python:3.13-slim", "ghcr.io/o/i:latest", "localhost:5000/a/b_c",
		"x@sha256:" + strings.Repeat("a", 64), "A.b_C", "library/python"} {
		must(t, CheckName(good))
	}
	for _, bad := range []string{"", ".", "..", "../x", "/etc", "a/../b", "a//b", "a b", "-x", "a\nb", "a:b:c", "ä", "a/", "a@sha256:12",
		"a/.hidden", strings.Repeat("x", 201), "%2e%2e", "a\x00"} {
		if err := CheckName(bad); firebreak.KindOf(err) != firebreak.KindInvalid {
			t.Errorf("%q: %v", bad, err)
		}
	}
	s := openStore(t, t.TempDir())
	for _, bad := range []string{"../x", "host"} {
		if _, err := s.Make(t.Context(), Source{Path: smallTree(t, "x")}, MakeOptions{Name: bad}); firebreak.KindOf(err) != firebreak.KindInvalid {
			t.Errorf("made %q: %v", bad, err)
		}
	}
	if err := s.Delete(HostName); firebreak.KindOf(err) != firebreak.KindInvalid {
		t.Errorf("deleted the host: %v", err)
	}
}

func TestMissingNamesWhatWasMeant(t *testing.T) {
	s := openStore(t, t.TempDir())
	make1(t, s, Source{Path: smallTree(t, "x")}, MakeOptions{Name: "python:3.13"})
	for asked, want := range map[string]string{"pyton:3.13": "python:3.13", "python": "python:3.13", "bse": "base", "hosts": "host"} {
		_, err := s.Get(asked)
		var e *firebreak.Error
		if !errors.Is(err, fs.ErrNotExist) || !errors.As(err, &e) || !strings.Contains(e.Mend, "did you mean "+want) {
			t.Errorf("%s: %v", asked, err)
		}
	}
	make1(t, s, Source{Path: smallTree(t, "y")}, MakeOptions{Name: "acme/secret:v1"})
	for asked, want := range map[string]bool{"acme/secret": true, "acme/secrte:v1": true, "secret": false, "secret:v1": false, "acm/secret:v1": false, "other/secret": false} {
		if _, err := s.Get(asked); strings.Contains(err.Error(), "acme/secret:v1") != want {
			t.Errorf("%s: %v", asked, err)
		}
	}
	if _, err := s.Get("entirely-else"); strings.Contains(err.Error(), "did you mean") {
		t.Errorf("a far-fetched guess: %v", err)
	}
}

func TestIfMissing(t *testing.T) {
	s := openStore(t, t.TempDir())
	one := make1(t, s, Source{Path: smallTree(t, "one")}, MakeOptions{Name: "x"})
	kept := make1(t, s, Source{Path: "/does/not/exist"}, MakeOptions{Name: "x", IfMissing: true})
	if kept.Digest != one.Digest {
		t.Error("made again though it was there")
	}
	if replaced := make1(t, s, Source{Path: smallTree(t, "two")}, MakeOptions{Name: "x"}); replaced.Digest == one.Digest {
		t.Error("not replaced")
	}
}

func TestSources(t *testing.T) {
	s := openStore(t, t.TempDir())
	fifo := filepath.Join(t.TempDir(), "fifo")
	must(t, unix.Mkfifo(fifo, 0o600))
	noise := filepath.Join(t.TempDir(), "noise")
	must(t, os.WriteFile(noise, bytes.Repeat([]byte("noise"), 5000), 0o600))
	empty := filepath.Join(t.TempDir(), "empty")
	must(t, os.WriteFile(empty, nil, 0o600))
	cut := filepath.Join(t.TempDir(), "cut")
	packed := gz(t, tarOf(t, smallTree(t, "x")))
	must(t, os.WriteFile(cut, packed[:len(packed)-20], 0o600))
	xz := filepath.Join(t.TempDir(), "xz")
	must(t, os.WriteFile(xz, []byte("\xfd7zXZ\x00more"), 0o600))
	bomb := filepath.Join(t.TempDir(), "bomb")
	must(t, os.WriteFile(bomb, gz(t, tarBomb(t, 200<<20)), 0o600))
	for name, c := range map[string]struct {
		src  Source
		kind firebreak.Kind
	}{
		"none":           {Source{}, firebreak.KindInvalid},
		"two":            {Source{Path: "/x", Reference: "y"}, firebreak.KindInvalid},
		"no such path":   {Source{Path: "/does/not/exist"}, firebreak.KindNotFound},
		"fifo":           {Source{Path: fifo}, firebreak.KindInvalid},
		"nothing":        {Source{Path: "/dev/null"}, firebreak.KindInvalid},
		"empty file":     {Source{Path: empty}, firebreak.KindInvalid},
		"empty":          {Source{Path: t.TempDir()}, firebreak.KindInvalid},
		"noise":          {Source{Path: noise}, firebreak.KindInvalid},
		"cut short":      {Source{Path: cut}, firebreak.KindInvalid},
		"xz":             {Source{Path: xz}, firebreak.KindUnsupported},
		"bomb":           {Source{Path: bomb}, firebreak.KindExhausted},
		"unknown recipe": {Source{Recipe: "cake"}, firebreak.KindInvalid},
		"bad reference":  {Source{Reference: "UPPER/case:x"}, firebreak.KindInvalid},
	} {
		_, err := s.Make(t.Context(), c.src, MakeOptions{Name: "x", Limits: rootfs.Limits{Bytes: 100 << 20}})
		if err == nil || firebreak.KindOf(err) != c.kind {
			t.Errorf("%s: %v, want kind %v", name, err, c.kind)
		}
	}
	nothingLeft(t, s)
}

// tarBomb is an archive with a file of zeros.
func tarBomb(t testing.TB, size int64) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	must(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "zeros", Size: size, Mode: 0o644}))
	_, err := io.CopyN(w, zeroReader{}, size)
	must(t, err, w.Close())
	return b.Bytes()
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// nothingLeft checks that a store holds no half-made thing.
func nothingLeft(t testing.TB, s *Store) {
	t.Helper()
	for _, part := range []string{workDir, blobsDir, treesDir, templatesDir} {
		entries, err := os.ReadDir(filepath.Join(s.dir, part))
		must(t, err)
		for _, e := range entries {
			t.Errorf("left in %s: %s", part, e.Name())
		}
	}
}

func TestCancelledMakeLeavesNothing(t *testing.T) {
	s := openStore(t, t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	_, err := s.Make(ctx, Source{Path: smallTree(t, "x")}, MakeOptions{Name: "x", Progress: func(p Progress) {
		if p.Step == "write image" {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	nothingLeft(t, s)
}

func TestCollect(t *testing.T) {
	s := openStore(t, t.TempDir())
	never := func(string) bool { return false }
	named := make1(t, s, Source{Path: smallTree(t, "named")}, MakeOptions{Name: "named"})
	used := make1(t, s, Source{Path: smallTree(t, "used")}, MakeOptions{Name: "used"})
	recent := make1(t, s, Source{Path: smallTree(t, "recent")}, MakeOptions{Name: "recent"})
	gone := make1(t, s, Source{Path: smallTree(t, "gone")}, MakeOptions{Name: "gone"})
	both := []driver.Form{driver.FormDirectory, driver.FormDisk}
	for _, name := range []string{"named", "used", "gone"} {
		_, err := s.Root(t.Context(), name, both)
		must(t, err)
	}
	clock := time.Now().Add(2 * grace)
	s.now = func() time.Time { return clock }
	_, err := s.Root(t.Context(), "recent", both)
	must(t, err, s.Delete("used"), s.Delete("recent"), s.Delete("gone"))
	dead := filepath.Join(s.dir, workDir, "dead") // as a killed maker leaves it
	must(t, os.Mkdir(dead, 0o700), os.WriteFile(dead+"/spool", make([]byte, 100), 0o600), os.WriteFile(dead+"/lock", nil, 0o600))
	stale := filepath.Join(s.dir, treesDir, hexOf(named.Digest)+"-00000000") // of an earlier boot
	must(t, os.MkdirAll(stale+"/root/locked/x", 0o700), os.Chmod(stale+"/root/locked", 0))
	var asked []string
	freed, removed, err := s.Collect(t.Context(), func(d string) bool { asked = append(asked, d); return d == used.Digest })
	must(t, err)
	if removed != 4 || freed < 4096 {
		t.Errorf("removed %d things, %d bytes; want the image and tree of gone, a leftover and a stale tree", removed, freed)
	}
	if !slices.Contains(asked, gone.Digest) {
		t.Errorf("asked for %v", asked)
	}
	left := map[string]int{}
	for _, part := range []string{blobsDir, treesDir} {
		entries, err := os.ReadDir(filepath.Join(s.dir, part))
		must(t, err)
		for _, e := range entries {
			left[e.Name()[:64]]++
		}
	}
	if want := map[string]int{hexOf(named.Digest): 2, hexOf(used.Digest): 2, hexOf(recent.Digest): 2}; !maps.Equal(left, want) {
		t.Errorf("left %v, want %v", left, want)
	}
	clock = clock.Add(2 * grace)
	if _, removed, err := s.Collect(t.Context(), never); err != nil || removed != 4 {
		t.Errorf("second collection removed %d, %v; want images and trees of used and recent", removed, err)
	}
	if freed, removed, err := s.Collect(t.Context(), never); err != nil || removed != 0 || freed != 0 {
		t.Errorf("third collection removed %d, %v", removed, err)
	}
	if _, err := s.Root(t.Context(), "named", both); err != nil {
		t.Error(err)
	}
}

func TestImageIsGone(t *testing.T) {
	s := openStore(t, t.TempDir())
	made := make1(t, s, Source{Path: smallTree(t, "x")}, MakeOptions{Name: "x"})
	must(t, os.Remove(s.blobPath(hexOf(made.Digest))))
	_, err := s.Root(t.Context(), "x", []driver.Form{driver.FormDisk})
	if firebreak.KindOf(err) != firebreak.KindNotFound || !strings.Contains(err.Error(), "make the template again") {
		t.Error(err)
	}
	must(t, os.WriteFile(filepath.Join(s.dir, templatesDir, "bad.json"), []byte("{"), 0o600))
	if _, err := s.Get("bad"); firebreak.KindOf(err) != firebreak.KindState {
		t.Error(err)
	}
}

func TestStoreIsPrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	must(t, os.Mkdir(dir, 0o755))
	openStore(t, dir)
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

func TestUnwritableAndFull(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"))
	defer func() { must(t, unix.Unmount(dir, 0)) }()
	s, src := openStore(t, dir), smallTree(t, "x")
	must(t, os.WriteFile(src+"/large", bytes.Repeat([]byte("full"), 1<<18), 0o600))
	_, err := s.Make(t.Context(), Source{Path: src}, MakeOptions{Name: "x"})
	if !errors.Is(err, unix.ENOSPC) || firebreak.KindOf(err) != firebreak.KindExhausted || !strings.Contains(err.Error(), "free space") {
		t.Errorf("full: %v", err)
	}
	nothingLeft(t, s)
	must(t, unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	_, err = s.Make(t.Context(), Source{Path: src}, MakeOptions{Name: "x"})
	if firebreak.KindOf(err) != firebreak.KindDenied || !strings.Contains(err.Error(), "writable") {
		t.Errorf("read-only: %v", err)
	}
	if _, err := Open(filepath.Join(dir, "new"), slog.Default()); firebreak.KindOf(err) != firebreak.KindDenied {
		t.Errorf("store on a read-only disk: %v", err)
	}
}

// TestBadImageSaysWhatWouldDo: whoever has a bad image cannot mend it here, but is told what to bring instead.
func TestBadImageSaysWhatWouldDo(t *testing.T) {
	good := tarOf(t, smallTree(t, strings.Repeat("x", 40960)))
	for name, data := range map[string][]byte{
		"no archive": []byte("hello\n"), "cut short": good[:len(good)-8<<10], "damaged": append([]byte("x"), good...), "empty": nil,
		"packed and cut short": gz(t, good)[:60], "no files": make([]byte, 1024),
	} {
		s, file := openStore(t, t.TempDir()), filepath.Join(t.TempDir(), "image.tar")
		must(t, os.WriteFile(file, data, 0o600))
		_, err := s.Make(t.Context(), Source{Path: file}, MakeOptions{Name: "x"})
		if firebreak.KindOf(err) != firebreak.KindInvalid || strings.Count(fmt.Sprint(err), "get or export it once more") != 1 {
			t.Errorf("%s: %v", name, err)
		}
		nothingLeft(t, s)
	}
}

func TestProgressNeverOverlaps(t *testing.T) {
	s := openStore(t, t.TempDir())
	var steps []string
	make1(t, s, Source{Path: smallTree(t, "x")}, MakeOptions{Name: "x", Progress: func(p Progress) { steps = append(steps, p.Step) }})
	if !slices.Contains(steps, "read directory") || !slices.Contains(steps, "write image") {
		t.Errorf("steps %v", steps)
	}
}

func TestRecordIsPlain(t *testing.T) {
	s := openStore(t, t.TempDir())
	make1(t, s, Source{Path: smallTree(t, "x")}, MakeOptions{Name: "ghcr.io/o/i:1"})
	data, err := os.ReadFile(filepath.Join(s.dir, templatesDir, "ghcr.io%2Fo%2Fi:1.json"))
	must(t, err)
	var record map[string]any
	must(t, json.Unmarshal(data, &record))
	if record["name"] != "ghcr.io/o/i:1" {
		t.Errorf("%v", record)
	}
}
