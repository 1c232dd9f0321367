package cli

import (
	"context"
	"errors"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/client"
	"github.com/firebreak-dev/firebreak/internal/api/process"
)

// Without --follow, logs ends when the agent says that the program has been silent for a second, or after a while of a
// program that never is.
const (
	silence   = "1" // seconds, in the header
	talkative = 5 * time.Second
)

func (a *app) logsCommand() *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use:               "logs [-f] SANDBOX",
		Short:             "Print what the program of a detached sandbox has written",
		Args:              arguments(1, 1, "say which sandbox: firebreak logs SANDBOX"),
		ValidArgsFunction: a.completeSandboxes,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				return a.logs(ctx, c, args[0], follow)
			})
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the program ends")
	return cmd
}

func (a *app) waitCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "wait SANDBOX",
		Short: "Wait until the program of a detached sandbox ends, with its exit status",
		Long: "Wait until the program of a detached sandbox ends. The exit status is the program's. The sandbox lives on,\n" +
			"for firebreak logs and firebreak cp, until its time is up or firebreak kill removes it.",
		Args:              arguments(1, 1, "say which sandbox: firebreak wait SANDBOX"),
		ValidArgsFunction: a.completeSandboxes,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				return a.wait(ctx, c, args[0])
			})
		},
	}
}

// mainProgram joins the program for which a sandbox was made, from its first byte that is still kept.
func mainProgram(ctx context.Context, c *client.Client, id string, p program) (*attached, events, error) {
	req := connect.NewRequest(&process.ConnectRequest{Process: byTag(mainTag), ResumeFrom: &process.Offsets{}})
	req.Header().Set("Keepalive-Ping-Interval", silence)
	s := &attached{program: p, process: c.Process(id), offsets: &process.Offsets{}}
	stream, err := s.process.Connect(ctx, req)
	if err != nil {
		return nil, events{}, err
	}
	return s, connectEvents(stream), nil
}

func (a *app) logs(ctx context.Context, c *client.Client, word string, follow bool) error {
	id, err := resolveLive(ctx, c, word)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, from, err := mainProgram(ctx, c, id, program{stdout: a.out, stderr: a.errOut})
	if err != nil {
		return err
	}
	for start := time.Now(); ; {
		event, err := from.next()
		if err != nil {
			return a.mainError(ctx, c, id, "logs", err)
		}
		switch e := event.GetEvent().(type) {
		case *process.ProcessEvent_Data:
			if err := s.pass(e.Data); err != nil {
				return logsWriteError(err)
			}
			if !follow && time.Since(start) > talkative {
				return nil
			}
		case *process.ProcessEvent_Keepalive:
			if !follow {
				return nil
			}
		case *process.ProcessEvent_End:
			return nil
		}
	}
}

// logsWriteError ends quietly when the pager has been closed.
func logsWriteError(err error) error {
	if errors.Is(err, errPipeClosed) {
		return exit(141)
	}
	return err
}

func (a *app) wait(ctx context.Context, c *client.Client, word string) error {
	id, err := resolveLive(ctx, c, word)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer a.waiting("waiting for the program to end")()
	_, from, err := mainProgram(ctx, c, id, program{})
	if err != nil {
		return err
	}
	for {
		event, err := from.next()
		if err != nil {
			return a.mainError(ctx, c, id, "wait", err)
		}
		if end := event.GetEnd(); end != nil {
			return a.ended(ctx, c, id, "wait", outcome{result: resultOf(end)})
		}
	}
}

// mainError says what an error of the stream from the main program means: of the sandbox's end, its record tells.
func (a *app) mainError(ctx context.Context, c *client.Client, id, op string, err error) error {
	var sig *signalError
	if errors.As(context.Cause(ctx), &sig) {
		return sig
	}
	if firebreak.KindOf(err) == firebreak.KindNotFound {
		if _, liveErr := resolveLive(ctx, c, id); liveErr == nil {
			return &firebreak.Error{Kind: firebreak.KindNotFound, Err: errors.New("its program ended too long ago to be remembered"),
				Mend: "join it while it runs: firebreak logs -f"}
		}
	}
	return a.ended(ctx, c, id, op, outcome{err: err})
}
