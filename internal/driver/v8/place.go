package v8

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"sync"

	"github.com/firebreak-dev/firebreak/internal/agent/code"
	"github.com/firebreak-dev/firebreak/internal/agent/program"
)

// interpreters is the place where the code of one sandbox runs.
type interpreters struct {
	group *group
	ctx   context.Context // of the sandbox
	work  sync.WaitGroup
}

// Language implements code.Place.
func (*interpreters) Language(name string) (code.Language, error) {
	switch name {
	case "", "javascript", "js", "node":
		return code.Language{Name: "javascript"}, nil
	case "typescript", "ts":
		return code.Language{}, code.Fail(http.StatusBadRequest, errors.New("TypeScript cannot be run in a V8 sandbox: compile it to JavaScript"))
	}
	return code.Language{}, code.Fail(http.StatusBadRequest, fmt.Errorf("language %q cannot be run in a V8 sandbox: its language is javascript", name))
}

// Offers implements code.Place.
func (*interpreters) Offers(code.Language) bool { return true }

// Start implements code.Place.
func (i *interpreters) Start(o code.Options) (code.Kernel, error) {
	k := newKernel()
	i.work.Go(func() {
		k.begin(i.ctx, i.group)
	})
	return &withEnv{kernel: k, env: o.Env}, nil
}

// Close implements code.Place.
func (i *interpreters) Close() { i.work.Wait() }

// withEnv sets the sandbox's own variables in the first run.
type withEnv struct {
	*kernel
	env map[string]string
	set bool
}

// Run implements code.Kernel.
func (w *withEnv) Run(ctx context.Context, text string, env map[string]string, out code.Sink) bool {
	if !w.set {
		// Program: what it sets, stays set.
		if !w.run(ctx, request{Code: "undefined", Env: orEmpty(w.env), Program: true}, func(frame) {}) {
			return false
		}
		w.set = ctx.Err() == nil
	}
	return w.kernel.Run(ctx, text, env, out)
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
	case "node", "js", "javascript", "workerd":
	default:
		return nil, fmt.Errorf("%q cannot be run in %s: its only program is node (or js) with a JavaScript file", args[0], placeName)
	}
	switch {
	case len(args) >= 3 && (args[1] == "-e" || args[1] == "--eval"):
		return func(ctx context.Context, c program.Call) int { return b.script(ctx, c, args[2], args[3:]) }, nil
	case len(args) >= 2 && args[1] != "" && args[1][0] != '-':
		return func(ctx context.Context, c program.Call) int {
			text, err := b.source(path.Join(c.Dir, args[1]), args[1])
			if err != nil {
				fmt.Fprintln(c.Stderr, "node:", err)
				return 1
			}
			return b.script(ctx, c, text, args[1:])
		}, nil
	}
	return nil, fmt.Errorf("node takes a JavaScript file or -e and a line of JavaScript in %s, and no other options", placeName)
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

// script runs a program in an isolate of its own.
func (b *box) script(ctx context.Context, c program.Call, text string, args []string) int {
	k := newKernel()
	k.begin(ctx, b.group)
	defer k.Kill("its program has ended")
	s := prepare(text)
	status := 0
	lives := k.run(ctx, request{Code: s.code + "\n//# sourceURL=" + sourceName(args), Boxed: s.boxed, Env: orEmpty(c.Env), Argv: append([]string{"node"}, args...), Program: true}, func(f frame) {
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
