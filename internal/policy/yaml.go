package policy

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/firebreak-dev/firebreak"
)

// fault is what is wrong with a file, and where. Whoever knows the rule adds it.
type fault struct {
	line int
	rule string
	err  error
}

func (f *fault) Error() string {
	if f.rule == "" {
		return f.err.Error()
	}
	return fmt.Sprintf("rule %s: %v", f.rule, f.err)
}

func (f *fault) Unwrap() error { return f.err }

func faultAt(line int, format string, args ...any) error {
	return &fault{line: line, err: fmt.Errorf(format, args...)}
}

// at gives err a place unless it has one.
func at(line int, err error) error {
	var f *fault
	if err == nil || errors.As(err, &f) {
		return err
	}
	return &fault{line: line, err: err}
}

// inRule gives err a rule unless it has one.
func inRule(id string, line int, err error) error {
	err = at(line, err)
	var f *fault
	if errors.As(err, &f) && f.rule == "" {
		f.rule = id
	}
	return err
}

// field reads the value of one key.
type field func(value *yaml.Node) error

// readMap reads a mapping whose keys are all in fields. An unknown key is an error, and so is one that is there twice.
func readMap(n *yaml.Node, what string, fields map[string]field) error {
	if n.Kind != yaml.MappingNode {
		return faultAt(n.Line, "%s is no mapping", what)
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		read, known := fields[key.Value]
		switch {
		case !known:
			return faultAt(key.Line, "unknown key %q in %s: it is none of %s", key.Value, what, strings.Join(sortedKeys(fields), ", "))
		case seen[key.Value]:
			return faultAt(key.Line, "%s stands twice in %s", key.Value, what)
		}
		seen[key.Value] = true
		if err := read(value); err != nil {
			return at(value.Line, fmt.Errorf("%s: %w", key.Value, err))
		}
	}
	return nil
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// readList reads a sequence, item by item.
func readList(n *yaml.Node, read field) error {
	if n.Kind != yaml.SequenceNode {
		return faultAt(n.Line, "it is no list")
	}
	for _, item := range n.Content {
		if err := read(item); err != nil {
			return at(item.Line, err)
		}
	}
	return nil
}

func list(read field) field { return func(n *yaml.Node) error { return readList(n, read) } }

// text reads any scalar as it is written, so that a condition may be the word true.
func text(into *string) field {
	return func(n *yaml.Node) error {
		switch {
		case strings.HasPrefix(n.Tag, "!") && !strings.HasPrefix(n.Tag, "!!"):
			return faultAt(n.Line, "%s begins with an exclamation mark: put it in quotes", n.Tag)
		case n.Kind != yaml.ScalarNode || n.Tag == "!!null":
			return faultAt(n.Line, "it is no text")
		case strings.TrimSpace(n.Value) == "":
			return faultAt(n.Line, "it is empty")
		}
		*into = n.Value
		return nil
	}
}

func texts(into *[]string) field {
	return list(func(n *yaml.Node) error {
		var s string
		err := text(&s)(n)
		*into = append(*into, s)
		return err
	})
}

func boolean(into *bool) field {
	return func(n *yaml.Node) error {
		b, err := strconv.ParseBool(n.Value)
		if n.Tag != "!!bool" || err != nil {
			return faultAt(n.Line, "%q is neither true nor false", n.Value)
		}
		*into = b
		return nil
	}
}

func number(into *int) field {
	return func(n *yaml.Node) error {
		i, err := strconv.Atoi(n.Value)
		if err != nil || i < 1 {
			return faultAt(n.Line, "%q is no number from 1 on", n.Value)
		}
		*into = i
		return nil
	}
}

// word reads a scalar through its UnmarshalText.
func word(into interface{ UnmarshalText([]byte) error }) field {
	return func(n *yaml.Node) error {
		var s string
		if err := text(&s)(n); err != nil {
			return err
		}
		return plain(into.UnmarshalText([]byte(s)))
	}
}

// plain takes the operation from an error of ours: the place in the file says it better.
func plain(err error) error {
	var e *firebreak.Error
	if errors.As(err, &e) {
		return e.Err
	}
	return err
}

func boundaries(into *[]firebreak.Boundary) field {
	return list(func(n *yaml.Node) error {
		var b firebreak.Boundary
		if err := word(&b)(n); err != nil {
			return err
		}
		if slices.Contains(*into, b) {
			return faultAt(n.Line, "%s stands twice", b)
		}
		*into = append(*into, b)
		return nil
	})
}

func duties(into *[]Duty) field {
	return list(func(n *yaml.Node) error {
		if !slices.Contains(Duties(), Duty(n.Value)) {
			return faultAt(n.Line, "%q is none of the duties %v", n.Value, Duties())
		}
		*into = append(*into, Duty(n.Value))
		return nil
	})
}

// workload reads a workload by way of JSON, so that there is one reader of its words.
func workload(into *firebreak.Workload) field {
	return func(n *yaml.Node) error {
		var loose map[string]any
		if err := n.Decode(&loose); err != nil {
			return faultAt(n.Line, "it is no workload: %v", err)
		}
		data, err := json.Marshal(loose)
		if err != nil {
			return err
		}
		*into, err = firebreak.ReadWorkload(data)
		return plain(err)
	}
}

// parse reads one YAML document. Aliases are refused: a file of rules is read by people, top to bottom.
func parse(data []byte) (*yaml.Node, error) {
	dec := yaml.NewDecoder(strings.NewReader(string(data)))
	var doc, more yaml.Node
	if err := dec.Decode(&doc); err != nil {
		return nil, at(yamlLine(err), fmt.Errorf("it is no YAML: %s", strings.TrimPrefix(err.Error(), "yaml: ")))
	}
	if err := dec.Decode(&more); err == nil {
		return nil, faultAt(more.Line, "a second document follows")
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 {
		return nil, faultAt(1, "it is empty")
	}
	return doc.Content[0], refuseAliases(doc.Content[0])
}

func refuseAliases(n *yaml.Node) error {
	if n.Kind == yaml.AliasNode || n.Anchor != "" {
		return faultAt(n.Line, "anchors and aliases are not read: write it out")
	}
	for _, child := range n.Content {
		if err := refuseAliases(child); err != nil {
			return err
		}
	}
	return nil
}

// yamlLine finds the line in an error of the YAML library, which gives it as text only.
func yamlLine(err error) int {
	_, rest, _ := strings.Cut(err.Error(), "line ")
	digits, _, _ := strings.Cut(rest, ":")
	if line, err := strconv.Atoi(digits); err == nil {
		return line
	}
	return 1
}
