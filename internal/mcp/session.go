package mcp

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/auth"
)

// endTimeout bounds the end of a session's sandboxes.
const endTimeout = time.Minute

// session is what one client has here.
type session struct {
	door   *Door
	ss     *sdk.ServerSession
	caller auth.Caller // at its beginning
	ctx    context.Context
	cancel context.CancelFunc
	work   sync.WaitGroup // calls, commands that run on, forwarded ports
	slots  chan struct{}
	making chan struct{} // held by who makes the default sandbox
	gone   chan struct{} // closed when nothing of it is left
	idle   *idleTimer    // nil: it ends with its stream

	mu       sync.Mutex
	ending   bool       // guarded by mu
	boxes    []*box     // guarded by mu: its sandboxes, the oldest first
	standard *box       // guarded by mu: the one that tools use which name none
	commands []*command // guarded by mu: those that can be asked for, the oldest first
	count    int        // guarded by mu: of commands so far
}

// of returns the session of a connection, and begins it with its first request.
func (d *Door) of(ctx context.Context, ss *sdk.ServerSession) (*session, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if s := d.sessions[ss]; s != nil {
		return s, nil
	}
	by, err := auth.CallerOf(ctx)
	if err != nil {
		return nil, err
	}
	if d.closed {
		return nil, unavailable("firebreak is shutting down")
	}
	if err := d.roomLocked(by); err != nil {
		return nil, err
	}
	s := &session{door: d, ss: ss, caller: by, slots: make(chan struct{}, maxCalls), making: make(chan struct{}, 1), gone: make(chan struct{})}
	s.ctx, s.cancel = context.WithCancel(auth.WithCaller(context.WithoutCancel(ctx), by))
	if ss.ID() != "" {
		s.idle = newIdleTimer(d.cfg.SessionIdle, func() {
			d.end(ss)
			_ = ss.Close() // the client went away
		})
	}
	d.sessions[ss] = s
	d.work.Go(func() {
		_ = ss.Wait() // whatever ended it
		d.end(ss)
		s.clear()
		close(s.gone)
	})
	return s, nil
}

// roomLocked refuses a session too many.
func (d *Door) roomLocked(by auth.Caller) error {
	same := 0
	for _, s := range d.sessions {
		if s.caller.Operator == by.Operator && s.caller.Tenant.ID == by.Tenant.ID {
			same++
		}
	}
	if len(d.sessions) >= d.cfg.Sessions || same >= max(1, d.cfg.Sessions/2) {
		return &firebreak.Error{Kind: firebreak.KindExhausted, Err: fmt.Errorf("too many MCP sessions: %d, of this caller %d", len(d.sessions), same),
			Mend: "end one of them (DELETE with its Mcp-Session-Id), or wait until an idle one ends"}
	}
	return nil
}

// end begins the end of a session, if there is one still: what its tools do is cancelled, which an orderly close would
// wait for.
func (d *Door) end(ss *sdk.ServerSession) *session {
	d.mu.Lock()
	s := d.sessions[ss]
	d.mu.Unlock()
	if s == nil {
		return nil
	}
	s.mu.Lock()
	s.ending = true
	s.mu.Unlock()
	s.cancel()
	if s.idle != nil {
		s.idle.stop()
	}
	return s
}

// clear ends the sandboxes of a session that has ended.
func (s *session) clear() {
	s.work.Wait()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), endTimeout)
	defer cancel()
	s.mu.Lock()
	boxes := s.boxes
	s.boxes, s.standard = nil, nil
	for _, c := range s.commands {
		c.output.free()
	}
	s.commands = nil
	s.mu.Unlock()
	var ends sync.WaitGroup
	for _, b := range boxes {
		ends.Go(func() {
			if _, err := s.door.cfg.Sandboxes.Delete(ctx, b.id); err != nil && firebreak.KindOf(err) != firebreak.KindNotFound {
				s.door.log.Warn("end the sandbox of an MCP session", "sandbox", b.id, "err", err)
			}
		})
	}
	ends.Wait()
	d := s.door
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.sessions, s.ss)
}

// enter counts a call of the session. Its context ends with the session's.
func (s *session) enter(ctx context.Context) (context.Context, func(), error) {
	select {
	case s.slots <- struct{}{}:
	default:
		return nil, nil, &firebreak.Error{Kind: firebreak.KindExhausted, Err: fmt.Errorf("%d tools of this session are at work already", maxCalls),
			Mend: "wait for one to end, or cancel it"}
	}
	ctx, leave, err := s.join(ctx)
	if err != nil {
		<-s.slots
		return nil, nil, err
	}
	if s.idle != nil {
		s.idle.enter()
	}
	return ctx, func() {
		leave()
		if s.idle != nil {
			s.idle.leave()
		}
		<-s.slots
	}, nil
}

// join counts work of the session, so that its end waits for it, and ends the work's context with the session.
func (s *session) join(ctx context.Context) (context.Context, func(), error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ending {
		return nil, nil, unavailable("the session is ending")
	}
	s.work.Add(1)
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.ctx, cancel)
	return ctx, func() {
		stop()
		cancel()
		s.work.Done()
	}, nil
}

// admit has a session begin with its handshake, so that it is refused there, in the words of an error.
func (d *Door) admit(next sdk.MethodHandler) sdk.MethodHandler {
	return func(ctx context.Context, method string, req sdk.Request) (sdk.Result, error) {
		ctx = withCaller(ctx, req)
		if ss, ok := req.GetSession().(*sdk.ServerSession); ok && method == "initialize" {
			if _, err := d.of(ctx, ss); err != nil {
				return nil, err
			}
		}
		return next(ctx, method, req)
	}
}

// find returns a sandbox of the session.
func (s *session) find(id string) *box {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.IndexFunc(s.boxes, func(b *box) bool { return b.id == id }); i >= 0 {
		return s.boxes[i]
	}
	return nil
}

func (s *session) add(b *box) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ending {
		return errors.New("the session is ending")
	}
	s.boxes = append(s.boxes, b)
	if s.standard == nil {
		s.standard = b
	}
	return nil
}

func (s *session) forget(b *box) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.boxes = slices.DeleteFunc(s.boxes, func(o *box) bool { return o == b })
	if s.standard == b {
		s.standard = nil
	}
	b.cancel()
}

func (s *session) list() []*box {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.boxes)
}

// idleTimer calls end once nothing has been under way for a while.
type idleTimer struct {
	time time.Duration

	mu    sync.Mutex
	busy  int         // guarded by mu
	over  bool        // guarded by mu
	timer *time.Timer // guarded by mu
}

func newIdleTimer(d time.Duration, end func()) *idleTimer {
	return &idleTimer{time: d, timer: time.AfterFunc(d, end)}
}

func (t *idleTimer) enter() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.busy++
	t.timer.Stop()
}

func (t *idleTimer) leave() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.busy--; t.busy == 0 && !t.over {
		t.timer.Reset(t.time)
	}
}

func (t *idleTimer) stop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.over = true
	t.timer.Stop()
}
