package server

import (
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/answer"
)

const (
	maxBody     = 8 << 20 // bytes of a request to the control plane
	bodyTimeout = 30 * time.Second
)

// limitBody bounds the size of a request's body and the time it takes to arrive, or refuses what says itself that it is
// too large. Reading on fails once it shows to be.
func (s *Server) limitBody(w *answer.Writer, r *http.Request, d door) bool {
	if r.ContentLength > maxBody {
		err := &firebreak.Error{Kind: firebreak.KindExhausted, Err: fmt.Errorf("a body of %d bytes is longer than %d", r.ContentLength, maxBody)}
		w.Header().Set("Connection", "close") // what was sent of it is not read
		if d == doorRPC {
			refuseRPC(w, r, err)
		} else {
			writeError(w, http.StatusRequestEntityTooLarge, err.Error())
		}
		return false
	}
	if r.Body == nil || r.Body == http.NoBody {
		return true
	}
	body := http.MaxBytesReader(w.ResponseWriter, r.Body, maxBody) // net/http's own, as it closes the connection then
	if isLong(r, d) {                                              // what follows is the client's to say, whenever it likes
		r.Body = body
		return true
	}
	r.Body = &timedBody{ReadCloser: body, control: http.NewResponseController(w), time: s.bodyTime}
	return true
}

// timedBody has a time within which all of it must be read.
type timedBody struct {
	io.ReadCloser
	control *http.ResponseController
	time    time.Duration
	begun   bool
}

// Read implements io.Reader.
func (b *timedBody) Read(p []byte) (int, error) {
	if !b.begun {
		b.begun = true
		b.deadline(time.Now().Add(b.time))
	}
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF { // what comes on the connection then is the next request
		b.deadline(time.Time{})
	}
	return n, err
}

func (b *timedBody) deadline(t time.Time) {
	_ = b.control.SetReadDeadline(t) // a connection that knows none has its own
}

// limitRest bounds the time in which the rest of a body arrives that nobody has read: net/http reads it to come to the
// next request of the connection.
func (s *Server) limitRest(w *answer.Writer, r *http.Request) {
	if r.ContentLength != 0 && w.Status() != http.StatusSwitchingProtocols {
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(s.bodyTime)) // a connection that knows none has its own
	}
}
