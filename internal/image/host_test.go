package image

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/driver"
)

func hostRoot(t testing.TB, s *Store) driver.Root {
	t.Helper()
	root, err := s.Root(t.Context(), HostName, []driver.Form{driver.FormDisk, driver.FormDirectory})
	must(t, err)
	return root
}

// fakeHost is a host with a secret in every place that must not show.
func fakeHost(t *testing.T, merged bool) string {
	t.Helper()
	h := t.TempDir()
	secret := []byte("SECRET")
	for _, dir := range []string{"usr/bin", "usr/lib", "home/me/.ssh", "root", "var/lib", "run", "tmp", "srv", "opt",
		"etc/ssl/private", "etc/ssl/certs", "etc/ld.so.conf.d", "etc/ssh", "etc/alternatives", "etc/java-17"} {
		must(t, os.MkdirAll(filepath.Join(h, dir), 0o755))
	}
	for _, file := range []string{"home/me/.ssh/id", "root/.profile", "var/lib/x", "run/x", "tmp/x", "srv/x", "opt/x", "etc/ssl/private/key",
		"etc/ssh/key", "etc/shadow", "etc/passwd", "etc/hosts", "etc/hostname", "etc/resolv.conf", "etc/npmrc", "etc/gitconfig", "etc/machine-id",
		"etc/environment", "etc/fstab", "etc/nsswitch.conf", "etc/group"} {
		must(t, os.WriteFile(filepath.Join(h, file), secret, 0o644))
	}
	// Secrets in places that are copied: by their mode, or through a link.
	must(t, os.WriteFile(h+"/etc/ssl/certs/private.pem", secret, 0o640), os.Mkdir(h+"/etc/java-17/hidden", 0o750),
		os.WriteFile(h+"/etc/java-17/hidden/x", secret, 0o644), os.Symlink("../../shadow", h+"/etc/ssl/certs/shadow.pem"),
		os.Symlink(h+"/etc/shadow", h+"/etc/ssl/certs/absolute.pem"), os.Symlink("/root/.profile", h+"/etc/magic"))
	must(t, os.WriteFile(h+"/etc/ssl/certs/ca.pem", []byte("public"), 0o644), os.WriteFile(h+"/etc/ld.so.cache", []byte("cache"), 0o644),
		os.Symlink("/usr/share/zoneinfo/UTC", h+"/etc/localtime"), os.Symlink("../usr/lib/os-release", h+"/etc/os-release"),
		os.Symlink("ca.pem", h+"/etc/ssl/certs/1234.0"), os.Symlink("/usr/bin/vim", h+"/etc/alternatives/editor"))
	for _, name := range []string{"bin", "lib", "sbin", "lib64"} {
		if merged {
			must(t, os.Symlink("usr/"+name, filepath.Join(h, name)))
		} else {
			must(t, os.Mkdir(filepath.Join(h, name), 0o755))
		}
	}
	return h
}

func TestHostShowsNoSecrets(t *testing.T) {
	for name, merged := range map[string]bool{"merged usr": true, "old style": false} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, t.TempDir())
			s.host = fakeHost(t, merged)
			root := hostRoot(t, s)
			if root.Form != driver.FormDirectory {
				t.Errorf("form %v", root.Form)
			}
			var targets []string
			for _, b := range root.Binds {
				targets = append(targets, b.Target)
				if !b.ReadOnly || b.Source != filepath.Join(s.host, b.Target) {
					t.Errorf("bind %+v", b)
				}
			}
			want := []string{"/usr"}
			if !merged {
				want = []string{"/bin", "/lib", "/lib64", "/sbin", "/usr"}
			}
			if !slices.Equal(targets, want) {
				t.Errorf("binds %v, want %v", targets, want)
			}
			for _, name := range []string{"bin", "lib", "sbin", "lib64"} {
				target, err := os.Readlink(filepath.Join(root.Path, name))
				if merged && target != "usr/"+name || !merged && err == nil {
					t.Errorf("/%s -> %q, %v", name, target, err)
				}
			}
			checkNoSecrets(t, root.Path)
			for file, want := range map[string]string{"etc/ssl/certs/ca.pem": "public", "etc/ssl/certs/1234.0": "public", "etc/ld.so.cache": "cache"} {
				if data, err := os.ReadFile(filepath.Join(root.Path, file)); err != nil || string(data) != want {
					t.Errorf("%s: %q, %v", file, data, err)
				}
			}
			for link, want := range map[string]string{"etc/localtime": "/usr/share/zoneinfo/UTC", "etc/os-release": "../usr/lib/os-release",
				"etc/alternatives/editor": "/usr/bin/vim"} {
				if target, err := os.Readlink(filepath.Join(root.Path, link)); err != nil || target != want {
					t.Errorf("%s -> %q, %v", link, target, err)
				}
			}
		})
	}
}

// checkNoSecrets looks into every file and at every link of the tree: nothing may be or lead to what is private.
func checkNoSecrets(t *testing.T, dir string) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.Type()&fs.ModeSymlink != 0 {
			target, err := os.Readlink(p)
			for _, private := range []string{"shadow", "/root", "/home", "private"} {
				if strings.Contains(target, private) {
					t.Errorf("%s leads to %s", p, target)
				}
			}
			return err
		}
		if !d.Type().IsRegular() {
			return nil
		}
		data, err := os.ReadFile(p)
		if strings.Contains(string(data), "SECRET") {
			t.Errorf("%s holds a secret", p)
		}
		return err
	}))
}

func TestHostAccounts(t *testing.T) {
	needRoot(t)
	s := openStore(t, t.TempDir())
	root := hostRoot(t, s)
	for path, want := range map[string]struct {
		mode fs.FileMode
		uid  uint32
	}{
		"tmp": {fs.ModeDir | fs.ModeSticky | 0o777, 0}, "var/tmp": {fs.ModeDir | fs.ModeSticky | 0o777, 0},
		"home/user": {fs.ModeDir | 0o755, 1000}, "root": {fs.ModeDir | 0o700, 0}, "proc": {fs.ModeDir | 0o555, 0},
		"sys": {fs.ModeDir | 0o555, 0}, "dev": {fs.ModeDir | 0o755, 0}, "run": {fs.ModeDir | 0o755, 0}, "usr": {fs.ModeDir | 0o755, 0},
		"etc/passwd": {0o644, 0}, "etc/hosts": {0o644, 0}, "etc/resolv.conf": {0o644, 0}, "etc/hostname": {0o644, 0}, "etc/nsswitch.conf": {0o644, 0},
	} {
		info, err := os.Lstat(filepath.Join(root.Path, path))
		if err != nil || info.Mode() != want.mode || info.Sys().(*syscall.Stat_t).Uid != want.uid {
			t.Errorf("%s: %v, %v; want %v of %d", path, info, err, want.mode, want.uid)
		}
	}
}

// TestHostRuns starts programs of this host in the template, with nothing but chroot and binds.
func TestHostRuns(t *testing.T) {
	needRoot(t)
	s := openStore(t, t.TempDir())
	root := hostRoot(t, s)
	script := "set -e; mount --make-rprivate /; "
	for _, b := range root.Binds {
		script += "mount --bind -o ro " + b.Source + " " + root.Path + b.Target + "; "
	}
	script += `exec chroot --userspec=1000:1000 ` + root.Path + ` /bin/sh -c 'id -un; cd ~; pwd; ls -d /usr/bin/env; getent passwd user'`
	cmd := exec.CommandContext(t.Context(), "unshare", "--mount", "sh", "-c", script)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/home/user"}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), "user\n/home/user\n/usr/bin/env\nuser:x:1000:1000::/home/user:/bin/") {
		t.Errorf("%s, %v", out, err)
	}
}

func TestHostChanges(t *testing.T) {
	s := openStore(t, t.TempDir())
	s.host = fakeHost(t, true)
	before, first := hostRoot(t, s), time.Now()
	if again := hostRoot(t, s); again.Path != before.Path {
		t.Error("made anew without need")
	}
	old, err := s.Get(HostName)
	must(t, err)
	must(t, os.WriteFile(s.host+"/etc/ld.so.cache.new", []byte("newer"), 0o644), os.Rename(s.host+"/etc/ld.so.cache.new", s.host+"/etc/ld.so.cache"))
	after := hostRoot(t, s)
	if data, err := os.ReadFile(after.Path + "/etc/ld.so.cache"); err != nil || string(data) != "newer" || after.Path == before.Path {
		t.Errorf("after the host changed: %q, %v", data, err)
	}
	s.now = func() time.Time { return first.Add(10 * grace) }
	inUse := true
	for range 2 {
		_, _, err := s.Collect(t.Context(), func(d string) bool { return inUse && d == old.Digest })
		must(t, err)
		if _, err := os.Stat(before.Path); errors.Is(err, fs.ErrNotExist) == inUse {
			t.Errorf("in use %v: the old tree: %v", inUse, err)
		}
		if _, err := os.Stat(after.Path); err != nil {
			t.Errorf("the tree of today is gone: %v", err)
		}
		inUse = false
	}
}

func TestHostHasNoImage(t *testing.T) {
	s := openStore(t, t.TempDir())
	if _, err := s.Root(t.Context(), HostName, []driver.Form{driver.FormDisk}); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
}

func TestHostOfEmptyMachine(t *testing.T) {
	s := openStore(t, t.TempDir())
	s.host = t.TempDir()
	if root := hostRoot(t, s); len(root.Binds) != 0 {
		t.Errorf("%v", root.Binds)
	}
}

func BenchmarkHostRoot(b *testing.B) {
	s := openStore(b, b.TempDir())
	hostRoot(b, s)
	for b.Loop() {
		hostRoot(b, s)
	}
}

func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	for b.Loop() {
		openStore(b, dir)
	}
}
