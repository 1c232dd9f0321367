package cli

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

func TestRunAllows(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	tree(t, dir, "echo.wasm 0644 x", "data/in 0644 x")
	data := filepath.Join(dir, "data")
	for _, c := range []struct{ args, fetch, mounts string }{
		{"--allow fetch=api.example.com", "api.example.com", ""},
		{"--allow fetch=a.example --allow fetch=b.example:8443,c.example", "a.example,b.example:8443,c.example", ""},
		{"--option fetch=a.example --allow fetch=b.example", "a.example,b.example", ""},
		{"--allow read=" + data, "", data + " at " + data},
		{"--allow read=./data", "", data + " at " + data},
		{"--allow read=./data:/in --allow read=data", "", data + " at /in, " + data + " at " + data},
		{"--allow read=./data:/in/ --volume ./data:/out:ro", "", data + " at /out, " + data + " at /in"},
		{"--option fuel=1", "", ""},
	} {
		s := newServer(t)
		run{s: s}.do(t, append(append([]string{"run", "-q"}, strings.Fields(c.args)...), "echo.wasm")...).want(t, 0, "\n", "")
		var mounts []string
		for _, m := range s.created[0].Mounts {
			mounts = append(mounts, m.Source+" at "+m.Target)
			if !m.ReadOnly {
				t.Errorf("%s: %v may be written", c.args, m)
			}
		}
		if got := s.created[0].Options["fetch"]; got != c.fetch || strings.Join(mounts, ", ") != c.mounts {
			t.Errorf("%s: fetch %q, mounts %q", c.args, got, mounts)
		}
	}
}

func TestRunRefusesToAllow(t *testing.T) {
	t.Chdir(t.TempDir())
	for args, part := range map[string]string{
		"--allow fech=x":                   `run: --allow "fech=x": there is no capability "fech"; did you mean fetch?`,
		"--allow write=/data":              `there is no capability "write"; there are fetch=HOST and read=DIR`,
		"--allow fetch":                    "it names no host; write it like --allow fetch=api.example.com",
		"--allow read=":                    "it names no directory; write it like --allow read=/data",
		"--allow read=./none":              "none: no such file or directory; create it first",
		"--allow read=/":                   `run: --allow "read=/": "/" is no absolute path below / in the sandbox`,
		"--allow read=/usr:/data:ro":       `"/data:ro" is no absolute path`,
		"--allow read=/usr:data":           `"data" is no absolute path`,
		"--allow read=:/data":              "it names no path of the host",
		"--server http://x --allow read=d": "it is one of the server's host",
	} {
		run{s: newServer(t)}.do(t, append(append([]string{"run"}, strings.Fields(args)...), "--", "true")...).wantError(t, 125, part)
	}
}

func TestCompleteAllow(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	tree(t, dir, "data/in/x 0644 x", "file 0644 x")
	for word, want := range map[string][]string{
		"":                      {"fetch=", "read="},
		"re":                    {"fetch=", "read="},
		"read=":                 {"read=data/"},
		"read=data/":            {"read=data/in/"},
		"read=./da":             {"read=./data/"},
		"read=" + dir + "/":     {"read=" + dir + "/data/"},
		"read=none/":            nil,
		"fetch=api.example.com": {"fetch=", "read="},
	} {
		got, directive := completeAllow(nil, nil, word)
		if !slices.Equal(got, want) || directive&cobra.ShellCompDirectiveNoSpace == 0 {
			t.Errorf("%q: %q, want %q", word, got, want)
		}
	}
	out := run{s: newServer(t)}.do(t, "__complete", "run", "--allow", "")
	if out.code != 0 || !strings.HasPrefix(out.stdout, "fetch=\nread=\n") {
		t.Errorf("completion says %+v in %s", out, os.Args[0])
	}
}
