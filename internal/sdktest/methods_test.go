package sdktest_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// everyMethod compares the public methods of the clients with those that the programs called, and with the table in
// docs/e2b.md, so that neither leaves one out, whatever a later version of a client adds.
func everyMethod(t *testing.T, k kit, programs []*program) {
	called := map[string][]string{} // by kit
	for _, p := range programs {
		called[p.kit] = append(called[p.kit], p.called...)
	}
	text, err := os.ReadFile("../../docs/e2b.md")
	if err != nil {
		t.Fatal(err)
	}
	page := strings.ToLower(string(text)) // JavaScript's toJSON is Python's to_json
	for kit, args := range map[string][]string{
		"node":  {k.node, filepath.Join(k.npm, "node/api.mjs")},
		"sync":  {k.python, "testdata/python/check.py", "sync"},
		"async": {k.python, "testdata/python/check.py", "async"},
	} {
		for _, name := range methods(t, k, args) {
			if !slices.Contains(called[kit], name) {
				t.Errorf("%s: no program called %s", kit, name)
			}
			if written := inDocs(name); !strings.Contains(page, "`"+strings.ToLower(written)+"`") {
				t.Errorf("docs/e2b.md does not list `%s` of %s", written, kit)
			}
		}
	}
}

// refusals compares the calls that the page says are answered with 501 with those that the programs saw refused.
func refusals(t *testing.T, programs []*program) {
	page, err := os.ReadFile("../../docs/e2b.md")
	if err != nil {
		t.Fatal(err)
	}
	var written, seen []string
	for line := range strings.Lines(string(page)) {
		if row, ok := strings.CutSuffix(strings.TrimSpace(line), "| 501 |"); ok {
			for _, name := range regexp.MustCompile("`([a-zA-Z]+\\.[a-zA-Z]+)`").FindAllStringSubmatch(row, -1) {
				written = append(written, name[1])
			}
		}
	}
	for _, p := range programs {
		for _, c := range p.checks {
			if p.name == "node/refused" && c.OK && c.Refused {
				seen = append(seen, c.Name)
			}
		}
	}
	slices.Sort(written)
	slices.Sort(seen)
	if !slices.Equal(written, seen) || len(seen) == 0 {
		t.Errorf("docs/e2b.md says that these are refused:\n%q\nand these were:\n%q", written, seen)
	}
}

// methods asks a client for its public methods.
func methods(t *testing.T, k kit, args []string) []string {
	t.Helper()
	cmd := k.command(t.Context(), nil, args...)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%q: %v", args, err)
	}
	var found struct{ API []string }
	if err := json.Unmarshal(out, &found); err != nil {
		t.Fatalf("%q: %v", args, err)
	}
	if len(found.API) < 50 {
		t.Fatalf("%q found %d methods", args, len(found.API))
	}
	slices.Sort(found.API)
	return found.API
}

// inDocs writes a method as a reader of either language would look for it, but for upper and lower case: files.read for
// Filesystem#read, files.makeDir for files.make_dir.
func inDocs(name string) string {
	return strings.NewReplacer(
		"SandboxApi.", "Sandbox.", "Sandbox#", "sandbox.", "Filesystem#", "files.", "CommandHandle#", "handle.",
		"Commands#", "commands.", "Pty#", "pty.", "Git#", "git.", "WatchHandle#", "watch.", "SandboxPaginator#", "pages.",
		"SnapshotPaginator#", "pages.", "SecretPaginator#", "pages.", "Paginator#", "pages.", "Volume#", "volume.",
		"TemplateBase.", "Template.", "TemplateBase#", "builder.", "ReadyCmd#", "ready.",
		"Template.from_", "builder.from", "Template.skip_", "builder.skip", "_", "",
	).Replace(name)
}
