package cli

import (
	"context"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/client"
	firebreakv1 "github.com/firebreak-dev/firebreak/internal/api/firebreak/v1"
)

// eachSandbox does do for all sandboxes that are named; of one that is not there it says what may be meant.
func (a *app) eachSandbox(cmd *cobra.Command, words []string, doing string, do func(ctx context.Context, c *client.Client, word string) error) error {
	return a.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
		return a.each(cmd, words, func(word string) error {
			stop := a.waiting(doing + " " + oneLine(word))
			err := do(ctx, c, word)
			stop()
			if firebreak.KindOf(err) == firebreak.KindNotFound {
				_, err = resolve(ctx, c, word)
			}
			return err
		})
	})
}

func (a *app) pauseCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "pause SANDBOX…",
		Short: "Freeze sandboxes and keep their memory",
		Long: `Freeze sandboxes and keep their memory: their programs stop where they are, and go on when they are resumed. The end of
their time does not come while they are paused.`,
		Args:              arguments(1, -1, "say which sandbox: firebreak pause SANDBOX"),
		ValidArgsFunction: a.completeSandboxes,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.eachSandbox(cmd, args, "pausing", func(ctx context.Context, c *client.Client, word string) error {
				_, err := c.Sandboxes.PauseSandbox(ctx, connect.NewRequest(&firebreakv1.PauseSandboxRequest{Id: word}))
				return err
			})
		},
	}
}

func (a *app) resumeCommand() *cobra.Command {
	var timeout durationFlag
	cmd := &cobra.Command{
		Use:               "resume SANDBOX…",
		Short:             "Have paused sandboxes go on",
		Args:              arguments(1, -1, "say which sandbox: firebreak resume SANDBOX"),
		ValidArgsFunction: a.completeSandboxes,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.eachSandbox(cmd, args, "resuming", func(ctx context.Context, c *client.Client, word string) error {
				req := &firebreakv1.ResumeSandboxRequest{Id: word}
				if timeout > 0 {
					req.Timeout = durationpb.New(time.Duration(timeout))
				}
				_, err := c.Sandboxes.ResumeSandbox(ctx, connect.NewRequest(req))
				return err
			})
		},
	}
	cmd.Flags().Var(&timeout, "timeout", "`time` from now that they have at least (default: what they were given last)")
	return cmd
}

func (a *app) timeoutCommand() *cobra.Command {
	var extend bool
	cmd := &cobra.Command{
		Use:               "timeout SANDBOX TIME",
		Short:             "Have a sandbox end at a time from now, like 30m",
		Example:           "  firebreak timeout work 30m\n  firebreak timeout --extend work 2h",
		Args:              arguments(2, 2, "write firebreak timeout SANDBOX TIME"),
		ValidArgsFunction: a.completeSandboxes,
		RunE: func(cmd *cobra.Command, args []string) error {
			var d durationFlag
			if err := d.Set(args[1]); err != nil {
				return invalid("", fmt.Errorf("%q is no length of time", args[1]), "write it like 30s, 5m or 1h30m")
			}
			return a.eachSandbox(cmd, args[:1], "giving time to", func(ctx context.Context, c *client.Client, word string) error {
				_, err := c.Sandboxes.SetSandboxTimeout(ctx, connect.NewRequest(&firebreakv1.SetSandboxTimeoutRequest{
					Id: word, Timeout: durationpb.New(time.Duration(d)), ExtendOnly: extend}))
				return err
			})
		},
	}
	cmd.Flags().BoolVar(&extend, "extend", false, "never shorten what it has")
	return cmd
}
