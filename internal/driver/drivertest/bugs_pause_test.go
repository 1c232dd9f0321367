package drivertest_test

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/drivertest"
	"github.com/firebreak-dev/firebreak/internal/driver/process"
)

// pauser is a sandbox with other actions than its own.
type pauser struct {
	driver.Sandbox
	pause, resume func(context.Context) error
}

func (p pauser) Pause(ctx context.Context) error  { return p.pause(ctx) }
func (p pauser) Resume(ctx context.Context) error { return p.resume(ctx) }

// badPauser plants a bug in the actions of every handle.
func badPauser(bad func(sound driver.Pauser, p *pauser)) func(testing.TB, *buggy, <-chan struct{}) {
	return func(_ testing.TB, b *buggy, _ <-chan struct{}) {
		b.handle = func(_ driver.Spec, sb driver.Sandbox) driver.Sandbox {
			sound, err := driver.As[driver.Pauser](sb)
			if err != nil {
				return sb
			}
			p := pauser{Sandbox: sb, pause: sound.Pause, resume: sound.Resume}
			bad(sound, &p)
			return p
		}
	}
}

func pauseBugs() []bug {
	none := func(context.Context) error { return nil }
	return []bug{
		{name: "Pause does nothing", check: "pause", says: "a paused sandbox answers", plant: badPauser(func(_ driver.Pauser, p *pauser) {
			p.pause = none
		})},
		{name: "Resume does nothing", check: "pause", says: "not healthy", plant: badPauser(func(_ driver.Pauser, p *pauser) {
			p.resume = none
		})},
		{name: "pauses are counted", check: "pause-once-for-all", says: "not healthy", plant: badPauser(countPauses)},
		{name: "a second Pause fails", check: "pause-once-for-all", says: "Pause: it is paused", plant: badPauser(refuseSecond)},
		{name: "Pause ignores its context", check: "pause-cancelled", says: "want its error", plant: badPauser(func(sound driver.Pauser, p *pauser) {
			p.pause = func(ctx context.Context) error { return sound.Pause(context.WithoutCancel(ctx)) }
		})},
		{name: "Pause reports its context and pauses yet", check: "pause-cancelled", says: "not healthy", plant: badPauser(func(sound driver.Pauser, p *pauser) {
			p.pause = func(ctx context.Context) error {
				return errors.Join(sound.Pause(context.WithoutCancel(ctx)), ctx.Err())
			}
		})},
		{name: "what has ended is paused", check: "pause-ended", says: "Pause of a sandbox that was ended by its deadline", plant: badPauser(ignoreEnd)},
		{name: "what is destroyed is paused", check: "pause-destroyed", says: "Pause of a sandbox that was destroyed", plant: badPauser(ignoreEnd)},
		{name: "many at once are refused", check: "pause-concurrent", says: "many at once: ", plant: badPauser(oneAtATime)},
	}
}

func reopenBugs() []bug {
	return []bug{
		{name: "Open misses the paused", check: "pause-reopened", says: "Open of a paused sandbox", plant: onPaused(func(b *buggy, paused func(driver.ID) bool) {
			b.open = func(ctx context.Context, spec driver.Spec) (driver.Sandbox, error) {
				if paused(spec.ID) {
					return nil, fs.ErrNotExist
				}
				return b.Driver.Open(ctx, spec)
			}
		})},
		{name: "List forgets the paused", check: "pause-reopened", says: "List while it is paused", plant: onPaused(func(b *buggy, paused func(driver.ID) bool) {
			b.list = func(ids []driver.ID) (awake []driver.ID) {
				for _, id := range ids {
					if !paused(id) {
						awake = append(awake, id)
					}
				}
				return awake
			}
		})},
		{name: "only who paused can resume", check: "pause-reopened", says: "not healthy", plant: func(_ testing.TB, b *buggy, _ <-chan struct{}) {
			b.open = func(ctx context.Context, spec driver.Spec) (driver.Sandbox, error) {
				sb, err := b.Driver.Open(ctx, spec)
				return falsePauser{sb}, err
			}
		}},
		{name: "Wait takes the paused for ended", check: "pause-reopened", says: "Wait on a paused sandbox", plant: onPaused(func(b *buggy, paused func(driver.ID) bool) {
			mark := b.handle
			b.handle = func(spec driver.Spec, sb driver.Sandbox) driver.Sandbox {
				p := mark(spec, sb).(pauser)
				p.Sandbox = handle{Sandbox: sb, wait: func(ctx context.Context) (driver.Exit, error) {
					if paused(spec.ID) {
						return driver.Exit{}, nil
					}
					return sb.Wait(ctx)
				}}
				return p
			}
		})},
		{name: "the paused cannot be destroyed", check: "pause-destroyed", says: "Destroy of a paused sandbox", plant: onPaused(func(b *buggy, paused func(driver.ID) bool) {
			b.destroy = func(ctx context.Context, spec driver.Spec) error {
				if paused(spec.ID) {
					return errors.New("it is paused")
				}
				return b.Driver.Destroy(ctx, spec)
			}
		})},
	}
}

// onPaused plants a bug that knows which sandboxes are paused, whichever driver was told so.
func onPaused(plant func(b *buggy, paused func(driver.ID) bool)) func(testing.TB, *buggy, <-chan struct{}) {
	var now sync.Map
	return func(_ testing.TB, b *buggy, _ <-chan struct{}) {
		b.handle = func(spec driver.Spec, sb driver.Sandbox) driver.Sandbox {
			sound, err := driver.As[driver.Pauser](sb)
			if err != nil {
				return sb
			}
			return pauser{Sandbox: sb, pause: func(ctx context.Context) error {
				now.Store(spec.ID, true)
				return sound.Pause(ctx)
			}, resume: func(ctx context.Context) error {
				now.Delete(spec.ID)
				return sound.Resume(ctx)
			}}
		}
		plant(b, func(id driver.ID) bool { _, is := now.Load(id); return is })
	}
}

// countPauses wants a Resume for each Pause, as gVisor does.
func countPauses(sound driver.Pauser, p *pauser) {
	var mu sync.Mutex
	n := 0
	p.pause = func(ctx context.Context) error {
		mu.Lock()
		defer mu.Unlock()
		n++
		return sound.Pause(ctx)
	}
	p.resume = func(ctx context.Context) error {
		mu.Lock()
		defer mu.Unlock()
		if n--; n > 0 {
			return nil
		}
		return sound.Resume(ctx)
	}
}

func refuseSecond(sound driver.Pauser, p *pauser) {
	var mu sync.Mutex
	paused := false
	p.pause = func(ctx context.Context) error {
		mu.Lock()
		defer mu.Unlock()
		if paused {
			return errors.New("it is paused")
		}
		paused = true
		return sound.Pause(ctx)
	}
	p.resume = func(ctx context.Context) error {
		mu.Lock()
		defer mu.Unlock()
		paused = false
		return sound.Resume(ctx)
	}
}

func ignoreEnd(sound driver.Pauser, p *pauser) {
	p.pause = func(ctx context.Context) error {
		if err := sound.Pause(ctx); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
}

func oneAtATime(sound driver.Pauser, p *pauser) {
	var busy sync.Mutex
	p.pause = func(ctx context.Context) error {
		if !busy.TryLock() {
			return errors.New("somebody else pauses it")
		}
		defer busy.Unlock()
		time.Sleep(20 * time.Millisecond) // so that the others come meanwhile
		return sound.Pause(ctx)
	}
}

// TestPauseLies: a plain process that claims to pause is caught by every check that runs programs.
func TestPauseLies(t *testing.T) {
	none := func(context.Context) error { return nil }
	for _, lie := range []struct {
		check, says string
		pauser      func(d driver.Driver, spec driver.Spec, sb driver.Sandbox) driver.Sandbox
	}{
		{"pause-stops-all", "of processor time in", func(_ driver.Driver, _ driver.Spec, sb driver.Sandbox) driver.Sandbox {
			return pauser{Sandbox: sb, pause: none, resume: none}
		}},
		{"pause-keeps-memory", "after 1 pauses", forgetful},
		{"pause-keeps-output", "its stream has ended", cutting},
	} {
		t.Run(lie.check, func(t *testing.T) {
			suite := drivertest.Suite{
				Name: "process", Patience: 10 * time.Second,
				Work: func(spec driver.Spec) string { return filepath.Join(spec.Dir, "work") },
				New: func(_ testing.TB, p drivertest.Place) driver.Driver {
					b := &buggy{Driver: process.New(process.Config{StateDir: p.StateDir, Agent: p.Agent, Log: p.Log}), place: p}
					b.probe = func(i driver.Info) driver.Info { i.Caps |= driver.CapPause; return i }
					b.handle = func(spec driver.Spec, sb driver.Sandbox) driver.Sandbox { return lie.pauser(b.Driver, spec, sb) }
					return b
				},
			}
			r := record(t, func(t testing.TB) { suite.RunCheck(t, lie.check) })
			if !r.Failed() || !strings.Contains(r.said(), lie.says) {
				t.Errorf("failed: %v; want it to say %q, but it says:\n%s", r.Failed(), lie.says, r.said())
			}
		})
	}
}

// forgetful starts anew with each resume.
func forgetful(d driver.Driver, spec driver.Spec, sb driver.Sandbox) driver.Sandbox {
	return pauser{Sandbox: sb,
		pause: func(ctx context.Context) error { return d.Destroy(ctx, spec) },
		resume: func(ctx context.Context) error {
			_, err := d.Create(ctx, spec)
			return err
		},
	}
}

// cutting closes all streams with each pause.
func cutting(_ driver.Driver, _ driver.Spec, sb driver.Sandbox) driver.Sandbox {
	var mu sync.Mutex
	var open []net.Conn
	dial := func(ctx context.Context) (net.Conn, error) {
		conn, err := sb.Dial(ctx)
		if err == nil {
			mu.Lock()
			defer mu.Unlock()
			open = append(open, conn)
		}
		return conn, err
	}
	cut := func(context.Context) error {
		mu.Lock()
		defer mu.Unlock()
		for _, conn := range open {
			_ = conn.Close() // perhaps a second time
		}
		open = nil
		return nil
	}
	return pauser{Sandbox: handle{Sandbox: sb, dial: dial}, pause: cut, resume: func(context.Context) error { return nil }}
}
