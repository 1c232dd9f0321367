package build

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Level is how much a line of a build's log matters.
type Level int

// The levels.
const (
	LevelDebug Level = iota
	LevelInfo
	LevelWarn
	LevelError
)

// LogEntry is one line of a build's log.
type LogEntry struct {
	Time  time.Time `json:"t"`
	Level Level     `json:"l"`
	Step  string    `json:"s,omitempty"` // the number of a step, StepBase or StepFinalize; empty: of the whole
	Text  string    `json:"m"`
}

// The parts of a build that are no step of the client's.
const (
	StepBase     = "base"
	StepFinalize = "finalize"
)

const (
	maxLogLines = 20_000
	maxLogBytes = 8 << 20
	maxLine     = 2000
	keptLines   = 20 // of the failing step, for the reason
)

// buildLog is the log of a build at work: in memory for those who follow, in a file for later. Its lock tells other processes
// that the build's process lives.
type buildLog struct {
	file *os.File

	mu      sync.Mutex
	entries []LogEntry
	bytes   int
	full    bool
	last    []string // the last lines of the present step
	step    string
}

func logPath(dir, id string) string { return filepath.Join(dir, "logs", id+".jsonl") }

// openLog makes a build's log. ok is false if another process is at work on that build.
func openLog(dir, id string) (l *buildLog, ok bool, err error) {
	f, err := os.OpenFile(logPath(dir, id), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, false, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, false, f.Close()
	}
	if err != nil {
		return nil, false, errors.Join(err, f.Close())
	}
	return &buildLog{file: f}, true, nil
}

func (l *buildLog) close() error { return l.file.Close() }

// begin says which step the next lines belong to.
func (l *buildLog) begin(step string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.step, l.last = step, nil
}

// add appends a line. What is too much is left out, once with a word about it; what matters most never is.
func (l *buildLog) add(level Level, format string, args ...any) {
	text := format
	if len(args) > 0 {
		text = fmt.Sprintf(format, args...)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.entries) < maxLogLines && l.bytes+len(text) < maxLogBytes || level == LevelError {
		l.write(level, text)
		return
	}
	if !l.full {
		l.full = true
		l.write(LevelWarn, "the log is full: what else is written is left out")
	}
}

// write appends a line. The caller holds mu.
func (l *buildLog) write(level Level, text string) {
	e := LogEntry{Time: time.Now().UTC().Truncate(time.Millisecond), Level: level, Step: l.step, Text: text}
	l.entries = append(l.entries, e)
	l.bytes += len(text)
	if line, err := json.Marshal(e); err == nil {
		_, _ = l.file.Write(append(line, '\n')) // a full disk shows in the build itself
	}
}

// output appends a line that a program of the build wrote.
func (l *buildLog) output(level Level, line string) {
	line = tidy(line)
	l.mu.Lock()
	if line != "" {
		if len(l.last) == keptLines {
			l.last = l.last[1:]
		}
		l.last = append(l.last, line)
	}
	l.mu.Unlock()
	l.add(level, "%s", line)
}

// tail returns the last lines that programs of the present step wrote.
func (l *buildLog) tail() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]string(nil), l.last...)
}

// tidy makes any line one of text.
func tidy(line string) string {
	if len(line) > maxLine {
		line = line[:maxLine] + "…"
	}
	line = strings.ToValidUTF8(line, "\ufffd")
	return strings.Map(func(r rune) rune {
		if r == 0 {
			return -1
		}
		return r
	}, strings.TrimRight(line, " \t\r"))
}

func (l *buildLog) snapshot() []LogEntry {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.entries[:len(l.entries):len(l.entries)]
}

// readLog returns the log of a build that no process is at work on. None is an empty one.
func readLog(dir, id string) ([]LogEntry, error) {
	f, err := os.Open(logPath(dir, id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []LogEntry
	lines := bufio.NewReaderSize(io.LimitReader(f, 4*maxLogBytes), 64<<10)
	for {
		line, err := lines.ReadBytes('\n')
		var e LogEntry
		if err == nil && json.Unmarshal(line, &e) == nil { // half a line is what a process left that was killed
			all = append(all, e)
		}
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return all, err
		}
	}
}

func removeLog(dir, id string) error {
	err := os.Remove(logPath(dir, id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// lineWriter makes lines of what a program writes. What a carriage return draws over is left out, as on a screen.
type lineWriter struct {
	line  func(string)
	rest  []byte
	begin bool // the next byte draws over the line, unless it ends it
}

func (w *lineWriter) write(p []byte) {
	for _, c := range p {
		if c == '\n' {
			w.end()
			continue
		}
		if w.begin {
			w.rest, w.begin = w.rest[:0], false
		}
		if w.begin = c == '\r'; !w.begin && len(w.rest) <= maxLine {
			w.rest = append(w.rest, c)
		}
	}
}

// end passes on what there is of a line.
func (w *lineWriter) end() {
	if len(w.rest) > 0 {
		w.line(string(w.rest))
	}
	w.rest, w.begin = w.rest[:0], false
}
