package drivertest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/driver"
)

// C is one check at work: a driver of its own in a place of its own.
type C struct {
	testing.TB
	*suiteRun
	place Place
	drv   driver.Driver
	ctx   context.Context // of the whole check: it bounds what a check does many times over
	base  string          // everything of this check lies below it
	tag   string          // in every ID of this check, and in nothing else on this host
	count atomic.Int64
}

func newC(t testing.TB, r *suiteRun) *C {
	t.Helper()
	tag := "t" + strings.ToLower(rand.Text()[:9])
	base, err := os.MkdirTemp("", "fb"+tag)
	if err != nil {
		t.Fatal(err)
	}
	c := &C{TB: t, suiteRun: r, base: base, tag: tag}
	for _, dir := range []string{base, c.path("state"), c.path("sandboxes")} {
		if err := errors.Join(os.MkdirAll(dir, 0o755), os.Chmod(dir, 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	c.place = Place{StateDir: c.path("state"), Agent: r.bin.agent(t), Log: slog.New(slog.DiscardHandler)}
	before := c.look()
	ctx, cancel := context.WithTimeout(context.Background(), 5*r.Patience)
	c.ctx = ctx
	t.Cleanup(func() {
		cancel()
		c.compare(before)
		if err := os.RemoveAll(base); err != nil {
			t.Errorf("remove the check's directory: %v", err)
		}
	})
	c.drv = c.open(c.place)
	return c
}

func (c *C) path(elem ...string) string { return filepath.Join(append([]string{c.base}, elem...)...) }

// open returns a driver at p, as another process would make it.
func (c *C) open(p Place) driver.Driver {
	c.Helper()
	return c.New(c, p)
}

// spec returns the spec of a new sandbox; its directory is made.
func (c *C) spec() driver.Spec {
	c.Helper()
	id := driver.ID(fmt.Sprintf("%s%03d", c.tag, c.count.Add(1)))
	s := driver.Spec{ID: id, Dir: c.path("sandboxes", string(id))}
	if c.Root != nil {
		s.Root = c.Root(c)
	}
	if err := os.Mkdir(s.Dir, 0o700); err != nil {
		c.Fatal(err)
	}
	return s
}

// create makes a sandbox that is destroyed with the check.
func (c *C) create(spec driver.Spec) driver.Sandbox {
	c.Helper()
	c.destroyLater(spec)
	var sb driver.Sandbox
	c.within("Create", func(ctx context.Context) (err error) {
		sb, err = c.drv.Create(ctx, spec)
		return err
	})
	return sb
}

// destroyLater is idempotent as Destroy is: a check may destroy on its own.
func (c *C) destroyLater(spec driver.Spec) {
	c.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), c.Patience)
		defer cancel()
		if err := c.drv.Destroy(ctx, spec); err != nil {
			c.Errorf("clean up: Destroy: %v", err)
		}
	})
}

func (c *C) destroy(spec driver.Spec) {
	c.Helper()
	c.within("Destroy", func(ctx context.Context) error { return c.drv.Destroy(ctx, spec) })
}

// within fails the check unless do returns without an error in time. A do that never returns is left behind.
func (c *C) within(what string, do func(ctx context.Context) error) {
	c.Helper()
	ctx, cancel := context.WithTimeout(c.ctx, c.Patience)
	defer cancel()
	if err := c.try(ctx, what, do); err != nil {
		c.Fatalf("%s: %v", what, err)
	}
}

// try returns the error of do; it fails the check if do does not return, not even some time after ctx has ended.
func (c *C) try(ctx context.Context, what string, do func(ctx context.Context) error) error {
	c.Helper()
	done := make(chan error, 1)
	go func() { done <- do(ctx) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-done:
		return err
	case <-time.After(c.Patience):
		c.Fatalf("%s: has not returned %v after its context ended", what, c.Patience)
		return nil
	}
}

// eventually waits until ok; it fails the check with why if that takes too long.
func (c *C) eventually(why string, ok func() bool) {
	c.Helper()
	for end := time.Now().Add(c.Patience); ; time.Sleep(10 * time.Millisecond) {
		if ok() {
			return
		}
		if time.Now().After(end) {
			c.Fatalf("%s, after %v", why, c.Patience)
		}
	}
}

// listed reports whether the driver lists id.
func (c *C) listed(id driver.ID) bool {
	c.Helper()
	for _, got := range c.list() {
		if got == id {
			return true
		}
	}
	return false
}

func (c *C) list() (ids []driver.ID) {
	c.Helper()
	c.within("List", func(ctx context.Context) (err error) {
		ids, err = c.drv.List(ctx)
		return err
	})
	return ids
}

// call speaks plain HTTP with the agent on a stream of its own, and returns the status.
func (c *C) call(ctx context.Context, sb driver.Sandbox, method, path, token, body string) (int, error) {
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return sb.Dial(ctx) },
	}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, method, "http://sandbox"+path, strings.NewReader(body))
	if err != nil {
		return 0, err
	}
	if token != "" {
		req.Header.Set("X-Access-Token", token)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20))
	return resp.StatusCode, err
}

// answers fails the check unless the agent is healthy. An agent may still be starting behind its open port.
func (c *C) answers(sb driver.Sandbox) {
	c.Helper()
	status, err := 0, error(nil)
	c.eventually("the agent is not healthy", func() bool {
		ctx, cancel := context.WithTimeout(c.ctx, 10*time.Second)
		defer cancel()
		status, err = c.call(ctx, sb, http.MethodGet, "/health", "", "")
		if err == nil && status == http.StatusNoContent {
			return true
		}
		c.Logf("health: status %d, %v", status, err)
		return c.ctx.Err() != nil
	})
	if status != http.StatusNoContent {
		c.Fatalf("the agent is not healthy: status %d, %v", status, err)
	}
}

// initAs claims the agent, or proves that the token is the one that claimed it.
func (c *C) initAs(sb driver.Sandbox, token string) int {
	c.Helper()
	var status int
	c.within("POST /init", func(ctx context.Context) (err error) {
		status, err = c.call(ctx, sb, http.MethodPost, "/init", token, `{"accessToken":"`+token+`"}`)
		return err
	})
	return status
}
