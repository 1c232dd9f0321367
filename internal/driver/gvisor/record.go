package gvisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/hostproc"
)

// What lies in StateDir/<id>.
const (
	stateName  = "state.json" // the processes of a sandbox that has been made
	endingName = "ending"     // somebody has begun to destroy it
	bundleName = "bundle"     // there is none; its path marks the processes of the sandbox
	panicName  = "panic.log"  // last words of gVisor itself
	usageName  = "usage.json" // what the sandbox had taken when it was paused, where nothing but gVisor counts it
	// controlSocket is where the sentry takes calls, and pauserSocket where its pauser does, if it has one.
	controlSocket = "control.sock"
	pauserSocket  = "pauser.sock"
)

// layerName is where, in Spec.Dir, the writable layer lies for a moment before it has no name, on file systems that
// cannot make a file without one.
const layerName = "gvisor"

// state is what a sandbox that has been made consists of.
type state struct {
	Sandbox process `json:"sandbox"`
	Gofer   process `json:"gofer,omitzero"` // the zero value if it has none
	Boot    string  `json:"boot"`           // the boot of the host for which the pids hold
}

// record is the directory StateDir/<id>, locked while a sandbox is being made or removed. The lock is the kernel's: it
// ends with the process that holds it. What that process has started by then waits for it and ends too, or bears the mark.
type record struct {
	path string
	dir  *os.File
}

// reserve makes the record of a new sandbox, and locks it.
func (d *Driver) reserve(id driver.ID) (*record, error) {
	if err := os.MkdirAll(d.cfg.StateDir, 0o700); err != nil {
		return nil, fmt.Errorf("make state directory: %w", err)
	}
	path := d.path(id)
	if err := os.Mkdir(path, 0o700); err != nil {
		return nil, fmt.Errorf("record sandbox %s: %w", id, err)
	}
	r, err := lockDir(path)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("record sandbox %s: %w", id, err), os.Remove(path))
	}
	if !r.current() { // a Destroy was quicker
		r.close()
		return nil, fmt.Errorf("record sandbox %s: it was destroyed meanwhile: %w", id, fs.ErrNotExist)
	}
	return r, nil
}

// openRecord locks the record at path, waiting for whoever has it. fs.ErrNotExist if there is none.
func openRecord(ctx context.Context, path string) (*record, error) {
	for {
		r, err := lockDir(path)
		if err == nil && r.current() {
			return r, nil
		}
		if err == nil {
			r.close() // removed while we waited for it; perhaps there is a new one
			continue
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, err
		}
		if err := sleep(ctx, 2*time.Millisecond); err != nil {
			return nil, err
		}
	}
}

// lockDir opens and locks a directory; unix.EWOULDBLOCK if somebody else has the lock.
func lockDir(path string) (*record, error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		dir.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return &record{path: path, dir: dir}, nil
}

func (r *record) unlock() { _ = unix.Flock(int(r.dir.Fd()), unix.LOCK_UN) }

func (r *record) close() { _ = r.dir.Close() }

// inside is a path of this very directory, as long as it is not closed. Nothing can be made in one that was removed.
func (r *record) inside() string { return fmt.Sprintf("/proc/self/fd/%d", r.dir.Fd()) }

// current reports whether the directory still is at its path.
func (r *record) current() bool {
	ours, err := r.dir.Stat()
	if err != nil {
		return false
	}
	there, err := os.Stat(r.path)
	return err == nil && os.SameFile(ours, there)
}

func (r *record) markEnding() error {
	return os.WriteFile(filepath.Join(r.path, endingName), nil, 0o600)
}

// ended reports whether somebody has begun to destroy the sandbox with this record, or has done so.
func ended(path string) bool {
	if _, err := os.Stat(filepath.Join(path, endingName)); err == nil {
		return true
	}
	_, err := os.Stat(path)
	return errors.Is(err, fs.ErrNotExist)
}

// save writes the state into a record's directory.
func (st state) save(path string) error { return save(filepath.Join(path, stateName), st) }

// save writes a file of a record; it is there wholly or not at all.
func save(name string, what any) error {
	data, err := json.Marshal(what)
	if err != nil {
		return err
	}
	if err := os.WriteFile(name+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}

// readState reads the state from a record's directory; fs.ErrNotExist if the sandbox was never made or its record is
// damaged.
func readState(path string) (state, error) {
	var st state
	data, err := os.ReadFile(filepath.Join(path, stateName))
	if err != nil {
		return st, err
	}
	if err := json.Unmarshal(data, &st); err != nil {
		return st, fmt.Errorf("its record is damaged (%v): %w", err, fs.ErrNotExist)
	}
	if boot, err := hostproc.BootID(); err != nil || st.Boot != boot {
		return st, fmt.Errorf("the host was restarted: %w", fs.ErrNotExist)
	}
	return st, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
