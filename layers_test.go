package firebreak_test

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/firebreak-dev/firebreak"

// layers is the table of the architecture, top first: a package imports only from layers below its own. The drawing in
// ARCHITECTURE.md is this text.
const layers = `
7  cmd/firebreak  cmd/firebreak-agent  internal/bench  internal/bench/runsc  internal/sdktest  internal/driver/wasm/engine/warm
6  internal/e2b  internal/rpc  internal/mcp  internal/server  internal/cli  client
5  internal/manager  internal/build
4  internal/driver/all  internal/dataplane
3  internal/driver/fake  internal/driver/process  internal/driver/container  internal/driver/gvisor  internal/driver/drivertest  internal/driver/drivertest/inside  internal/driver/wasm  internal/driver/v8  internal/driver/embedded
2  internal/driver/oci  internal/driver/hostproc  internal/guest  internal/host  internal/agent  internal/agent/account  internal/agent/code  internal/agent/files  internal/agent/proc  internal/agent/program  internal/agentbin  internal/image  internal/image/erofs  internal/image/rootfs  internal/store  internal/auth  internal/event  internal/webhook  internal/agent/archive  internal/metrics  internal/trace  internal/config  internal/localca  internal/mcp/install  internal/build/step  internal/driver/wasm/engine  internal/setup
1  internal/driver  internal/policy  internal/lifecycle  internal/pool  internal/idle  internal/reach  internal/signature  internal/api  internal/api/process  internal/api/process/processconnect  internal/api/filesystem  internal/api/filesystem/filesystemconnect  internal/api/firebreak/v1  internal/api/firebreak/v1/firebreakv1connect  internal/answer  internal/api/reflection  internal/memfs  internal/driver/wasm/meter  internal/driver/v8/script
0  .
`

// sameLayer lists the imports within one layer that are meant: generated code, a suite that drives its subject, the
// policy, which decides on what drivers report, the store, which keeps what others say is to be kept, and what is each
// caller's own, which asks who calls.
var sameLayer = map[string][]string{
	"internal/agent":                               {"internal/agent/account", "internal/agent/archive", "internal/agent/code", "internal/agent/files", "internal/agent/proc"},
	"internal/agent/archive":                       {"internal/agent/account", "internal/agent/files"},
	"internal/agent/code":                          {"internal/agent/account", "internal/agent/proc"},
	"internal/agent/files":                         {"internal/agent/account"},
	"internal/agent/proc":                          {"internal/agent/account"},
	"internal/agent/program":                       {"internal/agent/account", "internal/agent/proc"},
	"internal/api/process/processconnect":          {"internal/api/process"},
	"internal/api/filesystem/filesystemconnect":    {"internal/api/filesystem"},
	"internal/api/firebreak/v1/firebreakv1connect": {"internal/api/firebreak/v1"},
	"internal/build":                               {"internal/manager"},
	"internal/cli":                                 {"client"},
	"internal/driver/wasm":                         {"internal/driver/embedded"},
	"internal/driver/v8":                           {"internal/driver/embedded"},
	"internal/image":                               {"internal/image/erofs", "internal/image/rootfs"},
	"internal/image/rootfs":                        {"internal/image/erofs"},
	"internal/policy":                              {"internal/driver"},
	"internal/event":                               {"internal/auth"},
	"internal/store":                               {"internal/auth", "internal/event", "internal/webhook"},
	"internal/webhook":                             {"internal/auth", "internal/event"},
}

// agentModules is all that may be linked into the agent, because it is copied into every sandbox and must stay small.
var agentModules = map[string]string{
	"connectrpc.com/connect":       "speaks the protocol of process and filesystem",
	"github.com/creack/pty":        "opens terminals",
	"github.com/fsnotify/fsnotify": "watches directories",
	"golang.org/x/sys":             "system calls that package syscall lacks",
	"google.golang.org/protobuf":   "messages of the protocol",
}

type goPackage struct {
	ImportPath string
	Dir        string
	Standard   bool
	Imports    []string
	GoFiles    []string
	Module     *struct{ Path string }
}

func goList(t *testing.T, args ...string) []goPackage {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Dir,Standard,Imports,GoFiles,Module"}, args...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var packages []goPackage
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		if err := dec.Decode(&p); err == io.EOF {
			return packages
		} else if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
}

func short(importPath string) string {
	if importPath == module {
		return "."
	}
	return strings.TrimPrefix(importPath, module+"/")
}

func layerOf(t *testing.T) map[string]int {
	t.Helper()
	layer := map[string]int{}
	for line := range strings.Lines(strings.TrimSpace(layers)) {
		fields := strings.Fields(line)
		for _, name := range fields[1:] {
			if _, twice := layer[name]; twice {
				t.Errorf("%s stands twice in the table", name)
			}
			layer[name] = int(fields[0][0] - '0')
		}
	}
	return layer
}

func TestImportsGoDown(t *testing.T) {
	layer := layerOf(t)
	seen := map[string]bool{}
	for _, p := range goList(t, "./...") {
		name := short(p.ImportPath)
		seen[name] = true
		own, listed := layer[name]
		if !listed {
			t.Errorf("%s is in no layer: add it to the table, with the reason in the commit", name)
			continue
		}
		for _, imported := range p.Imports {
			if imported != module && !strings.HasPrefix(imported, module+"/") {
				continue
			}
			target := short(imported)
			if layer[target] >= own && !slices.Contains(sameLayer[name], target) {
				t.Errorf("%s (layer %d) imports %s (layer %d)", name, own, target, layer[target])
			}
		}
	}
	for name := range layer {
		if !seen[name] {
			t.Errorf("%s is in the table, but there is no such package", name)
		}
	}
}

func TestArchitectureDrawsTheLayers(t *testing.T) {
	text, err := os.ReadFile("ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(strings.TrimSpace(layers)) {
		if strings.HasPrefix(line, "1 ") {
			line = strings.Join(slices.DeleteFunc(strings.Fields(line), func(name string) bool { return strings.HasPrefix(name, "internal/api/") }), "  ")
		}
		if !strings.Contains(string(text), strings.TrimSpace(line)) {
			t.Errorf("ARCHITECTURE.md lacks the line %q", strings.TrimSpace(line))
		}
	}
}

func TestEveryPackageSaysWhatItIs(t *testing.T) {
	for _, p := range goList(t, "./...") {
		var docs []string
		for _, name := range p.GoFiles {
			f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.ParseComments|parser.PackageClauseOnly)
			if err != nil {
				t.Fatal(err)
			}
			generated := strings.HasSuffix(name, ".pb.go") || strings.HasSuffix(name, ".connect.go")
			if f.Doc != nil && (!generated || len(p.GoFiles) == 1) {
				docs = append(docs, name)
			}
		}
		if generatedOnly := strings.Contains(p.ImportPath, "/internal/api/"); len(docs) != 1 && !generatedOnly {
			t.Errorf("%s has %d package comments (%v), want 1", short(p.ImportPath), len(docs), docs)
		}
	}
}

func TestAgentLinksOnlyWhatIsListed(t *testing.T) {
	used := map[string]bool{}
	for _, p := range goList(t, "-deps", "./cmd/firebreak-agent") {
		if p.Standard || p.Module == nil || p.Module.Path == module {
			continue
		}
		used[p.Module.Path] = true
		if agentModules[p.Module.Path] == "" {
			t.Errorf("the agent links %s", p.ImportPath)
		}
	}
	for name := range agentModules {
		if !used[name] {
			t.Errorf("%s is listed for the agent, but not linked", name)
		}
	}
}

// sourceFiles calls visit for each Go file of ours that nobody generated.
func sourceFiles(t *testing.T, visit func(name string, source []byte)) {
	t.Helper()
	err := filepath.WalkDir(".", func(name string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (strings.HasPrefix(name, ".") && name != "." || d.Name() == "testdata") {
			return filepath.SkipDir
		}
		if path.Ext(name) != ".go" || strings.HasSuffix(name, ".pb.go") || strings.HasSuffix(name, ".connect.go") {
			return nil
		}
		source, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		visit(name, source)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestFilesAndFunctionsStaySmall(t *testing.T) {
	sourceFiles(t, func(name string, source []byte) {
		limit := 500
		if strings.HasSuffix(name, "_test.go") {
			limit = 600 // tables are long
		}
		if lines := strings.Count(string(source), "\n"); lines > limit {
			t.Errorf("%s has %d lines, more than %d", name, lines, limit)
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, name, source, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		if ast.IsGenerated(f) {
			return
		}
		for _, decl := range f.Decls {
			fn, ok := decl.(*ast.FuncDecl)
			if !ok || strings.HasSuffix(name, "_test.go") {
				continue
			}
			if lines := fset.Position(fn.End()).Line - fset.Position(fn.Pos()).Line + 1; lines > 60 {
				t.Errorf("%s: %s has %d lines, more than 60", name, fn.Name.Name, lines)
			}
			if fn.Name.Name == "init" && fn.Recv == nil {
				t.Errorf("%s has an init function: what it does would happen behind the reader's back", name)
			}
		}
	})
}

func TestEveryDirectDependencyHasItsReason(t *testing.T) {
	text, err := os.ReadFile("DEPENDENCIES.md")
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("go", "list", "-m", "-f", "{{if not (or .Indirect .Main)}}{{.Path}}{{end}}", "all").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Fields(string(out)) {
		if !strings.Contains(string(text), fmt.Sprintf("`%s`", name)) {
			t.Errorf("DEPENDENCIES.md gives no reason for %s", name)
		}
	}
}

// Each sandbox starts this program a few times over: a pattern that is compiled with the package costs all of them time.
func TestNoPatternIsCompiledAtStart(t *testing.T) {
	sourceFiles(t, func(name string, source []byte) {
		f, err := parser.ParseFile(token.NewFileSet(), name, source, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range f.Decls {
			vars, ok := decl.(*ast.GenDecl)
			if !ok || strings.HasSuffix(name, "_test.go") {
				continue
			}
			ast.Inspect(vars, func(n ast.Node) bool {
				if call, ok := n.(*ast.CallExpr); ok {
					if fn, ok := call.Fun.(*ast.SelectorExpr); ok && fn.Sel.Name == "MustCompile" {
						t.Errorf("%s compiles a pattern before main begins: use sync.OnceValue", name)
					}
				}
				_, function := n.(*ast.FuncLit)
				return !function
			})
		}
	})
}
