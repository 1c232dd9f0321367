package container

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
)

// strays returns the threads of this process that are in another network or mount namespace than the calling one.
func strays(t *testing.T) []string {
	t.Helper()
	tasks, err := filepath.Glob("/proc/self/task/*")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, kind := range []string{"net", "mnt"} {
		home, err := os.Readlink("/proc/thread-self/ns/" + kind)
		if err != nil {
			t.Fatal(err)
		}
		for _, task := range tasks {
			if ns, err := os.Readlink(task + "/ns/" + kind); err == nil && ns != home {
				found = append(found, task+" "+ns)
			}
		}
	}
	return found
}

// TestNoThreadStaysAway: many sandboxes are made and dialled at once, by callers of which some hold the program's first
// thread; afterwards every thread is at home.
func TestNoThreadStaysAway(t *testing.T) {
	p := newPlace(t, "crun")
	var all sync.WaitGroup
	for range 6 {
		spec := p.spec()
		all.Go(func() {
			b := p.box(spec)
			var dials sync.WaitGroup
			for range 20 {
				dials.Go(func() { b.sh("true") })
			}
			dials.Wait()
		})
	}
	all.Wait()
	for range 50 { // what does not leave its first thread would show within these
		if err := inOwnMounts(func() error { return nil }); err != nil {
			t.Fatal(err)
		}
		runtime.Gosched()
	}
	for end := time.Now().Add(10 * time.Second); len(strays(t)) > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("threads are still away: %v", strays(t))
		}
	}
}

// TestFirstThread: asked from the program's first thread, the work is done on another one.
func TestFirstThread(t *testing.T) {
	if len(hostProblems("/proc")) > 0 {
		t.Skip("needs root")
	}
	errBack := errors.New("from inside")
	home, err1 := os.Readlink("/proc/self/ns/mnt") // that of the first thread
	for range 200 {
		if err := inOwnMounts(func() error { return errBack }); !errors.Is(err, errBack) {
			t.Fatalf("the error of what was done is %v", err)
		}
	}
	first, err2 := os.Readlink("/proc/self/ns/mnt")
	if err1 != nil || err2 != nil || home != first {
		t.Errorf("the first thread is in %s, not %s; %v %v", first, home, err1, err2)
	}
}

func TestWaitTellsTheReason(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		for line, want := range map[string]driver.Exit{
			"exit 7":   {Reason: firebreak.EndExited, Code: 7},
			"exit 124": {Reason: firebreak.EndDeadline, Code: 124},
		} {
			b := p.box(p.spec())
			done := make(chan driver.Exit, 1)
			go func() {
				exit, err := b.Wait(context.Background())
				if err != nil {
					t.Error(err)
				}
				done <- exit
			}()
			time.Sleep(20 * time.Millisecond) // mostly it waits by now; it need not
			b.sh(line)
			if exit := <-done; exit.Reason != want.Reason || exit.Code != want.Code {
				t.Errorf("after %q: %+v", line, exit)
			}
			if _, err := b.Dial(context.Background()); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("dial after %q: %v", line, err)
			}
		}
	})
}

func TestOrdinaryErrors(t *testing.T) {
	p := newPlace(t, "crun")
	spec := p.spec()
	spec.Limits.Disk = 1000
	if _, err := p.Create(t.Context(), spec); firebreak.KindOf(err) != firebreak.KindInvalid {
		t.Errorf("a disk of 1000 bytes: %v", err)
	}
	spec = p.spec()
	spec.Root = driver.Root{Form: driver.FormDisk, Path: "/etc/passwd"}
	if _, err := p.Create(t.Context(), spec); err == nil {
		t.Error("a text was taken for a disk image")
	}
	missing := New(Config{StateDir: p.cfg.StateDir, Agent: p.cfg.Agent, Runtime: "/no/such/runtime", Log: p.log})
	if _, err := missing.Create(t.Context(), p.spec()); firebreak.KindOf(err) != firebreak.KindHost {
		t.Errorf("without a runtime: %v", err)
	}
	if ids, err := p.List(t.Context()); err != nil || len(ids) != 0 {
		t.Errorf("left behind: %v, %v", ids, err)
	}
}
