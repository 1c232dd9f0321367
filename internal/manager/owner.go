package manager

import (
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/firebreak-dev/firebreak/internal/driver"
)

// owner is this process in the records: a file that it keeps locked for as long as it lives. The kernel takes the lock
// away however the process ends, which no number of a process could tell.
type owner struct {
	name string
	dir  string
	file *os.File
}

func newOwner(dir string) (*owner, error) {
	for {
		name := strings.ToLower(rand.Text())
		f, err := os.OpenFile(lockPath(dir, name), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
		if err != nil {
			return nil, err
		}
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
			return nil, errors.Join(&fs.PathError{Op: "lock", Path: f.Name(), Err: err}, f.Close())
		}
		// Another process may have taken the file for a dead one's and removed it before the lock was there.
		ours, err := f.Stat()
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		if there, err := os.Stat(f.Name()); err == nil && os.SameFile(ours, there) {
			return &owner{name: name, dir: dir, file: f}, nil
		}
		if err := f.Close(); err != nil {
			return nil, err
		}
	}
}

func lockPath(dir, name string) string { return filepath.Join(dir, name+".lock") }

// release gives the name up: what still bears it has no owner any more.
func (o *owner) release() error {
	return errors.Join(os.Remove(o.file.Name()), o.file.Close())
}

// alive reports whether the process of this name lives, and clears away its file if not. In doubt it lives: what it owns
// is then left alone.
func (o *owner) alive(name string) bool {
	if name == o.name {
		return true
	}
	if driver.ID(name).Check() != nil {
		return false
	}
	f, err := os.Open(lockPath(o.dir, name))
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist)
	}
	defer f.Close()
	// Shared, so that two who look do not take each other for the owner.
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB); err != nil {
		return true
	}
	_ = os.Remove(f.Name()) // a file that stays is looked at again
	return false
}

// sweep clears away the files of all owners that are dead.
func (o *owner) sweep() error {
	files, err := os.ReadDir(o.dir)
	for _, f := range files {
		if name, ok := strings.CutSuffix(f.Name(), ".lock"); ok {
			o.alive(name)
		}
	}
	return err
}
