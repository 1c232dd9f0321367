package script

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// Frame is what comes of a run. User code can write one, so everything is checked.
type Frame struct {
	Type string `json:"type"` // print, result, error, exit, ran, done

	Stream string `json:"stream"` // print: stdout or stderr
	Text   string `json:"text"`

	Main  bool                       `json:"main"` // result
	Forms map[string]json.RawMessage `json:"forms"`

	Name      string `json:"name"` // error
	Value     string `json:"value"`
	Traceback string `json:"traceback"`

	Status int `json:"status"` // exit
}

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
	}
	return f, fmt.Errorf("a frame of type %q", f.Type)
}
