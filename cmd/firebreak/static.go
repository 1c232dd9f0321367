package main

import (
	"context"
	"crypto/sha256"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"time"
)

// becomeStatic replaces this program by a statically linked build of itself. gVisor starts it again where no libraries
// are, and `go run` links against the host's libraries wherever there is a C compiler. The build is made once for each
// build of this program and kept. It returns only if there is nothing to do, or with why it cannot be done.
func becomeStatic(ctx context.Context) error {
	key, static, err := inspectSelf()
	if err != nil || static {
		return err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return err
	}
	dir := filepath.Join(cache, "firebreak")
	path := filepath.Join(dir, "firebreak-"+key)
	if _, err := os.Stat(path); err != nil {
		if err := buildStatic(ctx, dir, path); err != nil {
			return err
		}
	}
	return syscall.Exec(path, os.Args, os.Environ())
}

// inspectSelf tells whether this program needs the host's libraries, and a key that differs whenever it does.
func inspectSelf() (key string, static bool, err error) {
	f, err := elf.Open("/proc/self/exe")
	if err != nil {
		return "", false, err
	}
	defer f.Close()
	if !slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		return "", true, nil
	}
	note := f.Section(".note.go.buildid")
	if note == nil {
		return "", false, errors.New("it has no build id")
	}
	id, err := note.Data()
	if err != nil {
		return "", false, err
	}
	sum := sha256.Sum256(id)
	return fmt.Sprintf("%x", sum[:16]), false, nil
}

func buildStatic(ctx context.Context, dir, path string) error {
	_, file, _, _ := runtime.Caller(0)
	source := filepath.Dir(file)
	if _, err := os.Stat(filepath.Join(source, "main.go")); err != nil {
		return fmt.Errorf("its source is gone: %w", err)
	}
	gotool, err := exec.LookPath("go")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	unlock, err := lock(filepath.Join(dir, "lock"))
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := os.Stat(path); err == nil {
		return nil // another process built it meanwhile
	}
	fmt.Fprintln(os.Stderr, "firebreak: building itself without the host's libraries, once; `make build` makes such a program at once")
	temp := path + ".new"
	defer os.Remove(temp)
	build := exec.CommandContext(ctx, gotool, "build", "-buildvcs=false", "-ldflags", "-s -w", "-o", temp, ".")
	build.Dir, build.Env = source, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w: %s", err, out)
	}
	removeOld(dir)
	return os.Rename(temp, path)
}

// removeOld removes the static builds of earlier days of work; one that still runs goes on without its name.
func removeOld(dir string) {
	old, _ := filepath.Glob(filepath.Join(dir, "firebreak-*[0-9a-f]")) // the pattern is well formed
	for _, path := range old {
		if fi, err := os.Stat(path); err == nil && time.Since(fi.ModTime()) > time.Hour {
			_ = os.Remove(path) // it is tried again at the next build
		}
	}
}

func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() { _ = f.Close() }, nil // it gives the lock back
}
