package guest

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// DialPort connects to a TCP port on the sandbox's loopback. If nothing listens there, the error is of
// firebreak.KindUnavailable.
func (g *Guest) DialPort(ctx context.Context, port uint16) (net.Conn, error) {
	op := fmt.Sprintf("connect to port %d in the sandbox", port)
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := g.dial(ctx)
	if err != nil {
		return nil, unreachable(op, err)
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	reader, err := upgrade(conn, port, g.token)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		conn.Close()
		return nil, unreachable(op, err)
	}
	return &upgraded{conn, reader}, nil
}

// upgrade asks the agent to turn conn into a connection to port, and returns the reader that holds what came after.
func upgrade(conn io.ReadWriter, port uint16, token string) (*bufio.Reader, error) {
	if _, err := fmt.Fprintf(conn, "POST /ports/%d HTTP/1.1\r\nHost: agent\r\n%s: %s\r\nConnection: Upgrade\r\n"+
		"Upgrade: tcp\r\nContent-Length: 0\r\n\r\n", port, TokenHeader, token); err != nil {
		return nil, err
	}
	bounded := &headerReader{conn: conn, left: maxHeader}
	reader := bufio.NewReaderSize(bounded, 4<<10)
	answer, err := http.ReadResponse(reader, &http.Request{Method: http.MethodPost})
	if err != nil {
		return nil, fmt.Errorf("read the agent's answer: %w", err)
	}
	if answer.StatusCode != http.StatusSwitchingProtocols {
		text, _ := io.ReadAll(io.LimitReader(answer.Body, maxErrorText))
		return nil, &answerError{answer.StatusCode, strings.TrimSpace(string(text))}
	}
	bounded.left = -1
	return reader, nil
}

// headerReader ends with an error after left bytes, so that endless headers cannot fill memory; below zero it is open.
type headerReader struct {
	conn io.Reader
	left int
}

func (h *headerReader) Read(p []byte) (int, error) {
	if h.left < 0 {
		return h.conn.Read(p)
	}
	if h.left == 0 {
		return 0, fmt.Errorf("more than %d bytes of headers", maxHeader)
	}
	n, err := h.conn.Read(p[:min(len(p), h.left)])
	h.left -= n
	return n, err
}

// upgraded is a connection of which the first bytes may have been read already.
type upgraded struct {
	net.Conn
	reader *bufio.Reader
}

func (u *upgraded) Read(p []byte) (int, error) { return u.reader.Read(p) }

// CloseWrite ends the sending half, where the stream below can.
func (u *upgraded) CloseWrite() error {
	if half, ok := u.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}
