package process

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/agentbin"
	"github.com/firebreak-dev/firebreak/internal/driver"
)

// TestAgentKilledFromOutside: both who made the sandbox and who found it are told that it was lost.
func TestAgentKilledFromOutside(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	agent, err := agentbin.Path(ctx, t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	conf := Config{StateDir: t.TempDir(), Agent: agent}
	maker, finder := New(conf), New(conf)
	spec := driver.Spec{ID: "lost", Dir: t.TempDir()}
	t.Cleanup(func() {
		if err := maker.Destroy(context.Background(), spec); err != nil {
			t.Error(err)
		}
	})
	made, err := maker.Create(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	found, err := finder.Open(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	who, err := maker.readAgent(spec.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(who.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for name, sb := range map[string]driver.Sandbox{"made": made, "found": found} {
		exit, err := sb.Wait(ctx)
		if err != nil || exit.Reason != firebreak.EndLost || exit.Code != -1 {
			t.Errorf("%s: Wait = %+v, %v; want reason %s", name, exit, err, firebreak.EndLost)
		}
		if _, err := sb.Dial(ctx); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: Dial: %v, want fs.ErrNotExist", name, err)
		}
		if _, err := sb.Usage(ctx); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: Usage: %v, want fs.ErrNotExist", name, err)
		}
	}
	if ids, err := finder.List(ctx); err != nil || len(ids) != 1 {
		t.Errorf("List = %v, %v; want the lost one, until it is destroyed", ids, err)
	}
}

// TestDamagedRecord: a record that cannot be read is a wreck, and Destroy clears it.
func TestDamagedRecord(t *testing.T) {
	d := New(Config{StateDir: t.TempDir()})
	spec := driver.Spec{ID: "damaged", Dir: t.TempDir()}
	for _, content := range []string{"", "{", `{"pid":-1}`, `{"pid":1,"start":1}`, `{"pid":"x"}`} {
		dir := filepath.Join(d.cfg.StateDir, string(spec.ID))
		if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, agentName), []byte(content), 0o600)); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Open(t.Context(), spec); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Open with the record %q: %v, want fs.ErrNotExist", content, err)
		}
		if err := d.Destroy(t.Context(), spec); err != nil {
			t.Errorf("Destroy with the record %q: %v", content, err)
		}
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("after Destroy the record %q is still there: %v", content, err)
		}
	}
}
