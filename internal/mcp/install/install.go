// Package install puts Firebreak into the configuration of MCP clients. It adds one entry and keeps all else as it was,
// comments and layout too: what cannot be added so is left to the user, with the text to paste.
package install

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/firebreak-dev/firebreak"
)

// Name is what the entry is called.
const Name = "firebreak"

// maxFile bounds a configuration that is read.
const maxFile = 16 << 20

// Entry is how a client starts the server.
type Entry struct {
	Command string
	Args    []string
}

// Client is a program that speaks MCP, and where it keeps its configuration.
type Client struct {
	Name  string // as people write it on the command line
	Title string
	Note  string // for whoever has added the entry; may be empty

	path   func(Places) string
	format format
}

// Places are the directories in which clients keep their files.
type Places struct {
	Home, Config, Work string
	Env                func(string) string
}

// format is how a configuration says what it says.
type format interface {
	// paste is the entry as text, for people.
	paste(Entry) string
	// add returns the configuration with the entry. errByHand if that would change more than the entry.
	add(before []byte, e Entry) ([]byte, error)
}

// errByHand is of a file that only its owner can change so that the rest of it stays.
var errByHand = errors.New("what is there can only be changed by hand")

// Clients lists all that are known.
func Clients() []Client {
	under := func(path ...string) func(Places) string {
		return func(p Places) string { return filepath.Join(append([]string{p.Home}, path...)...) }
	}
	return []Client{
		{Name: "claude-desktop", Title: "Claude Desktop", Note: "Start Claude Desktop anew.", format: jsonFormat{key: "mcpServers"},
			path: func(p Places) string { return filepath.Join(p.Config, "Claude", "claude_desktop_config.json") }},
		{Name: "claude-code", Title: "Claude Code, for this directory", format: jsonFormat{key: "mcpServers", kind: "stdio"},
			Note: "Claude Code asks once whether to use it; for all directories: claude mcp add --scope user firebreak -- firebreak mcp",
			path: func(p Places) string { return filepath.Join(p.Work, ".mcp.json") }},
		{Name: "cursor", Title: "Cursor", format: jsonFormat{key: "mcpServers"}, path: under(".cursor", "mcp.json")},
		{Name: "vscode", Title: "Visual Studio Code", format: jsonFormat{key: "servers", kind: "stdio"},
			path: func(p Places) string { return filepath.Join(p.Config, "Code", "User", "mcp.json") }},
		{Name: "codex", Title: "Codex", format: tomlFormat{}, path: func(p Places) string {
			if dir := p.Env("CODEX_HOME"); dir != "" {
				return filepath.Join(dir, "config.toml")
			}
			return filepath.Join(p.Home, ".codex", "config.toml")
		}},
		{Name: "gemini", Title: "Gemini CLI", format: jsonFormat{key: "mcpServers"}, path: under(".gemini", "settings.json")},
		{Name: "goose", Title: "Goose", format: yamlFormat{},
			path: func(p Places) string { return filepath.Join(p.Config, "goose", "config.yaml") }},
	}
}

// Names lists their names.
func Names() []string {
	var all []string
	for _, c := range Clients() {
		all = append(all, c.Name)
	}
	return all
}

// Find returns the client of a name. KindInvalid if there is none.
func Find(name string) (Client, error) {
	for _, c := range Clients() {
		if c.Name == name {
			return c, nil
		}
	}
	return Client{}, &firebreak.Error{Kind: firebreak.KindInvalid, Err: fmt.Errorf("there is no client %q", name), Mend: "choose one of " + strings.Join(Names(), ", ") +
		"; for another one, paste what --print shows"}
}

// Change is what would become of a client's file.
type Change struct {
	Path   string
	Before []byte
	After  []byte
	mode   fs.FileMode
	absent bool
}

// Empty reports whether the entry is there already.
func (c Change) Empty() bool { return string(c.Before) == string(c.After) }

// Paste is the entry as text, for people.
func (c Client) Paste(e Entry) string { return c.format.paste(e) }

// Path returns the client's file, which need not exist.
func (c Client) Path(p Places) string { return c.path(p) }

// Plan reads the client's file and says what it would become. KindState if only its owner can change it.
func (c Client) Plan(p Places, e Entry) (Change, error) {
	change := Change{Path: c.path(p), mode: 0o600}
	if real, err := filepath.EvalSymlinks(change.Path); err == nil { // a link to the file stays one
		change.Path = real
	}
	fi, err := os.Stat(change.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		change.absent = true
	case err != nil:
		return change, invalid(change.Path, err)
	case !fi.Mode().IsRegular() || fi.Size() > maxFile:
		return change, invalid(change.Path, errors.New("it is no file of a configuration"))
	default:
		change.mode = fi.Mode().Perm()
		if change.Before, err = os.ReadFile(change.Path); err != nil {
			return change, invalid(change.Path, err)
		}
	}
	change.After, err = c.format.add(change.Before, e)
	if err != nil {
		return change, &firebreak.Error{Kind: firebreak.KindState, Op: "change " + change.Path, Err: err, Mend: "paste the entry into it yourself"}
	}
	return change, nil
}

func invalid(path string, err error) error {
	return &firebreak.Error{Kind: firebreak.KindInvalid, Op: "read " + path, Err: err, Mend: "see what is there; --print shows what to paste"}
}

// Write makes the change, all of it or nothing. KindState if the file is not what it was.
func (c Change) Write() (err error) {
	op := "write " + c.Path
	now, err := os.ReadFile(c.Path)
	if absent := errors.Is(err, fs.ErrNotExist); err != nil && !absent || absent != c.absent || string(now) != string(c.Before) {
		return &firebreak.Error{Kind: firebreak.KindState, Op: op, Err: errors.New("somebody else has changed it meanwhile"), Mend: "try again"}
	}
	if err := os.MkdirAll(filepath.Dir(c.Path), 0o700); err != nil {
		return &firebreak.Error{Kind: firebreak.KindHost, Op: op, Err: err}
	}
	f, err := os.CreateTemp(filepath.Dir(c.Path), ".firebreak-*")
	if err != nil {
		return &firebreak.Error{Kind: firebreak.KindHost, Op: op, Err: err}
	}
	_, err = f.Write(c.After)
	err = errors.Join(err, f.Chmod(c.mode), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), c.Path)
	}
	if err != nil {
		return &firebreak.Error{Kind: firebreak.KindHost, Op: op, Err: errors.Join(err, os.Remove(f.Name()))}
	}
	return nil
}

// quote is a text as JSON writes it, which TOML and YAML read too.
func quote(s string) string {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(s) // of a string
	return strings.TrimSuffix(b.String(), "\n")
}

func quoteAll(all []string) string {
	var words []string
	for _, s := range all {
		words = append(words, quote(s))
	}
	return "[" + strings.Join(words, ", ") + "]"
}
