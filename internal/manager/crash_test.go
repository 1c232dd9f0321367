package manager

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/fake"
	"github.com/firebreak-dev/firebreak/internal/store"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("MANAGER_TEST_CHILD"); dir != "" {
		os.Exit(child(dir))
	}
	os.Exit(m.Run())
}

// disk is a driver whose sandboxes are files: they outlive the process as real ones do. Their agents answer everything
// with 204, from whatever process has a handle.
type disk struct{ dir string }

var _ driver.Driver = disk{}

func (d disk) path(id driver.ID) string { return filepath.Join(d.dir, string(id)) }

func (d disk) Probe(context.Context) (driver.Info, error) {
	return driver.Info{Name: "disk", Boundary: firebreak.BoundaryLanguage, Caps: driver.CapDetach, Forms: []driver.Form{driver.FormDirectory}}, nil
}

func (d disk) Create(ctx context.Context, spec driver.Spec) (driver.Sandbox, error) {
	f, err := os.OpenFile(d.path(spec.ID), os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Close(), os.WriteFile(filepath.Join(spec.Dir, "x"), nil, 0o600)); err != nil {
		return nil, err
	}
	return d.Open(ctx, spec)
}

func (d disk) Open(_ context.Context, spec driver.Spec) (driver.Sandbox, error) {
	if _, err := os.Stat(d.path(spec.ID)); err != nil {
		return nil, err
	}
	return diskBox{d, spec.ID}, nil
}

func (d disk) List(context.Context) ([]driver.ID, error) {
	entries, err := os.ReadDir(d.dir)
	var ids []driver.ID
	for _, e := range entries {
		ids = append(ids, driver.ID(e.Name()))
	}
	return ids, err
}

func (d disk) Destroy(_ context.Context, spec driver.Spec) error {
	return errors.Join(os.RemoveAll(filepath.Join(spec.Dir, "x")), os.RemoveAll(d.path(spec.ID)))
}

type diskBox struct {
	d  disk
	id driver.ID
}

func (b diskBox) Dial(context.Context) (net.Conn, error) {
	ours, theirs := net.Pipe()
	go func() {
		defer theirs.Close()
		buf := make([]byte, 64<<10)
		for {
			if _, err := theirs.Read(buf); err != nil {
				return
			}
			if _, err := io.WriteString(theirs, "HTTP/1.1 204 "+http.StatusText(http.StatusNoContent)+"\r\n\r\n"); err != nil {
				return
			}
		}
	}()
	return ours, nil
}

func (b diskBox) Wait(ctx context.Context) (driver.Exit, error) {
	for {
		if _, err := os.Stat(b.d.path(b.id)); errors.Is(err, fs.ErrNotExist) {
			return driver.Exit{Reason: firebreak.EndExited}, nil
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return driver.Exit{}, ctx.Err()
		}
	}
}

func (b diskBox) Usage(context.Context) (driver.Usage, error) { return driver.Usage{}, nil }

func diskProcess(dir string, step func(string)) (*Manager, *store.Store, error) {
	log := slog.New(slog.DiscardHandler)
	s, err := store.Open(operator(context.Background()), dir, log)
	if err != nil {
		return nil, nil, err
	}
	boxes := filepath.Join(dir, "boxes")
	if err := os.MkdirAll(boxes, 0o700); err != nil {
		return nil, nil, err
	}
	rules := filepath.Join(dir, fmt.Sprintf("policy%d.yaml", os.Getpid())) // several processes write it
	if err := os.WriteFile(rules, []byte(strings.ReplaceAll(anything, "fake", "disk")), 0o600); err != nil {
		return nil, nil, err
	}
	cfg := Config{StateDir: dir, Store: s, Images: images{}, Drivers: drivers{"disk": disk{boxes}}, Policy: rules, Log: log}
	if own := os.Getenv("MANAGER_TEST_FLEETING"); own != "" {
		cfg.Drivers, cfg.Adopt = drivers{"disk": fleeting{fake.New(), "disk", own}}, true
	}
	m, err := newManager(cfg, step)
	return m, s, err
}

// child makes a sandbox, and dies at the step that the environment names; at none it makes and deletes for ever.
func child(dir string) int {
	at, detached := os.Getenv("MANAGER_TEST_STEP"), os.Getenv("MANAGER_TEST_DETACHED") != ""
	m, _, err := diskProcess(dir, func(step string) {
		if step == at {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL) // it cannot fail
			select {}
		}
	})
	if err != nil {
		fmt.Println("error", err)
		return 1
	}
	for {
		rec, _, err := m.Create(operator(context.Background()), Request{Detached: detached})
		if err == nil {
			fmt.Println("created", rec.ID)
			_, err = m.Delete(operator(context.Background()), string(rec.ID))
		}
		if err != nil {
			fmt.Println("error", err)
			return 1
		}
		fmt.Println("deleted", rec.ID)
	}
}

func startChild(t *testing.T, dir string, env ...string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	cmd := exec.CommandContext(operator(t.Context()), os.Args[0])
	cmd.Env = append(append(os.Environ(), "MANAGER_TEST_CHILD="+dir), env...)
	out := &bytes.Buffer{}
	cmd.Stdout = out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, out
}

func waitKilled(t *testing.T, cmd *exec.Cmd, out *bytes.Buffer) {
	t.Helper()
	err := cmd.Wait()
	if s, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || s.Signal() != syscall.SIGKILL {
		t.Fatalf("the child ended with %v, not as it was meant to: %s", err, out)
	}
}

// after opens a process on what a dead one left, and returns what it holds once it has seen to it.
func after(t *testing.T, dir string) (held []driver.ID, rows map[driver.ID]store.Record, m *Manager) {
	t.Helper()
	m, s, err := diskProcess(dir, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(m.Close(), s.Close()); err != nil {
			t.Error(err)
		}
	})
	rows = records(t, m)
	held, err = disk{filepath.Join(dir, "boxes")}.List(operator(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(filepath.Join(dir, "sandboxes"))
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != len(held) {
		t.Errorf("%d directories of %d sandboxes", len(entries), len(held))
	}
	return held, rows, m
}

func TestCrashAtEveryStep(t *testing.T) {
	for _, step := range []string{"saved", "directory", "created", "answered", "running"} {
		for _, detached := range []string{"", "yes"} {
			t.Run(step+detached, func(t *testing.T) {
				dir := t.TempDir()
				cmd, out := startChild(t, dir, "MANAGER_TEST_STEP="+step, "MANAGER_TEST_DETACHED="+detached)
				waitKilled(t, cmd, out)
				held, rows, m := after(t, dir)
				if step == "running" && detached != "" {
					if len(held) != 1 || len(rows) != 1 || rows[held[0]].State != firebreak.StateRunning {
						t.Fatalf("held %v, records %v, want the detached sandbox to live", held, rows)
					}
					if _, err := m.Guest(operator(t.Context()), string(held[0])); err != nil {
						t.Errorf("it is not reached: %v", err)
					}
					return
				}
				if len(held) != 0 || len(rows) != 0 {
					t.Errorf("held %v, records %v, want nothing left", held, rows)
				}
			})
		}
	}
}

// Several processes make and delete at once and are killed at random moments, while another one lives on.
func TestKilledAtRandom(t *testing.T) {
	dir := t.TempDir()
	living, s, err := diskProcess(dir, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	ours := mustCreate(t, living, Request{})
	rounds := 8
	if testing.Short() {
		rounds = 2
	}
	for round := range rounds {
		var wg sync.WaitGroup
		for p := range 3 {
			cmd, out := startChild(t, dir)
			wg.Go(func() {
				time.Sleep(time.Duration(40+13*round+29*p) * time.Millisecond)
				_ = cmd.Process.Kill() // it lives: it never ends by itself
				_ = cmd.Wait()
				if strings.Contains(out.String(), "error") {
					t.Errorf("child: %s", out)
				}
			})
		}
		wg.Wait()
	}
	held, rows, _ := after(t, dir)
	if len(held) != 1 || held[0] != ours.ID || len(rows) != 1 || rows[ours.ID].State != firebreak.StateRunning {
		t.Errorf("held %v, records %v, want only the living process's %s", held, rows, ours.ID)
	}
	if err := errors.Join(living.Close(), s.Close()); err != nil {
		t.Error(err)
	}
	if held, rows, _ := after(t, dir); len(held) != 0 || len(rows) != 0 {
		t.Errorf("held %v, records %v after all processes ended", held, rows)
	}
}
