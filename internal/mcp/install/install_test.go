package install

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak"
)

var entry = Entry{Command: "/opt/fire break", Args: []string{"mcp", "--workspace", "~/a \"b\""}}

func places(t *testing.T) Places {
	dir := t.TempDir()
	return Places{Home: dir, Config: filepath.Join(dir, ".config"), Work: filepath.Join(dir, "work"), Env: func(string) string { return "" }}
}

func TestEveryClient(t *testing.T) {
	for _, c := range Clients() {
		t.Run(c.Name, func(t *testing.T) {
			p := places(t)
			for range 2 { // once into nothing, once where it is
				change, err := c.Plan(p, entry)
				if err != nil {
					t.Fatal(err)
				}
				if err := change.Write(); err != nil {
					t.Fatal(err)
				}
			}
			change, err := c.Plan(p, entry)
			if err != nil || !change.Empty() || string(change.Before) != c.Paste(entry) {
				t.Errorf("%v, %q, not\n%s", err, change.Before, c.Paste(entry))
			}
			left, err := filepath.Glob(filepath.Join(filepath.Dir(change.Path), ".firebreak-*"))
			if err != nil || len(left) > 0 {
				t.Errorf("%q is left, %v", left, err)
			}
		})
	}
	if _, err := Find("zen"); firebreak.KindOf(err) != firebreak.KindInvalid || !strings.Contains(err.Error(), "goose") {
		t.Error(err)
	}
}

// TestWhatIsThereStays adds to files that people wrote.
func TestWhatIsThereStays(t *testing.T) {
	for name, c := range map[string]struct{ client, before, after string }{
		"other servers": {"cursor", "{\n\t// mine\n\t\"mcpServers\": {\n\t\t\"other\": {\"command\": \"x\"}, // keep\n\t},\n\t\"theme\": \"dark\"\n}\n",
			"{\n\t// mine\n\t\"mcpServers\": {\n\t\t\"firebreak\": ENTRY,\n\t\t\"other\": {\"command\": \"x\"}, // keep\n\t},\n\t\"theme\": \"dark\"\n}\n"},
		"no servers":         {"gemini", "{\n  \"a\": 1\n}\n", "{\n  \"mcpServers\": {\n    \"firebreak\": ENTRY\n  },\n  \"a\": 1\n}\n"},
		"an empty object":    {"gemini", "{}", "{\n  \"mcpServers\": {\n    \"firebreak\": ENTRY\n  }\n}"},
		"empty servers":      {"vscode", "{\n  \"servers\": {},\n  \"inputs\": []\n}", "{\n  \"servers\": {\n    \"firebreak\": ENTRY\n  },\n  \"inputs\": []\n}"},
		"another entry":      {"cursor", "{\n  \"mcpServers\": {\n    \"firebreak\": {\"command\": \"old\"} // mine\n  }\n}", "{\n  \"mcpServers\": {\n    \"firebreak\": ENTRY // mine\n  }\n}"},
		"an array":           {"cursor", "[]", ""},
		"servers in a list":  {"cursor", `{"mcpServers": []}`, ""},
		"no JSON":            {"cursor", "{", ""},
		"TOML":               {"codex", "# mine\nmodel = \"x\"\n\n[mcp_servers.other]\ncommand = \"y\" # keep\n", "# mine\nmodel = \"x\"\n\n[mcp_servers.other]\ncommand = \"y\" # keep\n\nPASTE"},
		"TOML, another":      {"codex", "[mcp_servers.firebreak]\ncommand = \"y\"\n", ""},
		"TOML, inline":       {"codex", "mcp_servers = {other = {command = \"y\"}}\n", ""},
		"no TOML":            {"codex", "[", ""},
		"YAML":               {"goose", "# mine\nextensions:\n    # first\n    dev:\n        enabled: true # keep\nGOOSE: x\n", "# mine\nextensions:\n    # first\nENTRY    dev:\n        enabled: true # keep\nGOOSE: x\n"},
		"YAML, none":         {"goose", "GOOSE: x", "GOOSE: x\nPASTE"},
		"YAML, flow":         {"goose", "extensions: {dev: {enabled: true}}\n", ""},
		"YAML, empty":        {"goose", "extensions:\n", ""},
		"YAML, another":      {"goose", "extensions:\n  firebreak:\n    enabled: false\n", ""},
		"no YAML":            {"goose", "a: [", ""},
		"YAML without a map": {"goose", "- a\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			client, err := Find(c.client)
			if err != nil {
				t.Fatal(err)
			}
			p := places(t)
			path := client.Path(p)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(c.before), 0o644); err != nil {
				t.Fatal(err)
			}
			change, err := client.Plan(p, entry)
			if c.after == "" {
				if firebreak.KindOf(err) != firebreak.KindState || !strings.Contains(err.Error(), "paste the entry") {
					t.Errorf("%v; %q", err, change.After)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := strings.ReplaceAll(c.after, "PASTE", client.Paste(entry))
			switch f := client.format.(type) {
			case jsonFormat:
				step := "  "
				if strings.Contains(c.before, "\t") {
					step = "\t"
				}
				want = strings.ReplaceAll(want, "ENTRY", f.entry(entry, step+step, step))
			case yamlFormat:
				want = strings.ReplaceAll(want, "ENTRY", f.entry(entry, "    ", "  "))
			}
			if string(change.After) != want {
				t.Errorf("it becomes\n%s\nand not\n%s", change.After, want)
			}
			if err := change.Write(); err != nil {
				t.Fatal(err)
			}
			if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o644 {
				t.Errorf("%v, %v", fi, err)
			}
		})
	}
}

func TestChangedMeanwhile(t *testing.T) {
	c, err := Find("cursor")
	if err != nil {
		t.Fatal(err)
	}
	p := places(t)
	change, err := c.Plan(p, entry)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(change.Path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(change.Path, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := change.Write(); firebreak.KindOf(err) != firebreak.KindState {
		t.Error(err)
	}
}

func TestLinksStay(t *testing.T) {
	c, err := Find("cursor")
	if err != nil {
		t.Fatal(err)
	}
	p := places(t)
	dots := filepath.Join(p.Home, "dots.json")
	if err := os.WriteFile(dots, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(c.Path(p)), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(dots, c.Path(p)); err != nil {
		t.Fatal(err)
	}
	change, err := c.Plan(p, entry)
	if err != nil {
		t.Fatal(err)
	}
	if err := change.Write(); err != nil {
		t.Fatal(err)
	}
	fi, err := os.Lstat(c.Path(p))
	text, readErr := os.ReadFile(dots)
	if err != nil || readErr != nil || fi.Mode()&os.ModeSymlink == 0 || !strings.Contains(string(text), Name) {
		t.Errorf("%v %v %v %q", fi, err, readErr, text)
	}
}

// FuzzAdd adds the entry to anything: what comes of it is either refused or keeps what was there.
func FuzzAdd(f *testing.F) {
	f.Add("cursor", `{"a": [1, {"b": null}], /* c */ "mcpServers": {"x": {},},}`)
	f.Add("codex", "[a]\nb = 1\n[mcp_servers.x]\n")
	f.Add("goose", "a: &x {b: 1}\nextensions:\n  c: *x\n")
	f.Fuzz(func(t *testing.T, name, before string) {
		c, err := Find(name)
		if err != nil {
			return
		}
		after, err := c.format.add([]byte(before), entry)
		if err != nil {
			return
		}
		again, err := c.format.add(after, entry)
		if err != nil || string(again) != string(after) {
			t.Errorf("%q becomes %q, and then %q, %v", before, after, again, err)
		}
	})
}
