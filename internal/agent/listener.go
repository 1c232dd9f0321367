package agent

import (
	"context"
	"net"
	"sync"
)

// Listener is one to which nothing but this process can connect: with Dial, or with connections that were taken over from
// another server.
type Listener struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

// NewListener returns a listener.
func NewListener() *Listener { return &Listener{conns: make(chan net.Conn), done: make(chan struct{})} }

// Dial connects to it. net.ErrClosed once it is closed.
func (l *Listener) Dial(ctx context.Context) (net.Conn, error) {
	ours, theirs := net.Pipe()
	err := l.give(ctx, theirs)
	if err != nil {
		_ = ours.Close()
		return nil, err
	}
	return ours, nil
}

// give hands a connection in; on error it is closed.
func (l *Listener) give(ctx context.Context, c net.Conn) (err error) {
	select {
	case l.conns <- c:
		return nil
	case <-l.done:
		err = net.ErrClosed
	case <-ctx.Done():
		err = ctx.Err()
	}
	_ = c.Close()
	return err
}

// Accept implements net.Listener.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *Listener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

// Addr implements net.Listener.
func (l *Listener) Addr() net.Addr { return &net.UnixAddr{Name: "agent", Net: "unix"} }
