package agentbin

import (
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"log/slog"
)

func TestPathGivesARunnableAgent(t *testing.T) {
	dir := t.TempDir()
	log := slog.New(slog.DiscardHandler)
	var group errgroup.Group
	paths := make([]string, 3)
	for i := range paths {
		group.Go(func() (err error) {
			paths[i], err = Path(t.Context(), dir, log)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		if path != paths[0] {
			t.Errorf("%s and %s for the same build", path, paths[0])
		}
	}
	info, err := os.Stat(paths[0])
	if err != nil || info.Mode().Perm() != 0o555 {
		t.Fatalf("mode %v, %v; want 0555", info.Mode(), err)
	}
	if info.Size() > 12<<20 {
		t.Errorf("the agent has %d bytes, more than 12 MiB: a copy of it is in every sandbox", info.Size())
	}
	out, err := exec.Command(paths[0], "--listen", "nonsense").CombinedOutput()
	if _, exited := err.(*exec.ExitError); !exited {
		t.Errorf("the agent took a nonsense address: %v %s", err, out)
	}
	left, _ := filepath.Glob(filepath.Join(dir, ".agent-*"))
	if len(left) > 0 {
		t.Errorf("temporary files left: %v", left)
	}
}

func TestInstallUnpacks(t *testing.T) {
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	io.WriteString(w, "agent")
	w.Close()
	path, err := install(t.TempDir(), digest(packed.Bytes()), func(w io.Writer) error { return unpack(w, &packed) })
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(path); string(got) != "agent" {
		t.Errorf("got %q", got)
	}
}

func TestBrokenArchiveInstallsNothing(t *testing.T) {
	dir := t.TempDir()
	if _, err := install(dir, "key", func(w io.Writer) error { return unpack(w, strings.NewReader("no gzip")) }); err == nil {
		t.Error("a broken archive was installed")
	}
	if entries, _ := os.ReadDir(dir); len(entries) > 0 {
		t.Errorf("left: %v", entries)
	}
}

func TestBuildKeyDiffersByProgram(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	own, err := buildKey(self)
	if err != nil {
		t.Fatal(err)
	}
	gotool, err := exec.LookPath("go")
	if err != nil {
		t.Skip("no Go toolchain to compare with")
	}
	if other, err := buildKey(gotool); err != nil || other == own {
		t.Errorf("key of %s: %s, %v; own %s", gotool, other, err, own)
	}
}
