package install

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"strings"

	"go.yaml.in/yaml/v3"
)

// yamlFormat is Goose's.
type yamlFormat struct{}

const yamlKey = "extensions"

func (yamlFormat) entry(e Entry, indent, step string) string {
	lines := []string{"name: " + Name, "type: stdio", "enabled: true", "cmd: " + quote(e.Command), "args: " + quoteAll(e.Args), "timeout: 300"}
	text := indent + Name + ":\n"
	for _, l := range lines {
		text += indent + step + l + "\n"
	}
	return text
}

func (f yamlFormat) paste(e Entry) string { return yamlKey + ":\n" + f.entry(e, "  ", "  ") }

func (f yamlFormat) add(before []byte, e Entry) ([]byte, error) {
	was, err := yamlOf(before)
	if err != nil {
		return nil, fmt.Errorf("it is no YAML: %w", err)
	}
	want, err := yamlOf([]byte(f.paste(e)))
	if err != nil {
		return nil, err
	}
	entry := want[yamlKey].(map[string]any)[Name]
	servers, isMap := was[yamlKey].(map[string]any)
	if old := servers[Name]; old != nil {
		if reflect.DeepEqual(old, entry) {
			return before, nil
		}
		return nil, fmt.Errorf("it has another %s.%s: %w", yamlKey, Name, errByHand)
	}
	var after []byte
	switch _, there := was[yamlKey]; {
	case !there:
		after = bytes.Clone(before)
		if len(after) > 0 && !bytes.HasSuffix(after, []byte("\n")) {
			after = append(after, '\n')
		}
		after = append(after, f.paste(e)...)
	case !isMap || len(servers) == 0:
		return nil, fmt.Errorf("%s is empty or no mapping: %w", yamlKey, errByHand)
	default:
		if after, err = f.insert(before, e); err != nil {
			return nil, err
		}
	}
	if servers == nil {
		servers = map[string]any{}
		was[yamlKey] = servers
	}
	servers[Name] = entry
	is, err := yamlOf(after)
	if err != nil || !reflect.DeepEqual(was, is) {
		return nil, errors.Join(errByHand, err)
	}
	return after, nil
}

// insert puts the entry before the first one that is there, in the same column.
func (f yamlFormat) insert(before []byte, e Entry) ([]byte, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(before, &doc); err != nil {
		return nil, err
	}
	root := doc.Content[0]
	for i := 0; i+1 < len(root.Content); i += 2 {
		value := root.Content[i+1]
		if root.Content[i].Value != yamlKey || value.Style&yaml.FlowStyle != 0 || len(value.Content) == 0 {
			continue
		}
		first := value.Content[0]
		lines := bytes.SplitAfter(before, []byte("\n"))
		at := first.Line - 1
		if first.Column < 2 || at >= len(lines) || strings.TrimLeft(string(lines[at][:first.Column-1]), " ") != "" {
			return nil, errByHand
		}
		text := f.entry(e, strings.Repeat(" ", first.Column-1), "  ")
		return bytes.Join([][]byte{bytes.Join(lines[:at], nil), []byte(text), bytes.Join(lines[at:], nil)}, nil), nil
	}
	return nil, errByHand
}

func yamlOf(text []byte) (map[string]any, error) {
	all := map[string]any{}
	if len(bytes.TrimSpace(text)) == 0 {
		return all, nil
	}
	if err := yaml.Unmarshal(text, &all); err != nil {
		return nil, err
	}
	if all == nil {
		all = map[string]any{}
	}
	return all, nil
}
