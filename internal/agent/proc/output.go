package proc

import (
	"context"
	"errors"
	"sync"
	"time"
)

// Stream numbers one of a process's outputs.
type Stream int

// The streams. A process has the first two or the last one.
const (
	Stdout Stream = iota
	Stderr
	PTY
	streams
)

// Offsets count the bytes of each stream since the process began.
type Offsets [streams]uint64

var (
	// ErrDropped is the error of an offset that the output does not hold: no more, or not yet.
	ErrDropped = errors.New("this part of the output is gone")
	errEnded   = errors.New("output has ended")
)

// Output keeps the latest output of one process, a ring of bytes per stream, and hands it to readers.
//
// While at least one reader is there nothing that it has not read is dropped: Write blocks, and with it the process.
// With no reader the oldest bytes give way. What all readers have read stays for as long as there is room, so that a
// reader may come back and resume.
type Output struct {
	mu      sync.Mutex
	rings   [streams]ring
	readers map[*Reader]struct{}
	ended   bool
	space   chan struct{} // closed and replaced when a blocked Write may look again
	blocked int           // how many writers wait on space
}

// newOutput returns an output whose rings hold up to limit bytes each, as far as budget allows.
func newOutput(limit int, budget *Budget) *Output {
	o := &Output{readers: map[*Reader]struct{}{}, space: make(chan struct{})}
	for i := range o.rings {
		o.rings[i] = ring{limit: limit, budget: budget}
	}
	return o
}

// Write appends to a stream. It blocks while that would lose bytes that a present reader has yet to read.
func (o *Output) Write(s Stream, p []byte) { o.write(s, p, nil) }

// write is Write until done is closed, and returns how many bytes it took.
func (o *Output) write(s Stream, p []byte, done <-chan struct{}) (n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	r := &o.rings[s]
	for n < len(p) {
		select {
		case <-done:
			return n
		default:
		}
		room := r.reserve(len(p)-n, o.unread(s))
		if room == 0 {
			o.wait(done)
			continue
		}
		r.write(p[n : n+room])
		n += room
		o.wake()
	}
	return n
}

// unread is the first byte of s that must stay: the slowest reader's next one, or nothing at all. o.mu is held.
func (o *Output) unread(s Stream) uint64 {
	first := o.rings[s].head
	if len(o.readers) == 0 {
		return first
	}
	for r := range o.readers {
		first = min(first, r.next[s])
	}
	return first
}

// wait sleeps until a reader has read or left, or done is closed. o.mu is held, but not meanwhile.
func (o *Output) wait(done <-chan struct{}) {
	space := o.space
	o.blocked++
	o.mu.Unlock()
	select {
	case <-space:
	case <-done:
	}
	o.mu.Lock()
	o.blocked--
}

// freed wakes the writers that wait. o.mu is held.
func (o *Output) freed() {
	if o.blocked > 0 {
		close(o.space)
		o.space = make(chan struct{})
	}
}

// wake tells the readers that there is something new. o.mu is held.
func (o *Output) wake() {
	for r := range o.readers {
		select {
		case r.news <- struct{}{}:
		default:
		}
	}
}

// end says that nothing more will be written, or at least nothing that readers still wait for.
func (o *Output) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ended = true
	o.wake()
}

// followed reports whether there is a reader.
func (o *Output) followed() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.readers) > 0
}

// release gives the memory back. Readers that come later find the output dropped.
func (o *Output) release() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i := range o.rings {
		o.rings[i].free()
	}
}

// Subscribe adds a reader that begins at from, or if that is nil at the first byte that no reader was sent. ErrDropped
// if the output does not hold what is at from.
func (o *Output) Subscribe(from *Offsets) (*Reader, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	r := &Reader{output: o, news: make(chan struct{}, 1)}
	for s := range r.next {
		ring := &o.rings[s]
		r.next[s] = max(ring.sent, ring.base())
		if from != nil {
			r.next[s] = from[s]
		}
		if r.next[s] < ring.base() || r.next[s] > ring.head {
			return nil, ErrDropped
		}
	}
	o.readers[r] = struct{}{}
	return r, nil
}

// Reader reads all streams of an output, each in order. It is for one goroutine.
type Reader struct {
	output *Output
	next   Offsets // of the first byte not read; guarded by output.mu
	last   Stream  // the stream of the last chunk, so that none starves the others
	news   chan struct{}
}

// Chunk is a part of one stream.
type Chunk struct {
	Stream Stream
	Offset uint64 // of its first byte
	Data   []byte
}

// Next is where the reader goes on.
func (r *Reader) Next() Offsets {
	r.output.mu.Lock()
	defer r.output.mu.Unlock()
	return r.next
}

// Read waits for output and copies the beginning of it to buf. The chunk is empty if tick fired first. errEnded once
// all is read and there will be no more.
func (r *Reader) Read(ctx context.Context, tick <-chan time.Time, buf []byte) (Chunk, error) {
	for {
		if c, ended := r.poll(buf); len(c.Data) > 0 {
			return c, nil
		} else if ended {
			return Chunk{}, errEnded
		}
		select {
		case <-r.news:
		case <-tick:
			return Chunk{}, nil
		case <-ctx.Done():
			return Chunk{}, ctx.Err()
		}
	}
}

func (r *Reader) poll(buf []byte) (Chunk, bool) {
	o := r.output
	o.mu.Lock()
	defer o.mu.Unlock()
	for i := range streams {
		s := (r.last + 1 + i) % streams
		if n := o.rings[s].read(r.next[s], limitOf(s, buf)); n > 0 {
			r.last = s
			return Chunk{Stream: s, Offset: r.next[s], Data: buf[:n]}, false
		}
	}
	return Chunk{}, o.ended
}

// limitOf cuts buf to the size of chunk that clients of the protocol expect.
func limitOf(s Stream, buf []byte) []byte {
	if s == PTY {
		return buf[:min(len(buf), ptyChunk)]
	}
	return buf[:min(len(buf), pipeChunk)]
}

// Sent says that the chunk reached its reader: it may be dropped now, and is not sent again unasked.
func (r *Reader) Sent(c Chunk) {
	o := r.output
	o.mu.Lock()
	defer o.mu.Unlock()
	r.next[c.Stream] = c.Offset + uint64(len(c.Data))
	o.rings[c.Stream].sent = max(o.rings[c.Stream].sent, r.next[c.Stream])
	o.freed()
}

// Close takes the reader away; nobody waits for it any more.
func (r *Reader) Close() {
	r.output.mu.Lock()
	defer r.output.mu.Unlock()
	delete(r.output.readers, r)
	r.output.freed()
}
