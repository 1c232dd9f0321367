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
	"github.com/firebreak-dev/firebreak/internal/api/process/processconnect"
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

// mainProgram is the program for which a sandbox was made.
type mainProgram struct {
	process processconnect.ProcessClient
	offsets *process.Offsets // where the stream that join returned begins
}

// connect opens a stream at from, or where the last reader stopped if that is nil, and reads where it begins.
func (m *mainProgram) connect(ctx context.Context, from *process.Offsets) (events, error) {
	req := connect.NewRequest(&process.ConnectRequest{Process: byTag(mainTag), ResumeFrom: from})
	req.Header().Set("Keepalive-Ping-Interval", silence)
	stream, err := m.process.Connect(ctx, req)
	if err != nil {
		return nil, err
	}
	next := connectEvents(stream)
	first, err := next()
	if m.offsets = first.GetStart().GetOffsets(); m.offsets == nil {
		m.offsets = &process.Offsets{}
	}
	return next, err
}

// join joins the program at its first byte, or the first that is still kept.
func (m *mainProgram) join(ctx context.Context) (events, error) {
	next, err := m.connect(ctx, &process.Offsets{})
	for range 3 {
		if connect.CodeOf(err) != connect.CodeOutOfRange {
			return next, err
		}
		// While it writes, what we have found may be dropped before we come for it.
		var oldest *process.Offsets
		if oldest, err = m.oldest(ctx); err == nil {
			next, err = m.connect(ctx, oldest)
		}
	}
	if connect.CodeOf(err) != connect.CodeOutOfRange {
		return next, err
	}
	return m.connect(ctx, nil)
}

// probeStep is how near oldest comes to the first byte that is kept.
const probeStep = 1 << 10

// oldest searches for the first byte of each stream that is still kept: the protocol has no call that tells.
func (m *mainProgram) oldest(ctx context.Context) (*process.Offsets, error) {
	kept := func(from *process.Offsets) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		_, err := m.connect(ctx, from)
		return err
	}
	if err := kept(nil); err != nil {
		return nil, err
	}
	found := m.offsets
	for _, offset := range []*uint64{&found.Stdout, &found.Stderr, &found.Pty} {
		for gone, there := uint64(0), *offset; there-gone > probeStep; {
			*offset = gone + (there-gone)/2
			err := kept(&process.Offsets{Stdout: found.Stdout, Stderr: found.Stderr, Pty: found.Pty})
			switch {
			case err == nil:
				there = *offset
			case connect.CodeOf(err) == connect.CodeOutOfRange:
				gone = *offset
			default:
				return nil, err
			}
			*offset = there
		}
	}
	return found, nil
}

func (a *app) logs(ctx context.Context, c *client.Client, word string, follow bool) error {
	id, err := resolveLive(ctx, c, word)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	main := &mainProgram{process: c.Process(id)}
	next, err := main.join(ctx)
	if err != nil {
		return a.mainError(ctx, c, id, "logs", err)
	}
	if gone := main.offsets.GetStdout() + main.offsets.GetStderr() + main.offsets.GetPty(); gone > 0 {
		a.warn("the first %s are no longer kept", formatSize(int64(gone)))
	}
	s := &attached{program: program{stdout: a.out, stderr: a.errOut}, offsets: main.offsets}
	for start := time.Now(); ; {
		event, err := next()
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
	main := &mainProgram{process: c.Process(id)}
	next, err := main.join(ctx)
	if err != nil {
		return a.mainError(ctx, c, id, "wait", err)
	}
	for rejoins := 3; ; {
		event, err := next()
		if err != nil && rejoins > 0 && ctx.Err() == nil && firebreak.KindOf(err) != firebreak.KindNotFound {
			rejoins-- // the stream was torn, but the agent remembers how its main program ended
			if again, joinErr := main.join(ctx); joinErr == nil {
				next = again
				continue
			}
		}
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
