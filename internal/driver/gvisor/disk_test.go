package gvisor_test

import (
	"context"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/drivertest"
	"github.com/firebreak-dev/firebreak/internal/image"
)

// smallTree makes a root of a few of this host's programs and the libraries that they load.
func smallTree(t testing.TB) string {
	t.Helper()
	root := t.TempDir()
	for _, name := range []string{"sh", "true", "cat", "sleep", "id", "pwd", "echo", "mkdir", "ls", "chmod", "chown", "stat",
		"ln", "tr", "rm"} {
		file, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		copyInto(t, file, filepath.Join(root, "usr/bin", name))
		out, err := exec.Command("ldd", file).Output()
		if err != nil {
			t.Fatalf("ldd %s: %v", file, err)
		}
		for field := range strings.FieldsSeq(string(out)) {
			if filepath.IsAbs(field) {
				copyInto(t, field, filepath.Join(root, field))
			}
		}
	}
	if err := os.MkdirAll(filepath.Join(root, "usr/local/bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("usr/bin", filepath.Join(root, "bin")); err != nil {
		t.Fatal(err)
	}
	return root
}

func copyInto(t testing.TB, from, to string) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestDisk is the part of the suite in which a disk image differs from a directory.
func TestDisk(t *testing.T) {
	ctx := context.Background()
	images, err := image.Open(t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	// A creator is this test binary again, and dies before it could use a template of its own.
	if _, err := images.Make(ctx, image.Source{Path: smallTree(t)}, image.MakeOptions{Name: "small"}); err != nil {
		t.Fatal(err)
	}
	s := drivertest.Suite{
		Name: "gvisor", Caps: allCaps, New: newDriver,
		Root: func(t testing.TB) driver.Root {
			root, err := images.Root(ctx, "small", []driver.Form{driver.FormDisk})
			if err != nil {
				t.Fatal(err)
			}
			return root
		},
	}
	for _, name := range []string{"lifecycle", "mute-agent", "agent-ends-at-once", "open-by-second-driver",
		"cancelled-at-many-points", "exec-table", "users", "root-user", "files-round-trip", "template-untouched", "mounts", "limit-disk", "limit-memory",
		"limit-processes", "host-files-invisible", "mounts-safe", "network-loopback-only", "hammer"} {
		t.Run(name, func(t *testing.T) { s.RunCheck(t, name) })
	}
}
