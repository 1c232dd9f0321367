package memfs_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/memfs"
)

// FuzzResolve: a path leads where Linux leads it in a directory that is its root (openat2 with RESOLVE_IN_ROOT), with the
// same error, whatever links are on the way.
func FuzzResolve(f *testing.F) {
	f.Add("../a/./b//l1/x", "/b", "../../a", "l1/..")
	f.Add("l0/l1/l2", "l1", "l2", "/")
	f.Add("a/b/f/..", "a/b/f/", ".", "l0")
	f.Add("l2/f", "a/b/", "l0/../b/.", "/l1/")
	f.Fuzz(func(t *testing.T, name, first, second, third string) {
		links := []string{first, second, third}
		for _, text := range append(links, name) {
			// The host's own limits of a whole path, with the temporary directory, are not the question.
			if len(text) > 1000 || strings.Contains(text, "\x00") {
				t.Skip()
			}
		}
		root := t.TempDir()
		m := memfs.New(memfs.Options{})
		if err := errors.Join(os.MkdirAll(filepath.Join(root, "a/b"), 0o755), m.MkdirAll("/a/b", 0o755)); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, "a/b/f"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		write(t, m, "/a/b/f", "")
		for i, target := range links {
			at := [...]string{"l0", "a/l1", "a/b/l2"}[i]
			real, ours := os.Symlink(target, filepath.Join(root, at)), m.Symlink(target, at)
			if errno(real) != errno(ours) {
				t.Fatalf("symlink %q: %v, Linux says %v", target, ours, real)
			}
		}
		want, wantErr := linux(t, root, name)
		got, err := m.Resolve(name)
		if errno(err) != errno(wantErr) || got != want {
			t.Errorf("%q with links %q leads to %q, %v; on Linux to %q, %v", name, links, got, err, want, wantErr)
		}
	})
}

func errno(err error) syscall.Errno {
	var e syscall.Errno
	errors.As(err, &e)
	return e
}

// linux resolves name as if root were the root directory.
func linux(t *testing.T, root, name string) (string, error) {
	t.Helper()
	at, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(at) //nolint:errcheck // nothing was written
	fd, err := unix.Openat2(at, name, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
	if err != nil {
		return "", err
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written
	real, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join("/", strings.TrimPrefix(real, root)), nil
}
