package drivertest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak/internal/driver"
)

func createChecks() []check {
	return []check{
		{name: "mute-agent", run: checkMuteAgent},
		{name: "half-made-listed", run: checkHalfMadeListed},
		{name: "destroy-while-creating", run: checkDestroyWhileCreating},
		{name: "silent-agent", needs: driver.CapProcesses, run: checkSilentAgent},
		{name: "agent-ends-at-once", needs: driver.CapProcesses, run: checkBriefAgent},
		{name: "agent-missing", needs: driver.CapProcesses, run: checkMissingAgent},
		{name: "cancelled-before", run: checkCancelledBefore},
		{name: "cancelled-at-many-points", run: checkCancelledAtManyPoints},
		{name: "destroy-cancelled", run: checkDestroyCancelled},
		{name: "unwritable-dir", run: checkUnwritableDir},
		{name: "deep-path", run: checkDeepPath},
	}
}

// mute returns a driver at the check's place whose agents never listen.
func (c *C) mute() driver.Driver {
	p := c.place
	p.Mute = true
	if c.info.Caps.Has(driver.CapProcesses) {
		p.Agent = c.bin.badAgent(c, "deaf")
	}
	return c.open(p)
}

// checkMuteAgent: Create gives up with its context, and leaves nothing: not the agent, nor what the agent started.
func checkMuteAgent(c *C) {
	d := c.mute()
	for _, span := range []time.Duration{0, time.Millisecond, 50 * time.Millisecond, 500 * time.Millisecond} {
		spec := c.spec()
		c.destroyLater(spec)
		ctx, cancel := context.WithTimeout(c.ctx, span)
		err := c.try(ctx, "Create with a mute agent", func(ctx context.Context) error {
			_, err := d.Create(ctx, spec)
			return err
		})
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			c.Errorf("Create with a mute agent and %v: %v, want its context's error", span, err)
		}
		c.gone(spec, nil)
	}
}

// whileMute runs do while a Create waits for an agent that never listens, and returns that Create's error.
func (c *C) whileMute(spec driver.Spec, do func()) error {
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	c.destroyLater(spec)
	d := c.mute()
	var (
		all sync.WaitGroup
		err error
	)
	all.Go(func() { _, err = d.Create(ctx, spec) })
	do()
	cancel()
	c.within("Create", func(context.Context) error { all.Wait(); return nil })
	return err
}

func checkHalfMadeListed(c *C) {
	spec := c.spec()
	err := c.whileMute(spec, func() {
		c.eventually("List does not show a sandbox that is being made", func() bool { return c.listed(spec.ID) })
	})
	if !errors.Is(err, context.Canceled) {
		c.Errorf("Create: %v, want its context's error", err)
	}
	c.gone(spec, nil)
}

// checkDestroyWhileCreating: whoever comes first, afterwards there is nothing, and nobody has hung.
func checkDestroyWhileCreating(c *C) {
	spec := c.spec()
	err := c.whileMute(spec, func() {
		c.eventually("List does not show a sandbox that is being made", func() bool { return c.listed(spec.ID) })
		ctx, cancel := context.WithTimeout(c.ctx, 5*time.Second)
		defer cancel()
		err := c.try(ctx, "Destroy", func(ctx context.Context) error { return c.drv.Destroy(ctx, spec) })
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			c.Errorf("Destroy of a sandbox that is being made: %v", err)
		}
	})
	if err == nil {
		c.Error("Create succeeded although its agent is mute")
	}
	c.destroy(spec)
	c.gone(spec, nil)
}

// checkSilentAgent: to listen is all that Create asks of an agent; one that never answers can still be destroyed.
func checkSilentAgent(c *C) {
	p := c.place
	p.Agent = c.bin.badAgent(c, "silent")
	d := c.open(p)
	spec := c.spec()
	c.destroyLater(spec)
	ctx, cancel := context.WithTimeout(c.ctx, 5*time.Second)
	defer cancel()
	var sb driver.Sandbox
	err := c.try(ctx, "Create with a silent agent", func(ctx context.Context) (err error) {
		sb, err = d.Create(ctx, spec)
		return err
	})
	if err != nil {
		c.gone(spec, nil) // a driver may ask for more
		return
	}
	short, stop := context.WithTimeout(c.ctx, 200*time.Millisecond)
	defer stop()
	if _, err := c.call(short, sb, "GET", "/health", "", ""); !errors.Is(err, context.DeadlineExceeded) {
		c.Errorf("a call to a silent agent: %v, want its context's error", err)
	}
	c.destroy(spec)
	c.gone(spec, sb)
}

func checkBriefAgent(c *C) {
	p := c.place
	p.Agent = c.bin.badAgent(c, "brief")
	c.refuses(p, c.spec())
}

func checkMissingAgent(c *C) {
	p := c.place
	p.Agent = filepath.Join(c.place.StateDir, "no-such-agent")
	c.refuses(p, c.spec())
}

// refuses fails the check unless Create fails by itself, long before its context ends, and leaves nothing.
func (c *C) refuses(p Place, spec driver.Spec) error {
	c.Helper()
	d := c.open(p)
	c.destroyLater(spec)
	err := c.try(c.ctx, "Create", func(ctx context.Context) error {
		_, err := d.Create(ctx, spec)
		return err
	})
	switch {
	case err == nil:
		c.Error("Create succeeded")
	case c.ctx.Err() != nil:
		c.Errorf("Create noticed nothing until its context ended: %v", err)
	}
	c.gone(spec, nil)
	return err
}

func checkCancelledBefore(c *C) {
	ctx, cancel := context.WithCancel(c.ctx)
	cancel()
	spec := c.spec()
	live := c.spec()
	sb := c.create(live)
	for name, do := range map[string]func(context.Context) error{
		"Probe":   func(ctx context.Context) error { _, err := c.drv.Probe(ctx); return err },
		"Create":  func(ctx context.Context) error { _, err := c.drv.Create(ctx, spec); return err },
		"Open":    func(ctx context.Context) error { _, err := c.drv.Open(ctx, live); return err },
		"List":    func(ctx context.Context) error { _, err := c.drv.List(ctx); return err },
		"Destroy": func(ctx context.Context) error { return c.drv.Destroy(ctx, live) },
		"Wait":    func(ctx context.Context) error { _, err := sb.Wait(ctx); return err },
		"Usage":   func(ctx context.Context) error { _, err := sb.Usage(ctx); return err },
	} {
		if err := c.try(ctx, name, do); !errors.Is(err, context.Canceled) {
			c.Errorf("%s with a context that had ended: %v, want context.Canceled", name, err)
		}
	}
	c.gone(spec, nil)
	c.answers(sb)
}

// checkCancelledAtManyPoints ends the context at points spread over the time that a whole Create takes here.
func checkCancelledAtManyPoints(c *C) {
	points := 40
	if shortRun() {
		points = 12
	}
	begin := time.Now()
	first := c.spec()
	c.create(first)
	whole := time.Since(begin)
	c.destroy(first)
	made := 0
	for i := range points {
		spec := c.spec()
		c.destroyLater(spec)
		ctx, cancel := context.WithTimeout(c.ctx, whole*time.Duration(i)*6/time.Duration(points)/5)
		var sb driver.Sandbox
		err := c.try(ctx, "Create", func(ctx context.Context) (err error) {
			sb, err = c.drv.Create(ctx, spec)
			return err
		})
		cancel()
		switch {
		case err == nil:
			made++
			c.answers(sb)
			c.destroy(spec)
		case !errors.Is(err, context.DeadlineExceeded):
			c.Errorf("Create ended after %d/%d of its time: %v, want its context's error", i, points, err)
		}
		c.gone(spec, sb)
	}
	c.Logf("%d of %d Creates were done before their context ended; one takes %v", made, points, whole)
}

// checkDestroyCancelled: a Destroy that was interrupted can be done again.
func checkDestroyCancelled(c *C) {
	for i := range 8 {
		spec := c.spec()
		sb := c.create(spec)
		ctx, cancel := context.WithTimeout(c.ctx, time.Duration(1<<i)*100*time.Microsecond)
		err := c.try(ctx, "Destroy", func(ctx context.Context) error { return c.drv.Destroy(ctx, spec) })
		cancel()
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			c.Errorf("Destroy whose context ended: %v, want its context's error", err)
		}
		c.destroy(spec)
		c.gone(spec, sb)
	}
}

func checkUnwritableDir(c *C) {
	spec := c.spec()
	if err := os.Remove(spec.Dir); err != nil {
		c.Fatal(err)
	}
	if err := os.WriteFile(spec.Dir, nil, 0o600); err != nil {
		c.Fatal(err)
	}
	d := c.drv
	err := c.try(c.ctx, "Create", func(ctx context.Context) error {
		_, err := d.Create(ctx, spec)
		return err
	})
	if _, fleeting := d.(driver.Fleeting); fleeting && err != nil {
		c.Errorf("Create: %v, of a driver that needs no directory", err)
	} else if !fleeting && err == nil {
		c.Error("Create succeeded with a file for its directory")
	}
	if err := errors.Join(os.Remove(spec.Dir), os.Mkdir(spec.Dir, 0o700)); err != nil {
		c.Fatal(err)
	}
	c.destroy(spec)
	c.gone(spec, nil)
}

// checkDeepPath: state directories may lie so deep that a socket's path in them exceeds what the kernel takes.
func checkDeepPath(c *C) {
	deep := c.path("state", strings.Repeat("deep/", 30)+"state")
	p := c.place
	p.StateDir = deep
	spec := c.spec()
	spec.Dir = c.path("sandboxes", strings.Repeat("d", 120), string(spec.ID))
	for _, dir := range []string{deep, spec.Dir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			c.Fatal(err)
		}
	}
	c.drv = c.open(p)
	sb := c.create(spec)
	c.answers(sb)
	c.destroy(spec)
	c.gone(spec, sb)
	if err := os.RemoveAll(c.path("sandboxes", strings.Repeat("d", 120))); err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.Fatal(fmt.Errorf("clear: %w", err))
	}
}
