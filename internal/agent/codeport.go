package agent

import (
	"bufio"
	"context"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// handed is a listener whose connections were taken over from another server: those to the code interpreter's port.
// Nothing in the sandbox can connect to it.
type handed struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func newHanded() *handed { return &handed{conns: make(chan net.Conn), done: make(chan struct{})} }

// give hands a connection in; on false it is still the caller's.
func (h *handed) give(c net.Conn) bool {
	select {
	case h.conns <- c:
		return true
	case <-h.done:
		return false
	}
}

// Accept implements net.Listener.
func (h *handed) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (h *handed) Close() error {
	h.once.Do(func() { close(h.done) })
	return nil
}

// Addr implements net.Listener.
func (h *handed) Addr() net.Addr { return &net.UnixAddr{Name: "code", Net: "unix"} }

// takenOver is a hijacked connection: what was read ahead of it comes first.
type takenOver struct {
	net.Conn
	buffered *bufio.Reader
}

func (t takenOver) Read(p []byte) (int, error) {
	if t.buffered.Buffered() > 0 {
		return t.buffered.Read(p)
	}
	return t.Conn.Read(p)
}

// serveCode answers on the connections of the code interpreter's port until the agent's live context is done. Whoever
// opened them had the agent's token: the requests on them need none.
func (a *Agent) serveCode() {
	srv := &http.Server{
		Handler:        a.requests.count(a.code.Handler()),
		MaxHeaderBytes: 64 << 10, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 5 * time.Minute,
		BaseContext: func(net.Listener) context.Context { return a.live },
		ErrorLog:    slog.NewLogLogger(a.log.Handler(), slog.LevelDebug),
	}
	context.AfterFunc(a.live, func() { _ = srv.Close() })
	_ = srv.Serve(a.codePort) // until it is closed
}
