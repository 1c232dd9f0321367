package process

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

const (
	ownerName  = "owner"      // in StateDir/<id>: a Create has taken it
	agentName  = "agent.json" // in StateDir/<id>: the identity of the agent
	endingName = "ending"     // in StateDir/<id>: somebody has begun to destroy it
)

// identity is a process that can be told from a later one with the same pid.
type identity struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks since boot
	Boot  string `json:"boot"`
}

// record is the directory StateDir/<id>, locked while a sandbox is being started or removed. The lock is the kernel's,
// so that it ends with the process that holds it.
type record struct {
	path string
	dir  *os.File
}

// reserve makes the record of a new sandbox, and locks it. fs.ErrExist if there is one already.
func (d *Driver) reserve(ctx context.Context, id driver.ID) (*record, error) {
	path := d.recordPath(id)
	for {
		if err := d.makeRecord(path); err != nil {
			return nil, err
		}
		r, err := openRecord(ctx, path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a Destroy came between
		}
		if err != nil {
			return nil, err
		}
		// Whoever is first to lock a record without an owner owns it; a Destroy may have removed the one made above, and
		// another Create made this one.
		owner, err := os.OpenFile(filepath.Join(path, ownerName), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			r.close()
			return nil, err
		}
		return r, owner.Close()
	}
}

// seize locks the record of a sandbox that is to be destroyed, and makes one if there is none: so that nobody can
// begin to make the sandbox meanwhile.
func (d *Driver) seize(ctx context.Context, id driver.ID) (*record, error) {
	path := d.recordPath(id)
	for {
		r, err := openRecord(ctx, path)
		if !errors.Is(err, fs.ErrNotExist) {
			return r, err
		}
		if err := d.makeRecord(path); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
	}
}

func (d *Driver) recordPath(id driver.ID) string { return filepath.Join(d.cfg.StateDir, string(id)) }

func (d *Driver) makeRecord(path string) error {
	if err := os.MkdirAll(d.cfg.StateDir, 0o700); err != nil {
		return fmt.Errorf("make state directory: %w", err)
	}
	return os.Mkdir(path, 0o700)
}

// openRecord locks a record, waiting for whoever has it. fs.ErrNotExist if there is none.
func openRecord(ctx context.Context, path string) (*record, error) {
	for {
		dir, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		r := &record{path: path, dir: dir}
		err = r.lock(ctx)
		if err == nil && r.current() {
			return r, nil
		}
		r.close()
		if err != nil {
			return nil, err
		}
	}
}

// lock waits until nobody else has the record.
func (r *record) lock(ctx context.Context) error {
	for {
		err := unix.Flock(int(r.dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("lock %s: %w", r.path, err)
		}
		if err := sleep(ctx, 2*time.Millisecond); err != nil {
			return err
		}
	}
}

func (r *record) unlock() { _ = unix.Flock(int(r.dir.Fd()), unix.LOCK_UN) }

func (r *record) close() { _ = r.dir.Close() }

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

func (r *record) remove() error { return os.RemoveAll(r.path) }

// save writes the agent's identity; it is there wholly or not at all.
func (r *record) save(agent identity) error {
	data, err := json.Marshal(agent)
	if err != nil {
		return err
	}
	temp := filepath.Join(r.path, agentName+".new")
	if err := os.WriteFile(temp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(temp, filepath.Join(r.path, agentName))
}

// ending reports whether somebody has begun to destroy the sandbox, or has done so.
func (d *Driver) ending(id driver.ID) bool {
	dir := filepath.Join(d.cfg.StateDir, string(id))
	if _, err := os.Stat(filepath.Join(dir, endingName)); err == nil {
		return true
	}
	_, err := os.Stat(dir)
	return errors.Is(err, fs.ErrNotExist)
}

// readAgent returns the agent of a sandbox if it lives, else fs.ErrNotExist.
func (d *Driver) readAgent(id driver.ID) (identity, error) {
	var agent identity
	data, err := os.ReadFile(filepath.Join(d.cfg.StateDir, string(id), agentName))
	if err != nil {
		return agent, err
	}
	if err := json.Unmarshal(data, &agent); err != nil {
		return agent, fmt.Errorf("record is damaged (%v): %w", err, fs.ErrNotExist)
	}
	if !agent.alive() {
		return agent, fmt.Errorf("its agent has ended: %w", fs.ErrNotExist)
	}
	return agent, nil
}

// alive reports whether this very process runs; a zombie does not.
func (i identity) alive() bool {
	if boot, err := hostproc.BootID(); err != nil || i.PID <= 1 || i.Boot != boot {
		return false
	}
	st, err := hostproc.ReadStat(i.PID)
	return err == nil && st.Start == i.Start && st.Running()
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
