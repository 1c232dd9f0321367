package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/firebreak-dev/firebreak"
)

// maxFile bounds a file of settings, in bytes.
const maxFile = 1 << 20

// Load returns the settings of a file, the environment and flags, of which the later win. There may be no file (""). The
// flags are by the settings' keys. Errors are of firebreak.KindInvalid and say where.
func Load(file string, lookupEnv func(string) (string, bool), flags map[string]string) (Config, error) {
	c := Default()
	c.sources = map[string]string{}
	settings := Settings()
	if file != "" {
		text, err := readFile(file)
		if err == nil {
			err = c.read(text, file, settings)
		}
		if err != nil {
			return c, &firebreak.Error{Kind: firebreak.KindInvalid, Op: "read settings", Err: err, Mend: "firebreak serve --print-config shows all there are"}
		}
	}
	for _, s := range settings {
		if text, ok := lookupEnv(s.Variable()); ok && text != "" {
			if err := c.apply(s, text, s.Variable()); err != nil {
				return c, err
			}
		}
	}
	for _, s := range settings {
		if text, ok := flags[s.Key]; ok {
			if err := c.apply(s, text, "--"+s.Flag()); err != nil {
				return c, err
			}
		}
	}
	if err := c.check(); err != nil {
		return c, &firebreak.Error{Kind: firebreak.KindInvalid, Op: "read settings", Err: err}
	}
	return c, nil
}

func (c *Config) apply(s Setting, text, source string) error {
	if err := s.set(c, text); err != nil {
		return &firebreak.Error{Kind: firebreak.KindInvalid, Op: "read settings", Err: fmt.Errorf("%s: %w", source, err)}
	}
	c.sources[s.Key] = source
	return nil
}

func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(text) > maxFile {
		err = fmt.Errorf("%s is longer than %d bytes", name, maxFile)
	}
	return text, err
}

// reader is a file being read.
type reader struct {
	config   *Config
	name     string
	settings map[string]Setting // by key
}

// read applies a file's settings.
func (c *Config) read(text []byte, name string, settings []Setting) error {
	r := reader{config: c, name: name, settings: map[string]Setting{}}
	for _, s := range settings {
		r.settings[s.Key] = s
	}
	dec := yaml.NewDecoder(bytes.NewReader(text))
	var doc, more yaml.Node
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return nil
	} else if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%s: something follows the settings", name)
	}
	return r.section("", doc.Content[0])
}

func (r *reader) fail(n *yaml.Node, format string, args ...any) error {
	return fmt.Errorf("%s:%d: %w", r.name, n.Line, fmt.Errorf(format, args...))
}

// each calls do for the pairs of a mapping, and refuses all but a mapping, and keys that stand twice.
func (r *reader) each(n *yaml.Node, what string, do func(key string, keyNode, value *yaml.Node) error) error {
	if n.Kind != yaml.MappingNode {
		return r.fail(n, "%s is no mapping of keys to values", what)
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Kind != yaml.ScalarNode {
			return r.fail(key, "a key of %s is no text", what)
		}
		if seen[key.Value] {
			return r.fail(key, "%s stands twice in %s", key.Value, what)
		}
		seen[key.Value] = true
		if err := do(key.Value, key, value); err != nil {
			return err
		}
	}
	return nil
}

// section reads a mapping of settings whose keys begin with prefix.
func (r *reader) section(prefix string, n *yaml.Node) error {
	what := strings.TrimSuffix(prefix, ".")
	if what == "" {
		what = "the file"
	}
	if n.Tag == "!!null" {
		return nil
	}
	return r.each(n, what, func(name string, key, value *yaml.Node) error {
		s, known := r.settings[prefix+name]
		switch {
		case known:
			return r.setting(s, value)
		case prefix == "" && name == "pools":
			return r.pools(value)
		case value.Kind == yaml.ScalarNode && r.settings[prefix+name+modeKey].set != nil:
			return r.setting(r.settings[prefix+name+modeKey], value)
		case r.isSection(prefix + name + "."):
			return r.section(prefix+name+".", value)
		}
		return r.fail(key, "unknown key %q", prefix+name)
	})
}

func (r *reader) isSection(prefix string) bool {
	for key := range r.settings {
		if strings.HasPrefix(key, prefix) {
			return true
		}
	}
	return false
}

func (r *reader) setting(s Setting, n *yaml.Node) error {
	if n.Tag == "!!null" {
		return r.fail(n, "%s has no value", s.Key)
	}
	text, err := r.text(s, n)
	if err != nil {
		return err
	}
	if err := s.set(r.config, text); err != nil {
		return r.fail(n, "%s: %w", s.Key, err)
	}
	r.config.sources[s.Key] = fmt.Sprintf("%s:%d", r.name, n.Line)
	return nil
}

// text returns what a flag would say: lists have commas, and mappings equals signs.
func (r *reader) text(s Setting, n *yaml.Node) (string, error) {
	isList, isMap := s.Key == "cors_origins", s.Key == "aliases"
	var items []string
	switch {
	case n.Kind == yaml.ScalarNode && !isList && !isMap:
		return n.Value, nil
	case n.Kind == yaml.SequenceNode && isList:
		for _, item := range n.Content {
			if item.Kind != yaml.ScalarNode || strings.Contains(item.Value, ",") {
				return "", r.fail(item, "an item of %s is no text without commas", s.Key)
			}
			items = append(items, item.Value)
		}
	case n.Kind == yaml.MappingNode && isMap:
		err := r.each(n, s.Key, func(key string, keyNode, value *yaml.Node) error {
			if value.Kind != yaml.ScalarNode || strings.ContainsAny(key+value.Value, ",=") {
				return r.fail(keyNode, "an entry of %s is no text without commas and equals signs", s.Key)
			}
			items = append(items, key+"="+value.Value)
			return nil
		})
		if err != nil {
			return "", err
		}
	case isList:
		return "", r.fail(n, "%s is no list", s.Key)
	case isMap:
		return "", r.fail(n, "%s is no mapping of names to names", s.Key)
	default:
		return "", r.fail(n, "%s is no single value", s.Key)
	}
	return strings.Join(items, ","), nil
}
