package code

import (
	"cmp"
	"net/http"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak/internal/agent/account"
)

// Context keeps the state of an interpreter from one run to the next. Its runs come one after the other.
type Context struct {
	ID       string
	Language string
	Dir      string // where it began

	service  *Service
	language language
	user     account.User
	turn     chan struct{} // holds a token while a run has the kernel; those who wait are served in their order

	mu      sync.Mutex
	waiting int
	kernel  *kernel // nil before the first run and after a restart
	lost    string  // how the kernel ended with its state, if nobody was told yet
	ended   string  // why there is no context any more
}

// Run runs code and writes what comes of it to out. An error means that it did not run.
func (c *Context) Run(out *stream, code string, env map[string]string) error {
	if err := c.enter(out); err != nil {
		return err
	}
	defer func() { <-c.turn }()
	if out.ctx.Err() != nil {
		return nil // the client went away while it waited
	}
	k, err := c.live()
	if err != nil {
		return err
	}
	if lost := c.takeLost(); lost != "" {
		// Code that counts on its state would fail in ways that nobody understands.
		out.begin(k.count)
		out.failed("KernelDied", lost+"; its state is lost and this code was not run; the next run finds a new kernel", "")
		out.end()
		return nil
	}
	if k.run(out, code, k.overlay(c.service.Session.Defaults().Envs, env)) {
		out.end()
		return nil
	}
	reason := k.end()
	if out.ctx.Err() != nil {
		c.forget(k, reason) // the client does not hear of it: the next run tells
		return nil
	}
	c.forget(k, "")
	out.failed("KernelDied", reason+"; its state is lost; the next run finds a new kernel", "")
	out.end()
	return nil
}

// enter waits for the turn of a run.
func (c *Context) enter(out *stream) error {
	select {
	case c.turn <- struct{}{}:
		return nil
	default:
	}
	if !c.wait(1) {
		return fail(http.StatusTooManyRequests, "%d runs wait for this context already", maxWaiting)
	}
	defer c.wait(-1)
	out.open()
	out.flush()
	select {
	case c.turn <- struct{}{}:
		return nil
	case <-out.ctx.Done():
		return out.ctx.Err()
	}
}

func (c *Context) wait(n int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n > 0 && c.waiting >= maxWaiting {
		return false
	}
	c.waiting += n
	return true
}

// live returns the kernel, a new one if there is none that lives.
func (c *Context) live() (*kernel, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended != "" {
		return nil, fail(http.StatusNotFound, "Context %s not found: %s", c.ID, c.ended)
	}
	if c.kernel != nil {
		select {
		case <-c.kernel.gone:
			c.lost, c.kernel = c.kernel.end(), nil
		default:
			return c.kernel, nil
		}
	}
	k, err := c.service.start(c)
	if err == nil {
		c.kernel = k
	}
	return k, err
}

func (c *Context) takeLost() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	lost := c.lost
	c.lost = ""
	return lost
}

// forget drops a kernel that is gone; lost is what the next run must be told.
func (c *Context) forget(k *kernel, lost string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.kernel == k {
		c.kernel, c.lost = nil, lost
	}
}

// Restart ends the kernel, and what runs in it. The next run finds a new one.
func (c *Context) Restart() { c.stop("the context was restarted", "") }

// end ends the context.
func (c *Context) end(why string) { c.stop(why, why) }

func (c *Context) stop(reason, ended string) {
	c.mu.Lock()
	k := c.kernel
	c.kernel, c.lost, c.ended = nil, "", cmp.Or(c.ended, ended) // a restart brings nothing back
	c.mu.Unlock()
	if k == nil {
		return
	}
	k.kill(reason)
	select {
	case <-k.gone:
	case <-time.After(5 * time.Second): // stuck in the operating system
	}
}
