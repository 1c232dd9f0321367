package v8

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/firebreak-dev/firebreak/internal/driver/v8/script"
	"github.com/firebreak-dev/firebreak/internal/memfs"
)

// maxModules bounds what a program is made of.
const maxModules = 500

// gathering collects modules: what the first file of a program names, or code of a context, what that names, and so on.
// It follows no names but of the sandbox's own files.
type gathering struct {
	files   *memfs.FS
	plain   func(ctx context.Context, source string) (string, error) // makes JavaScript of TypeScript
	modules map[string]*script.Module                                // by their paths, without links
	main    string                                                   // a program's first
	queue   []string                                                 // of which it is not known what they name
	size    int
}

func newGathering(files *memfs.FS, plain func(context.Context, string) (string, error)) *gathering {
	return &gathering{files: files, plain: plain, modules: map[string]*script.Module{}}
}

// start has the program whose first module is the file at a path, or text that lies there but for its writing.
func (g *gathering) start(ctx context.Context, name string, text *string) (string, error) {
	source := ""
	if text != nil {
		source = *text
	} else {
		var err error
		if name, err = g.files.Resolve(name); err != nil {
			return "", err
		}
		if source, err = g.read(name); err != nil {
			return "", err
		}
	}
	g.main = name
	if err := g.add(ctx, name, source); err != nil {
		return "", err
	}
	return name, g.rest(ctx)
}

// imports has what code of a context names, as if it stood in a file at a path, and returns which files those are.
func (g *gathering) imports(ctx context.Context, at string, named []string) (map[string]string, error) {
	code := &script.Module{Kind: "cjs", Named: named} // with the liberties of require
	if err := g.follow(ctx, at, code); err != nil {
		return nil, err
	}
	return code.From, g.rest(ctx)
}

// rest has what the modules in the queue name.
func (g *gathering) rest(ctx context.Context) error {
	for len(g.queue) > 0 {
		next := g.queue[0]
		g.queue = g.queue[1:]
		if err := g.follow(ctx, next, g.modules[next]); err != nil {
			return err
		}
	}
	return nil
}

// usesInput is how code gets at the standard input.
var usesInput = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`\bstdin\b|\breadFileSync\(\s*0\b`)
})

// usesFiles reports whether the program may look at the sandbox's files. What an ES module imports is not in its code.
func (g *gathering) usesFiles() bool {
	for _, m := range g.modules {
		if slices.ContainsFunc(m.Named, usesFiles().MatchString) {
			return true
		}
	}
	return g.says(usesFiles())
}

// says reports whether a module has what matches.
func (g *gathering) says(what *regexp.Regexp) bool {
	for _, m := range g.modules {
		if what.MatchString(m.Code) {
			return true
		}
	}
	return false
}

// follow adds what a module names. What is not there is the business of the code that needs it.
func (g *gathering) follow(ctx context.Context, name string, m *script.Module) error {
	for _, spec := range m.Named {
		if err := ctx.Err(); err != nil {
			return err
		}
		found, ok := g.resolve(name, m.Kind == "cjs", spec)
		if !ok {
			continue
		}
		if m.From == nil {
			m.From = map[string]string{}
		}
		m.From[spec] = found
		if g.modules[found] != nil {
			continue
		}
		source, err := g.read(found)
		if err != nil {
			return err
		}
		if err := g.add(ctx, found, source); err != nil {
			return err
		}
	}
	return nil
}

// add makes a module.
func (g *gathering) add(ctx context.Context, name, source string) error {
	if len(g.modules) >= maxModules {
		return &codeError{"Unsupported", fmt.Sprintf("the program has more than %d modules", maxModules)}
	}
	var m *script.Module
	switch ext := path.Ext(name); {
	case ext == ".json":
		m = &script.Module{Kind: "json", Code: source}
	case isTypeScript(name):
		code, err := g.plain(ctx, source)
		bad := new(codeError)
		switch {
		case errors.As(err, &bad) && name != g.main:
			m = &script.Module{Kind: "error", Name: bad.name, Text: bad.text}
		case err != nil:
			return err
		default:
			m = script.NewModule(name, code)
		}
	case name != g.main && ext != "" && !slices.Contains([]string{".js", ".mjs", ".cjs"}, ext):
		m = &script.Module{Kind: "error", Code: "ERR_UNKNOWN_FILE_EXTENSION", Text: fmt.Sprintf("Unknown file extension %q", ext)}
	default:
		m = script.NewModule(name, source)
	}
	if g.size += max(len(source), len(m.Code)); g.size > script.MaxCode {
		return tooLarge()
	}
	g.modules[name] = m
	g.queue = append(g.queue, name)
	return nil
}

func tooLarge() error {
	return &codeError{"Unsupported", fmt.Sprintf("the program has more than %d MiB", script.MaxCode>>20)}
}

// read reads a file, no more of it than there is room for.
func (g *gathering) read(name string) (string, error) {
	f, err := g.files.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, int64(script.MaxCode-g.size+1)))
	if err == nil && len(text) > script.MaxCode-g.size {
		err = tooLarge()
	}
	return string(text), err
}

// resolve finds the file that a module means, as Node does. Names of packages are no files.
func (g *gathering) resolve(from string, common bool, spec string) (string, bool) {
	name := spec
	switch {
	case strings.HasPrefix(spec, "file:"):
		u, err := url.Parse(spec)
		if err != nil {
			return "", false
		}
		name = u.Path
	case spec == "." || spec == ".." || strings.HasPrefix(spec, "./") || strings.HasPrefix(spec, "../"):
		name = path.Join(path.Dir(from), spec)
	case !path.IsAbs(spec):
		return "", false
	}
	for _, at := range candidates(path.Clean(name), common, isTypeScript(from)) {
		info, err := g.files.Stat(at)
		if err != nil || !info.Mode().IsRegular() {
			continue
		}
		if found, err := g.files.Resolve(at); err == nil {
			return found, true
		}
	}
	return "", false
}

// candidates are the files that a name may mean: in ES modules itself. CommonJS may leave out the extension, and so may
// TypeScript, which also says .js for what is .ts, as its compiler wants it.
func candidates(name string, common, typeScript bool) []string {
	all := []string{name}
	var ends []string
	if typeScript {
		if rest, ok := strings.CutSuffix(name, "js"); ok && strings.HasPrefix(path.Ext(name), ".") {
			all = append(all, rest+"ts")
		}
		ends = []string{".ts", ".js", ".json"}
	} else if common {
		ends = []string{".js", ".json"}
	}
	for _, end := range ends {
		all = append(all, name+end)
	}
	for _, end := range ends {
		all = append(all, path.Join(name, "index"+end))
	}
	return all
}
