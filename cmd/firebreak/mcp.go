package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/cli"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/manager"
	"github.com/firebreak-dev/firebreak/internal/mcp"
)

// speakMCP serves the client that started this program, with a server inside this process.
func speakMCP(ctx context.Context, server cli.ServerOptions, opts cli.MCPOptions, in io.ReadCloser, out io.WriteCloser) (err error) {
	if needsNamespace() { // the guess was wrong
		status, err := runInNamespace()
		if err != nil {
			return err
		}
		os.Exit(status)
	}
	req, err := mcpRequest(opts)
	if err != nil {
		return err
	}
	p, err := openParts(ctx, base{stateDir: server.StateDir, policy: server.Policy, log: server.Log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	version, _ := buildOf()
	door := mcp.New(mcp.Config{Sandboxes: p.sandboxes, Guests: p.sandboxes, Advisor: p.sandboxes, Log: server.Log, Version: version,
		Request: req, Local: true, Idle: opts.Idle})
	defer func() { err = errors.Join(err, door.Close()) }()
	return door.Serve(operator(ctx), in, out)
}

// mcpRequest is what each sandbox is made by. Programs in it are the owner of a directory that is shared, so that they can
// read and write there, and nobody wonders whose files these are.
func mcpRequest(opts cli.MCPOptions) (manager.Request, error) {
	req := manager.Request{Template: opts.Template, Workload: opts.Workload, Driver: opts.Isolation, AcceptWeaker: opts.AcceptWeaker, Limits: opts.Limits}
	if opts.Workspace == "" {
		return req, nil
	}
	fi, err := os.Stat(opts.Workspace)
	if err != nil {
		return req, &firebreak.Error{Kind: firebreak.KindInvalid, Op: "share " + opts.Workspace, Err: err}
	}
	req.Mounts = []driver.Mount{{Source: opts.Workspace, Target: mcp.Workspace, ReadOnly: opts.ReadOnly}}
	req.Workdir = mcp.Workspace
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		req.User = fmt.Sprintf("%d:%d", st.Uid, st.Gid)
	}
	return req, nil
}
