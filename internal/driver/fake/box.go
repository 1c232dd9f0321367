package fake

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
)

var (
	_ driver.Sandbox = (*box)(nil)
	_ driver.Pauser  = (*box)(nil)
)

// box is one sandbox: an HTTP server on pipes.
type box struct {
	id        driver.ID
	server    *http.Server
	pipes     chan net.Conn
	dead      chan struct{} // closed when it has ended
	accepting chan struct{} // closed when the server accepts no more
	serving   sync.WaitGroup

	mu       sync.Mutex
	once     bool          // guarded by mu: end has begun
	exit     driver.Exit   // guarded by mu until dead is closed
	token    string        // guarded by mu
	claimed  bool          // guarded by mu
	resumed  chan struct{} // guarded by mu: closed while it runs
	deadline *time.Timer   // guarded by mu
}

func newBox(id driver.ID) *box {
	b := &box{id: id, pipes: make(chan net.Conn), dead: make(chan struct{}), accepting: make(chan struct{}),
		resumed: make(chan struct{})}
	close(b.resumed)
	b.server = &http.Server{Handler: b, ReadHeaderTimeout: time.Minute, ConnState: func(_ net.Conn, s http.ConnState) {
		switch s {
		case http.StateNew:
			b.serving.Add(1)
		case http.StateClosed, http.StateHijacked:
			b.serving.Done()
		}
	}}
	go func() {
		defer close(b.accepting)
		_ = b.server.Serve(b) // only ever net.ErrClosed, from Accept
	}()
	return b
}

// Accept, Close and Addr make the box its server's listener.
func (b *box) Accept() (net.Conn, error) {
	select {
	case c := <-b.pipes:
		return c, nil
	case <-b.dead:
		return nil, net.ErrClosed
	}
}

func (b *box) Close() error   { return nil }
func (b *box) Addr() net.Addr { return &net.UnixAddr{Name: string(b.id), Net: "pipe"} }

func (b *box) ended() bool {
	select {
	case <-b.dead:
		return true
	default:
		return false
	}
}

// end is the only way out; all callers return when everything has stopped, the first one's exit counts.
func (b *box) end(exit driver.Exit) {
	b.mu.Lock()
	if !b.once {
		b.once, b.exit = true, exit
		if b.deadline != nil {
			b.deadline.Stop()
		}
		close(b.dead)
	}
	b.mu.Unlock()
	<-b.accepting // else a stream accepted after Close would be served for ever
	_ = b.server.Close()
	b.serving.Wait()
}

// Dial implements driver.Sandbox.
func (b *box) Dial(ctx context.Context) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if b.ended() {
		return nil, fmt.Errorf("dial sandbox %s: %w", b.id, fs.ErrNotExist)
	}
	ours, theirs := net.Pipe()
	select {
	case b.pipes <- theirs:
		return ours, nil
	case <-b.dead:
		return nil, fmt.Errorf("dial sandbox %s: %w", b.id, fs.ErrNotExist)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Wait implements driver.Sandbox.
func (b *box) Wait(ctx context.Context) (driver.Exit, error) {
	if err := ctx.Err(); err != nil {
		return driver.Exit{}, err
	}
	select {
	case <-b.dead:
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.exit, nil
	case <-ctx.Done():
		return driver.Exit{}, ctx.Err()
	}
}

// Usage implements driver.Sandbox: a fake takes nothing that could be counted.
func (b *box) Usage(ctx context.Context) (driver.Usage, error) {
	if b.ended() {
		return driver.Usage{}, fmt.Errorf("usage of sandbox %s: %w", b.id, fs.ErrNotExist)
	}
	return driver.Usage{}, ctx.Err()
}

// Pause implements driver.Pauser: streams stay open, and nothing answers on them.
func (b *box) Pause(ctx context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.alters(ctx); err != nil {
		return fmt.Errorf("pause sandbox %s: %w", b.id, err)
	}
	select {
	case <-b.resumed:
		b.resumed = make(chan struct{})
	default:
	}
	return nil
}

// Resume implements driver.Pauser.
func (b *box) Resume(ctx context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.alters(ctx); err != nil {
		return fmt.Errorf("resume sandbox %s: %w", b.id, err)
	}
	select {
	case <-b.resumed:
	default:
		close(b.resumed)
	}
	return nil
}

// alters returns why the box can be neither paused nor resumed. It needs mu.
func (b *box) alters(ctx context.Context) error {
	if b.once {
		return fs.ErrNotExist
	}
	return ctx.Err()
}

// ServeHTTP is the agent: health and init, and the true reason for all that cannot exist here.
func (b *box) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	resumed := b.resumed
	b.mu.Unlock()
	select {
	case <-resumed:
	case <-b.dead:
		return
	case <-r.Context().Done():
		return
	}
	switch {
	case r.URL.Path == "/health" && r.Method == http.MethodGet:
		w.WriteHeader(http.StatusNoContent)
	case r.URL.Path == "/init" && r.Method == http.MethodPost:
		b.init(w, r)
	case !b.allowed(r):
		http.Error(w, `{"code":401,"message":"wrong access token"}`, http.StatusUnauthorized)
	default:
		err := connect.NewError(connect.CodeUnimplemented, errors.New("the fake driver runs no programs and holds no files"))
		if writer := connect.NewErrorWriter(); writer.IsSupported(r) {
			_ = writer.Write(w, r, err)
			return
		}
		http.Error(w, `{"code":501,"message":"the fake driver runs no programs and holds no files"}`, http.StatusNotImplemented)
	}
}

func (b *box) allowed(r *http.Request) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.tokenOK(r)
}

// tokenOK needs mu.
func (b *box) tokenOK(r *http.Request) bool {
	return b.token == "" || subtle.ConstantTimeCompare([]byte(r.Header.Get("X-Access-Token")), []byte(b.token)) == 1
}

func (b *box) init(w http.ResponseWriter, r *http.Request) {
	var body struct {
		AccessToken string    `json:"accessToken"`
		Deadline    time.Time `json:"deadline"`
	}
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20)).Decode(&body); err != nil {
		http.Error(w, `{"code":400,"message":"malformed init"}`, http.StatusBadRequest)
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.claimed && !b.tokenOK(r) {
		http.Error(w, `{"code":401,"message":"wrong access token"}`, http.StatusUnauthorized)
		return
	}
	if !b.claimed {
		b.claimed, b.token = true, body.AccessToken
	}
	b.setDeadline(body.Deadline)
	w.WriteHeader(http.StatusNoContent)
}

// setDeadline needs mu.
func (b *box) setDeadline(at time.Time) {
	if b.deadline != nil {
		b.deadline.Stop()
	}
	if at.IsZero() || b.once {
		return
	}
	b.deadline = time.AfterFunc(time.Until(at), func() {
		b.end(driver.Exit{Reason: firebreak.EndDeadline, Code: 124, Detail: "its time was up"})
	})
}
