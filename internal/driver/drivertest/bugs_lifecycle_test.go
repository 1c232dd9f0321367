package drivertest_test

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/firebreak-dev/firebreak/internal/driver"
)

func leakBugs() []bug {
	return []bug{
		{name: "leaks a goroutine", check: "lifecycle", says: "goroutine", plant: func(_ testing.TB, b *buggy, release <-chan struct{}) {
			afterDestroy(b, func(driver.Spec) error { go func() { <-release }(); return nil })
		}},
		{name: "leaks a descriptor", check: "lifecycle", says: "descriptor", plant: func(t testing.TB, b *buggy, _ <-chan struct{}) {
			afterDestroy(b, func(driver.Spec) error {
				f, err := os.Open("/dev/null")
				t.Cleanup(func() { _ = f.Close() })
				return err
			})
		}},
		{name: "leaves a zombie", check: "lifecycle", says: "(Z)", plant: func(t testing.TB, b *buggy, _ <-chan struct{}) {
			afterDestroy(b, func(driver.Spec) error {
				cmd := exec.Command("true")
				t.Cleanup(func() { _ = cmd.Wait() })
				return cmd.Start()
			})
		}},
		{name: "leaves a process", check: "lifecycle", says: "process ", plant: func(t testing.TB, b *buggy, _ <-chan struct{}) {
			afterDestroy(b, func(spec driver.Spec) error {
				// Not a child of this process, so that only its mark tells whose it is.
				out, err := exec.Command("sh", "-c", "MARK="+string(spec.ID)+" setsid sleep 60 >/dev/null 2>&1 & echo $!").Output()
				pid := strings.TrimSpace(string(out))
				t.Cleanup(func() { _ = exec.Command("kill", pid).Run() })
				return err
			})
		}},
	}
}

func litterBugs() []bug {
	return []bug{
		{name: "leaves a file in Dir", check: "lifecycle", says: "Dir after Destroy", plant: func(_ testing.TB, b *buggy, _ <-chan struct{}) {
			afterDestroy(b, func(spec driver.Spec) error { return os.WriteFile(filepath.Join(spec.Dir, "left"), nil, 0o600) })
		}},
		{name: "leaves a file in StateDir", check: "lifecycle", says: "state /", plant: func(_ testing.TB, b *buggy, _ <-chan struct{}) {
			afterDestroy(b, func(spec driver.Spec) error {
				return os.WriteFile(filepath.Join(b.place.StateDir, string(spec.ID)+".json"), nil, 0o600)
			})
		}},
		{name: "leaves a file elsewhere", check: "lifecycle", says: "file /", plant: func(t testing.TB, b *buggy, _ <-chan struct{}) {
			afterDestroy(b, func(spec driver.Spec) error {
				at := filepath.Join(os.TempDir(), "of-"+string(spec.ID))
				t.Cleanup(func() { _ = os.Remove(at) })
				return os.WriteFile(at, nil, 0o600)
			})
		}},
		{name: "leaves a mount", check: "lifecycle", says: "mount ", root: true, plant: func(t testing.TB, b *buggy, _ <-chan struct{}) {
			afterDestroy(b, func(spec driver.Spec) error {
				at := filepath.Join(t.TempDir(), string(spec.ID))
				t.Cleanup(func() { _ = syscall.Unmount(at, syscall.MNT_DETACH) })
				return errors.Join(os.Mkdir(at, 0o700), syscall.Mount("none", at, "tmpfs", 0, ""))
			})
		}},
		{name: "leaves a cgroup", check: "lifecycle", says: "cgroup ", root: true, plant: func(t testing.TB, b *buggy, _ <-chan struct{}) {
			afterDestroy(b, func(spec driver.Spec) error {
				var errs []error
				for _, root := range []string{"/sys/fs/cgroup/firebreak-", "/sys/fs/cgroup/pids/firebreak-"} {
					at := root + string(spec.ID)
					t.Cleanup(func() { _ = os.Remove(at) })
					err := os.Mkdir(at, 0o700)
					if err == nil {
						return nil
					}
					errs = append(errs, err)
				}
				return errors.Join(errs...)
			})
		}},
	}
}

func destroyBugs() []bug {
	return []bug{
		{name: "Destroy is not idempotent", check: "destroy-idempotent", says: "Destroy:", plant: func(_ testing.TB, b *buggy, _ <-chan struct{}) {
			b.destroy = func(ctx context.Context, spec driver.Spec) error {
				if _, err := b.Driver.Open(ctx, spec); err != nil {
					return err
				}
				return b.Driver.Destroy(ctx, spec)
			}
		}},
		{name: "Destroy removes Dir", check: "lifecycle", says: "Dir after Destroy", plant: func(_ testing.TB, b *buggy, _ <-chan struct{}) {
			afterDestroy(b, func(spec driver.Spec) error { return os.RemoveAll(spec.Dir) })
		}},
		{name: "Destroy does nothing the first time", check: "lifecycle", says: "List still has", plant: func(_ testing.TB, b *buggy, _ <-chan struct{}) {
			var once sync.Once
			b.destroy = func(ctx context.Context, spec driver.Spec) (err error) {
				first := false
				once.Do(func() { first = true })
				if first {
					return nil
				}
				return b.Driver.Destroy(ctx, spec)
			}
		}},
		{name: "Destroy takes the neighbours", check: "destroy-keeps-neighbour", says: "not healthy", plant: func(_ testing.TB, b *buggy, _ <-chan struct{}) {
			b.destroy = func(ctx context.Context, spec driver.Spec) error {
				ids, err := b.Driver.List(ctx)
				for _, id := range ids {
					err = errors.Join(err, b.Driver.Destroy(ctx, driver.Spec{ID: id, Dir: filepath.Join(filepath.Dir(spec.Dir), string(id))}))
				}
				return err
			}
		}},
	}
}

func createBugs() []bug {
	return []bug{
		{name: "Create ignores its context", check: "mute-agent", says: "has not returned", plant: func(_ testing.TB, b *buggy, release <-chan struct{}) {
			b.create = func(ctx context.Context, spec driver.Spec) (driver.Sandbox, error) {
				if b.place.Mute {
					<-release
				}
				return b.Driver.Create(ctx, spec)
			}
		}},
		{name: "Create leaves a wreck", check: "mute-agent", says: "Dir after Destroy", plant: func(_ testing.TB, b *buggy, _ <-chan struct{}) {
			b.create = func(ctx context.Context, spec driver.Spec) (driver.Sandbox, error) {
				sb, err := b.Driver.Create(ctx, spec)
				if err != nil {
					return nil, errors.Join(err, os.WriteFile(filepath.Join(spec.Dir, "wreck"), nil, 0o600))
				}
				return sb, nil
			}
		}},
		{name: "Create hides its context's error", check: "mute-agent", says: "want its context's error", plant: func(_ testing.TB, b *buggy, _ <-chan struct{}) {
			b.create = func(ctx context.Context, spec driver.Spec) (driver.Sandbox, error) {
				sb, err := b.Driver.Create(ctx, spec)
				if err != nil {
					return nil, errors.New("it did not work")
				}
				return sb, nil
			}
		}},
	}
}

func duplicateBugs() []bug {
	return []bug{
		{name: "a duplicate is the wrong error", check: "duplicate-id", says: "want fs.ErrExist", plant: func(_ testing.TB, b *buggy, _ <-chan struct{}) {
			b.create = func(ctx context.Context, spec driver.Spec) (driver.Sandbox, error) {
				sb, err := b.Driver.Create(ctx, spec)
				if errors.Is(err, fs.ErrExist) {
					err = errors.New("name in use")
				}
				return sb, err
			}
		}},
		{name: "a duplicate succeeds", check: "concurrent-duplicates", says: "two Creates of one ID succeeded", plant: func(_ testing.TB, b *buggy, _ <-chan struct{}) {
			b.create = func(ctx context.Context, spec driver.Spec) (driver.Sandbox, error) {
				sb, err := b.Driver.Create(ctx, spec)
				for errors.Is(err, fs.ErrExist) { // the winner may still be at work
					if sb, err = b.Driver.Open(ctx, spec); err == nil || !errors.Is(err, fs.ErrNotExist) {
						break
					}
					err = fs.ErrExist
				}
				return sb, err
			}
		}},
		{name: "a duplicate destroys the first", check: "duplicate-id", says: "not healthy", plant: func(_ testing.TB, b *buggy, _ <-chan struct{}) {
			b.create = func(ctx context.Context, spec driver.Spec) (driver.Sandbox, error) {
				sb, err := b.Driver.Create(ctx, spec)
				if errors.Is(err, fs.ErrExist) {
					err = errors.Join(err, b.Driver.Destroy(ctx, spec))
				}
				return sb, err
			}
		}},
		{name: "a sandbox dies with its context", check: "outlives-context", says: "not healthy", plant: func(_ testing.TB, b *buggy, _ <-chan struct{}) {
			b.create = func(ctx context.Context, spec driver.Spec) (driver.Sandbox, error) {
				sb, err := b.Driver.Create(ctx, spec)
				if err != nil {
					return nil, err
				}
				return handle{Sandbox: sb, dial: func(now context.Context) (net.Conn, error) {
					if ctx.Err() != nil {
						_ = b.Driver.Destroy(now, spec)
					}
					return sb.Dial(now)
				}}, nil
			}
		}},
	}
}
