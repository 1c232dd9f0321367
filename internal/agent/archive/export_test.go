package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

type entry struct {
	*tar.Header
	data string
}

// exported returns what Export writes, by name.
func exported(t testing.TB, src Source) map[string]entry {
	t.Helper()
	var b bytes.Buffer
	if err := Export(t.Context(), &b, src); err != nil {
		t.Fatal(err)
	}
	return entries(t, &b)
}

func entries(t testing.TB, r io.Reader) map[string]entry {
	t.Helper()
	all := map[string]entry{}
	for archive := tar.NewReader(r); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatalf("after %d entries: %v", len(all), err)
		}
		data, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		if _, twice := all[h.Name]; twice {
			t.Errorf("%q comes twice", h.Name)
		}
		all[h.Name] = entry{h, string(data)}
	}
}

func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func write(t testing.TB, path, text string, mode os.FileMode) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), mode), os.Chmod(path, mode))
}

func TestExport(t *testing.T) {
	root := t.TempDir()
	long := strings.Repeat("long-ünicode/", 20) + "file"
	write(t, root+"/plain", "text", 0o640)
	write(t, root+"/"+long, "far", 0o600)
	write(t, root+"/setuid", "#!", 0o755|os.ModeSetuid)
	write(t, root+"/proc/hidden", "kernel", 0o644)
	write(t, root+"/mounted", "elsewhere", 0o644)
	write(t, root+"/.firebreak/agent", "ours", 0o755)
	must(t, os.Symlink("/etc/passwd", root+"/link"), os.Link(root+"/plain", root+"/again"), os.Mkdir(root+"/empty", 0o1777),
		os.Chmod(root+"/empty", 0o777|os.ModeSticky), unix.Mkfifo(root+"/fifo", 0o600),
		os.Chtimes(root+"/plain", time.Unix(1e9, 5e8), time.Unix(1e9, 5e8)))
	socket, err := net.Listen("unix", root+"/socket")
	must(t, err)
	defer socket.Close()
	attributes := unix.Setxattr(root+"/plain", "user.note", []byte("a=b\x00c"), 0) == nil

	got := exported(t, Source{Root: root, Mounts: map[string]bool{"/proc": true, "/mounted": true}, Skip: []string{"/.firebreak/"}})
	plain, other := got["plain"], got["again"]
	if plain.Typeflag == tar.TypeLink {
		plain, other = other, plain
	}
	if plain.data != "text" || plain.Mode != 0o640 || plain.Uid != os.Getuid() || plain.Gid != os.Getgid() || !plain.ModTime.Equal(time.Unix(1e9, 0)) {
		t.Errorf("plain is %+v", plain)
	}
	if other.Typeflag != tar.TypeLink || other.Linkname != plain.Name {
		t.Errorf("its other name is %+v", other)
	}
	if attributes && plain.PAXRecords["SCHILY.xattr.user.note"] != "a=b\x00c" {
		t.Errorf("its attributes are %q", plain.PAXRecords)
	}
	for name, want := range map[string]string{
		"./": "5 0700 ", long: "0 0600 far", "setuid": "0 4755 #!", "proc/": "5 0755 ", "link": "2 0777 ", "empty/": "5 1777 ", "fifo": "6 0600 ",
	} {
		e, ok := got[name]
		if name == "./" {
			e.Mode = 0o700 // as the test's umask wants it
		}
		if s := fmt.Sprintf("%c %04o %s", e.Typeflag, e.Mode, e.data); !ok || s != want {
			t.Errorf("%s is %q, want %q", name, s, want)
		}
		delete(got, name)
	}
	for _, name := range []string{"proc/hidden", "mounted", ".firebreak/", ".firebreak/agent", "socket"} {
		if _, ok := got[name]; ok {
			t.Errorf("%s is there", name)
		}
	}
	if got["plain"].Header == nil || len(got) != 2+20 { // the directories of the long name
		t.Errorf("there are %d entries more", len(got))
	}
}

func TestExportWithoutWhatIsTheTemplates(t *testing.T) {
	root := t.TempDir()
	write(t, root+"/old", "old text", 0o644)
	write(t, root+"/nothing", "", 0o644)
	var st unix.Stat_t
	must(t, unix.Stat(root+"/old", &st))
	born := time.Unix(st.Ctim.Unix())
	got := exported(t, Source{Root: root, Since: born.Add(time.Hour)})
	if e := got["old"]; e.data != "" || e.Size != 0 || e.PAXRecords[SameRecord] != "8" || e.Mode != 0o644 {
		t.Errorf("an old file is %+v", e)
	}
	if e := got["nothing"]; e.PAXRecords[SameRecord] != "" {
		t.Errorf("an empty file is %+v", e)
	}
	got = exported(t, Source{Root: root, Since: born.Add(-time.Hour)})
	if e := got["old"]; e.data != "old text" || e.PAXRecords[SameRecord] != "" {
		t.Errorf("a new file is %+v", e)
	}
}

// TestExportKeepsItsPromise: the size of a file is written before its data, whatever becomes of it.
func TestExportKeepsItsPromise(t *testing.T) {
	for _, c := range []struct{ file, want string }{
		{"12345", "12345"}, {"123", "123\x00\x00"}, {"", "\x00\x00\x00\x00\x00"}, {"1234567", "12345"},
	} {
		var b bytes.Buffer
		e := &export{ctx: t.Context(), tar: tar.NewWriter(&b), buf: bytes.Repeat([]byte{'x'}, 4)}
		must(t, e.tar.WriteHeader(&tar.Header{Name: "f", Size: 5, Mode: 0o644}), e.data(strings.NewReader(c.file), 5), e.tar.Close())
		if got := entries(t, &b)["f"].data; got != c.want {
			t.Errorf("of %q came %q", c.file, got)
		}
	}
}

// TestExportOfALiveFileSystem: files, directories, links and FIFOs take each other's places all the time.
func TestExportOfALiveFileSystem(t *testing.T) {
	root := t.TempDir()
	secret := filepath.Join(t.TempDir(), "secret")
	write(t, secret, "secret", 0o644)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for n := range 4 {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				p := filepath.Join(root, fmt.Sprint("thing", (n+i)%3))
				_ = os.RemoveAll(p)
				switch i % 5 {
				case 0:
					if f, err := os.OpenFile(p, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644); err == nil {
						_, _ = f.Write(bytes.Repeat([]byte("y"), i%3000))
						_ = f.Close()
					}
				case 1:
					_ = os.MkdirAll(p+"/sub", 0o755)
					_ = os.Symlink("z", p+"/sub/file")
				case 2:
					_ = os.Symlink(secret, p)
				case 3:
					_ = unix.Mkfifo(p, 0o600)
				case 4:
					_ = os.Symlink(filepath.Dir(secret), p)
				}
			}
		})
	}
	for range 200 {
		var b bytes.Buffer
		if err := Export(t.Context(), &b, Source{Root: root}); err != nil {
			t.Fatal(err)
		}
		archive := tar.NewReader(&b)
		for {
			_, err := archive.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			data, readErr := io.ReadAll(archive)
			must(t, err, readErr)
			if bytes.Contains(data, []byte("secret")) {
				t.Fatal("a link out of the root was followed")
			}
		}
	}
	close(stop)
	wg.Wait()
}

func TestExportEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	root := t.TempDir()
	write(t, root+"/file", "text", 0o644)
	if err := Export(ctx, io.Discard, Source{Root: root}); !errors.Is(err, context.Canceled) {
		t.Errorf("with its context: %v", err)
	}
	if err := Export(t.Context(), failing{}, Source{Root: root}); !errors.Is(err, errFull) {
		t.Errorf("with its writer: %v", err)
	}
}

var errFull = errors.New("full")

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errFull }

func TestMountPoints(t *testing.T) {
	file := filepath.Join(t.TempDir(), "mountinfo")
	write(t, file, "18 17 0:20 / / rw - overlay none rw\n23 18 0:21 / /a\\040b\\134c rw shared:1 - tmpfs none rw\nodd line\n", 0o600)
	got, err := mountPoints(file)
	if err != nil || len(got) != 2 || !got["/"] || !got[`/a b\c`] {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := mountPoints("/proc/self/mountinfo"); err != nil || !got["/proc"] {
		t.Errorf("of this process: %v, %v", got, err)
	}
}
