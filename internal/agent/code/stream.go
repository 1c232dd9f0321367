package code

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

const (
	keepalive = 5 * time.Second  // of silence
	stalled   = 60 * time.Second // how long a client may not read
)

// stream is the answer to a run: lines of JSON, each on its way at once. A client that is gone, or does not read, ends
// its context.
type stream struct {
	ctx    context.Context
	cancel context.CancelFunc

	mu    sync.Mutex
	w     http.ResponseWriter
	rc    *http.ResponseController
	line  bytes.Buffer
	json  *json.Encoder // into line
	timer *time.Timer   // of the keepalive; nil before the first line and after the last
	left  int           // of maxStream
	over  bool          // and that was said
}

func newStream(w http.ResponseWriter, ctx context.Context) *stream {
	s := &stream{w: w, rc: http.NewResponseController(w), left: maxStream}
	s.ctx, s.cancel = context.WithCancel(ctx)
	s.json = json.NewEncoder(&s.line)
	s.json.SetEscapeHTML(false)
	return s
}

// open sends the headers: from here on errors are lines.
func (s *stream) open() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.timer == nil {
		s.w.Header().Set("Content-Type", "application/x-ndjson")
		s.w.Header().Set("Cache-Control", "no-store")
		s.w.WriteHeader(http.StatusOK)
		s.timer = time.AfterFunc(keepalive, s.ping)
	}
}

func (s *stream) opened() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.timer != nil
}

func (s *stream) ping() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.timer != nil {
		s.write(map[string]any{"type": "keepalive"})
		s.flushLocked()
	}
}

// close ends the use of the response, which the handler's return makes invalid.
func (s *stream) close() {
	s.cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
}

// write writes one line. s.mu is held.
func (s *stream) write(value any) {
	if s.timer == nil || s.ctx.Err() != nil {
		return
	}
	s.line.Reset()
	if err := s.json.Encode(value); err != nil {
		return // a kernel's JSON was checked when it was parsed
	}
	s.timer.Reset(keepalive)
	_ = s.rc.SetWriteDeadline(time.Now().Add(stalled)) // unsupported in tests
	if _, err := s.w.Write(s.line.Bytes()); err != nil {
		s.cancel()
	}
	s.left -= s.line.Len()
	if s.line.Cap() > 1<<20 {
		s.line = bytes.Buffer{}
		s.json = json.NewEncoder(&s.line)
		s.json.SetEscapeHTML(false)
	}
}

// Flush implements Sink.
func (s *stream) Flush() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.flushLocked()
}

func (s *stream) flushLocked() {
	if s.timer != nil && s.ctx.Err() == nil && s.rc.Flush() != nil {
		s.cancel()
	}
}

// begin says which run of the kernel this is.
func (s *stream) begin(count uint64) {
	s.open()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.write(map[string]any{"type": "number_of_executions", "execution_count": count})
	s.flushLocked()
}

// output is one line of the stream that tells of output.
type output struct {
	Type      string `json:"type"`
	Text      string `json:"text"`
	Timestamp int64  `json:"timestamp"` // nanoseconds of the Unix epoch
}

// Print implements Sink.
func (s *stream) Print(name, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for text != "" && s.room() {
		n := min(len(text), maxText)
		for n < len(text) && n > maxText-utf8.UTFMax && !utf8.RuneStart(text[n]) {
			n--
		}
		s.write(output{name, text[:n], time.Now().UnixNano()})
		text = text[n:]
	}
}

// room reports whether there may be more output, and says so where it ends.
func (s *stream) room() bool {
	if s.left <= 0 && !s.over {
		s.over = true
		s.write(output{"stderr", fmt.Sprintf("\nMore than %d MiB of output and results in one run: the rest is left out.\n", maxStream>>20), time.Now().UnixNano()})
	}
	return !s.over
}

// textual reports whether a form of a result is a string.
func textual(form string) bool {
	return strings.Contains(" text html markdown svg png jpeg pdf latex javascript ", " "+form+" ")
}

// Result implements Sink. Forms that the protocol does not name are extra: one SDK looks for them there, the other
// one takes what it finds beside the known ones.
func (s *stream) Result(main bool, forms map[string]json.RawMessage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.room() {
		return
	}
	line, extra := map[string]any{}, map[string]any{}
	for form, data := range forms {
		switch {
		case len(data) == 0:
		case textual(form):
			if data[0] == '"' {
				line[form] = data
			}
		case form == "json" || form == "data" || form == "chart":
			line[form] = data
		default:
			extra[form], line[form] = data, data
		}
	}
	if len(extra) > 0 {
		line["extra"] = extra
	}
	line["type"], line["is_main_result"] = "result", main
	s.write(line)
}

// Failed implements Sink, for errors of the kernel too.
func (s *stream) Failed(name, value, traceback string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.write(map[string]any{"type": "error", "name": name, "value": value, "traceback": traceback})
}

// end is the last line.
func (s *stream) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.write(map[string]any{"type": "end_of_execution"})
	s.flushLocked()
}
