package memfs_test

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/firebreak-dev/firebreak/internal/memfs"
)

func write(t testing.TB, f *memfs.FS, name, text string) {
	t.Helper()
	h, err := f.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err == nil {
		_, err = io.WriteString(h, text)
		err = errors.Join(err, h.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, f *memfs.FS, name string) string {
	t.Helper()
	h, err := f.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(h)
	if err := errors.Join(err, h.Close()); err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// asFS shows a file system to the standard library's tests.
type asFS struct{ *memfs.FS }

func (a asFS) Open(name string) (fs.File, error) {
	if !fs.ValidPath(name) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
	}
	return a.FS.Open(name)
}

func lower() fstest.MapFS {
	return fstest.MapFS{
		"usr/lib/a.py":     {Data: []byte("print(1)"), Mode: 0o444},
		"usr/lib/sub/b.py": {Data: []byte("b"), Mode: 0o644},
		"etc/link":         {Data: []byte("../usr/lib"), Mode: fs.ModeSymlink | 0o777},
	}
}

func TestFSTest(t *testing.T) {
	f := memfs.New(memfs.Options{Lower: lower()})
	if err := f.MkdirAll("/home/user/deep", 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, f, "/home/user/x.txt", "hello")
	write(t, f, "/usr/lib/a.py", "changed")
	if err := fstest.TestFS(asFS{f}, "home/user/x.txt", "usr/lib/a.py", "usr/lib/sub/b.py"); err != nil {
		t.Fatal(err)
	}
}

// TestErrors: each operation gives the errno that Linux gives.
func TestErrors(t *testing.T) {
	f := memfs.New(memfs.Options{Limits: memfs.Limits{Depth: 5}})
	for _, dir := range []string{"/d", "/d/e", "/full/x", "/1/2/3/4/5"} {
		if err := f.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, f, "/f", "text")
	for name, target := range map[string]string{"/loop": "loop", "/up": "../../../..", "/tofile": "f", "/todir": "/d", "/dangling": "/d/none"} {
		if err := f.Symlink(target, name); err != nil {
			t.Fatal(err)
		}
	}
	open := func(name string, flag int) error {
		h, err := f.OpenFile(name, flag, 0o644)
		if err == nil {
			err = h.Close()
		}
		return err
	}
	stat := func(name string) error { _, err := f.Stat(name); return err }
	for _, test := range []struct {
		name string
		err  error
		want error
	}{
		{"stat none", stat("/none"), syscall.ENOENT},
		{"stat empty", stat(""), syscall.ENOENT},
		{"stat under a file", stat("/f/x"), syscall.ENOTDIR},
		{"stat file/", stat("/f/"), syscall.ENOTDIR},
		{"stat file/.", stat("/f/."), syscall.ENOTDIR},
		{"stat file/..", stat("/f/.."), syscall.ENOTDIR},
		{"stat loop", stat("/loop"), syscall.ELOOP},
		{"stat up", stat("/up/up/../../f"), nil},
		{"stat link/", stat("/todir/"), nil},
		{"stat nul", stat("/a\x00b"), syscall.EINVAL},
		{"stat long name", stat("/" + strings.Repeat("x", 256)), syscall.ENAMETOOLONG},
		{"stat long path", stat(strings.Repeat("/", 4097)), syscall.ENAMETOOLONG},
		{"open none", open("/none", os.O_RDONLY), syscall.ENOENT},
		{"open excl", open("/f", os.O_CREATE|os.O_EXCL|os.O_WRONLY), syscall.EEXIST},
		{"open excl dangling", open("/dangling", os.O_CREATE|os.O_EXCL|os.O_WRONLY), syscall.EEXIST},
		{"open create slash", open("/new/", os.O_CREATE|os.O_WRONLY), syscall.EISDIR},
		{"open dir to write", open("/d", os.O_WRONLY), syscall.EISDIR},
		{"open directory", open("/f", syscall.O_DIRECTORY), syscall.ENOTDIR},
		{"open nofollow", open("/tofile", syscall.O_NOFOLLOW), syscall.ELOOP},
		{"mkdir exists", f.Mkdir("/d", 0o755), syscall.EEXIST},
		{"mkdir root", f.Mkdir("/", 0o755), syscall.EEXIST},
		{"mkdir no parent", f.Mkdir("/none/x", 0o755), syscall.ENOENT},
		{"mkdir on a dangling link", f.Mkdir("/dangling", 0o755), syscall.EEXIST},
		{"mkdir deep", f.Mkdir("/1/2/3/4/5/6", 0o755), syscall.ENAMETOOLONG},
		{"mkdirall through a file", f.MkdirAll("/f/x", 0o755), syscall.ENOTDIR},
		{"unlink dir", f.Unlink("/d"), syscall.EISDIR},
		{"unlink file/", f.Unlink("/f/"), syscall.ENOTDIR},
		{"rmdir file", f.Rmdir("/f"), syscall.ENOTDIR},
		{"rmdir full", f.Rmdir("/full"), syscall.ENOTEMPTY},
		{"rmdir link/", f.Rmdir("/todir/"), syscall.ENOTDIR},
		{"rmdir dot", f.Rmdir("/d/."), syscall.EINVAL},
		{"remove root", f.Remove("/"), syscall.EBUSY},
		{"remove up to root", f.Remove("/d/.."), syscall.EBUSY},
		{"remove all root", f.RemoveAll("/"), syscall.EBUSY},
		{"remove all none", f.RemoveAll("/none/x"), nil},
		{"rename none", f.Rename("/none", "/x"), syscall.ENOENT},
		{"rename into itself", f.Rename("/d", "/d/e/x"), syscall.EINVAL},
		{"rename dir over file", f.Rename("/d", "/f"), syscall.ENOTDIR},
		{"rename file over dir", f.Rename("/f", "/d"), syscall.EISDIR},
		{"rename over full", f.Rename("/d", "/full"), syscall.ENOTEMPTY},
		{"rename too deep", f.Rename("/d", "/1/2/3/4/x"), syscall.ENAMETOOLONG},
		{"rename root", f.Rename("/", "/x"), syscall.EBUSY},
		{"rename over root", f.Rename("/f", "/"), syscall.EBUSY},
		{"rename file to slash", f.Rename("/f", "/x/"), syscall.ENOTDIR},
		{"rename to itself", f.Rename("/f", "/f"), nil},
		{"symlink exists", f.Symlink("x", "/f"), syscall.EEXIST},
		{"symlink slash", f.Symlink("x", "/y/"), syscall.ENOENT},
		{"symlink to nothing", f.Symlink("", "/y"), syscall.ENOENT},
		{"link dir", f.Link("/d", "/y"), syscall.EPERM},
		{"link exists", f.Link("/f", "/d"), syscall.EEXIST},
		{"readlink file", func() error { _, err := f.Readlink("/f"); return err }(), syscall.EINVAL},
		{"watch file", func() error { _, err := f.Watch("/f", false); return err }(), syscall.ENOTDIR},
	} {
		if !errors.Is(test.err, test.want) {
			t.Errorf("%s: %v, want %v", test.name, test.err, test.want)
		}
	}
	if f.Usage().Open != 0 {
		t.Errorf("%d files are still open", f.Usage().Open)
	}
}

// TestLinksStayInside: whatever a link says, it leads to nothing but this file system.
func TestLinksStayInside(t *testing.T) {
	f := memfs.New(memfs.Options{})
	write(t, f, "/passwd", "mine")
	if err := f.MkdirAll("/etc/x", 0o755); err != nil {
		t.Fatal(err)
	}
	for i, target := range []string{"/passwd", "../../../../../../passwd", "x/../../passwd", "/../passwd", "/etc/../passwd"} {
		name := fmt.Sprintf("/etc/l%d", i)
		if err := f.Symlink(target, name); err != nil {
			t.Fatal(err)
		}
		if got := read(t, f, name); got != "mine" {
			t.Errorf("%s reads %q", target, got)
		}
		if got, err := f.Resolve(name); err != nil || got != "/passwd" {
			t.Errorf("%s resolves to %q, %v", target, got, err)
		}
	}
	if err := f.Symlink("/etc/shadow", "/etc/host"); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Open("/etc/host"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a link to a file of the host: %v", err)
	}
	// Through a dangling link, as open(2) with O_CREAT does.
	write(t, f, "/etc/host", "made")
	if got := read(t, f, "/etc/shadow"); got != "made" {
		t.Errorf("written through a link: %q", got)
	}
}

func TestQuotas(t *testing.T) {
	f := memfs.New(memfs.Options{Limits: memfs.Limits{Bytes: 1 << 20, Files: 10, FileSize: 600 << 10, Open: 3}})
	h, err := f.OpenFile("/a", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	n, err := h.Write(make([]byte, 700<<10))
	if n != 600<<10 || err != nil && !errors.Is(err, syscall.EFBIG) {
		t.Errorf("a file too large: wrote %d, %v", n, err)
	}
	if _, err := h.Write([]byte("x")); !errors.Is(err, syscall.EFBIG) {
		t.Errorf("one byte more: %v", err)
	}
	if err := h.Truncate(601 << 10); !errors.Is(err, syscall.EFBIG) {
		t.Errorf("truncate beyond the limit: %v", err)
	}
	b, err := f.OpenFile("/b", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	total := 0
	for err == nil {
		n, err = b.Write(make([]byte, 10<<10))
		total += n
	}
	if !errors.Is(err, syscall.ENOSPC) || total != 424<<10 {
		t.Errorf("a full disk: wrote %d, %v", total, err)
	}
	if err := f.Symlink("target", "/l"); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("a link on a full disk: %v", err)
	}
	// What was removed is given back when nobody has it open any more.
	if err := f.Remove("/a"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Write([]byte("x")); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("while the removed is open: %v", err)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Write([]byte("x")); err != nil {
		t.Errorf("after it was closed: %v", err)
	}
	for i := range 9 {
		if err := f.Mkdir(fmt.Sprintf("/d%d", i), 0o755); err != nil {
			t.Fatalf("directory %d: %v", i, err)
		}
	}
	if err := f.Mkdir("/more", 0o755); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("one file too many: %v", err)
	}
	for range 2 {
		if _, err := f.Open("/b"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.Open("/b"); !errors.Is(err, syscall.ENFILE) {
		t.Errorf("one open file too many: %v", err)
	}
}

func TestLower(t *testing.T) {
	base := lower()
	f := memfs.New(memfs.Options{Lower: base, Limits: memfs.Limits{Files: 2, Bytes: 100}})
	if got := read(t, f, "/etc/link/a.py"); got != "print(1)" {
		t.Errorf("through the lower link: %q", got)
	}
	if u := f.Usage(); u.Bytes != 0 || u.Files != 0 {
		t.Errorf("reading took %+v", u)
	}
	h, err := f.OpenFile("/usr/lib/a.py", os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(h, "\n# more"); err != nil {
		t.Fatal(err)
	}
	if got := read(t, f, "/usr/lib/a.py"); got != "print(1)\n# more" {
		t.Errorf("appended: %q", got)
	}
	if string(base["usr/lib/a.py"].Data) != "print(1)" {
		t.Error("the lower tree was changed")
	}
	if err := f.RemoveAll("/usr"); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Stat("/usr/lib/sub"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("removed: %v", err)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if u := f.Usage(); u != (memfs.Usage{}) {
		t.Errorf("left: %+v", u)
	}
}

func TestSparseReadsZero(t *testing.T) {
	f := memfs.New(memfs.Options{})
	h, err := f.OpenFile("/f", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []func() error{
		func() error { _, err := h.WriteAt([]byte("secret"), 0); return err },
		func() error { return h.Truncate(1) },
		func() error { _, err := h.WriteAt([]byte("e"), 9); return err },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := read(t, f, "/f"), "s\x00\x00\x00\x00\x00\x00\x00\x00e"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestWatch(t *testing.T) {
	f := memfs.New(memfs.Options{})
	if err := f.MkdirAll("/d/sub", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := f.Symlink("d", "/link"); err != nil {
		t.Fatal(err)
	}
	flat, err := f.Watch("/d", false)
	if err != nil {
		t.Fatal(err)
	}
	deep, err := f.Watch("/link", true)
	if err != nil {
		t.Fatal(err)
	}
	write(t, f, "/d/a", "x")
	write(t, f, "/d/sub/b", "x")
	write(t, f, "/elsewhere", "x")
	if err := errors.Join(f.Rename("/d/a", "/d/c"), f.Chmod("/d/c", 0o600), f.RemoveAll("/d/sub")); err != nil {
		t.Fatal(err)
	}
	want := []memfs.Event{
		{memfs.Create, "/link/a"}, {memfs.Write, "/link/a"}, {memfs.Create, "/link/sub/b"}, {memfs.Write, "/link/sub/b"},
		{memfs.Rename, "/link/a"}, {memfs.Create, "/link/c"}, {memfs.Chmod, "/link/c"}, {memfs.Remove, "/link/sub/b"}, {memfs.Remove, "/link/sub"},
	}
	if got := drain(t, deep); !slices.Equal(got, want) {
		t.Errorf("recursive: %v\nwant %v", got, want)
	}
	var direct []memfs.Event
	for _, e := range want {
		if path.Dir(e.Path) == "/link" {
			direct = append(direct, memfs.Event{Op: e.Op, Path: "/d" + strings.TrimPrefix(e.Path, "/link")})
		}
	}
	if got := drain(t, flat); !slices.Equal(got, direct) {
		t.Errorf("one directory: %v\nwant %v", got, direct)
	}
	slow, err := f.Watch("/", true)
	if err != nil {
		t.Fatal(err)
	}
	for range 5000 {
		if err := f.Chmod("/d", 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if drain(t, slow); !errors.Is(slow.Err(), memfs.ErrBehind) {
		t.Errorf("a slow watcher: %v", slow.Err())
	}
}

func drain(t *testing.T, w *memfs.Watcher) (events []memfs.Event) {
	t.Helper()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for e := range w.Events() {
		events = append(events, e)
	}
	return events
}

func TestTimesAndMetadata(t *testing.T) {
	now := time.Unix(1000, 0)
	f := memfs.New(memfs.Options{Now: func() time.Time { return now }, UID: 7, Limits: memfs.Limits{Bytes: 20}})
	write(t, f, "/f", "x")
	if err := f.Chtimes("/f", time.Time{}, time.Unix(5, 0)); err != nil {
		t.Fatal(err)
	}
	info, err := f.Stat("/f")
	if err != nil {
		t.Fatal(err)
	}
	if st := info.Sys().(*syscall.Stat_t); !info.ModTime().Equal(time.Unix(5, 0)) || st.Uid != 7 || st.Atim.Sec != 1000 {
		t.Errorf("%v %+v", info.ModTime(), st)
	}
	if err := f.SetMetadata("/f", map[string]string{"key": "value"}); err != nil {
		t.Fatal(err)
	}
	if m, err := f.Metadata("/f"); err != nil || m["key"] != "value" {
		t.Errorf("%v, %v", m, err)
	}
	if err := f.SetMetadata("/f", map[string]string{"key": strings.Repeat("x", 30)}); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("metadata over the quota: %v", err)
	}
	if err := f.Remove("/f"); err != nil || f.Usage().Bytes != 0 {
		t.Errorf("%v, left %+v", err, f.Usage())
	}
}

// TestConcurrent: whatever many do at once, in the end what is taken is what is there.
func TestConcurrent(t *testing.T) {
	f := memfs.New(memfs.Options{Lower: lower(), Limits: memfs.Limits{Bytes: 1 << 20, Files: 100}})
	w, err := f.Watch("/", true)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for worker := range 8 {
		all.Go(func() { churn(f, rand.New(rand.NewPCG(uint64(worker), 1))) })
	}
	all.Wait()
	_ = w.Close()
	for _, name := range []string{"a", "b", "usr", "etc", "new"} {
		if err := f.RemoveAll(name); err != nil {
			t.Fatal(err)
		}
	}
	if u := f.Usage(); u != (memfs.Usage{}) {
		t.Errorf("left: %+v", u)
	}
}

// churn does anything, and does not mind errors.
func churn(f *memfs.FS, r *rand.Rand) {
	names := []string{"a", "b", "a/x", "a/x/y", "b/x", "usr/lib/a.py", "usr/lib", "etc/link", "new"}
	pick := func() string { return names[r.IntN(len(names))] }
	for range 500 {
		switch r.IntN(9) {
		case 0:
			_ = f.MkdirAll(pick(), 0o755)
		case 1:
			_ = f.Rename(pick(), pick())
		case 2:
			_ = f.RemoveAll(pick())
		case 3:
			_ = f.Symlink(pick(), pick())
		case 4:
			_ = f.Link(pick(), pick())
		case 5:
			_ = f.SetMetadata(pick(), map[string]string{"k": pick()})
		default:
			h, err := f.OpenFile(pick(), os.O_CREATE|os.O_RDWR, 0o644)
			if err != nil {
				continue
			}
			_, _ = h.WriteAt(make([]byte, r.IntN(10000)), int64(r.IntN(1000)))
			_, _ = h.Read(make([]byte, 100))
			_ = h.Truncate(int64(r.IntN(1000)))
			_ = h.Close()
		}
	}
}
