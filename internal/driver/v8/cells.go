package v8

import (
	"context"
	"fmt"
	"path"

	"github.com/firebreak-dev/firebreak/internal/agent/code"
	"github.com/firebreak-dev/firebreak/internal/driver/v8/script"
	"github.com/firebreak-dev/firebreak/internal/memfs"
)

// cells is the isolate of a code context, which runs one piece of code after the other.
type cells struct {
	*kernel
	files      *memfs.FS
	dir        string // from which its imports are named
	typeScript bool

	env map[string]string // the sandbox's own
	set bool              // env is

	usesFiles bool // code that runs or has run may look at the sandbox's
}

var _ code.Kernel = (*cells)(nil)

// Run implements code.Kernel.
func (c *cells) Run(ctx context.Context, text string, env map[string]string, out code.Sink) bool {
	if !c.set {
		// Program: what it sets, stays set.
		set := func(context.Context, *proc) (request, error) {
			return request{Code: "undefined", Env: orEmpty(c.env), Program: true}, nil
		}
		if !c.run(ctx, set, func(script.Frame) {}) {
			return false
		}
		c.set = ctx.Err() == nil
	}
	prepared := func(ctx context.Context, p *proc) (request, error) { return c.prepare(ctx, p, text, env) }
	return c.run(ctx, prepared, func(f script.Frame) {
		switch f.Type {
		case "print":
			out.Print(f.Stream, f.Text)
			out.Flush()
		case "result":
			out.Result(f.Main, f.Forms)
			out.Flush()
		case "error":
			out.Failed(f.Name, f.Value, f.Traceback)
		case "file":
			if err := change(c.files, f); err != nil {
				out.Print("stderr", err.Error()+"\n")
			}
		case "exit":
			out.Failed("Exit", fmt.Sprintf("process.exit(%d) was called; the isolate lives on", f.Status), "")
		}
	})
}

// prepare makes the request to run code, with the files that it imports.
func (c *cells) prepare(ctx context.Context, p *proc, text string, env map[string]string) (request, error) {
	at := path.Join(c.dir, "cell.js")
	if c.typeScript {
		at = path.Join(c.dir, "cell.ts")
		var err error
		if text, err = p.plain(ctx, text, true); err != nil {
			return request{}, err
		}
	}
	s := script.Prepare(text)
	r := request{Code: s.Code + "\n//# sourceURL=cell", Boxed: s.Boxed, Env: orEmpty(env), At: at, Dir: c.dir}
	if len(s.Named) > script.MaxNamed {
		return r, &codeError{"Unsupported", fmt.Sprintf("the code names more than %d modules", script.MaxNamed)}
	}
	c.usesFiles = c.usesFiles || usesFiles().MatchString(text)
	if len(s.Named) > 0 {
		g := newGathering(c.files, func(ctx context.Context, source string) (string, error) { return p.plain(ctx, source, false) })
		from, err := g.imports(ctx, at, s.Named)
		if err != nil {
			return r, ofCode(err)
		}
		r.From, r.Modules = from, g.modules
		c.usesFiles = c.usesFiles || g.usesFiles()
	}
	if !c.usesFiles {
		return r, nil
	}
	var err error
	r.Files, err = newTree(ctx, c.files)
	return r, err
}
