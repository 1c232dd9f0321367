package gvisor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/oci"
)

// Destroy implements driver.Driver. The record goes last: as long as it is there, so may be anything else.
func (d *Driver) Destroy(ctx context.Context, spec driver.Spec) error {
	if err := errors.Join(ctx.Err(), spec.ID.Check()); err != nil {
		return err
	}
	rec, err := openRecord(ctx, d.path(spec.ID))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("destroy sandbox %s: %w", spec.ID, err)
	}
	defer rec.close()
	if err := d.clear(ctx, spec, rec); err != nil {
		return fmt.Errorf("destroy sandbox %s: %w", spec.ID, err)
	}
	return nil
}

func (d *Driver) clear(ctx context.Context, spec driver.Spec, rec *record) error {
	if err := rec.markEnding(); err != nil {
		return err
	}
	if err := killAll(ctx, rec.path); err != nil {
		return err
	}
	host, err := oci.FindCgroups()
	if err != nil {
		return err
	}
	if err := host.Open(spec.ID).Remove(ctx); err != nil {
		return err
	}
	if err := removeLayer(spec.Dir); err != nil {
		return err
	}
	return os.RemoveAll(rec.path)
}

// killAll ends the processes of a sandbox. Once made it consists of two, which the record names: all others are
// children of the first in a pid namespace, and end with it. Of a half-made one we know but the mark.
func killAll(ctx context.Context, record string) error {
	st, err := readState(record)
	if errors.Is(err, fs.ErrNotExist) {
		return killMarked(ctx, filepath.Join(record, bundleName))
	}
	if err != nil {
		return err
	}
	return st.kill(ctx)
}

// kill ends both: the gofer dies while the sentry is waited for.
func (st state) kill(ctx context.Context) error {
	if err := st.Gofer.signal(unix.SIGKILL); err != nil {
		return err
	}
	if err := st.Sandbox.kill(ctx); err != nil {
		return err
	}
	return st.Gofer.kill(ctx)
}

func removeLayer(dir string) error {
	if dir == "" {
		return nil
	}
	return os.RemoveAll(filepath.Join(dir, layerName))
}
