package mcp

import (
	"fmt"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

const (
	maxShown  = 16 << 10  // bytes of a stream that a result shows
	maxRead   = 32 << 10  // bytes that read_output gives at once
	maxKept   = 256 << 10 // bytes that are kept of what one tool printed
	maxSpare  = 128 << 20 // bytes that all sessions keep together, beyond what they show
	maxEvents = 200       // entries of a sandbox's log
	maxEntry  = 500       // bytes of one
)

// budget is memory that many share.
type budget struct {
	mu   sync.Mutex
	left int // guarded by mu
}

func (b *budget) take(n int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.left < n {
		return false
	}
	b.left -= n
	return true
}

func (b *budget) give(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.left += n
}

// output keeps the beginning and the end of a stream. It may be used concurrently.
type output struct {
	spare *budget

	mu     sync.Mutex
	half   int    // guarded by mu: bytes that are kept of the beginning, and as many of the end
	taken  int    // guarded by mu: from spare
	freed  bool   // guarded by mu
	head   []byte // guarded by mu
	tail   []byte // guarded by mu: up to twice half of the end
	length int64  // guarded by mu: of all that was written
}

// newOutput keeps up to most bytes; beyond what is shown only while there is memory to spare.
func newOutput(most int, spare *budget) *output { return &output{half: most / 2, spare: spare} }

// Write implements io.Writer, and never fails.
func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := len(p)
	o.length += int64(n)
	if room := o.roomLocked(o.half-len(o.head), len(o.head), n); room > 0 && len(o.tail) == 0 {
		o.head = append(o.head, p[:room]...)
		p = p[room:]
	}
	for len(p) > 0 {
		part := p[:min(len(p), max(o.half, 1))]
		o.tail = append(o.tail, part...)
		if over := len(o.tail) - o.half; over > o.half {
			o.tail = append(o.tail[:0], o.tail[over:]...)
		}
		p = p[len(part):]
	}
	return n, nil
}

// roomLocked is how many of n more bytes may be kept. What is small is free; the rest is taken in two steps, before the
// first byte of it, from what is to spare. Where nothing is, only the small part is kept.
func (o *output) roomLocked(left, have, n int) int {
	room := min(left, n)
	if o.spare == nil || have+room <= maxShown/2 {
		return room
	}
	if o.taken == 0 && !o.freed {
		if want := 3 * o.half; o.spare.take(want) {
			o.taken = want
		} else {
			o.half = maxShown / 2
		}
	}
	return max(0, min(room, o.half-have))
}

// free gives back what was taken. What is kept is dropped.
func (o *output) free() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.taken > 0 {
		o.spare.give(o.taken)
	}
	o.taken, o.freed, o.head, o.tail, o.half = 0, true, nil, nil, maxShown/2
}

// part is a piece of a stream.
type part struct {
	text    string
	from    int64 // of its first byte
	next    int64 // where what follows begins
	length  int64 // of all so far
	skipped int64 // bytes between what was asked for and from, which are not kept
}

// read returns up to most bytes from an offset on; a negative one counts from the end.
func (o *output) read(offset int64, most int) part {
	o.mu.Lock()
	defer o.mu.Unlock()
	tail := o.tail[max(0, len(o.tail)-o.half):]
	begin := o.length - int64(len(tail))
	if offset < 0 {
		offset = max(0, o.length+offset)
	}
	p := part{from: min(offset, o.length), length: o.length}
	from := []byte(nil)
	switch {
	case p.from < int64(len(o.head)):
		from = o.head[p.from:]
		if begin == int64(len(o.head)) { // nothing is missing between the two
			from = append(from[:len(from):len(from)], tail...)
		}
	case p.from < begin:
		p.skipped = begin - p.from
		p.from, from = begin, tail
	default:
		from = tail[p.from-begin:]
	}
	cut := wholeRunes(from, most)
	p.text, p.next = valid(from[:cut]), p.from+int64(cut)
	return p
}

// wholeRunes is how many bytes of b, at most n, end with a whole character.
func wholeRunes(b []byte, n int) int {
	if len(b) <= n {
		return len(b)
	}
	for back := 0; back < utf8.UTFMax && n-back > 0; back++ {
		if utf8.RuneStart(b[n-back]) {
			return n - back
		}
	}
	return n
}

func valid(b []byte) string { return strings.ToValidUTF8(string(b), "\uFFFD") }

// shown is what a result shows of a stream: all of it, or its beginning and its end with a word on what is between.
func (o *output) shown(most int, rest string) (string, bool) {
	o.mu.Lock()
	length := o.length
	o.mu.Unlock()
	if length <= int64(most) {
		return o.read(0, most).text, false
	}
	first := o.read(0, most/2)
	last := o.read(-int64(most/2), most/2)
	return fmt.Sprintf("%s\n[… %d of %d bytes left out; %s …]\n%s", first.text, last.from-first.next, length, rest, last.text), true
}

// cut shortens a text that is whole.
func cut(s string, most int, rest string) (string, bool) {
	if len(s) <= most {
		return valid([]byte(s)), false
	}
	n := wholeRunes([]byte(s), most)
	return fmt.Sprintf("%s\n[… %d of %d bytes left out; %s]", valid([]byte(s[:n])), len(s)-n, len(s), rest), true
}

// history is what happened in a sandbox, the last of it. It may be used concurrently.
type history struct {
	mu      sync.Mutex
	lines   []string // guarded by mu
	dropped int      // guarded by mu
}

func (h *history) add(format string, args ...any) {
	text := valid([]byte(fmt.Sprintf(format, args...)))
	if len(text) > maxEntry {
		text = text[:wholeRunes([]byte(text), maxEntry)] + "…"
	}
	text = strings.ReplaceAll(text, "\n", "⏎")
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lines = append(h.lines, time.Now().UTC().Format(time.RFC3339)+" "+text)
	if over := len(h.lines) - maxEvents; over > 0 {
		h.lines = append(h.lines[:0], h.lines[over:]...)
		h.dropped += over
	}
}

func (h *history) text() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var b strings.Builder
	if h.dropped > 0 {
		fmt.Fprintf(&b, "[%d earlier entries are not kept]\n", h.dropped)
	}
	for _, l := range h.lines {
		b.WriteString(l + "\n")
	}
	return b.String()
}
