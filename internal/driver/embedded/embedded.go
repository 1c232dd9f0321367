// Package embedded is the life of a sandbox that is a part of this process: its agent, the streams to that, and its end.
package embedded

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"sync"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/agent"
	"github.com/firebreak-dev/firebreak/internal/driver"
)

// Sandbox is what a driver's own sandbox is built around. It is safe for concurrent use.
type Sandbox struct {
	id       driver.ID
	agent    *agent.Agent
	listener *agent.Listener
	clear    func()
	dead     chan struct{} // closed when it has ended

	mu     sync.Mutex
	ending bool          // guarded by mu
	exit   driver.Exit   // guarded by mu until dead is closed
	served chan struct{} // guarded by mu: closed when the agent serves no streams any more; nil: it never did
}

// New begins a sandbox with an agent of these parts; Due is its own. At its end clear removes what the driver made for it,
// when its agent has ended.
func New(id driver.ID, parts agent.Parts, clear func()) *Sandbox {
	s := &Sandbox{id: id, listener: agent.NewListener(), clear: clear, dead: make(chan struct{})}
	parts.Due = func() {
		s.End(driver.Exit{Reason: firebreak.EndDeadline, Code: 124, Detail: "its time was up"})
	}
	s.agent = agent.Embed(parts)
	return s
}

// ID is the sandbox's own.
func (s *Sandbox) ID() driver.ID { return s.id }

// Agent implements driver.Local. The context is done when the sandbox begins to end.
func (s *Sandbox) Agent() (context.Context, http.Handler) { return s.agent.Live(), s.agent }

// listen has the agent serve streams, from the first one on: requests need none.
func (s *Sandbox) listen() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ending || s.served != nil {
		return
	}
	s.served = make(chan struct{})
	go func() {
		defer close(s.served)
		_ = s.agent.Serve(s.agent.Live(), s.listener) // until the end, or its time is up, of which Due tells
	}()
}

// Ended reports whether it has ended, with all that was in it.
func (s *Sandbox) Ended() bool {
	select {
	case <-s.dead:
		return true
	default:
		return false
	}
}

// End is the only way out; all callers return when everything has stopped, the first one's exit counts.
func (s *Sandbox) End(exit driver.Exit) {
	s.mu.Lock()
	first := !s.ending
	if first {
		s.ending, s.exit = true, exit
	}
	served := s.served
	s.mu.Unlock()
	if !first {
		<-s.dead
		return
	}
	s.agent.Close()
	if served != nil {
		<-served
	}
	_ = s.listener.Close()
	s.clear()
	close(s.dead)
}

// Dial implements driver.Sandbox.
func (s *Sandbox) Dial(ctx context.Context) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.listen()
	conn, err := s.listener.Dial(ctx)
	if s.Ended() || errors.Is(err, net.ErrClosed) {
		if err == nil {
			_ = conn.Close()
		}
		return nil, fmt.Errorf("dial sandbox %s: %w", s.id, fs.ErrNotExist)
	}
	return conn, err
}

// Wait implements driver.Sandbox.
func (s *Sandbox) Wait(ctx context.Context) (driver.Exit, error) {
	if err := ctx.Err(); err != nil {
		return driver.Exit{}, err
	}
	select {
	case <-s.dead:
		return s.exit, nil
	case <-ctx.Done():
		return driver.Exit{}, ctx.Err()
	}
}
