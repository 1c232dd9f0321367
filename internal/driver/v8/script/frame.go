package script

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path"
	"strings"
)

// Frame is what comes of a run. User code can write one, so everything is checked.
type Frame struct {
	Type string `json:"type"` // print, result, error, exit, file, ran, done

	Stream string `json:"stream"` // print: stdout or stderr
	Text   string `json:"text"`

	Main  bool                       `json:"main"` // result
	Forms map[string]json.RawMessage `json:"forms"`

	Name      string `json:"name"` // error
	Value     string `json:"value"`
	Traceback string `json:"traceback"`

	Status int `json:"status"` // exit

	Path   string `json:"path"` // file: what became of it
	Kind   Kind   `json:"kind"`
	Data   []byte `json:"data"` // of a regular file, what stands from At on; at 0 it begins anew
	At     int64  `json:"at"`
	Target string `json:"target"` // of a link
}

// Kind is what is at a path now.
type Kind string

const (
	KindGone      Kind = "gone"
	KindFile      Kind = "file"
	KindDirectory Kind = "directory"
	KindLink      Kind = "link"
)

// ParseFrame reads one line of what a run told.
func ParseFrame(line []byte) (Frame, error) {
	var f Frame
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil {
		return f, err
	}
	switch f.Type {
	case "result", "error", "exit", "ran", "done":
		return f, nil
	case "print":
		if f.Stream == "stdout" || f.Stream == "stderr" {
			return f, nil
		}
	case "file":
		known := f.Kind == KindGone || f.Kind == KindFile || f.Kind == KindDirectory || f.Kind == KindLink
		if known && path.IsAbs(f.Path) && f.At >= 0 && !strings.Contains(f.Path+f.Target, "\x00") {
			return f, nil
		}
	}
	return f, fmt.Errorf("a frame of type %q", f.Type)
}
