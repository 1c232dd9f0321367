package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// hold is how much of an answer is held back so that its length may be told, as a server does.
const hold = 4 << 10

// exchange is one request and its answer: the agent's http.ResponseWriter, and the body of the client's response.
type exchange struct {
	request *http.Request
	bare    bool            // the answer is of headers only, whatever is written
	inner   context.Context // of the request inside
	cancel  context.CancelFunc
	stop    [2]func() bool
	body    io.ReadCloser
	headed  chan struct{} // closed when the response can be had
	header  http.Header   // the agent's own

	answer pipe

	// Guarded by answer.mu:
	status   int         // 0: the agent has said nothing
	said     http.Header // what header was then; the client's own once it is given
	follow   []string    // headers that are announced to follow the answer
	length   int64       // of the answer; -1: not known
	written  int64
	given    bool // headed is closed
	refused  error
	response *http.Response
	trailer  http.Header // what follows the answer
}

func newExchange(r *http.Request, live context.Context) *exchange {
	x := &exchange{request: r, bare: r.Method == http.MethodHead, body: http.NoBody, headed: make(chan struct{}), header: http.Header{}, length: -1}
	x.answer.moved.L = &x.answer.mu
	x.inner, x.cancel = context.WithCancel(live)
	switch {
	case r.Body == nil || r.Body == http.NoBody:
	case r.GetBody != nil: // it lies in memory, and no read of it blocks
		x.body = r.Body
	default:
		x.body = newSent(r.Body)
	}
	return x
}

// run has the agent answer, and returns what the client gets when that is known.
func (x *exchange) run(agent http.Handler) (*http.Response, error) {
	ctx := x.request.Context()
	x.stop[0] = context.AfterFunc(ctx, func() { x.cut(context.Cause(ctx)) })
	x.stop[1] = context.AfterFunc(x.inner, func() { x.cut(io.ErrUnexpectedEOF) })
	go x.serve(agent)
	<-x.headed
	x.answer.mu.Lock()
	defer x.answer.mu.Unlock()
	if x.refused != nil {
		return nil, x.refused
	}
	return x.response, nil
}

func (x *exchange) serve(agent http.Handler) {
	defer func() {
		p := recover()
		switch err, _ := p.(error); {
		case p == nil && x.inner.Err() == nil:
			x.finish()
		case p == nil, errors.Is(err, http.ErrAbortHandler):
			x.cut(io.ErrUnexpectedEOF)
		default:
			x.cut(fmt.Errorf("the agent panicked: %v", p))
		}
		for _, stop := range x.stop {
			stop()
		}
		x.cancel()
		_ = x.body.Close() // read as far as the agent wanted it
	}()
	agent.ServeHTTP(x, x.inside())
}

// inside is the request as the agent gets it.
func (x *exchange) inside() *http.Request {
	r := x.request
	in := &http.Request{
		Method: r.Method, URL: &url.URL{Path: r.URL.Path, RawPath: r.URL.RawPath, RawQuery: r.URL.RawQuery}, RequestURI: r.URL.RequestURI(),
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: r.Header.Clone(), Body: x.body, ContentLength: r.ContentLength, Host: r.URL.Host,
	}
	if in.Method == "" {
		in.Method = http.MethodGet
	}
	if in.ContentLength == 0 && x.body != http.NoBody { // a client may leave it at that
		in.ContentLength = -1
	}
	return in.WithContext(x.inner)
}

// cut ends the exchange in its middle, as a connection that breaks does.
func (x *exchange) cut(err error) {
	x.answer.mu.Lock()
	if !x.given {
		x.refused = err
	}
	x.answer.endLocked(err)
	x.giveLocked()
	x.answer.mu.Unlock()
	x.cancel()
	_ = x.body.Close() // wakes the agent if it reads
}

// finish is the end of the answer.
func (x *exchange) finish() {
	x.answer.mu.Lock()
	defer x.answer.mu.Unlock()
	if x.answer.err != nil {
		return
	}
	if x.status == 0 {
		x.headLocked(http.StatusOK)
	}
	x.trailersLocked()
	if x.length < 0 && !x.given && len(x.trailer) == 0 && (x.written > 0 || !x.bare) {
		x.length = x.written
		x.said.Set("Content-Length", strconv.FormatInt(x.length, 10))
	}
	x.giveLocked()
	if x.written < x.length {
		x.answer.endLocked(io.ErrUnexpectedEOF)
		return
	}
	x.answer.endLocked(io.EOF)
}

// headLocked takes the status and the headers as they are now.
func (x *exchange) headLocked(status int) {
	x.status, x.said = status, x.header.Clone()
	for name := range x.said {
		if strings.HasPrefix(name, http.TrailerPrefix) {
			delete(x.said, name)
		}
	}
	for _, line := range x.said["Trailer"] {
		for name := range strings.SplitSeq(line, ",") {
			x.follow = append(x.follow, http.CanonicalHeaderKey(strings.TrimSpace(name)))
		}
	}
	if n, err := strconv.ParseInt(x.said.Get("Content-Length"), 10, 64); err == nil && n >= 0 {
		x.length = n
	}
	if !x.mayHaveBody() && !x.bare {
		x.length = 0
	}
}

// mayHaveBody tells by the status.
func (x *exchange) mayHaveBody() bool {
	return x.status != http.StatusNoContent && x.status != http.StatusNotModified
}

// trailersLocked finds what the agent says after the answer: headers that it announced, or named for it.
func (x *exchange) trailersLocked() {
	if x.bare {
		return
	}
	for name, values := range x.header {
		plain, named := strings.CutPrefix(name, http.TrailerPrefix)
		if named || slices.Contains(x.follow, name) {
			if x.trailer == nil {
				x.trailer = http.Header{}
			}
			x.trailer[http.CanonicalHeaderKey(plain)] = values
		}
	}
}

// giveLocked lets the client have the response.
func (x *exchange) giveLocked() {
	if x.given {
		return
	}
	x.given = true
	defer close(x.headed)
	if x.refused != nil {
		return
	}
	_, typed := x.said["Content-Type"]
	if start := x.answer.buf[x.answer.at:]; !typed && len(start) > 0 && x.said.Get("Content-Encoding") == "" {
		x.said.Set("Content-Type", http.DetectContentType(start))
	}
	if x.bare {
		x.answer.buf = nil
	}
	x.response = &http.Response{
		Status: strconv.Itoa(x.status) + " " + http.StatusText(x.status), StatusCode: x.status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: x.said, ContentLength: x.length, Body: (*received)(x), Request: x.request,
	}
}

// Header implements http.ResponseWriter.
func (x *exchange) Header() http.Header { return x.header }

// WriteHeader implements http.ResponseWriter. The first status that is final counts.
func (x *exchange) WriteHeader(status int) {
	x.answer.mu.Lock()
	defer x.answer.mu.Unlock()
	if x.status == 0 && status >= 200 {
		x.headLocked(status)
	}
}

// Write implements http.ResponseWriter.
func (x *exchange) Write(p []byte) (int, error) {
	x.answer.mu.Lock()
	defer x.answer.mu.Unlock()
	if x.status == 0 {
		x.headLocked(http.StatusOK)
	}
	switch {
	case x.inner.Err() != nil: // as on a connection that is cut: what the agent says because it ends is not told
		return 0, io.ErrClosedPipe
	case !x.mayHaveBody():
		return 0, http.ErrBodyNotAllowed
	case x.length >= 0 && x.written+int64(len(p)) > x.length:
		return 0, http.ErrContentLength
	}
	x.written += int64(len(p))
	n := 0
	if !x.given && x.answer.pendingLocked()+len(p) > hold {
		n, _ = x.answer.writeLocked(p[:min(len(p), hold)]) // by which the type of the answer can be told
		x.giveLocked()
	}
	if x.given && x.bare {
		return len(p), nil
	}
	more, err := x.answer.writeLocked(p[n:])
	return n + more, err
}

// Flush implements http.Flusher.
func (x *exchange) Flush() { _ = x.FlushError() }

// FlushError is for http.ResponseController.
func (x *exchange) FlushError() error {
	x.answer.mu.Lock()
	defer x.answer.mu.Unlock()
	if x.answer.err != nil {
		return io.ErrClosedPipe
	}
	if x.status == 0 {
		x.headLocked(http.StatusOK)
	}
	x.giveLocked()
	return nil
}

// EnableFullDuplex is for http.ResponseController: it is so anyway.
func (x *exchange) EnableFullDuplex() error { return nil }

// SetReadDeadline is for http.ResponseController.
func (x *exchange) SetReadDeadline(at time.Time) error {
	if s, ok := x.body.(*sent); ok {
		s.setDeadline(at)
	}
	return nil
}

// received is an exchange as the client reads it.
type received exchange

// Read implements io.Reader.
func (r *received) Read(p []byte) (int, error) {
	r.answer.mu.Lock()
	defer r.answer.mu.Unlock()
	if r.bare {
		return 0, io.EOF
	}
	n, err := r.answer.readLocked(p)
	if err == io.EOF && r.trailer != nil {
		r.response.Trailer = r.trailer
	}
	return n, err
}

// Close implements io.Closer. An answer that has not ended is cut.
func (r *received) Close() error {
	x := (*exchange)(r)
	x.answer.mu.Lock()
	over := x.answer.err != nil
	if over {
		x.answer.err, x.answer.buf, x.answer.at = http.ErrBodyReadAfterClose, nil, 0
	}
	x.answer.mu.Unlock()
	if !over {
		x.cut(http.ErrBodyReadAfterClose)
	}
	return nil
}
