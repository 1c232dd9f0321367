package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/client"
	"github.com/firebreak-dev/firebreak/internal/cli"
	"github.com/firebreak-dev/firebreak/internal/dataplane"
	"github.com/firebreak-dev/firebreak/internal/driver/oci"
	"github.com/firebreak-dev/firebreak/internal/rpc"
)

// run is one command line, from its words to its exit status.
//
// The drivers need mounts and namespaces. Who may not have them gets them over what is his own: this program runs on
// once more inside a user namespace, and this process only passes signals in and the exit status out.
func run(ctx context.Context, args []string) int {
	own := wantsServer(args, os.Getenv("FIREBREAK_SERVER"))
	if own {
		if err := becomeStatic(ctx); err != nil {
			fmt.Fprintf(os.Stderr, "firebreak: this program needs the host's libraries, so gVisor cannot start it, and it cannot be built anew (%v); "+
				"use the one that `make build` makes\n", err)
		}
	}
	if own && needsNamespace() {
		if status, err := runInNamespace(); err == nil {
			return status
		} // else connect, which needs it, says why it cannot be
	}
	if own && args[0] == "run" {
		defer oci.Stir()() // while all else starts
	}
	return cli.Main(ctx, args, os.Stdin, os.Stdout, os.Stderr, connect, serve, speakMCP, stateDir)
}

// wantsServer guesses, before the command line is parsed, whether it will want a server inside this process.
func wantsServer(args []string, server string) bool {
	if len(args) == 0 || server != "" && args[0] != "serve" {
		return false
	}
	switch args[0] {
	case "version", "help", "completion", cobra.ShellCompRequestCmd, cobra.ShellCompNoDescRequestCmd:
		return false
	}
	if args[0] == "mcp" && len(args) > 1 && args[1] == "install" {
		return false
	}
	for _, arg := range args {
		if arg == "--" {
			break
		}
		if arg == "--server" || strings.HasPrefix(arg, "--server=") || arg == "--help" || arg == "-h" {
			return false
		}
	}
	return true
}

// connect opens the way to a server: to another one if an address is given, else to one inside this process.
func connect(ctx context.Context, opts cli.ServerOptions) (*client.Client, func() error, error) {
	if opts.Server != "" {
		return client.New(opts.Server, nil, client.WithAPIKey(opts.APIKey)), func() error { return nil }, nil
	}
	if needsNamespace() { // the guess was wrong
		status, err := runInNamespace()
		if err != nil {
			return nil, nil, err
		}
		os.Exit(status)
	}
	p, err := openParts(ctx, base{stateDir: opts.StateDir, policy: opts.Policy, log: opts.Log})
	if err != nil {
		return nil, nil, err
	}
	local := rpc.NewLocal(p.plane(dataplane.Config{Log: opts.Log}).Or(rpc.New(p.door())), opts.Log)
	p.onClose(local.Close)
	return client.New("http://firebreak", local.Client()), p.Close, nil
}

// stateDir returns the directory of all that firebreak keeps, and makes it if need be: the one that was asked for, or
// the place that the system gives a daemon, or a user.
func stateDir(asked string) (string, error) {
	dir, err := filepath.Abs(asked)
	if asked == "" {
		dir, err = defaultStateDir()
	}
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err == nil {
		err = writable(dir)
	}
	// Paths in it are compared with what the kernel tells of mounts.
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir)
	}
	if err == nil {
		return dir, nil
	}
	e := &firebreak.Error{Kind: firebreak.KindHost, Op: "use state directory", Err: err,
		Mend: "name one that you may write with --state-dir or FIREBREAK_STATE_DIR"}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		e.Kind, e.Mend = firebreak.KindExhausted, "free space there, or name another one with --state-dir or FIREBREAK_STATE_DIR"
	}
	return "", e
}

// writable refuses what nothing can be kept in, before anything is half done.
func writable(dir string) error {
	const writeAndEnter = 2 | 1 // W_OK, X_OK
	if err := syscall.Access(dir, writeAndEnter); err != nil {
		return &fs.PathError{Op: "write", Path: dir, Err: err}
	}
	fi, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if fi.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s: others may write it (mode %04o), and so reach into sandboxes", dir, fi.Mode().Perm())
	}
	return nil
}

func defaultStateDir() (string, error) {
	if userID() == 0 {
		return "/var/lib/firebreak", nil
	}
	if data := os.Getenv("XDG_DATA_HOME"); filepath.IsAbs(data) {
		return filepath.Join(data, "firebreak"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("find your home directory: %w", err)
	}
	return filepath.Join(home, ".local", "share", "firebreak"), nil
}
