package drivertest

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
)

func lifecycleChecks() []check {
	return []check{
		{name: "lifecycle", run: checkLifecycle},
		{name: "probe-describes", run: checkProbe},
		{name: "empty-host", run: checkEmptyHost},
		{name: "destroy-idempotent", run: checkDestroyIdempotent},
		{name: "destroy-concurrent", run: checkDestroyConcurrent},
		{name: "destroy-keeps-neighbour", run: checkDestroyKeepsNeighbour},
		{name: "destroy-by-id-and-dir", run: checkDestroyByIDAndDir},
		{name: "duplicate-id", run: checkDuplicateID},
		{name: "concurrent-duplicates", run: checkConcurrentDuplicates},
		{name: "id-again", run: checkIDAgain},
		{name: "bad-id", run: checkBadID},
		{name: "dial-own", run: checkDialOwn},
		{name: "dial-many", run: checkDialMany},
		{name: "wait", run: checkWait},
		{name: "wait-many", run: checkWaitMany},
		{name: "deadline", run: checkDeadline},
		{name: "usage", run: checkUsage},
		{name: "outlives-context", run: checkOutlivesContext},
	}
}

func checkLifecycle(c *C) {
	spec := c.spec()
	sb := c.create(spec)
	c.answers(sb)
	if ids := c.list(); !slices.Equal(ids, []driver.ID{spec.ID}) {
		c.Errorf("List = %v, want only %s", ids, spec.ID)
	}
	c.destroy(spec)
	c.gone(spec, sb)
}

// gone fails the check unless nothing of a destroyed sandbox can be found any more.
func (c *C) gone(spec driver.Spec, sb driver.Sandbox) {
	c.Helper()
	if c.listed(spec.ID) {
		c.Errorf("List still has %s", spec.ID)
	}
	err := c.try(c.ctx, "Open", func(ctx context.Context) error {
		_, err := c.drv.Open(ctx, spec)
		return err
	})
	if !errors.Is(err, fs.ErrNotExist) {
		c.Errorf("Open of what was destroyed: %v, want fs.ErrNotExist", err)
	}
	if entries, err := os.ReadDir(spec.Dir); err != nil || len(entries) > 0 {
		c.Errorf("Dir after Destroy: %v, %v; want it there and empty", entries, err)
	}
	if sb == nil {
		return
	}
	err = c.try(c.ctx, "Dial", func(ctx context.Context) error {
		conn, err := sb.Dial(ctx)
		if err == nil {
			_ = conn.Close()
		}
		return err
	})
	if !errors.Is(err, fs.ErrNotExist) {
		c.Errorf("Dial of what was destroyed: %v, want fs.ErrNotExist", err)
	}
}

func checkProbe(c *C) {
	if c.info.Name != c.Suite.Name {
		c.Errorf("Name = %q, want %q", c.info.Name, c.Suite.Name)
	}
	if c.info.Boundary == firebreak.BoundaryInvalid {
		c.Error("Boundary is invalid")
	}
	if len(c.info.Forms) == 0 || slices.Contains(c.info.Forms, driver.FormInvalid) {
		c.Errorf("Forms = %v", c.info.Forms)
	}
	if c.info.Boundary == firebreak.BoundaryNone && len(c.info.Warnings) == 0 {
		c.Error("a driver without a boundary must warn of it")
	}
	for _, p := range slices.Concat(c.info.Problems, c.info.Warnings) {
		if p.Text == "" {
			c.Error("a problem or warning says nothing")
		}
	}
	var again driver.Info
	c.within("Probe", func(ctx context.Context) (err error) {
		again, err = c.drv.Probe(ctx)
		return err
	})
	if again.Caps != c.info.Caps || again.Boundary != c.info.Boundary {
		c.Errorf("a second Probe says %v %v, the first said %v %v", again.Boundary, again.Caps.Names(), c.info.Boundary, c.info.Caps.Names())
	}
}

func checkEmptyHost(c *C) {
	if ids := c.list(); len(ids) != 0 {
		c.Errorf("List on an empty host = %v", ids)
	}
	spec := c.spec()
	c.destroy(spec)
	c.gone(spec, nil)
	if err := os.RemoveAll(c.place.StateDir); err != nil {
		c.Fatal(err)
	}
	if ids := c.list(); len(ids) != 0 {
		c.Errorf("List without a state directory = %v", ids)
	}
	c.destroy(spec)
}

func checkDestroyIdempotent(c *C) {
	spec := c.spec()
	sb := c.create(spec)
	for range 3 {
		c.destroy(spec)
		c.gone(spec, sb)
	}
}

func checkDestroyConcurrent(c *C) {
	spec := c.spec()
	sb := c.create(spec)
	drivers := []driver.Driver{c.drv, c.open(c.place)}
	errs := make([]error, 6)
	var all sync.WaitGroup
	for i := range errs {
		all.Go(func() { errs[i] = drivers[i%2].Destroy(c.ctx, spec) })
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		c.Errorf("concurrent Destroy: %v", err)
	}
	c.gone(spec, sb)
}

func checkDestroyKeepsNeighbour(c *C) {
	mine, other := c.spec(), c.spec()
	c.create(mine)
	neighbour := c.create(other)
	c.destroy(mine)
	c.answers(neighbour)
	if ids := c.list(); !slices.Equal(ids, []driver.ID{other.ID}) {
		c.Errorf("List = %v, want only %s", ids, other.ID)
	}
}

func checkDestroyByIDAndDir(c *C) {
	spec := c.spec()
	sb := c.create(spec)
	c.destroy(driver.Spec{ID: spec.ID, Dir: spec.Dir})
	c.gone(spec, sb)
}

func checkDuplicateID(c *C) {
	spec := c.spec()
	sb := c.create(spec)
	for name, d := range map[string]driver.Driver{"the same driver": c.drv, "another driver": c.open(c.place)} {
		err := c.try(c.ctx, "Create", func(ctx context.Context) error {
			_, err := d.Create(ctx, spec)
			return err
		})
		if !errors.Is(err, fs.ErrExist) {
			c.Errorf("second Create by %s: %v, want fs.ErrExist", name, err)
		}
	}
	c.answers(sb)
}

// checkConcurrentDuplicates: of many Creates of one ID, one wins, and the losers take nothing away from it.
func checkConcurrentDuplicates(c *C) {
	spec := c.spec()
	c.destroyLater(spec)
	const racers = 6
	var (
		all  sync.WaitGroup
		won  [racers]driver.Sandbox
		errs [racers]error
	)
	for i := range racers {
		all.Go(func() { won[i], errs[i] = c.drv.Create(c.ctx, spec) })
	}
	all.Wait()
	var winner driver.Sandbox
	for i, err := range errs {
		switch {
		case err == nil && winner != nil:
			c.Error("two Creates of one ID succeeded")
		case err == nil:
			winner = won[i]
		case !errors.Is(err, fs.ErrExist):
			c.Errorf("a losing Create: %v, want fs.ErrExist", err)
		}
	}
	if winner == nil {
		c.Fatal("no Create succeeded")
	}
	c.answers(winner)
}

func checkIDAgain(c *C) {
	spec := c.spec()
	for range 3 {
		old := c.create(spec)
		c.destroy(spec)
		sb := c.create(spec)
		c.answers(sb)
		c.within("Wait on the old handle", func(ctx context.Context) error {
			_, err := old.Wait(ctx)
			return err
		})
		c.destroy(spec)
	}
}

func checkBadID(c *C) {
	for _, id := range []driver.ID{"", "..", "a/b", "A", "a-b", "a.b", driver.ID(make([]byte, 41))} {
		spec := c.spec()
		spec.ID = id
		err := c.try(c.ctx, "Create", func(ctx context.Context) error {
			_, err := c.drv.Create(ctx, spec)
			return err
		})
		if firebreak.KindOf(err) != firebreak.KindInvalid {
			c.Errorf("Create with ID %q: %v, want an error of kind invalid", id, err)
		}
	}
	if ids := c.list(); len(ids) != 0 {
		c.Errorf("List = %v", ids)
	}
}

// checkDialOwn: an agent is claimed with a token, so a stream to a wrong one is told by its answer.
func checkDialOwn(c *C) {
	specs := []driver.Spec{c.spec(), c.spec(), c.spec()}
	var boxes []driver.Sandbox
	for _, spec := range specs {
		sb := c.create(spec)
		c.answers(sb)
		boxes = append(boxes, sb)
		if status := c.initAs(sb, "token-"+string(spec.ID)); status != http.StatusNoContent {
			c.Fatalf("the first init of %s: status %d, want 204", spec.ID, status)
		}
	}
	second := c.open(c.place)
	for i, sb := range boxes {
		for j, spec := range specs {
			want := http.StatusUnauthorized
			if i == j {
				want = http.StatusNoContent
			}
			if got := c.initAs(sb, "token-"+string(spec.ID)); got != want {
				c.Errorf("sandbox %d with the token of %d: status %d, want %d", i, j, got, want)
			}
		}
		again, err := second.Open(c.ctx, specs[i])
		if err != nil {
			c.Fatalf("Open: %v", err)
		}
		if got := c.initAs(again, "token-"+string(specs[i].ID)); got != http.StatusNoContent {
			c.Errorf("sandbox %d opened again, with its token: status %d, want 204", i, got)
		}
	}
}

func checkDialMany(c *C) {
	sb := c.create(c.spec())
	c.answers(sb)
	const streams = 20
	errs := make([]error, streams)
	var all sync.WaitGroup
	for i := range streams {
		all.Go(func() {
			status, err := c.call(c.ctx, sb, http.MethodGet, "/health", "", "")
			if err == nil && status != http.StatusNoContent {
				err = errors.New(http.StatusText(status))
			}
			errs[i] = err
		})
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		c.Errorf("%d streams at once: %v", streams, err)
	}
	ctx, cancel := context.WithCancel(c.ctx)
	cancel()
	if conn, err := sb.Dial(ctx); err == nil {
		_ = conn.Close()
		c.Error("Dial with a context that had ended succeeded")
	}
}

func checkWait(c *C) {
	spec := c.spec()
	sb := c.create(spec)
	ctx, cancel := context.WithTimeout(c.ctx, 50*time.Millisecond)
	defer cancel()
	err := c.try(ctx, "Wait", func(ctx context.Context) error {
		_, err := sb.Wait(ctx)
		return err
	})
	if !errors.Is(err, context.DeadlineExceeded) {
		c.Errorf("Wait on a live sandbox: %v, want its context's error", err)
	}
	c.destroy(spec)
	var exit driver.Exit
	c.within("Wait", func(ctx context.Context) (err error) {
		exit, err = sb.Wait(ctx)
		return err
	})
	if exit.Reason != firebreak.EndDestroyed {
		c.Errorf("Wait after Destroy = %+v, want reason %s", exit, firebreak.EndDestroyed)
	}
}

// checkWaitMany: those who wait already, on handles of two drivers, are all told of the end.
func checkWaitMany(c *C) {
	spec := c.spec()
	sb := c.create(spec)
	again, err := c.open(c.place).Open(c.ctx, spec)
	if err != nil {
		c.Fatalf("Open: %v", err)
	}
	handles := []driver.Sandbox{sb, again, sb, again}
	exits, errs := make([]driver.Exit, len(handles)), make([]error, len(handles))
	var all sync.WaitGroup
	for i, h := range handles {
		all.Go(func() { exits[i], errs[i] = h.Wait(c.ctx) })
	}
	time.Sleep(20 * time.Millisecond) // so that most of them wait before the end; none needs to
	c.destroy(spec)
	c.within("all Waits", func(context.Context) error {
		all.Wait()
		return errors.Join(errs...)
	})
	for i, exit := range exits {
		if exit.Reason != firebreak.EndDestroyed {
			c.Errorf("waiter %d was told %+v, want reason %s", i, exit, firebreak.EndDestroyed)
		}
	}
}

// checkDeadline: the agent ends at the deadline that init gave it, and the driver says so.
func checkDeadline(c *C) {
	spec := c.spec()
	sb := c.create(spec)
	c.answers(sb)
	var exit driver.Exit
	ended := make(chan error, 1)
	go func() { // before the deadline: who comes after the end is not always told the reason
		var err error
		exit, err = sb.Wait(c.ctx)
		ended <- err
	}()
	body := `{"accessToken":"t","deadline":"` + time.Now().Add(min(2*time.Second, c.Patience/4)).Format(time.RFC3339Nano) + `"}`
	// On a slow host the answer may come after the deadline, and be cut off.
	if status, err := c.call(c.ctx, sb, http.MethodPost, "/init", "t", body); err == nil && status != http.StatusNoContent {
		c.Fatalf("init with a deadline: status %d", status)
	}
	c.within("Wait", func(ctx context.Context) error {
		select {
		case err := <-ended:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	if exit.Reason != firebreak.EndDeadline {
		c.Errorf("Wait after the deadline = %+v, want reason %s", exit, firebreak.EndDeadline)
	}
	err := c.try(c.ctx, "Open", func(ctx context.Context) error {
		_, err := c.drv.Open(ctx, spec)
		return err
	})
	if !errors.Is(err, fs.ErrNotExist) {
		c.Errorf("Open of a sandbox that has ended: %v, want fs.ErrNotExist", err)
	}
	if !c.listed(spec.ID) {
		c.Error("List forgets a sandbox that has ended and was not destroyed")
	}
	c.destroy(spec)
	c.gone(spec, sb)
}

func checkUsage(c *C) {
	sb := c.create(c.spec())
	c.answers(sb)
	var u driver.Usage
	c.within("Usage", func(ctx context.Context) (err error) {
		u, err = sb.Usage(ctx)
		return err
	})
	if u.CPU < 0 || u.Memory < 0 || u.MemoryPeak < 0 || u.PIDs < 0 || u.OOMKills != 0 || u.PIDsDenied != 0 {
		c.Errorf("Usage of an idle sandbox = %+v", u)
	}
	if c.info.Caps.Has(driver.CapLimitMemory) && u.Memory == 0 {
		c.Error("the driver limits memory but counts none")
	}
	if c.info.Caps.Has(driver.CapLimitPIDs) && u.PIDs == 0 {
		c.Error("the driver limits processes but counts none")
	}
}

func checkOutlivesContext(c *C) {
	spec := c.spec()
	c.destroyLater(spec)
	ctx, cancel := context.WithCancel(c.ctx)
	sb, err := c.drv.Create(ctx, spec)
	cancel()
	if err != nil {
		c.Fatalf("Create: %v", err)
	}
	time.Sleep(100 * time.Millisecond) // time for a driver that ties them together to do its harm
	c.answers(sb)
}
