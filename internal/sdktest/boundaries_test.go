package sdktest_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// boundary is a template, and the language that code in it is written in.
type boundary struct{ template, language string }

func boundaries() []boundary {
	return []boundary{
		{"host", "python"}, {"wasm-python", "python"},
		{"host", "javascript"}, {"wasm-javascript", "javascript"}, {"v8-javascript", "javascript"},
	}
}

// TestBoundaries runs the same calls of the same clients behind gVisor, WebAssembly and V8: what comes of them is in
// testdata/boundaries.json, as is what is refused where no process can run.
func TestBoundaries(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute")
	}
	k, bin, state := findKit(t), binary(t), t.TempDir()
	importTemplates(t, bin, state)
	s := startServer(t, bin, state)
	table, err := filepath.Abs("testdata/boundaries.json")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]*program{} // by language
	for _, b := range boundaries() {
		args := []string{b.template, b.language, table}
		kits := map[string][]string{
			"node":        {k.node, filepath.Join(k.npm, "node/boundary.mjs")},
			"python/sync": {k.python, "testdata/python/boundary.py", "sync"},
		}
		if b.template == "wasm-python" { // the asynchronous package makes the same requests
			kits["python/async"] = []string{k.python, "testdata/python/boundary.py", "async"}
		}
		for kit, line := range kits {
			p := k.program(b.template+"/"+kit, "", s.byHeaders(), slices.Concat(line, args)...)
			all[b.language] = append(all[b.language], p)
		}
	}
	var process sync.Mutex // of V8: a loop without a pause ends it, with all contexts of the tenant
	t.Run("programs", func(t *testing.T) {
		for language, programs := range all {
			for _, p := range programs {
				t.Run(language+"/"+p.name, func(t *testing.T) {
					t.Parallel()
					if strings.HasPrefix(p.name, "v8-") {
						process.Lock()
						defer process.Unlock()
					}
					p.run(t.Context())
					p.report(t)
				})
			}
		}
	})
	for language, programs := range all {
		first := sameCalls(programs[0])
		for _, p := range programs[1:] {
			want := first
			if strings.HasPrefix(p.name, "wasm-javascript/") { // which has no modules of Node
				want = slices.DeleteFunc(slices.Clone(first), func(name string) bool { return strings.HasPrefix(name, "node: ") })
			}
			if checks := sameCalls(p); !slices.Equal(checks, want) {
				t.Errorf("%s: %s made the checks %q, want %q", language, p.name, checks, want)
			}
		}
	}
}

// sameCalls are the names of the checks that are made behind every boundary.
func sameCalls(p *program) (names []string) {
	for _, c := range p.checks {
		if !strings.HasPrefix(c.Name, "refused: ") && c.Name != "it lives on after all refusals" {
			names = append(names, c.Name)
		}
	}
	return names
}

// importTemplates makes the templates of languages, as `firebreak setup` does, of what the tests have already.
func importTemplates(t *testing.T, bin, state string) {
	t.Helper()
	cache, err := filepath.Abs("../../.cache")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := exec.LookPath("workerd"); err != nil {
		lacks(t, "there is no workerd: make tools")
	}
	scripts := t.TempDir()
	if err := os.WriteFile(filepath.Join(scripts, "package.json"), []byte(`{"type": "module"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, args := range map[string][]string{
		"wasm-python":     {"--language", "python", "--command", "python,python3", filepath.Join(cache, "wasm/python.wasm")},
		"wasm-javascript": {"--language", "javascript", "--command", "js,qjs,node", filepath.Join(cache, "wasm/javascript.wasm")},
		"v8-javascript":   {"--scripts", "--language", "javascript", scripts},
	} {
		if source := args[len(args)-1]; strings.HasSuffix(source, ".wasm") {
			if _, err := os.Stat(source); err != nil {
				lacks(t, "there are no interpreters for WebAssembly: make tools")
			}
		}
		cmd := exec.CommandContext(t.Context(), bin, slices.Concat([]string{"template", "import", "-q", "--name", name}, args)...)
		cmd.Env = append(cleanEnv(), "FIREBREAK_STATE_DIR="+state)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("import %s: %v\n%s", name, err, out)
		}
	}
}
