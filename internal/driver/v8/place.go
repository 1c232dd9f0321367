package v8

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"slices"
	"sync"

	"github.com/firebreak-dev/firebreak/internal/agent/code"
	"github.com/firebreak-dev/firebreak/internal/agent/program"
)

// interpreters is the place where the code of one sandbox runs.
type interpreters struct {
	group      *group
	typeScript func() string
	ctx        context.Context // of the sandbox
	work       sync.WaitGroup
}

// Language implements code.Place.
func (i *interpreters) Language(name string) (code.Language, error) {
	switch name {
	case "", "javascript", "js", "node":
		return code.Language{Name: "javascript"}, nil
	case "typescript", "ts":
		if i.typeScript() == "" {
			return code.Language{}, code.Fail(http.StatusBadRequest, errors.New(noTypeScript))
		}
		return code.Language{Name: "typescript"}, nil
	}
	return code.Language{}, code.Fail(http.StatusBadRequest, fmt.Errorf("language %q cannot be run in a V8 sandbox: its languages are javascript and typescript", name))
}

// Offers implements code.Place.
func (*interpreters) Offers(code.Language) bool { return true }

// Start implements code.Place.
func (i *interpreters) Start(o code.Options) (code.Kernel, error) {
	k := newKernel()
	i.work.Go(func() {
		k.begin(i.ctx, i.group)
	})
	return &withEnv{kernel: k, env: o.Env, typeScript: o.Language.Name == "typescript"}, nil
}

// Close implements code.Place.
func (i *interpreters) Close() { i.work.Wait() }

// withEnv sets the sandbox's own variables in the first run.
type withEnv struct {
	*kernel
	env map[string]string
	set bool

	typeScript bool // is its language
}

// Run implements code.Kernel.
func (w *withEnv) Run(ctx context.Context, text string, env map[string]string, out code.Sink) bool {
	if !w.set {
		// Program: what it sets, stays set.
		set := func(context.Context, *proc) (request, error) {
			return request{Code: "undefined", Env: orEmpty(w.env), Program: true}, nil
		}
		if !w.run(ctx, set, func(frame) {}) {
			return false
		}
		w.set = ctx.Err() == nil
	}
	return w.cell(ctx, text, w.typeScript, env, out)
}

func orEmpty(env map[string]string) map[string]string {
	if env == nil {
		return map[string]string{}
	}
	return env
}

// find returns the program of a command line: a JavaScript file of the sandbox, or a line of JavaScript.
func (b *box) find(args []string) (program.Func, error) {
	switch path.Base(args[0]) {
	case "node", "js", "javascript", "workerd", "ts", "typescript", "tsx":
	default:
		return nil, fmt.Errorf("%q cannot be run in %s: its only program is node (or js, ts) with a file of JavaScript or TypeScript; a template of Linux programs has others", args[0], placeName)
	}
	if len(args) > 1 && args[1] == "--experimental-strip-types" { // Node's, of the time when it had to be asked to
		args = append([]string{args[0]}, args[2:]...)
	}
	switch {
	case len(args) >= 3 && (args[1] == "-e" || args[1] == "--eval"):
		return func(ctx context.Context, c program.Call) int { return b.script(ctx, c, args[2], false, args[3:]) }, nil
	case len(args) >= 2 && args[1] != "" && args[1][0] != '-':
		return func(ctx context.Context, c program.Call) int {
			text, err := b.source(path.Join(c.Dir, args[1]), args[1])
			if err != nil {
				fmt.Fprintln(c.Stderr, "node:", err)
				return 1
			}
			return b.script(ctx, c, text, isTypeScript(args[1]), args[1:])
		}, nil
	}
	return nil, fmt.Errorf("node takes a file of JavaScript or TypeScript, or -e and a line of JavaScript in %s, and no other options", placeName)
}

// source reads a file of the sandbox; name is absolute if given is not.
func (b *box) source(name, given string) (string, error) {
	if path.IsAbs(given) {
		name = given
	}
	f, err := b.files.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxCode+1))
	if err == nil && len(text) > maxCode {
		err = fmt.Errorf("%s has more than %d MiB", name, maxCode>>20)
	}
	return string(text), err
}

// isTypeScript reports whether a file is, by its name.
func isTypeScript(name string) bool {
	return slices.Contains([]string{".ts", ".mts", ".cts"}, path.Ext(name))
}

// script runs a program in an isolate of its own.
func (b *box) script(ctx context.Context, c program.Call, text string, typeScript bool, args []string) int {
	k := newKernel()
	k.begin(ctx, b.group)
	defer k.Kill("its program has ended")
	prepared := func(ctx context.Context, p *proc) (request, error) {
		if typeScript {
			var err error
			if text, err = p.plain(ctx, text, false); err != nil {
				return request{}, err
			}
		}
		s := prepare(text)
		return request{Code: s.code + "\n//# sourceURL=" + sourceName(args), Boxed: s.boxed, Env: orEmpty(c.Env), Argv: append([]string{"node"}, args...), Program: true}, nil
	}
	status := 0
	lives := k.run(ctx, prepared, func(f frame) {
		switch f.Type {
		case "print":
			out := c.Stdout
			if f.Stream == "stderr" {
				out = c.Stderr
			}
			_, _ = io.WriteString(out, f.Text) // nobody reads any more
		case "error":
			fmt.Fprintln(c.Stderr, cmp.Or(f.Traceback, f.Name+": "+f.Value))
			status = 1
		case "exit":
			status = f.Status & 0xff
		}
	})
	if !lives && ctx.Err() == nil {
		fmt.Fprintln(c.Stderr, "node:", k.End())
		return 137
	}
	return status
}

// sourceName is what a program is called in stack traces.
func sourceName(args []string) string {
	if len(args) == 0 {
		return "eval"
	}
	name := []byte(path.Base(args[0]))
	for i, c := range name {
		if c <= ' ' || c == '"' || c == '\'' || c > '~' {
			name[i] = '_'
		}
	}
	return string(name)
}
