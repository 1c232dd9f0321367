package code

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// frame is what a kernel says. User code can write where the kernel does: everything is checked.
type frame struct {
	Type string `json:"type"` // ready, result, error, done
	ID   uint64 `json:"id"`   // of the run

	Main  bool                       `json:"main"`  // result: the value of the last expression
	Forms map[string]json.RawMessage `json:"forms"` // result
	Ack   uint64                     `json:"ack"`   // result: the kernel waits for this number

	Name      string `json:"name"` // error
	Value     string `json:"value"`
	Traceback string `json:"traceback"`

	Status int `json:"status"` // done: of a shell
}

// readFrame reads a decimal length, a newline and that many bytes of JSON.
func readFrame(r *bufio.Reader) (frame, error) {
	var f frame
	line, err := r.ReadSlice('\n')
	if err == io.EOF && len(line) == 0 {
		return f, io.EOF
	}
	if err != nil || len(line) > 9 {
		return f, errors.Join(errors.New("a frame has no length"), err)
	}
	size, err := strconv.ParseUint(string(line[:len(line)-1]), 10, 32)
	if err != nil || size == 0 || size > maxFrame {
		return f, fmt.Errorf("a frame's length is %q", line)
	}
	var body bytes.Buffer // grows with what comes, whatever was promised
	if _, err := io.CopyN(&body, r, int64(size)); err != nil {
		return f, fmt.Errorf("read a frame: %w", err)
	}
	return parseFrame(body.Bytes())
}

func parseFrame(text []byte) (frame, error) {
	var f frame
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil {
		return f, fmt.Errorf("parse a frame: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return f, errors.New("parse a frame: more than one value")
	}
	if !slices.Contains([]string{"ready", "result", "error", "done"}, f.Type) {
		return f, fmt.Errorf("a frame of unknown type %q", f.Type)
	}
	return f, nil
}

// appendFrame frames text for a kernel.
func appendFrame(to, text []byte) []byte {
	to = strconv.AppendInt(to, int64(len(text)), 10)
	return append(append(to, '\n'), text...)
}

// request is what a kernel is asked to run.
type request struct {
	ID       uint64            `json:"id"`
	Language string            `json:"language"`
	Code     string            `json:"code"`
	Env      map[string]string `json:"env"`
}

func (r request) frame() []byte {
	text, err := json.Marshal(r)
	if err != nil {
		panic(err) // strings and a number
	}
	return appendFrame(nil, text)
}

// commands is the request as the lines of a shell. The end has a line of its own, which is read whatever became of
// those before.
func (r request) commands() []byte {
	var b strings.Builder
	names := make([]string, 0, len(r.Env))
	for name := range r.Env {
		if shellName(name) { // the sandbox's own may have others
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		fmt.Fprintf(&b, "if [ -v %[1]s ]; then __firebreak_%[1]s=$%[1]s; else unset __firebreak_%[1]s; fi; export %[1]s=%[2]s\n", name, quote(r.Env[name]))
	}
	fmt.Fprintf(&b, "eval %s 0</dev/null 4>&-\n", quote(r.Code))
	b.Write(r.finish())
	for _, name := range names {
		fmt.Fprintf(&b, "if [ -v __firebreak_%[1]s ]; then %[1]s=$__firebreak_%[1]s; else unset %[1]s; fi\n", name)
	}
	return []byte(b.String())
}

// finish is the line by which a shell says that a run is done.
func (r request) finish() []byte {
	return fmt.Appendf(nil, "__firebreak=$?; builtin printf -v __firebreak '{\"type\":\"done\",\"id\":%d,\"status\":%%d}' \"$__firebreak\"; "+
		"builtin printf '%%d\\n%%s' \"${#__firebreak}\" \"$__firebreak\" >&4\n", r.ID)
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
