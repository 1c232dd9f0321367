package wasm

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/firebreak-dev/firebreak/internal/driver/wasm/engine"
)

// The exit statuses of programs that did not end by themselves, as a shell gives them.
const (
	statusTrap    = 134 // as after abort
	statusTimeout = 124
	statusKilled  = 137
)

// run runs the module as a command and returns its exit status. Why it was ended is told on stderr.
func (w *world) run(ctx context.Context, args, env []string, dir string, stdin io.Reader, stdout, stderr io.Writer) int {
	if err := w.enter(); err != nil {
		fmt.Fprintf(stderr, "%s: %v\n", args[0], err)
		return statusKilled
	}
	defer w.leave()
	if w.options.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, w.options.timeout)
		defer cancel()
	}
	c := w.config(args, env, dir)
	c.Stdin, c.Stdout, c.Stderr, c.Output = stdin, stdout, stderr, w.options.output
	status, err := w.module.Run(ctx, c)
	if err == nil {
		return status
	}
	status, text := w.told(err)
	fmt.Fprintf(stderr, "%s: %s\n", args[0], text)
	return status
}

// told is how an error of a run is shown.
func (w *world) told(err error) (status int, text string) {
	var trap *engine.Trap
	switch {
	case errors.As(err, &trap):
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
