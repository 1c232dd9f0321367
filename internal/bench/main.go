// Command bench measures Firebreak against its budgets, beside the peers, in one run on one host, and writes BENCH.md.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	binary := flags.String("firebreak", "bin/firebreak", "the built program")
	runsc := flags.String("runsc", "runsc", "gVisor's own command line, of the same version")
	out := flags.String("out", "", "file to write the report to (default standard output)")
	sdk := flags.String("sdk", ".cache/sdk/node", "where E2B's packages for Node are installed")
	only := flags.String("only", "", "the part to measure: oneshot, live, server, wasm or v8 (default all)")
	rounds := flags.Int("n", 15, "counted rounds of each one-shot measure")
	if err := flags.Parse(args); err != nil {
		return err
	}
	exe, err := filepath.Abs(*binary)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "firebreak-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b := &bench{exe: exe, runsc: *runsc, dir: dir, rounds: *rounds, sdk: *sdk}
	defer b.cleanup()
	report, err := b.report(ctx, *only)
	if err != nil {
		return err
	}
	if *out == "" {
		_, err = os.Stdout.WriteString(report)
		return err
	}
	return os.WriteFile(*out, []byte(report), 0o644)
}
