package container

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// claim is a directory that exists as long as its sandbox, and a lock on it: whoever makes or destroys holds it.
// The kernel frees the lock of a process that is killed.
type claim struct {
	path string
	dir  *os.File
}

// newClaim makes the directory, locked; fs.ErrExist if it is there.
func newClaim(ctx context.Context, path string) (*claim, error) {
	if err := os.Mkdir(path, 0o700); err != nil {
		return nil, err
	}
	c, err := openClaim(path)
	if errors.Is(err, fs.ErrNotExist) { // a Destroy of this very moment took it for a wreck
		return nil, fmt.Errorf("%s: %w", path, fs.ErrExist)
	}
	if err != nil {
		return nil, errors.Join(err, os.Remove(path))
	}
	if err := c.lock(ctx); err != nil {
		if c.current() {
			err = errors.Join(err, os.Remove(path))
		}
		c.close()
		return nil, err
	}
	return c, nil
}

func openClaim(path string) (*claim, error) {
	dir, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	return &claim{path: path, dir: dir}, nil
}

// lock waits for the lock; fs.ErrNotExist if the claim was given up meanwhile.
func (c *claim) lock(ctx context.Context) error {
	for pause := 200 * time.Microsecond; ; pause = min(2*pause, 10*time.Millisecond) {
		err := unix.Flock(int(c.dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil && c.current():
			return nil
		case err == nil:
			return fmt.Errorf("%s: %w", c.path, fs.ErrNotExist)
		case !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("lock %s: %w", c.path, err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

func (c *claim) unlock() { _ = unix.Flock(int(c.dir.Fd()), unix.LOCK_UN) } // closing it would do as well

// current reports whether the directory at the path is still the one that was opened.
func (c *claim) current() bool {
	mine, err := c.dir.Stat()
	if err != nil {
		return false
	}
	now, err := os.Lstat(c.path)
	return err == nil && os.SameFile(mine, now)
}

func (c *claim) close() { _ = c.dir.Close() } // a directory opened for reading has nothing to lose
