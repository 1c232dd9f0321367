package mcp

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/dataplane"
	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/manager"
	"github.com/firebreak-dev/firebreak/internal/store"
)

// Workspace is where the user's directory is shared in a sandbox.
const Workspace = "/workspace"

// box is one sandbox of a session.
type box struct {
	id  string
	rec store.Record // as it was made
	log history

	ctx    context.Context // ends with the sandbox's place in its session
	cancel context.CancelFunc

	mu       sync.Mutex
	until    time.Time         // guarded by mu: when it would end by itself
	opened   map[uint16]string // guarded by mu: the address of each port that was exposed
	contexts map[string]string // guarded by mu: ids of interpreters, by language and name
}

// lease is what a sandbox is given: between the idle time and a quarter more, so that not every call asks for more.
func (d *Door) lease() time.Duration { return d.cfg.Idle + d.cfg.Idle/4 }

// newBox makes a sandbox of the session.
func (c *call) newBox(req manager.Request) (*box, error) {
	s, d := c.session, c.door
	if len(s.list()) >= maxBoxes {
		return nil, &firebreak.Error{Kind: firebreak.KindExhausted, Err: fmt.Errorf("this session has %d sandboxes, the most that it may", maxBoxes),
			Mend: "end one with kill_sandbox"}
	}
	req.Timeout, req.Detached, req.Command = d.lease(), false, "mcp"
	if d.cfg.PortURL != nil { // until a tool exposes a port
		req.Annotations = map[string]string{dataplane.AnnotationPrivate: "true"}
		req.TrafficToken = newToken()
	}
	rec, _, err := d.cfg.Sandboxes.Create(c.ctx, req)
	if err != nil {
		return nil, err
	}
	b := &box{id: string(rec.ID), rec: rec, until: time.Now().Add(d.lease()), opened: map[uint16]string{}}
	b.ctx, b.cancel = context.WithCancel(s.ctx)
	if err := s.add(b); err != nil {
		b.cancel()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), endTimeout)
		defer cancel()
		_, _ = d.cfg.Sandboxes.Delete(ctx, b.id) // else its time is up by itself
		return nil, err
	}
	b.log.add("made from template %s with %s (%s)", rec.Template, rec.Driver, rec.Boundary)
	for _, w := range rec.Warnings {
		b.log.add("warning: %s", w)
	}
	c.log("info", map[string]any{"event": "sandbox made", "sandbox": b.id, "driver": rec.Driver, "boundary": rec.Boundary.String(),
		"template": rec.Template, "warnings": rec.Warnings})
	return b, nil
}

// box returns the sandbox that a tool is to use, alive: the one that it names, or the session's own, which it makes if
// there is none. Where the session's own one had ended, the call's note says so.
func (c *call) box(id string) (*box, *guest.Guest, error) {
	b := c.session.find(id)
	if id != "" && b == nil {
		return nil, nil, &firebreak.Error{Kind: firebreak.KindNotFound, Err: fmt.Errorf("this session has no sandbox %.80q", id),
			Mend: "leave sandbox out for the session's own one, or see list_sandboxes"}
	}
	if b == nil {
		var err error
		if b, err = c.standard(); err != nil {
			return nil, nil, err
		}
	}
	if err := b.alive(c); err != nil {
		return nil, nil, err
	}
	g, err := c.door.cfg.Guests.Guest(c.ctx, b.id)
	return b, g, err
}

// standard returns the session's own sandbox, the only one that is made unasked.
func (c *call) standard() (*box, error) {
	s := c.session
	select {
	case s.making <- struct{}{}:
		defer func() { <-s.making }()
	case <-c.ctx.Done():
		return nil, c.ctx.Err()
	}
	s.mu.Lock()
	b := s.standard
	s.mu.Unlock()
	if b != nil {
		why := b.ended(c)
		if why == "" {
			return b, nil
		}
		s.forget(b)
		c.note = fmt.Sprintf("The sandbox %s has ended (%s). This ran in a new one: files, variables and background commands of the old one are gone.", b.id, why)
	}
	return c.newBox(c.door.cfg.Request)
}

// ended returns why the sandbox is not there any more, "" if it is.
func (b *box) ended(c *call) string {
	rec, err := c.door.cfg.Sandboxes.Find(c.ctx, b.id)
	switch {
	case firebreak.KindOf(err) == firebreak.KindNotFound:
		return "it was removed"
	case err != nil || rec.State == firebreak.StateRunning || rec.State == firebreak.StatePaused:
		return "" // what is wrong shows where it is used
	}
	text := string(rec.Exit.Reason)
	if rec.Exit.Detail != "" {
		text += ": " + rec.Exit.Detail
	}
	return text
}

// alive gives the sandbox more time, or says why that cannot be.
func (b *box) alive(c *call) error {
	if why := b.ended(c); why != "" {
		c.session.forget(b)
		return &firebreak.Error{Kind: firebreak.KindNotFound, Err: fmt.Errorf("the sandbox %s has ended (%s)", b.id, why),
			Mend: "make another one with create_sandbox, or leave sandbox out"}
	}
	return b.extend(c.ctx, c.door)
}

func (b *box) extend(ctx context.Context, d *Door) error {
	b.mu.Lock()
	due := time.Until(b.until) < d.cfg.Idle
	b.mu.Unlock()
	if !due {
		return nil
	}
	if _, err := d.cfg.Sandboxes.SetTimeout(ctx, b.id, d.lease(), true); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.until = time.Now().Add(d.lease())
	return nil
}

// keep gives the sandbox time for as long as something is at work in it.
func (b *box) keep(ctx context.Context, d *Door) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(d.cfg.Idle / 8)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				_ = b.extend(ctx, d) // the next tick tries again
			}
		}
	}()
	return func() {
		cancel()
		<-done
	}
}
