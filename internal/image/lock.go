package image

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// lock is an advisory lock on a file. The kernel drops it when its holder dies.
type lock struct{ file *os.File }

func (l lock) release() { _ = l.file.Close() }

// tryLock locks the file at path, which it makes if need be; ok is false if others hold it.
func tryLock(path string, how int) (l lock, ok bool, err error) {
	return tryLockFile(path, os.O_RDWR|os.O_CREATE, how)
}

func tryLockFile(path string, flags, how int) (l lock, ok bool, err error) {
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return lock{}, false, err
	}
	err = unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
	if err == nil {
		return lock{f}, true, nil
	}
	_ = f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, unix.EINTR) {
		return lock{}, false, nil
	}
	return lock{}, false, err
}

// waitLock is tryLock until it succeeds or ctx ends.
func waitLock(ctx context.Context, path string, how int) (lock, error) {
	for pause := time.Millisecond; ; pause = min(pause*2, 50*time.Millisecond) {
		l, ok, err := tryLock(path, how)
		if ok || err != nil {
			return l, err
		}
		select {
		case <-ctx.Done():
			return lock{}, ctx.Err()
		case <-time.After(pause):
		}
	}
}

// hold takes the lock of the whole store: shared (unix.LOCK_SH) to make something appear, exclusive (unix.LOCK_EX) to
// take something away.
func (s *Store) hold(ctx context.Context, how int) (lock, error) {
	return waitLock(ctx, filepath.Join(s.dir, lockFile), how)
}

// work is a directory for something being made. Its lock tells sweep that its maker lives.
type work struct {
	dir  string
	lock lock
}

func (s *Store) newWork(ctx context.Context) (work, error) {
	l, err := s.hold(ctx, unix.LOCK_SH) // keeps sweep away until our own lock is taken
	if err != nil {
		return work{}, err
	}
	defer l.release()
	dir, err := os.MkdirTemp(filepath.Join(s.dir, workDir), "")
	if err != nil {
		return work{}, err
	}
	own, ok, err := tryLock(filepath.Join(dir, lockFile), unix.LOCK_EX)
	if err != nil || !ok {
		return work{}, errors.Join(err, os.RemoveAll(dir))
	}
	return work{dir: dir, lock: own}, nil
}

func (w work) path(name string) string { return filepath.Join(w.dir, name) }

// remove deletes the directory and what is left in it.
func (w work) remove() error {
	defer w.lock.release()
	return removeAll(w.dir)
}

// sweep removes work directories whose makers died. The caller holds the store's exclusive lock.
func (s *Store) sweep() (freed int64, removed int, err error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, workDir))
	if err != nil {
		return 0, 0, err
	}
	for _, e := range entries {
		dir := filepath.Join(s.dir, workDir, e.Name())
		// Not made if missing: its owner may be removing the directory at this moment.
		l, ok, lockErr := tryLockFile(filepath.Join(dir, lockFile), os.O_RDWR, unix.LOCK_EX)
		if lockErr == nil && !ok {
			continue
		}
		size := diskUse(dir)
		rmErr := removeAll(dir)
		if lockErr == nil {
			l.release()
		}
		if rmErr != nil {
			err = errors.Join(err, rmErr)
			continue
		}
		freed, removed = freed+size, removed+1
	}
	return freed, removed, err
}

// sweepIfIdle sweeps unless another process is just publishing or collecting.
func (s *Store) sweepIfIdle() {
	l, ok, err := tryLock(filepath.Join(s.dir, lockFile), unix.LOCK_EX)
	if err != nil || !ok {
		return
	}
	defer l.release()
	if _, _, err := s.sweep(); err != nil {
		s.log.Warn("leftovers stay", "dir", s.dir, "error", err)
	}
}

// removeAll is os.RemoveAll that also gets into directories which their owner may not write to.
func removeAll(dir string) error {
	err := os.RemoveAll(dir)
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	_ = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			_ = os.Chmod(p, 0o700) // what fails shows in RemoveAll
		}
		return nil
	})
	return os.RemoveAll(dir)
}

// diskUse returns the bytes that a file or tree takes on disk, hard links counted once.
func diskUse(path string) int64 {
	var sum int64
	seen := map[uint64]bool{}
	_ = filepath.WalkDir(path, func(p string, _ fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil && unix.Lstat(p, &st) == nil && !seen[st.Ino] {
			seen[st.Ino] = st.Nlink > 1
			sum += st.Blocks * 512
		}
		return nil
	})
	return sum
}
