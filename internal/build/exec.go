package build

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"sync"

	"connectrpc.com/connect"

	"github.com/firebreak-dev/firebreak"
	filesystemv1 "github.com/firebreak-dev/firebreak/internal/api/filesystem"
	processv1 "github.com/firebreak-dev/firebreak/internal/api/process"
	"github.com/firebreak-dev/firebreak/internal/guest"
)

// shell is what every command of a build runs in, as those of E2B's SDKs do.
const shell = "/bin/bash"

// command is one that a build runs.
type command struct {
	text    string
	user    string
	dir     string // empty: the user's home
	envs    map[string]string
	started func() // called once it runs; may be nil
	line    func(level Level, line string)
}

// exitError is of a command that ran and failed.
type exitError struct{ status string }

func (e exitError) Error() string { return e.status }

// run runs a command to its end. An exitError if it fails.
func run(ctx context.Context, g *guest.Guest, c command) error {
	no := false
	config := &processv1.ProcessConfig{Cmd: shell, Args: []string{"-l", "-c", c.text}, Envs: c.envs}
	if c.dir != "" {
		config.Cwd = &c.dir
	}
	req := connect.NewRequest(&processv1.StartRequest{Process: config, Stdin: &no})
	asUser(req, c.user)
	stream, err := g.Process().Start(ctx, req)
	if err != nil {
		return blame(ctx, err)
	}
	defer stream.Close()
	out := &lineWriter{line: func(line string) { c.line(LevelInfo, line) }}
	errs := &lineWriter{line: func(line string) { c.line(LevelWarn, line) }}
	for stream.Receive() {
		switch e := stream.Msg().GetEvent().GetEvent().(type) {
		case *processv1.ProcessEvent_Start:
			if c.started != nil {
				c.started()
			}
		case *processv1.ProcessEvent_Data:
			out.write(e.Data.GetStdout())
			errs.write(e.Data.GetStderr())
		case *processv1.ProcessEvent_End:
			out.end()
			errs.end()
			if !e.End.GetExited() || e.End.GetExitCode() != 0 {
				return exitError{tidy(e.End.GetStatus())}
			}
			return nil
		}
	}
	if err := stream.Err(); err != nil {
		return blame(ctx, err)
	}
	return &firebreak.Error{Kind: firebreak.KindUnavailable, Err: fmt.Errorf("the sandbox ended while it ran: %w", io.ErrUnexpectedEOF)}
}

func asUser[T any](req *connect.Request[T], user string) {
	if user != "" {
		req.Header().Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(user+":")))
	}
}

// blame gives an error of the protocol its kind.
func blame(ctx context.Context, err error) error {
	var ce *connect.Error
	known := errors.As(err, &ce)
	if _, bounded := ctx.Deadline(); known && bounded && ce.Code() == connect.CodeDeadlineExceeded {
		<-ctx.Done() // the agent, who is told of it, was faster
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if !known {
		return err
	}
	kind := firebreak.KindOfConnect(ce.Code().String())
	if ce.Code() == connect.CodeUnauthenticated {
		kind = firebreak.KindInvalid // there is no such user
	}
	return &firebreak.Error{Kind: kind, Err: errors.New(tidy(ce.Message()))}
}

// collect runs a command as root and returns what it wrote, shortened.
func collect(ctx context.Context, g *guest.Guest, text string) (string, error) {
	var b strings.Builder
	err := run(ctx, g, command{text: text, user: "root", line: func(_ Level, line string) {
		if b.Len() < 4*maxLine {
			b.WriteString(line + "\n")
		}
	}})
	if failed := new(exitError); errors.As(err, failed) {
		err = fmt.Errorf("%w: %s", err, strings.TrimSpace(b.String()))
	}
	return strings.TrimSpace(b.String()), err
}

// exists reports whether there is a file in the sandbox.
func exists(ctx context.Context, g *guest.Guest, path string) (bool, error) {
	req := connect.NewRequest(&filesystemv1.StatRequest{Path: path})
	asUser(req, "root")
	_, err := g.Filesystem().Stat(ctx, req)
	if connect.CodeOf(err) == connect.CodeNotFound {
		return false, nil
	}
	if err != nil {
		return false, blame(ctx, err)
	}
	return true, nil
}

// offline matches what programs say that found no network.
var offline = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`(?i)temporary failure in name resolution|temporary failure resolving|could not resolve|` +
		`name or service not known|no address associated with|eai_again|enotfound|network is unreachable|failed to establish a new connection|` +
		`no such host|dial tcp: lookup|unable to connect to|connection refused.*(pypi|npm|debian|ubuntu|github)`)
})

const offlineHint = "sandboxes have no network in this version of firebreak: copy in what the step would fetch, or begin with an image that has it"

// powerless matches what programs say that are root in name only.
var powerless = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`(?i)permission denied|operation not permitted|must be run as root|no new privileges`)
})

const powerlessHint = "in a container, root has no rights beyond those of the files that are its own: templates are best built where gvisor is chosen"
