// Command warm compiles modules into an engine's directory: under the race detector, tests would take ten times as long
// for that, which is many minutes for an interpreter.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/firebreak-dev/firebreak/internal/driver/wasm/engine"
)

func main() {
	if err := run(context.Background(), os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "warm:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, dir string, modules []string) (err error) {
	e := engine.New(dir)
	defer func() { err = errors.Join(err, e.Close(ctx)) }()
	for _, path := range modules {
		m, err := e.Open(ctx, path)
		if err != nil {
			return err
		}
		m.Release()
	}
	return nil
}
