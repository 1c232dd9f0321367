package code

import (
	"cmp"
	"maps"
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
	language Language
	user     account.User
	turn     chan struct{} // holds a token while a run has the kernel; those who wait are served in their order

	mu      sync.Mutex
	waiting int
	kernel  Kernel            // nil before the first run and after a restart
	env     map[string]string // the sandbox's own when the kernel was started
	count   uint64            // of the kernel's runs; who has the turn counts
	lost    string            // how the kernel ended with its state, if nobody was told yet
	ended   string            // why there is no context any more
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
		out.begin(c.runs(0))
		out.Failed("KernelDied", lost+"; its state is lost and this code was not run; the next run finds a new kernel", "")
		out.end()
		return nil
	}
	out.begin(c.runs(1))
	if k.Run(out.ctx, code, c.overlay(env), out) {
		out.end()
		return nil
	}
	reason := k.End()
	if out.ctx.Err() != nil {
		c.forget(k, reason) // the client does not hear of it: the next run tells
		return nil
	}
	c.forget(k, "")
	out.Failed("KernelDied", reason+"; its state is lost; the next run finds a new kernel", "")
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
	out.Flush()
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
func (c *Context) live() (Kernel, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended != "" {
		return nil, fail(http.StatusNotFound, "Context %s not found: %s", c.ID, c.ended)
	}
	if c.kernel != nil {
		select {
		case <-c.kernel.Gone():
			c.lost, c.kernel = c.kernel.End(), nil
		default:
			return c.kernel, nil
		}
	}
	env := c.service.Session.Defaults().Envs
	k, err := c.service.Place.Start(Options{Language: c.language, User: c.user, Dir: c.Dir, Env: env})
	if err != nil {
		return nil, err
	}
	c.kernel, c.env, c.count = k, env, 0
	return k, nil
}

// runs adds n to the number of the kernel's runs and returns it.
func (c *Context) runs(n uint64) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.count += n
	return c.count
}

// overlay is what a run sets: what the sandbox's environment has become since the kernel's start, and the run's own.
func (c *Context) overlay(run map[string]string) map[string]string {
	c.mu.Lock()
	old := c.env
	c.mu.Unlock()
	env := map[string]string{}
	for name, value := range c.service.Session.Defaults().Envs {
		if before, had := old[name]; !had || before != value {
			env[name] = value
		}
	}
	maps.Copy(env, run)
	return env
}

func (c *Context) takeLost() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	lost := c.lost
	c.lost = ""
	return lost
}

// forget drops a kernel that is gone; lost is what the next run must be told.
func (c *Context) forget(k Kernel, lost string) {
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
	k.Kill(reason)
	select {
	case <-k.Gone():
	case <-time.After(5 * time.Second): // stuck in the operating system
	}
}
