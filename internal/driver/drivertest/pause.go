package drivertest

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak/internal/driver"
)

func pauseChecks() []check {
	const pauses, runs = driver.CapPause, driver.CapPause | driver.CapProcesses
	return []check{
		{name: "pause", needs: pauses, run: checkPause},
		{name: "pause-once-for-all", needs: pauses, run: checkPauseOnce},
		{name: "pause-reopened", needs: pauses, run: checkPauseReopened},
		{name: "pause-creator-killed", needs: pauses | driver.CapDetach, run: checkPauseCreatorKilled},
		{name: "pause-destroyed", needs: pauses, run: checkPauseDestroyed},
		{name: "pause-ended", needs: pauses, run: checkPauseEnded},
		{name: "pause-cancelled", needs: pauses, run: checkPauseCancelled},
		{name: "pause-concurrent", needs: pauses, run: checkPauseConcurrent},
		{name: "pause-stops-all", needs: runs, run: checkPauseStopsAll},
		{name: "pause-keeps-memory", needs: runs, run: checkPauseKeepsMemory},
		{name: "pause-keeps-output", needs: runs, run: checkPauseKeepsOutput},
		{name: "pause-clock", needs: runs, run: checkPauseClock},
	}
}

func (c *C) pauser(sb driver.Sandbox) driver.Pauser {
	c.Helper()
	p, err := driver.As[driver.Pauser](sb)
	if err != nil {
		c.Fatal(err)
	}
	return p
}

func (c *C) pause(sb driver.Sandbox) {
	c.Helper()
	c.within("Pause", c.pauser(sb).Pause)
}

func (c *C) resume(sb driver.Sandbox) {
	c.Helper()
	c.within("Resume", c.pauser(sb).Resume)
}

// silent fails the check if a sandbox that should be paused answers. It may take the stream.
func (c *C) silent(sb driver.Sandbox) {
	c.Helper()
	ctx, cancel := context.WithTimeout(c.ctx, 300*time.Millisecond)
	defer cancel()
	var status int
	err := c.try(ctx, "a call to a paused sandbox", func(ctx context.Context) (err error) {
		status, err = c.call(ctx, sb, http.MethodGet, "/health", "", "")
		return err
	})
	switch {
	case err == nil:
		c.Errorf("a paused sandbox answers: status %d", status)
	case errors.Is(err, fs.ErrNotExist):
		c.Errorf("a paused sandbox has ended: %v", err)
	}
}

func checkPause(c *C) {
	spec := c.spec()
	sb := c.create(spec)
	c.answers(sb)
	for range 2 {
		c.pause(sb)
		c.silent(sb)
		c.resume(sb)
		c.answers(sb)
	}
	c.resume(sb) // which it needs not
	c.answers(sb)
	c.pause(sb)
	c.destroy(spec)
	c.gone(spec, sb)
}

// checkPauseOnce: neither is counted, so that one of either undoes any number of the other.
func checkPauseOnce(c *C) {
	sb := c.create(c.spec())
	c.answers(sb)
	for range 3 {
		c.pause(sb)
	}
	c.silent(sb)
	c.resume(sb)
	c.answers(sb)
	for range 3 {
		c.resume(sb)
	}
	c.pause(sb)
	c.silent(sb)
	c.resume(sb)
	c.answers(sb)
}

// checkPauseReopened: a pause is the sandbox's and not its driver's.
func checkPauseReopened(c *C) {
	spec := c.spec()
	first := c.create(spec)
	c.answers(first)
	second := c.open(c.place)
	for range 2 {
		c.pause(first)
		if ids, err := second.List(c.ctx); err != nil || !slices.Equal(ids, []driver.ID{spec.ID}) {
			c.Errorf("List while it is paused = %v, %v; want only %s", ids, err, spec.ID)
		}
		var again driver.Sandbox
		c.within("Open of a paused sandbox", func(ctx context.Context) (err error) {
			again, err = second.Open(ctx, spec)
			return err
		})
		c.silent(again)
		c.waits(again)
		if _, err := again.Usage(c.ctx); err != nil {
			c.Errorf("Usage while it is paused: %v", err)
		}
		c.pause(again)
		c.resume(again)
		c.answers(first)
		c.answers(again)
		first, second = again, c.open(c.place)
	}
}

// waits fails the check if Wait takes a sandbox for ended, or does not heed its context.
func (c *C) waits(sb driver.Sandbox) {
	c.Helper()
	ctx, cancel := context.WithTimeout(c.ctx, 50*time.Millisecond)
	defer cancel()
	err := c.try(ctx, "Wait", func(ctx context.Context) error {
		_, err := sb.Wait(ctx)
		return err
	})
	if !errors.Is(err, context.DeadlineExceeded) {
		c.Errorf("Wait on a paused sandbox: %v, want its context's error", err)
	}
}

// checkPauseCreatorKilled: who has paused a sandbox dies by SIGKILL; it stays paused, and another process has it go on.
func checkPauseCreatorKilled(c *C) {
	specs := []driver.Spec{c.spec(), c.spec()}
	for _, spec := range specs {
		c.destroyLater(spec)
	}
	cmd, out := c.creator(order{Place: c.place, Specs: specs, Pause: true})
	for out.Scan() && !strings.HasPrefix(out.Text(), "CHILD ") {
	}
	said := out.Text()
	c.kill(cmd)
	if said != "CHILD ready" {
		c.Fatalf("the creator said %q", said)
	}
	for i, spec := range specs {
		var sb driver.Sandbox
		c.within("Open after the creator's death", func(ctx context.Context) (err error) {
			sb, err = c.drv.Open(ctx, spec)
			return err
		})
		c.silent(sb)
		if i == 0 {
			c.resume(sb)
			c.answers(sb)
		}
		c.destroy(spec)
		c.gone(spec, sb)
	}
}

// checkPauseDestroyed: a paused sandbox can be destroyed like any other, by whomever, and who waits for it is told.
func checkPauseDestroyed(c *C) {
	for name, by := range map[string]driver.Driver{"its driver": c.drv, "another driver": c.open(c.place)} {
		spec := c.spec()
		sb := c.create(spec)
		c.answers(sb)
		before := make(chan error, 1)
		go func() {
			_, err := sb.Wait(c.ctx)
			before <- err
		}()
		c.pause(sb)
		c.waits(sb)
		c.within("Destroy of a paused sandbox by "+name, func(ctx context.Context) error { return by.Destroy(ctx, spec) })
		c.within("a Wait from before the pause", func(ctx context.Context) error {
			select {
			case err := <-before:
				return err
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		c.within("Wait", func(ctx context.Context) error {
			_, err := sb.Wait(ctx)
			return err
		})
		c.gone(spec, sb)
		c.refusesEnded("destroyed", sb)
	}
}

// refusesEnded fails the check unless a sandbox that has ended can be neither paused nor resumed.
func (c *C) refusesEnded(how string, sb driver.Sandbox) {
	c.Helper()
	p := c.pauser(sb)
	for name, do := range map[string]func(context.Context) error{"Pause": p.Pause, "Resume": p.Resume} {
		if err := c.try(c.ctx, name, do); !errors.Is(err, fs.ErrNotExist) {
			c.Errorf("%s of a sandbox that was %s: %v, want fs.ErrNotExist", name, how, err)
		}
	}
}

func checkPauseEnded(c *C) {
	spec := c.spec()
	sb := c.create(spec)
	c.answers(sb)
	// The answer may be cut off: the agent ends at once.
	_, _ = c.call(c.ctx, sb, http.MethodPost, "/init", "t", `{"accessToken":"t","deadline":"2001-01-01T00:00:00Z"}`)
	c.within("Wait", func(ctx context.Context) error {
		_, err := sb.Wait(ctx)
		return err
	})
	c.refusesEnded("ended by its deadline", sb)
	c.destroy(spec)
	c.gone(spec, sb)
	c.refusesEnded("destroyed", sb)
}

// checkPauseCancelled: whenever the context of a Pause ends, the sandbox is paused if Pause says so, and else runs on.
func checkPauseCancelled(c *C) {
	sb := c.create(c.spec())
	c.answers(sb)
	p := c.pauser(sb)
	ended, cancel := context.WithCancel(c.ctx)
	cancel()
	if err := c.try(ended, "Pause", p.Pause); !errors.Is(err, context.Canceled) {
		c.Errorf("Pause with a context that had ended: %v, want its error", err)
	}
	c.answers(sb)
	c.pause(sb)
	if err := c.try(ended, "Resume", p.Resume); !errors.Is(err, context.Canceled) {
		c.Errorf("Resume with a context that had ended: %v, want its error", err)
	}
	if err := c.try(ended, "Pause", p.Pause); !errors.Is(err, context.Canceled) {
		c.Errorf("Pause of what is paused, with a context that had ended: %v, want its error", err)
	}
	c.resume(sb)
	c.answers(sb)
	paused := 0
	const rounds = 40
	for i := range rounds {
		ctx, cancel := context.WithTimeout(c.ctx, time.Duration(i)*100*time.Microsecond)
		err := c.try(ctx, "Pause", p.Pause)
		cancel()
		if err == nil {
			paused++
			c.resume(sb)
		} else if !errors.Is(err, context.DeadlineExceeded) {
			c.Errorf("Pause without time: %v, want its context's error", err)
		}
		c.answers(sb)
	}
	c.Logf("%d of %d pauses were made in time", paused, rounds)
}

// checkPauseConcurrent: many pause and resume one sandbox at once, through two drivers, until it is destroyed.
func checkPauseConcurrent(c *C) {
	spec := c.spec()
	sb := c.create(spec)
	c.answers(sb)
	again, err := c.open(c.place).Open(c.ctx, spec)
	if err != nil {
		c.Fatalf("Open: %v", err)
	}
	handles := []driver.Pauser{c.pauser(sb), c.pauser(again)}
	storm := func(rounds int) error {
		errs := make([]error, 6)
		var all sync.WaitGroup
		for i := range errs {
			all.Go(func() {
				for range rounds {
					do := handles[i%2].Pause
					if i%3 == 0 {
						do = handles[i%2].Resume
					}
					errs[i] = errors.Join(errs[i], do(c.ctx))
				}
			})
		}
		all.Wait()
		return errors.Join(errs...)
	}
	if err := storm(10); err != nil {
		c.Errorf("many at once: %v", err)
	}
	c.pause(sb)
	c.silent(again)
	c.resume(again)
	c.answers(sb)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = storm(20) // it is destroyed meanwhile, and they are told so
	}()
	c.destroy(spec)
	<-done
	c.gone(spec, sb)
	c.refusesEnded("destroyed", again)
}
