package rootfs

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/image/erofs"
)

func diskBlocks(info os.FileInfo) int64 { return info.Sys().(*syscall.Stat_t).Blocks * 512 }

func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// sampleDir has one of everything that a directory of the host can hold.
func sampleDir(t *testing.T) string {
	t.Helper()
	d := t.TempDir()
	must(t, os.MkdirAll(d+"/a/b", 0o750), os.WriteFile(d+"/a/f", []byte("data"), 0o640), os.Link(d+"/a/f", d+"/a/b/again"),
		os.Symlink("/etc/shadow", d+"/out"), os.Symlink("a/f", d+"/in"), unix.Mkfifo(d+"/fifo", 0o600),
		os.WriteFile(d+"/suid", []byte("x"), 0o755), os.Chmod(d+"/suid", 0o755|fs.ModeSetuid), os.Chmod(d+"/a", 0o1777&0o777|fs.ModeSticky),
		os.WriteFile(d+"/empty", nil, 0o644), os.WriteFile(d+"/zeros", make([]byte, 1<<20), 0o644),
		os.Chtimes(d+"/a/f", time.Unix(1e9, 0), time.Unix(1e9, 0)))
	l, err := net.Listen("unix", d+"/socket")
	must(t, err)
	t.Cleanup(func() { _ = l.Close() })
	return d
}

func TestDirectoryRoundTrip(t *testing.T) {
	source := sampleDir(t)
	tree := newTree(t, Limits{})
	must(t, tree.AddDirectory(t.Context(), source, nil))
	if tree.Dropped() != 1 {
		t.Errorf("%d dropped, want the socket", tree.Dropped())
	}
	image, err := os.Create(filepath.Join(t.TempDir(), "image"))
	must(t, err)
	defer image.Close()
	must(t, erofs.Write(t.Context(), image, tree.Root()))
	loaded, err := erofs.Read(image)
	must(t, err)
	sameListing(t, "loaded", listing(t, loaded), listing(t, tree.Root()))
	out := t.TempDir()
	if strangers, err := Unpack(t.Context(), loaded, out); err != nil || os.Geteuid() == 0 && strangers > 0 {
		t.Fatal(strangers, err)
	}
	again := newTree(t, Limits{})
	must(t, again.AddDirectory(t.Context(), out, nil))
	sameListing(t, "unpacked", listing(t, again.Root()), listing(t, tree.Root()))
	for _, p := range []string{"a", "a/f", "suid", "fifo", "empty"} {
		was, err1 := os.Lstat(filepath.Join(source, p))
		is, err2 := os.Lstat(filepath.Join(out, p))
		must(t, err1, err2)
		if was.Mode() != is.Mode() || was.ModTime().Unix() != is.ModTime().Unix() {
			t.Errorf("%s: %v %v, was %v %v", p, is.Mode(), is.ModTime(), was.Mode(), was.ModTime())
		}
	}
	one, err1 := os.Stat(out + "/a/f")
	two, err2 := os.Stat(out + "/a/b/again")
	must(t, err1, err2)
	if !os.SameFile(one, two) {
		t.Error("hard link became a copy")
	}
	if zeros, err := os.Stat(out + "/zeros"); err != nil || diskBlocks(zeros) > 1<<16 {
		t.Errorf("a megabyte of zeros takes %d bytes of disk, %v", diskBlocks(zeros), err)
	}
}

func TestDirectoryLimits(t *testing.T) {
	for name, limits := range map[string]Limits{"entries": {Entries: 3}, "file": {FileBytes: 3}, "bytes": {Bytes: 1000}} {
		if err := newTree(t, limits).AddDirectory(t.Context(), sampleDir(t), nil); firebreak.KindOf(err) != firebreak.KindExhausted {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDirectoryLeavesOut(t *testing.T) {
	d := sampleDir(t)
	store, err := os.Stat(d + "/a")
	must(t, err)
	tree := newTree(t, Limits{})
	must(t, tree.AddDirectory(t.Context(), d, store))
	if _, ok := tree.Root().Entries["a"]; ok {
		t.Error("the excluded directory is in the tree")
	}
	if os.Geteuid() != 0 {
		t.Skip("the rest mounts something, which needs root")
	}
	must(t, unix.Mount("tmpfs", d+"/a/b", "tmpfs", 0, "size=1m"))
	defer func() { must(t, unix.Unmount(d+"/a/b", 0)) }()
	must(t, os.WriteFile(d+"/a/b/mounted", nil, 0o644))
	tree = newTree(t, Limits{})
	must(t, tree.AddDirectory(t.Context(), d, nil))
	if b := tree.Root().Entries["a"].Entries["b"]; b == nil || len(b.Entries) != 0 {
		t.Errorf("of a mount in the directory there is %v", b)
	}
}

// TestDirectoryChanges swaps files for traps between the walk and the reading.
func TestDirectoryChanges(t *testing.T) {
	for name, swap := range map[string]func(p string) error{
		"link":    func(p string) error { return os.Symlink("/etc/hostname", p) },
		"fifo":    func(p string) error { return unix.Mkfifo(p, 0o600) },
		"other":   func(p string) error { return os.WriteFile(p, []byte("data"), 0o600) },
		"nothing": func(string) error { return nil },
	} {
		d := t.TempDir()
		must(t, os.WriteFile(d+"/f", []byte("data"), 0o600), os.WriteFile(d+"/keeps-the-inode", nil, 0o600))
		tree := newTree(t, Limits{})
		must(t, tree.AddDirectory(t.Context(), d, nil))
		must(t, os.Rename(d+"/f", d+"/keeps-the-inode"), swap(d+"/f"))
		if err := erofs.Write(t.Context(), io.Discard, tree.Root()); err == nil {
			t.Errorf("%s in place of a file: written", name)
		}
	}
}

func TestUnpackStaysInside(t *testing.T) {
	base := t.TempDir()
	out := filepath.Join(base, "out")
	must(t, os.Mkdir(out, 0o755))
	for _, name := range []string{"..", "../x", "a/../../x"} {
		root := newDir(0o755)
		root.Entries[name] = memoryFile([]byte("x"), 0o644)
		if _, err := Unpack(t.Context(), root, out); err == nil {
			t.Errorf("a name of %q was unpacked", name)
		}
	}
	left, err := os.ReadDir(base)
	if err != nil || len(left) != 1 {
		t.Errorf("beside the directory there is %v, %v", left, err)
	}
}

func TestComplete(t *testing.T) {
	user := "user:*:1000:1000::/home/user:/bin/sh\n"
	for name, c := range map[string]struct {
		layer []entry
		want  m
	}{
		"empty": {nil, m{"/etc/passwd": "root:*:0:0:root:/root:/bin/sh\n" + user, "/etc/group": "root:x:0:\nuser:x:1000:\n"}},
		"no newline at the end": {[]entry{reg("etc/passwd", "root:x:0:0::/:/x")},
			m{"/etc/passwd": "root:x:0:0::/:/x\n" + user}},
		"there is one": {[]entry{reg("etc/passwd", "root:x:0:0::/:/x\nuser:x:7:7::/:/x\n"), reg("etc/group", "root:x:0:\nuser:x:7:\n")},
			m{"/etc/passwd": "root:x:0:0::/:/x\nuser:x:7:7::/:/x\n", "/etc/group": "root:x:0:\nuser:x:7:\n"}},
		"with shadow and bash": {[]entry{reg("bin/bash", "x"), reg("etc/shadow", "root:*:1::::::\n")},
			m{"/etc/passwd": "root:x:0:0:root:/root:/bin/bash\nuser:x:1000:1000::/home/user:/bin/bash\n",
				"/etc/shadow": "root:*:1::::::\nuser:*:19000:0:99999:7:::\n"}},
		"links in the way": {[]entry{sym("etc", "conf/etc"), sym("home", "/var/home"), sym("conf/etc/passwd", "/data/passwd"),
			reg("data/passwd", "root:x:0:0::/:/x\n"), sym("proc", "/etc"), sym("dev", "nowhere")},
			m{"/data/passwd": "root:x:0:0::/:/x\n" + user}},
	} {
		t.Run(name, func(t *testing.T) {
			tree := newTree(t, Limits{})
			must(t, tree.ApplyTar(t.Context(), bytes.NewReader(archive(t, c.layer...))), tree.Complete(t.Context()))
			for p, want := range c.want {
				if got, err := tree.ReadFile(p); err != nil || string(got) != want {
					t.Errorf("%s is %q, %v; want %q", p, got, err, want)
				}
			}
			for _, p := range []string{"/proc", "/sys", "/dev", "/tmp", "/root", UserHome, "/var/tmp"} {
				if n, err := tree.Lookup(p); err != nil || !n.IsDir() {
					t.Errorf("%s: %v %v", p, n, err)
				}
			}
			for _, p := range []string{"proc", "dev"} {
				if n := tree.Root().Entries[p]; n == nil || !n.IsDir() {
					t.Errorf("/%s itself is no directory", p)
				}
			}
			if home, err := tree.Lookup(UserHome); err != nil || home.UID != UserID || home.GID != UserID {
				t.Errorf("home of the account belongs to %+v, %v", home, err)
			}
		})
	}
}

// TestCompleteTellsOfNoOtherMachine: what an image says of the machine that it was made on is replaced, and the name of a
// sandbox has an address in every template.
func TestCompleteTellsOfNoOtherMachine(t *testing.T) {
	ours := "127.0.0.1 localhost sandbox\n::1 localhost ip6-localhost ip6-loopback\n"
	for name, c := range map[string]struct {
		layer []entry
		hosts string
	}{
		"none":          {nil, ours},
		"of the image":  {[]entry{reg("etc/hosts", "127.0.0.1 localhost # sandbox\n10.0.0.7 db")}, "127.0.0.1 localhost # sandbox\n10.0.0.7 db\n127.0.0.1 sandbox\n"},
		"it knows":      {[]entry{reg("etc/hosts", "127.0.0.1\tlocalhost sandbox\n")}, "127.0.0.1\tlocalhost sandbox\n"},
		"a link":        {[]entry{sym("etc/hosts", "/lib/hosts"), reg("lib/hosts", "127.0.0.1 sandbox\n")}, "127.0.0.1 sandbox\n"},
		"a link to air": {[]entry{sym("etc/hosts", "/nowhere")}, ours},
		"huge":          {[]entry{reg("etc/hosts", strings.Repeat("#\n", maxEdited))}, ours},
	} {
		t.Run(name, func(t *testing.T) {
			layer := append(c.layer, reg("etc/hostname", "builder\n"), sym("etc/resolv.conf", "../run/resolv.conf"))
			tree := newTree(t, Limits{})
			must(t, tree.ApplyTar(t.Context(), bytes.NewReader(archive(t, layer...))), tree.Complete(t.Context()))
			for path, want := range (m{"/etc/hosts": c.hosts, "/etc/hostname": "sandbox\n", "/etc/resolv.conf": ""}) {
				if got, err := tree.ReadFile(path); err != nil || string(got) != want {
					t.Errorf("%s is %.200q, %v; want %q", path, got, err, want)
				}
			}
		})
	}
}

func TestCompleteRefusesTraps(t *testing.T) {
	for name, layer := range map[string][]entry{
		"loop":          {sym("etc", "etc")},
		"passwd a loop": {dir("etc"), sym("etc/passwd", "passwd")},
		"passwd a dir":  {dir("etc/passwd")},
		"huge":          {reg("etc/passwd", strings.Repeat("x", maxEdited+1))},
	} {
		tree := newTree(t, Limits{})
		must(t, tree.ApplyTar(t.Context(), bytes.NewReader(archive(t, layer...))))
		if err := tree.Complete(t.Context()); firebreak.KindOf(err) != firebreak.KindInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}
