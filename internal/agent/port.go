package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/firebreak-dev/firebreak/internal/agent/code"
	"github.com/firebreak-dev/firebreak/internal/agent/files"
)

// servePort turns the connection into one to a TCP port of the sandbox's loopback. The code interpreter's is always the
// agent's own: a program of the sandbox that listened there would be given clients' tokens.
func (a *Agent) servePort(w http.ResponseWriter, r *http.Request) {
	port, err := strconv.ParseUint(r.PathValue("port"), 10, 16)
	if err != nil || port == 0 {
		files.Error(w, http.StatusBadRequest, fmt.Errorf("%q is no port", r.PathValue("port")))
		return
	}
	if !strings.EqualFold(r.Header.Get("Upgrade"), "tcp") {
		w.Header().Set("Upgrade", "tcp")
		files.Error(w, http.StatusUpgradeRequired, errors.New("ask with Upgrade: tcp"))
		return
	}
	if port == code.Port {
		a.handCode(w)
		return
	}
	if a.place != "" {
		files.Error(w, http.StatusNotImplemented, fmt.Errorf("port %d is not open: nothing in %s can listen; only the code interpreter answers, at %d", port, a.place, code.Port))
		return
	}
	inside, err := a.dialPort(r, strconv.FormatUint(port, 10))
	if err != nil {
		files.Error(w, http.StatusBadGateway, fmt.Errorf("port %d is not open: %w", port, err))
		return
	}
	defer inside.Close() //nolint:errcheck // both directions have ended
	outside, buffered, err := takeOver(w)
	if err != nil {
		return
	}
	defer outside.Close() //nolint:errcheck // as above
	// A hijacked connection is the handler's own: when the agent stops, nobody else closes it. The request's context
	// does not tell: it ends at the end of input.
	stop := context.AfterFunc(a.live, func() {
		_ = outside.Close()
		_ = inside.Close()
	})
	defer stop()
	join(outside, buffered, inside)
}

// takeOver hijacks the connection and says so to the other end. On error it has answered.
func takeOver(w http.ResponseWriter) (net.Conn, *bufio.Reader, error) {
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		err = fmt.Errorf("take the connection over: %w", err)
		files.Error(w, http.StatusNotImplemented, err)
		return nil, nil, err
	}
	_ = conn.SetDeadline(time.Time{})
	const answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
	if _, err := io.WriteString(conn, answer); err != nil {
		_ = conn.Close()
		return nil, nil, err
	}
	return conn, buffered.Reader, nil
}

// handCode hands the connection to the code interpreter.
func (a *Agent) handCode(w http.ResponseWriter) {
	a.codeOnce.Do(func() { a.work.Go(a.serveCode) }) // Close waits for requests first, and so for this one
	if conn, buffered, err := takeOver(w); err == nil {
		_ = a.codePort.give(a.live, takenOver{conn, buffered}) // closed: the agent ends
	}
}

// dialPort tries both loopbacks: servers of some languages listen on only one.
func (a *Agent) dialPort(r *http.Request, port string) (net.Conn, error) {
	d := net.Dialer{Timeout: 5 * time.Second}
	conn, err := d.DialContext(r.Context(), "tcp", net.JoinHostPort("127.0.0.1", port))
	if err != nil {
		if conn, err6 := d.DialContext(r.Context(), "tcp", net.JoinHostPort("::1", port)); err6 == nil {
			return conn, nil
		}
	}
	return conn, err
}

// join copies both ways until both have ended; each end is passed on as a half-close.
func join(outside net.Conn, buffered io.Reader, inside net.Conn) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(inside, buffered)
		closeWrite(inside)
	}()
	_, err := io.Copy(outside, inside)
	closeWrite(outside)
	if err != nil { // nobody reads there any more
		_ = inside.Close()
		_ = outside.Close()
	}
	<-done
}

func closeWrite(c net.Conn) {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
		return
	}
	_ = c.Close()
}
