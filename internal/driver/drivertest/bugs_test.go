package drivertest_test

import (
	"context"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/drivertest"
	"github.com/firebreak-dev/firebreak/internal/driver/fake"
)

// buggy is a driver with a bug in one of its methods; nil functions are those of the sound one.
type buggy struct {
	driver.Driver
	place   drivertest.Place
	probe   func(driver.Info) driver.Info
	create  func(ctx context.Context, spec driver.Spec) (driver.Sandbox, error)
	open    func(ctx context.Context, spec driver.Spec) (driver.Sandbox, error)
	list    func(ids []driver.ID) []driver.ID
	destroy func(ctx context.Context, spec driver.Spec) error
	handle  func(spec driver.Spec, sb driver.Sandbox) driver.Sandbox
}

func (b *buggy) Probe(ctx context.Context) (driver.Info, error) {
	info, err := b.Driver.Probe(ctx)
	if b.probe != nil {
		info = b.probe(info)
	}
	return info, err
}

func (b *buggy) Create(ctx context.Context, spec driver.Spec) (driver.Sandbox, error) {
	create := b.Driver.Create
	if b.create != nil {
		create = b.create
	}
	return b.wrap(spec)(create(ctx, spec))
}

func (b *buggy) Open(ctx context.Context, spec driver.Spec) (driver.Sandbox, error) {
	open := b.Driver.Open
	if b.open != nil {
		open = b.open
	}
	return b.wrap(spec)(open(ctx, spec))
}

func (b *buggy) wrap(spec driver.Spec) func(driver.Sandbox, error) (driver.Sandbox, error) {
	return func(sb driver.Sandbox, err error) (driver.Sandbox, error) {
		if err == nil && b.handle != nil {
			sb = b.handle(spec, sb)
		}
		return sb, err
	}
}

func (b *buggy) List(ctx context.Context) ([]driver.ID, error) {
	ids, err := b.Driver.List(ctx)
	if b.list != nil {
		ids = b.list(ids)
	}
	return ids, err
}

func (b *buggy) Destroy(ctx context.Context, spec driver.Spec) error {
	if b.destroy != nil {
		return b.destroy(ctx, spec)
	}
	return b.Driver.Destroy(ctx, spec)
}

// handle is a sandbox with a bug. It hides the actions of the sound one unless it is embedded in one that unwraps.
type handle struct {
	driver.Sandbox
	dial func(ctx context.Context) (net.Conn, error)
	wait func(ctx context.Context) (driver.Exit, error)
}

func (h handle) Dial(ctx context.Context) (net.Conn, error) {
	if h.dial != nil {
		return h.dial(ctx)
	}
	return h.Sandbox.Dial(ctx)
}

func (h handle) Wait(ctx context.Context) (driver.Exit, error) {
	if h.wait != nil {
		return h.wait(ctx)
	}
	return h.Sandbox.Wait(ctx)
}

// falsePauser says that it has paused.
type falsePauser struct{ driver.Sandbox }

func (falsePauser) Pause(context.Context) error  { return nil }
func (falsePauser) Resume(context.Context) error { return nil }

// afterDestroy does something when a sandbox has been destroyed.
func afterDestroy(b *buggy, do func(spec driver.Spec) error) {
	b.destroy = func(ctx context.Context, spec driver.Spec) error {
		if err := b.Driver.Destroy(ctx, spec); err != nil {
			return err
		}
		return do(spec)
	}
}

// bug is one planted bug, the check that must find it, and what that check must say.
type bug struct {
	name  string
	check string
	says  string
	plant func(t testing.TB, b *buggy, release <-chan struct{})
	root  bool // only root can plant it
}

// fakes returns the fake driver of every place, each place being a host.
func fakes() func(p drivertest.Place) driver.Driver {
	var hosts sync.Map
	return func(p drivertest.Place) driver.Driver {
		first, _ := hosts.LoadOrStore(p.StateDir, fake.New())
		if p.Mute {
			return first.(*fake.Driver).Mute()
		}
		return first.(*fake.Driver).Again()
	}
}

// TestPlantedBugs: the suite finds every planted bug, and for its own reason. The same check passes without the bug.
func TestPlantedBugs(t *testing.T) {
	for _, bug := range slices.Concat(leakBugs(), litterBugs(), destroyBugs(), createBugs(), duplicateBugs(), findBugs(),
		waitBugs(), dialBugs(), capsBugs(), ignoreBugs(), pauseBugs(), reopenBugs()) {
		t.Run(bug.name, func(t *testing.T) {
			if bug.root && os.Geteuid() != 0 {
				t.Skip("only root can plant it")
			}
			release := make(chan struct{})
			defer time.Sleep(20 * time.Millisecond) // lets what was released end, before the next bug counts goroutines
			defer close(release)
			sound := fakes()
			suite := drivertest.Suite{
				Name: "fake", InMemory: true, Caps: driver.CapPause | driver.CapDetach, Patience: 2 * time.Second,
				Agent: func(testing.TB) string { return "" },
				New: func(_ testing.TB, p drivertest.Place) driver.Driver {
					b := &buggy{Driver: sound(p), place: p}
					bug.plant(t, b, release)
					return b
				},
			}
			r := record(t, func(t testing.TB) { suite.RunCheck(t, bug.check) })
			if !r.Failed() || !strings.Contains(r.said(), bug.says) {
				t.Errorf("check %s failed: %v; want it to say %q, but it says:\n%s", bug.check, r.Failed(), bug.says, r.said())
			}
			suite.Patience = time.Minute
			suite.New = func(_ testing.TB, p drivertest.Place) driver.Driver { return sound(p) }
			if r := record(t, func(t testing.TB) { suite.RunCheck(t, bug.check) }); r.Failed() || r.Skipped() {
				t.Errorf("check %s without the bug:\n%s", bug.check, r.said())
			}
		})
	}
}
