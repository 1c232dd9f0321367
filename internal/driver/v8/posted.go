package v8

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"time"
)

// maxHeader bounds the headers of an answer, in bytes.
const maxHeader = 64 << 10

// posted is a request of which all but the body was sent: the isolate that it is for waits for that alone. To get there takes
// workerd as long as to run a small program.
type posted struct {
	conn net.Conn
}

// post sends the beginning of the request to run something in an isolate.
func (p *proc) post(ctx context.Context, name string) (*posted, error) {
	conn, err := p.guest.DialPort(ctx, port)
	if err != nil {
		return nil, err
	}
	_ = conn.SetWriteDeadline(time.Now().Add(bootLimit))
	if _, err := fmt.Fprintf(conn, "POST /%s/run HTTP/1.1\r\nHost: v8\r\nTransfer-Encoding: chunked\r\n\r\n", name); err != nil {
		_ = conn.Close()
		return nil, err
	}
	_ = conn.SetWriteDeadline(time.Time{})
	return &posted{conn}, nil
}

// close gives the request up. There may be none.
func (q *posted) close() {
	if q != nil {
		_ = q.conn.Close()
	}
}

// finish sends the body and reads the answer as far as its headers. Closing the answer's body closes the connection, as the end
// of ctx does.
func (q *posted) finish(ctx context.Context, body []byte) (*http.Response, error) {
	stop := context.AfterFunc(ctx, q.close)
	if _, err := fmt.Fprintf(q.conn, "%x\r\n%s\r\n0\r\n\r\n", len(body), body); err != nil {
		q.close()
		return nil, err
	}
	limited := &io.LimitedReader{R: q.conn, N: maxHeader}
	res, err := http.ReadResponse(bufio.NewReader(limited), nil)
	if err != nil {
		q.close()
		return nil, fmt.Errorf("read the answer of workerd: %w", err)
	}
	limited.N = math.MaxInt64
	res.Body = &lastBody{res.Body, func() {
		stop()
		q.close()
	}}
	return res, nil
}

// lastBody is the body of a connection's last answer.
type lastBody struct {
	io.ReadCloser
	end func()
}

// Close implements io.Closer. What was not read is never read.
func (b *lastBody) Close() error {
	b.end()
	return nil
}
