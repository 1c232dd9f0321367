package wasm

import (
	"context"
	"embed"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/firebreak-dev/firebreak/internal/agent/program"
	"github.com/firebreak-dev/firebreak/internal/driver/wasm/engine"
)

// preludeDir is where interpreters find what all code in them begins with.
const preludeDir = "/dev/prelude"

//go:embed prelude
var preludes embed.FS

// prelude is the directory at preludeDir.
func prelude() engine.Mount {
	dir, _ := fs.Sub(preludes, "prelude") // the name is valid
	return engine.Mount{At: preludeDir, Files: engine.ReadOnly(dir)}
}

// arguments are what an interpreter is started with for a command line that begins in dir.
func arguments(language string, args []string, dir string) []string {
	switch language {
	case "javascript":
		return slices.Concat(args[:1], []string{"--std", "-I", preludeDir + "/prelude.js"}, args[1:])
	case "python":
		// Python makes the path of its program absolute before it knows where it begins.
		if i := slices.IndexFunc(args[1:], func(arg string) bool { return !strings.HasPrefix(arg, "-") }); i >= 0 && strings.HasPrefix(args[i+1], "../") {
			args = slices.Clone(args)
			args[i+1] = path.Join(dir, args[i+1])
		}
	}
	return args
}

// pythonPath has Python find the prelude, and modules where a program begins.
func pythonPath(env []string, dir string) []string {
	const name = "PYTHONPATH="
	search := name + preludeDir + ":" + dir
	i := slices.IndexFunc(env, func(pair string) bool { return strings.HasPrefix(pair, name) })
	if i < 0 {
		return append(slices.Clip(env), search)
	}
	env = slices.Clone(env)
	env[i] = search + ":" + env[i][len(name):]
	return env
}

// find returns the program of a command line.
func (b *box) find(args []string) (program.Func, error) {
	base := path.Base(args[0])
	switch {
	case slices.Contains(b.command, base) && b.language == "javascript" && (len(args) == 1 || args[1] == "-i" || args[1] == "--interactive"):
		return nil, fmt.Errorf("%s takes a JavaScript file, or -e and a line of JavaScript, in %s", base, placeName)
	case slices.Contains(b.command, base):
		return func(ctx context.Context, c program.Call) int {
			return b.run(ctx, c.Args, environment(c.Env, map[string]string{"PWD": c.Dir}), c.Dir, c.Stdin, c.Stdout, c.Stderr)
		}, nil
	case base == "call" && len(args) == 2:
		return func(ctx context.Context, c program.Call) int {
			return b.call(ctx, c.Args[1], environment(c.Env, map[string]string{"PWD": c.Dir}), c.Dir, c.Stdin, c.Stdout, c.Stderr)
		}, nil
	}
	if b.language == "" {
		return nil, fmt.Errorf("%q cannot be run in %s: its programs are %s, and call FUNCTION for a function of the module", args[0], placeName, strings.Join(b.command, ", "))
	}
	return nil, fmt.Errorf("%q cannot be run in %s: its programs are %s; a template of Linux programs has others", args[0], placeName, strings.Join(b.command, ", "))
}
