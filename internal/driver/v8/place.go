package v8

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"path"
	"slices"
	"sync"

	"github.com/firebreak-dev/firebreak/internal/agent/code"
	"github.com/firebreak-dev/firebreak/internal/agent/program"
	"github.com/firebreak-dev/firebreak/internal/driver/v8/script"
	"github.com/firebreak-dev/firebreak/internal/memfs"
)

// interpreters is the place where the code of one sandbox runs.
type interpreters struct {
	group      *group
	files      *memfs.FS
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
	return &cells{kernel: k, files: i.files, dir: o.Dir, env: o.Env, typeScript: o.Language.Name == "typescript"}, nil
}

// Close implements code.Place.
func (i *interpreters) Close() { i.work.Wait() }

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
		return func(ctx context.Context, c program.Call) int {
			return b.script(ctx, c, path.Join(c.Dir, "[eval]"), &args[2], args[3:])
		}, nil
	case len(args) >= 2 && args[1] != "" && args[1][0] != '-':
		return func(ctx context.Context, c program.Call) int {
			name := args[1]
			if !path.IsAbs(name) {
				name = path.Join(c.Dir, name)
			}
			return b.script(ctx, c, name, nil, args[1:])
		}, nil
	}
	return nil, fmt.Errorf("node takes a file of JavaScript or TypeScript, or -e and a line of JavaScript in %s, and no other options", placeName)
}

// input reads the standard input to its end: an isolate cannot be given more of it while it runs.
func input(ctx context.Context, stdin io.Reader) (*[]byte, error) {
	type all struct {
		data []byte
		err  error
	}
	read := make(chan all, 1)
	go func() { // ends with the program, at the latest
		data, err := io.ReadAll(io.LimitReader(stdin, script.MaxCode+1))
		read <- all{data, err}
	}()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case r := <-read:
		if len(r.data) > script.MaxCode {
			return nil, &codeError{"Unsupported", fmt.Sprintf("%s takes no more than %d MiB of standard input", placeName, script.MaxCode>>20)}
		}
		return &r.data, r.err
	}
}

// isTypeScript reports whether a file is, by its name.
func isTypeScript(name string) bool {
	return slices.Contains([]string{".ts", ".mts", ".cts"}, path.Ext(name))
}

// ofCode makes what is wrong with a file an error of the code that needs it.
func ofCode(err error) error {
	if e := new(fs.PathError); errors.As(err, &e) {
		return &codeError{"Error", err.Error()}
	}
	return err
}

// script runs a program in an isolate of its own: the file of a name, or a text.
func (b *box) script(ctx context.Context, c program.Call, name string, text *string, args []string) int {
	k := newKernel()
	k.begin(ctx, b.group)
	defer k.Kill("its program has ended")
	prepared := func(within context.Context, p *proc) (request, error) {
		plain := func(ctx context.Context, source string) (string, error) { return p.plain(ctx, source, false) }
		g := newGathering(b.files, plain)
		main, err := g.start(within, name, text)
		err = ofCode(err)
		r := request{Modules: g.modules, Main: main, Env: orEmpty(c.Env), Argv: append([]string{"node"}, args...), Program: true, Dir: c.Dir}
		if err == nil && g.says(usesInput()) {
			r.Input, err = input(ctx, c.Stdin) // who is ended while it waits for more has nothing in workerd
		}
		if err == nil && g.usesFiles() {
			r.Files, err = newTree(within, b.files)
		}
		return r, err
	}
	status := 0
	lives := k.run(ctx, prepared, func(f script.Frame) {
		switch f.Type {
		case "print":
			out := c.Stdout
			if f.Stream == "stderr" {
				out = c.Stderr
			}
			_, _ = io.WriteString(out, f.Text) // nobody reads any more
		case "error":
			fmt.Fprintln(c.Stderr, cmp.Or(f.Traceback, "node: "+f.Name+": "+f.Value))
			status = 1
		case "exit":
			status = f.Status & 0xff
		case "file":
			if err := change(b.files, f); err != nil {
				fmt.Fprintln(c.Stderr, "node:", err)
			}
		}
	})
	if !lives && ctx.Err() == nil {
		fmt.Fprintln(c.Stderr, "node:", k.End())
		return 137
	}
	return status
}
