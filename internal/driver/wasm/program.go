package wasm

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/tetratelabs/wazero/sys"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver/wasm/engine"
)

// The exit statuses of programs that did not end by themselves, as a shell gives them.
const (
	statusMissing = 127 // the function that is called
	statusOther   = 126 // it is no function that takes bytes and returns bytes
	statusTrap    = 134 // as after abort
	statusTimeout = 124
	statusKilled  = 137
)

// deep is what a trap of an interpreter most likely means.
const deep = "; calls may have been too deep, of which an interpreter in WebAssembly can say no more"

// run runs the module as a command and returns its exit status. Why it was ended is told on stderr.
func (w *world) run(ctx context.Context, args, env []string, dir string, stdin io.Reader, stdout, stderr io.Writer) int {
	if err := w.enter(); err != nil {
		fmt.Fprintf(stderr, "%s: %v\n", args[0], err)
		return statusKilled
	}
	defer w.leave()
	ctx, cancel := w.limit(ctx)
	defer cancel()
	c := w.config(arguments(w.language, args, dir), env, dir)
	c.Stdin, c.Stdout, c.Stderr, c.Output = stdin, stdout, stderr, w.options.output
	run := w.module.Run
	if w.language == "ruby" && !w.module.Exports("_start") {
		run = w.ruby
	}
	status, err := run(ctx, c)
	if err == nil {
		return status
	}
	status, text := w.told(err)
	fmt.Fprintf(stderr, "%s: %s\n", args[0], text)
	return status
}

// call calls one function of the module with what stdin has, and writes to stdout what it returns.
func (w *world) call(ctx context.Context, function string, env []string, dir string, stdin io.Reader, stdout, stderr io.Writer) int {
	if err := w.enter(); err != nil {
		fmt.Fprintf(stderr, "call: %v\n", err)
		return statusKilled
	}
	defer w.leave()
	ctx, cancel := w.limit(ctx)
	defer cancel()
	out, err := w.called(ctx, function, env, dir, stdin, stderr)
	if err == nil {
		_, err = stdout.Write(out)
	}
	if err == nil {
		return 0
	}
	status, text := w.told(err)
	fmt.Fprintf(stderr, "call: %s\n", text)
	return status
}

func (w *world) called(ctx context.Context, function string, env []string, dir string, stdin io.Reader, stderr io.Writer) ([]byte, error) {
	in, err := io.ReadAll(io.LimitReader(stdin, engine.MaxBytes+1))
	if err != nil {
		return nil, err
	}
	if len(in) > engine.MaxBytes {
		return nil, fmt.Errorf("more than %d bytes are passed", int64(engine.MaxBytes))
	}
	c := w.config([]string{function}, env, dir)
	c.Stdout, c.Stderr, c.Output = stderr, stderr, w.options.output
	inst, err := w.module.Instantiate(ctx, c)
	if err != nil {
		return nil, err
	}
	defer inst.Close()
	if err := inst.Initialize(ctx); err != nil {
		return nil, err
	}
	return inst.CallBytes(ctx, function, in)
}

// limit bounds a run by the sandbox's time for one.
func (w *world) limit(ctx context.Context) (context.Context, context.CancelFunc) {
	if w.options.timeout > 0 {
		return context.WithTimeout(ctx, w.options.timeout)
	}
	return context.WithCancel(ctx)
}

// told is how an error of a run is shown.
func (w *world) told(err error) (status int, text string) {
	var trap *engine.Trap
	var exit *sys.ExitError
	var wrong *firebreak.Error
	switch {
	case errors.As(err, &wrong) && wrong.Kind == firebreak.KindNotFound:
		return statusMissing, wrong.Err.Error()
	case errors.As(err, &wrong) && wrong.Kind == firebreak.KindInvalid:
		return statusOther, wrong.Err.Error()
	case errors.As(err, &exit):
		return statusTrap, fmt.Sprintf("it ended itself, with status %d", exit.ExitCode())
	case errors.As(err, &trap):
		if w.language != "" {
			return statusTrap, "trap: " + trap.Text + deep
		}
		return statusTrap, "trap: " + trap.Text
	case errors.Is(err, context.DeadlineExceeded):
		return statusTimeout, fmt.Sprintf("ended after %v", w.options.timeout)
	case errors.Is(err, engine.ErrFuel):
		return statusKilled, fmt.Sprintf("ended after %d instructions", w.options.fuel)
	case errors.Is(err, engine.ErrOutput):
		return statusKilled, fmt.Sprintf("ended after %d bytes of output", w.options.output)
	case errors.Is(err, context.Canceled):
		return statusKilled, "ended"
	}
	return statusKilled, err.Error()
}
