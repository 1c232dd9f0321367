package install

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/tailscale/hujson"
)

// jsonFormat is JSON, with comments where the client takes them.
type jsonFormat struct {
	key  string // of the object that has all servers
	kind string // of the transport, where the client wants to be told
}

// entry is the entry's value, its lines after the first indented by indent.
func (f jsonFormat) entry(e Entry, indent, step string) string {
	var lines []string
	if f.kind != "" {
		lines = append(lines, `"type": `+quote(f.kind))
	}
	lines = append(lines, `"command": `+quote(e.Command), `"args": `+quoteAll(e.Args))
	return "{\n" + indent + step + strings.Join(lines, ",\n"+indent+step) + "\n" + indent + "}"
}

func (f jsonFormat) paste(e Entry) string {
	return fmt.Sprintf("{\n  %s: {\n    %s: %s\n  }\n}\n", quote(f.key), quote(Name), f.entry(e, "    ", "  "))
}

func (f jsonFormat) add(before []byte, e Entry) ([]byte, error) {
	if len(bytes.TrimSpace(before)) == 0 {
		return []byte(f.paste(e)), nil
	}
	v, err := hujson.Parse(bytes.Clone(before))
	if err != nil {
		return nil, fmt.Errorf("it is no JSON: %w", err)
	}
	root, ok := v.Value.(*hujson.Object)
	if !ok {
		return nil, errors.New("it holds no object")
	}
	step := stepOf(before, root)
	after := before
	switch servers := member(root, f.key); {
	case servers == nil:
		text := quote(f.key) + ": {\n" + step + step + quote(Name) + ": " + f.entry(e, step+step, step) + "\n" + step + "}"
		after = splice(before, v.StartOffset, root, text, step, "")
	default:
		object, ok := servers.Value.(*hujson.Object)
		if !ok {
			return nil, fmt.Errorf("%q is no object: %w", f.key, errByHand)
		}
		if old := member(object, Name); old != nil {
			if same(before[old.StartOffset:old.EndOffset], f.entry(e, "", "")) {
				return before, nil
			}
			after = replace(before, old.StartOffset, old.EndOffset, f.entry(e, step+step, step))
		} else {
			after = splice(before, servers.StartOffset, object, quote(Name)+": "+f.entry(e, step+step, step), step+step, step)
		}
	}
	return after, f.check(before, after, e)
}

// member returns the last value of a name, which is the one that counts.
func member(o *hujson.Object, name string) *hujson.Value {
	for i := len(o.Members) - 1; i >= 0; i-- {
		if lit, ok := o.Members[i].Name.Value.(hujson.Literal); ok && lit.String() == name {
			return &o.Members[i].Value
		}
	}
	return nil
}

// stepOf is what one level is indented by.
func stepOf(text []byte, root *hujson.Object) string {
	if len(root.Members) > 0 {
		at := root.Members[0].Name.StartOffset
		line := text[bytes.LastIndexByte(text[:at], '\n')+1 : at]
		if len(line) > 0 && len(bytes.TrimLeft(line, " \t")) == 0 {
			return string(line)
		}
	}
	return "  "
}

// splice puts a member first into an object that begins at start.
func splice(text []byte, start int, o *hujson.Object, what, indent, end string) []byte {
	what = "\n" + indent + what
	if len(o.Members) > 0 {
		what += ","
	} else if !bytes.Contains(o.AfterExtra, []byte("\n")) {
		what += "\n" + end
	}
	return replace(text, start+1, start+1, what)
}

func replace(text []byte, from, to int, what string) []byte {
	return append(append(bytes.Clone(text[:from]), what...), text[to:]...)
}

// same reports whether two texts are the same values.
func same(a []byte, b string) bool {
	var x, y any
	plain, err := hujson.Standardize(bytes.Clone(a))
	return err == nil && json.Unmarshal(plain, &x) == nil && json.Unmarshal([]byte(b), &y) == nil && reflect.DeepEqual(x, y)
}

// check holds the result to being what was there, and the entry.
func (f jsonFormat) check(before, after []byte, e Entry) error {
	was, err := objectOf(before)
	if err != nil {
		return err
	}
	is, err := objectOf(after)
	if err != nil {
		return errors.Join(errByHand, err)
	}
	servers, _ := was[f.key].(map[string]any)
	if servers == nil {
		servers = map[string]any{}
		was[f.key] = servers
	}
	var entry any
	if err := json.Unmarshal([]byte(f.entry(e, "", "")), &entry); err != nil {
		return err
	}
	servers[Name] = entry
	if !reflect.DeepEqual(was, is) {
		return errByHand
	}
	return nil
}

func objectOf(text []byte) (map[string]any, error) {
	plain, err := hujson.Standardize(bytes.Clone(text))
	if err != nil {
		return nil, err
	}
	var o map[string]any
	return o, json.Unmarshal(plain, &o)
}
