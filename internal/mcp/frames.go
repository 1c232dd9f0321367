package mcp

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
)

const maxDepth = 500 // of a message's values within values

// frames passes on the lines of a client that are messages, and answers those that are not: the SDK would end the session
// at the first one.
type frames struct {
	in     io.ReadCloser
	lines  *bufio.Reader
	answer *lockedWriter
	rest   []byte // of a line that is being passed on
}

func newFrames(in io.ReadCloser, answer *lockedWriter) *frames {
	return &frames{in: in, lines: bufio.NewReaderSize(in, 64<<10), answer: answer}
}

// Read implements io.Reader.
func (f *frames) Read(p []byte) (int, error) {
	for len(f.rest) == 0 {
		line, err := f.line()
		if err != nil {
			return 0, err
		}
		f.rest = line
	}
	n := copy(p, f.rest)
	f.rest = f.rest[n:]
	return n, nil
}

// Close implements io.Closer.
func (f *frames) Close() error { return f.in.Close() }

// line returns the next line that is a message; none for one that is not.
func (f *frames) line() ([]byte, error) {
	var line []byte
	long := false
	for {
		part, err := f.lines.ReadSlice('\n')
		if !long {
			line = append(line, part...)
		}
		if long = long || len(line) > maxMessage; long {
			line = nil
		}
		switch {
		case err == nil:
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case errors.Is(err, io.EOF) && len(line) > 0: // the last one needs no end
		default:
			return nil, err
		}
		break
	}
	if long {
		return nil, f.refuse(jsonrpc.CodeInvalidRequest, fmt.Sprintf("a message has more than %d bytes", maxMessage))
	}
	if line = bytes.TrimSpace(line); len(line) == 0 {
		return nil, nil
	}
	if code, err := checkMessage(line); err != nil {
		return nil, f.refuse(code, err.Error())
	}
	return append(line, '\n'), nil
}

// refuse answers a line that has no id that could be believed.
func (f *frames) refuse(code int64, why string) error {
	answer, err := json.Marshal(map[string]any{"jsonrpc": "2.0", "id": nil, "error": map[string]any{"code": code, "message": why}})
	if err == nil {
		_, err = f.answer.Write(append(answer, '\n'))
	}
	return err
}

// checkMessage says what is wrong with a line.
func checkMessage(line []byte) (code int64, err error) {
	if depth(line) > maxDepth {
		return jsonrpc.CodeInvalidRequest, fmt.Errorf("a message is nested deeper than %d", maxDepth)
	}
	if !json.Valid(line) {
		return jsonrpc.CodeParseError, errors.New("a line is no JSON; a message is one line")
	}
	all := []json.RawMessage{line}
	if line[0] == '[' {
		if err := json.Unmarshal(line, &all); err != nil || len(all) == 0 {
			return jsonrpc.CodeInvalidRequest, errors.New("a batch is empty")
		}
	}
	for _, one := range all {
		if _, err := jsonrpc.DecodeMessage(one); err != nil {
			return jsonrpc.CodeInvalidRequest, fmt.Errorf("a line is no JSON-RPC message: %.200s", err)
		}
	}
	return 0, nil
}

// depth is how deep the values of a text go, if it is JSON.
func depth(text []byte) int {
	now, most, quoted := 0, 0, false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '[' || c == '{':
			now++
			most = max(most, now)
		case c == ']' || c == '}':
			now--
		}
	}
	return most
}

// lockedWriter keeps the lines of two writers apart.
type lockedWriter struct {
	io.WriteCloser
	mu sync.Mutex
}

func (w *lockedWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.WriteCloser.Write(p)
}
