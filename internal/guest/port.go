package guest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/firebreak-dev/firebreak"
)

// DialPort opens a stream to a TCP port of the sandbox's loopback. Sandboxes in which nothing can listen have none: KindUnsupported.
func (g *Guest) DialPort(ctx context.Context, port uint16) (net.Conn, error) {
	op := fmt.Sprintf("dial port %d of the sandbox", port)
	conn, err := g.dial(ctx)
	if err != nil {
		return nil, &firebreak.Error{Kind: firebreak.KindUnavailable, Op: op, Err: err}
	}
	up, err := g.upgrade(ctx, conn, port)
	if err != nil {
		_ = conn.Close()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		kind := firebreak.KindUnavailable
		if errors.Is(err, errors.ErrUnsupported) {
			kind = firebreak.KindUnsupported
		}
		return nil, &firebreak.Error{Kind: kind, Op: op, Err: err}
	}
	return up, nil
}

func (g *Guest) upgrade(ctx context.Context, conn net.Conn, port uint16) (net.Conn, error) {
	_ = conn.SetDeadline(time.Now().Add(dialTimeout)) // a conn without deadlines is closed by ctx alone
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, fmt.Sprintf("%s/ports/%d", base, port), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "tcp")
	if g.token != "" {
		req.Header.Set(tokenHeader, g.token)
	}
	if err := req.Write(conn); err != nil {
		return nil, fmt.Errorf("ask for the port: %w", err)
	}
	r, err := readUpgrade(conn, req)
	if err != nil {
		return nil, err
	}
	if !stop() {
		return nil, ctx.Err()
	}
	_ = conn.SetDeadline(time.Time{})
	return &portConn{Conn: conn, r: r}, nil
}

// readUpgrade parses the agent's answer and returns what follows it.
func readUpgrade(conn io.Reader, req *http.Request) (io.Reader, error) {
	limited := &io.LimitedReader{R: conn, N: maxHeader}
	buffered := bufio.NewReaderSize(limited, 4<<10)
	res, err := http.ReadResponse(buffered, req)
	if err != nil {
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	if res.StatusCode != http.StatusSwitchingProtocols || !strings.EqualFold(res.Header.Get("Upgrade"), "tcp") {
		defer res.Body.Close() //nolint:errcheck // the connection is closed next
		text, _ := io.ReadAll(io.LimitReader(res.Body, maxText))
		err := fmt.Errorf("the agent answered %d: %q", res.StatusCode, text)
		if res.StatusCode == http.StatusNotImplemented {
			err = fmt.Errorf("%w: %w", err, errors.ErrUnsupported)
		}
		return nil, err
	}
	rest, err := buffered.Peek(buffered.Buffered())
	if err != nil || len(rest) == 0 {
		return conn, err
	}
	return io.MultiReader(strings.NewReader(string(rest)), conn), nil
}

// portConn reads first what came along with the agent's answer.
type portConn struct {
	net.Conn
	r io.Reader
}

func (c *portConn) Read(p []byte) (int, error) { return c.r.Read(p) }

// CloseWrite half-closes where the stream below can, as it must for protocols that answer at the end of input.
func (c *portConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Close()
}
