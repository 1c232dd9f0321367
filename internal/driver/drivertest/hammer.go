package drivertest

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"testing"

	"github.com/firebreak-dev/firebreak/internal/driver"
)

func shortRun() bool { return testing.Short() }

func hammerChecks() []check {
	return []check{
		{name: "hammer", run: checkHammer},
		{name: "hammer-one-id", run: checkHammerOneID},
	}
}

// checkHammer creates, uses and destroys from many goroutines at once.
func checkHammer(c *C) {
	workers, loops := 4, 6
	if shortRun() {
		workers, loops = 3, 2
	}
	specs := make([][]driver.Spec, workers)
	for w := range workers {
		for range loops {
			spec := c.spec()
			c.destroyLater(spec)
			specs[w] = append(specs[w], spec)
		}
	}
	errs := make([]error, workers)
	err := c.try(c.ctx, "the hammer", func(ctx context.Context) error {
		var all sync.WaitGroup
		for w := range workers {
			all.Go(func() {
				for _, spec := range specs[w] {
					errs[w] = errors.Join(errs[w], c.strike(ctx, spec))
				}
			})
		}
		all.Wait()
		return errors.Join(errs...)
	})
	if err != nil {
		c.Errorf("%d workers, %d loops: %v", workers, loops, err)
	}
	if ids := c.list(); len(ids) != 0 {
		c.Errorf("List after the hammer = %v", ids)
	}
}

func (c *C) strike(ctx context.Context, spec driver.Spec) error {
	sb, err := c.drv.Create(ctx, spec)
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	if err := c.use(ctx, spec, sb); err != nil {
		return err
	}
	if err := c.drv.Destroy(ctx, spec); err != nil {
		return fmt.Errorf("destroy: %w", err)
	}
	return nil
}

// use runs a program where programs run; elsewhere it asks for the agent's health.
func (c *C) use(ctx context.Context, spec driver.Spec, sb driver.Sandbox) error {
	if !c.info.Caps.Has(driver.CapProcesses) {
		status, err := c.call(ctx, sb, http.MethodGet, "/health", "", "")
		if err == nil && status != http.StatusNoContent {
			err = fmt.Errorf("health: status %d", status)
		}
		return err
	}
	b, err := c.enter(ctx, spec, sb)
	if err != nil {
		return err
	}
	defer b.guest.Close()
	res, err := b.run(ctx, program{cmd: "/bin/sh", args: []string{"-c", "echo " + string(spec.ID)}})
	if err == nil && res.stdout != string(spec.ID)+"\n" {
		err = fmt.Errorf("exec: got %+v", res)
	}
	return err
}

// checkHammerOneID: many create and destroy the same sandbox at once. Whatever each of them is told, nobody hangs,
// nobody gets an error of the wrong kind, and a last Destroy leaves nothing.
func checkHammerOneID(c *C) {
	spec := c.spec()
	c.destroyLater(spec)
	loops := 10
	if shortRun() {
		loops = 3
	}
	err := c.try(c.ctx, "the hammer", func(ctx context.Context) error {
		errs := make([]error, 4)
		var all sync.WaitGroup
		for w := range errs {
			all.Go(func() {
				for range loops {
					if w%2 == 0 {
						_, _ = c.drv.Create(ctx, spec) // it may lose to another Create or to a Destroy
						continue
					}
					errs[w] = errors.Join(errs[w], c.drv.Destroy(ctx, spec))
				}
			})
		}
		all.Wait()
		return errors.Join(errs...)
	})
	if err != nil {
		c.Errorf("Destroy: %v", err)
	}
	c.destroy(spec)
	sb := c.create(spec)
	c.answers(sb)
	c.destroy(spec)
	c.gone(spec, sb)
}
