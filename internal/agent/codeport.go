package agent

import (
	"bufio"
	"context"
	"log/slog"
	"net"
	"net/http"
	"time"
)

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
