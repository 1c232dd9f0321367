package install

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"

	"github.com/pelletier/go-toml/v2"
)

// tomlFormat is Codex's. A table can always stand at the end of a file, so that nothing else of it needs to be touched.
type tomlFormat struct{}

const tomlKey = "mcp_servers"

func (tomlFormat) paste(e Entry) string {
	return fmt.Sprintf("[%s.%s]\ncommand = %s\nargs = %s\n", tomlKey, Name, quote(e.Command), quoteAll(e.Args))
}

func (f tomlFormat) add(before []byte, e Entry) ([]byte, error) {
	was, err := tomlOf(before)
	if err != nil {
		return nil, fmt.Errorf("it is no TOML: %w", err)
	}
	entry, err := tomlOf([]byte(f.paste(e)))
	if err != nil {
		return nil, err
	}
	want := entry[tomlKey].(map[string]any)[Name]
	servers, isTable := was[tomlKey].(map[string]any)
	if was[tomlKey] != nil && !isTable {
		return nil, fmt.Errorf("%s is no table: %w", tomlKey, errByHand)
	}
	if old := servers[Name]; old != nil {
		if reflect.DeepEqual(old, want) {
			return before, nil
		}
		return nil, fmt.Errorf("it has another [%s.%s]: %w", tomlKey, Name, errByHand)
	}
	after := bytes.Clone(before)
	if len(after) > 0 {
		after = append(bytes.TrimRight(after, "\n"), "\n\n"...)
	}
	after = append(after, f.paste(e)...)
	if servers == nil {
		servers = map[string]any{}
		was[tomlKey] = servers
	}
	servers[Name] = want
	is, err := tomlOf(after)
	if err != nil || !reflect.DeepEqual(was, is) {
		return nil, errors.Join(errByHand, err)
	}
	return after, nil
}

func tomlOf(text []byte) (map[string]any, error) {
	all := map[string]any{}
	return all, toml.Unmarshal(text, &all)
}
