package manager

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/api/process"
	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/image"
)

// ReadyTimeout is how long what a template starts has to be at work.
const ReadyTimeout = time.Minute

const (
	readyPause = 100 * time.Millisecond // between two looks whether it is
	startTag   = "start"                // of the process that a template starts
)

// startTemplate starts what a template says is to run in each of its sandboxes, and returns when that is at work.
func (m *Manager) startTemplate(ctx context.Context, g *guest.Guest, tpl image.Template) (err error) {
	if tpl.Start == "" && tpl.Ready == "" {
		return nil
	}
	ctx, span := m.cfg.Tracer.Start(ctx, "start command")
	defer func() { span.End(err) }()
	ctx, cancel := context.WithTimeout(ctx, ReadyTimeout)
	defer cancel()
	if tpl.Start != "" {
		if _, err := shell(ctx, g, tpl.Start, startTag); err != nil {
			return fmt.Errorf("run the start command of template %s: %w", tpl.Name, err)
		}
	}
	for tpl.Ready != "" {
		code, err := shell(ctx, g, tpl.Ready, "")
		if err == nil && code == 0 {
			break
		}
		select {
		case <-ctx.Done():
			return &firebreak.Error{Kind: firebreak.KindUnavailable, Op: "wait for template " + tpl.Name,
				Err:  errors.Join(fmt.Errorf("its ready command has not succeeded within %s (exit status %d)", ReadyTimeout, code), err),
				Mend: "see what the start command needs: firebreak run --template " + tpl.Name}
		case <-time.After(readyPause):
		}
	}
	return nil
}

// shell runs a command as the sandbox's default user and returns its exit status; one with a tag is left to run on.
func shell(ctx context.Context, g *guest.Guest, command, tag string) (code int32, err error) {
	no := false
	req := &process.StartRequest{Process: &process.ProcessConfig{Cmd: "/bin/bash", Args: []string{"-l", "-c", command}}, Stdin: &no}
	if tag != "" {
		req.Tag = &tag
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // who goes away ends no process
	stream, err := g.Process().Start(ctx, connect.NewRequest(req))
	if err != nil {
		return -1, err
	}
	defer stream.Close() //nolint:errcheck // what was said is all that is wanted
	for stream.Receive() {
		event := stream.Msg().GetEvent()
		if event.GetStart() != nil && tag != "" {
			return 0, nil
		}
		if end := event.GetEnd(); end != nil {
			return end.GetExitCode(), nil
		}
	}
	return -1, errors.Join(errors.New("it told no end"), stream.Err())
}
