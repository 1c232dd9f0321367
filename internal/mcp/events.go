package mcp

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"sync"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
)

const (
	maxStreams    = 64        // of one session, whose messages are kept
	maxStream     = 4 << 20   // bytes of messages of one session
	maxAllStreams = 256 << 20 // bytes of messages of all sessions
)

// events keeps the messages of streams, so that a client whose connection broke has them sent once more. What is too much
// is forgotten, the oldest first, and within the session that it is too much of: the SDK's own store lets one session have
// those of all others forgotten.
type events struct {
	spare *budget

	mu       sync.Mutex
	sessions map[string]*sessionEvents // guarded by mu
}

var _ sdk.EventStore = (*events)(nil)

type sessionEvents struct {
	streams map[string]*stream
	order   []string // of streams, the oldest first
	size    int
}

// stream is the end of one stream's messages.
type stream struct {
	first int // index of the first that is kept
	data  [][]byte
}

func newEvents() *events {
	return &events{spare: &budget{left: maxAllStreams}, sessions: map[string]*sessionEvents{}}
}

// Open implements sdk.EventStore.
func (e *events) Open(_ context.Context, sessionID, streamID string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.openLocked(sessionID, streamID)
	return nil
}

func (e *events) openLocked(sessionID, streamID string) (*sessionEvents, *stream) {
	s := e.sessions[sessionID]
	if s == nil {
		s = &sessionEvents{streams: map[string]*stream{}}
		e.sessions[sessionID] = s
	}
	st := s.streams[streamID]
	if st == nil {
		st = &stream{}
		s.streams[streamID] = st
		s.order = append(s.order, streamID)
	}
	for len(s.order) > maxStreams {
		i := slices.IndexFunc(s.order, func(id string) bool { return id != "" && id != streamID }) // the one without a name is for all that no request asked for
		e.dropLocked(s, s.streams[s.order[i]], -1)
		delete(s.streams, s.order[i])
		s.order = slices.Delete(s.order, i, i+1)
	}
	return s, st
}

// dropLocked forgets the first n messages of a stream; negative: all.
func (e *events) dropLocked(s *sessionEvents, st *stream, n int) {
	if n < 0 {
		n = len(st.data)
	}
	for _, d := range st.data[:n] {
		s.size -= len(d)
		e.spare.give(len(d))
	}
	st.data = slices.Delete(st.data, 0, n)
	st.first += n
}

// Append implements sdk.EventStore.
func (e *events) Append(_ context.Context, sessionID, streamID string, data []byte) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	s, st := e.openLocked(sessionID, streamID)
	for s.size+len(data) > maxStream && e.forgetLocked(s) {
	}
	for !e.spare.take(len(data)) {
		if !e.forgetLocked(s) { // it is too large by itself, or others have all there is
			e.dropLocked(s, st, -1)
			st.first++
			return nil
		}
	}
	st.data = append(st.data, data)
	s.size += len(data)
	return nil
}

// forgetLocked forgets the oldest message of a session, and reports whether there was one.
func (e *events) forgetLocked(s *sessionEvents) bool {
	for _, id := range s.order {
		if st := s.streams[id]; len(st.data) > 0 {
			e.dropLocked(s, st, 1)
			return true
		}
	}
	return false
}

// After implements sdk.EventStore.
func (e *events) After(_ context.Context, sessionID, streamID string, index int) iter.Seq2[[]byte, error] {
	kept, err := e.after(sessionID, streamID, index)
	return func(yield func([]byte, error) bool) {
		if err != nil {
			yield(nil, err)
			return
		}
		for _, data := range kept {
			if !yield(data, nil) {
				return
			}
		}
	}
}

func (e *events) after(sessionID, streamID string, index int) ([][]byte, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.sessions[sessionID]
	if s == nil || s.streams[streamID] == nil {
		return nil, fmt.Errorf("stream %q: %w", streamID, sdk.ErrEventsPurged)
	}
	st := s.streams[streamID]
	from := index + 1 - st.first
	if from < 0 {
		return nil, fmt.Errorf("message %d of stream %q: %w", index, streamID, sdk.ErrEventsPurged)
	}
	return slices.Clone(st.data[min(from, len(st.data)):]), nil
}

// SessionClosed implements sdk.EventStore.
func (e *events) SessionClosed(_ context.Context, sessionID string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if s := e.sessions[sessionID]; s != nil {
		e.spare.give(s.size)
		delete(e.sessions, sessionID)
	}
	return nil
}
