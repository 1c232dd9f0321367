package guest

import (
	"io"
	"os"
	"sync"
	"time"
)

const (
	maxPiped = 64 << 10 // bytes that were written and not read
	minChunk = 4 << 10  // that a pump begins with
	maxChunk = 32 << 10
)

// pipe is a stream of bytes within this process, with some room in between. Its methods whose names say so want mu held.
type pipe struct {
	mu    sync.Mutex
	moved sync.Cond // something was read or written, or err was set; its L is &mu
	buf   []byte
	at    int         // of buf; what is before it was read
	err   error       // what a read gets in the end
	timer *time.Timer // of the reader's deadline
	late  bool        // it has passed
}

func (p *pipe) pendingLocked() int { return len(p.buf) - p.at }

// writeLocked waits for room, with mu given away meanwhile.
func (p *pipe) writeLocked(data []byte) (n int, err error) {
	for n < len(data) {
		room := maxPiped - p.pendingLocked()
		switch {
		case p.err != nil:
			return n, io.ErrClosedPipe
		case room <= 0:
			p.moved.Wait()
			continue
		}
		room = min(room, len(data)-n)
		p.buf = append(p.buf, data[n:n+room]...)
		n += room
		p.moved.Broadcast()
	}
	return n, nil
}

// readLocked waits for data or the end.
func (p *pipe) readLocked(into []byte) (int, error) {
	for p.pendingLocked() == 0 && p.err == nil && !p.late && len(into) > 0 {
		p.moved.Wait()
	}
	switch {
	case p.pendingLocked() == 0 && p.err != nil:
		return 0, p.err
	case p.pendingLocked() == 0 && p.late:
		return 0, os.ErrDeadlineExceeded
	}
	n := copy(into, p.buf[p.at:])
	if p.at += n; p.at == len(p.buf) {
		p.buf, p.at = p.buf[:0], 0
	}
	p.moved.Broadcast()
	return n, nil
}

// endLocked says why nothing more comes; the first reason stays. io.EOF and io.ErrUnexpectedEOF are the writer's.
func (p *pipe) endLocked(err error) {
	if p.err == nil {
		p.err = err
	}
	if p.err != io.EOF && p.err != io.ErrUnexpectedEOF {
		p.buf, p.at = nil, 0
	}
	p.moved.Broadcast()
}

func (p *pipe) setDeadline(at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.timer != nil {
		p.timer.Stop()
	}
	p.late = false
	if at.IsZero() {
		return
	}
	if p.timer != nil {
		p.timer.Reset(time.Until(at))
		return
	}
	p.timer = time.AfterFunc(time.Until(at), func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.late = true
		p.moved.Broadcast()
	})
}

// sent is the body of a request, as the agent reads it. The client's own may block for as long as the client likes, so it
// is read by a goroutine that nobody waits for.
type sent struct {
	pipe
	source io.ReadCloser
	pump   sync.Once
}

func newSent(source io.ReadCloser) *sent {
	s := &sent{source: source}
	s.moved.L = &s.mu
	return s
}

// Read implements io.Reader.
func (s *sent) Read(into []byte) (int, error) {
	s.pump.Do(func() { go s.move() })
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.readLocked(into)
}

func (s *sent) move() {
	chunk := make([]byte, minChunk)
	for {
		n, err := s.source.Read(chunk)
		s.mu.Lock()
		if _, broken := s.writeLocked(chunk[:n]); err == nil {
			err = broken
		}
		if err != nil {
			s.endLocked(err)
			s.mu.Unlock()
			_ = s.source.Close() // read as far as anybody wants it
			return
		}
		s.mu.Unlock()
		if n == len(chunk) && n < maxChunk {
			chunk = make([]byte, 2*n)
		}
	}
}

// Close implements io.Closer. Whoever is reading wakes, and nothing more is read of the source.
func (s *sent) Close() error {
	s.mu.Lock()
	s.endLocked(io.ErrClosedPipe)
	over := s.err == io.EOF
	s.mu.Unlock()
	s.setDeadline(time.Time{})
	if !over {
		go s.source.Close() //nolint:errcheck // where its Read blocks, Close may too
	}
	return nil
}
