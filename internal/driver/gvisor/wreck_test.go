package gvisor

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/agentbin"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/hostproc"
	"github.com/firebreak-dev/firebreak/internal/driver/oci"
)

func testDriver(t *testing.T) (*Driver, driver.Spec) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("an ordinary user has no cgroups that could be left")
	}
	dir := t.TempDir()
	agent, err := agentbin.Path(context.Background(), dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	d := New(Config{StateDir: filepath.Join(dir, "state"), Agent: agent, Exe: os.Getenv("FIREBREAK_GVISOR_PROGRAM")})
	spec := driver.Spec{ID: "wreck", Dir: filepath.Join(dir, "dir"),
		Root: driver.Root{Form: driver.FormDirectory, Path: filepath.Join(dir, "root")}}
	for _, sub := range []string{spec.Dir, spec.Root.Path} {
		if err := os.Mkdir(sub, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return d, spec
}

// nothingLeft fails the test if anything of a sandbox is left.
func nothingLeft(t *testing.T, d *Driver, spec driver.Spec) {
	t.Helper()
	if found, err := marked(filepath.Join(d.path(spec.ID), bundleName)); err != nil || len(found) > 0 {
		t.Errorf("processes are left: %v, %v", found, err)
	}
	host, err := oci.FindCgroups()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := host.Create(spec.ID, spec.Limits); err != nil {
		t.Errorf("a cgroup is left: %v", err)
	}
	if err := host.Open(spec.ID).Remove(context.Background()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(d.path(spec.ID)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the record is left: %v", err)
	}
	if names, err := os.ReadDir(spec.Dir); err != nil || len(names) > 0 {
		t.Errorf("files are left: %v, %v", names, err)
	}
}

// TestHalfMadeKilled kills everything of a sandbox that is being made, at many moments.
func TestHalfMadeKilled(t *testing.T) {
	d, spec := testDriver(t)
	mark := filepath.Join(d.path(spec.ID), bundleName)
	failed := 0
	for range 25 {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		done := make(chan error, 1)
		go func() {
			_, err := d.Create(ctx, spec)
			done <- err
		}()
		time.Sleep(time.Duration(rand.IntN(120)) * time.Millisecond)
		found, err := marked(mark)
		if err != nil {
			t.Fatal(err)
		}
		if len(found) > 0 {
			_ = unix.Kill(found[rand.IntN(len(found))].PID, unix.SIGKILL) // it may have ended meanwhile
		}
		if err := <-done; err != nil {
			failed++
			nothingLeft(t, d, spec) // of its own accord
		}
		if err := d.Destroy(ctx, spec); err != nil {
			t.Fatal(err)
		}
		nothingLeft(t, d, spec)
		cancel()
	}
	if failed == 0 {
		t.Error("not one Create failed: nothing was tested")
	}
	t.Logf("%d of 25 failed", failed)
}

// TestWrecks gives Destroy what a crash can leave, one thing at a time.
func TestWrecks(t *testing.T) {
	for name, wreck := range map[string]func(d *Driver, spec driver.Spec) error{
		"an empty record": func(d *Driver, spec driver.Spec) error { return os.MkdirAll(d.path(spec.ID), 0o700) },
		"a damaged state": func(d *Driver, spec driver.Spec) error {
			return errors.Join(os.MkdirAll(d.path(spec.ID), 0o700),
				os.WriteFile(filepath.Join(d.path(spec.ID), stateName), []byte("{"), 0o600))
		},
		"the state of an earlier boot, whose pid another has": func(d *Driver, spec driver.Spec) error {
			st := state{Sandbox: process{PID: os.Getpid(), Start: 1}, Boot: "another"}
			return errors.Join(os.MkdirAll(d.path(spec.ID), 0o700), st.save(d.path(spec.ID)))
		},
		"a pid that another has": func(d *Driver, spec driver.Spec) error {
			boot, err := hostproc.BootID()
			st := state{Sandbox: process{PID: os.Getpid(), Start: 1}, Boot: boot}
			return errors.Join(err, os.MkdirAll(d.path(spec.ID), 0o700), st.save(d.path(spec.ID)))
		},
		"a cgroup and a layer": func(d *Driver, spec driver.Spec) error {
			host, err := oci.FindCgroups()
			if err != nil {
				return err
			}
			_, err = host.Create(spec.ID, spec.Limits)
			return errors.Join(err, os.MkdirAll(d.path(spec.ID), 0o700), os.Mkdir(filepath.Join(spec.Dir, layerName), 0o700))
		},
	} {
		t.Run(name, func(t *testing.T) {
			d, spec := testDriver(t)
			if err := wreck(d, spec); err != nil {
				t.Fatal(err)
			}
			ctx := context.Background()
			if _, err := d.Open(ctx, spec); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("Open: %v, want fs.ErrNotExist", err)
			}
			if ids, err := d.List(ctx); err != nil || len(ids) != 1 || ids[0] != spec.ID {
				t.Errorf("List: %v, %v", ids, err)
			}
			if err := d.Destroy(ctx, spec); err != nil {
				t.Fatal(err)
			}
			nothingLeft(t, d, spec)
		})
	}
}

func TestHasArgument(t *testing.T) {
	for args, want := range map[string]bool{
		"runsc-gofer\x00/s/a/bundle\x00":        true,
		"runsc-sandbox\x00--bundle=/s/a/bundle": true,
		"runsc-gofer\x00/s/ab/bundle\x00":       false,
		"vim\x00/s/a/bundle/config.json\x00":    false,
		"":                                      false,
	} {
		if got := hasArgument([]byte(args), "/s/a/bundle"); got != want {
			t.Errorf("hasArgument(%q) = %v", args, got)
		}
	}
}
