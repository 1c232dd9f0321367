package cli

import (
	"context"
	"fmt"
	"io"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/firebreak-dev/firebreak/client"
	firebreakv1 "github.com/firebreak-dev/firebreak/internal/api/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/policy"
)

func (a *app) policyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Show, test and check the rules that choose the isolation",
		Args:  cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownBelow(cmd, args[0])
			}
			return cmd.Help()
		},
	}
	cmd.AddCommand(a.policyShowCommand(), a.policyTestCommand(), a.policyCheckCommand())
	return cmd
}

func (a *app) policyShowCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Print the policy in force",
		Long: `Print the policy in force: the built-in one, the file of --policy, or another server's. A file that extends the built-in
policy is followed by that.`,
		Args: arguments(0, 0, "firebreak policy show takes no arguments; --policy names a file"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			got, err := a.getPolicy(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return printMessage(a.out, got)
			}
			text := fmt.Sprintf("# policy %s, version %s, %d rules\n%s", got.GetName(), got.GetVersion(), len(got.GetRules()), got.GetYaml())
			if got.GetExtendsYaml() != "" {
				text += "\n---\n# It extends this one.\n" + got.GetExtendsYaml()
			}
			_, err = io.WriteString(a.out, text)
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (a *app) getPolicy(ctx context.Context) (got *firebreakv1.GetPolicyResponse, err error) {
	err = a.with(ctx, func(ctx context.Context, c *client.Client) error {
		resp, err := c.Policy.GetPolicy(ctx, connect.NewRequest(&firebreakv1.GetPolicyRequest{}))
		if err == nil {
			got = resp.Msg
		}
		return err
	})
	return got, err
}

func (a *app) policyTestCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "test [FILE]",
		Short: "Run the cases that a policy brings, and hold its rules to its table and tree",
		Long: `Run the cases that a policy brings, and hold its rules to its table and tree: those of FILE, or of the policy in force.

The exit status is 0 if all is as expected and 1 if not.`,
		Args: arguments(0, 1, "name one file, or none for the policy in force"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				got, err := a.getPolicy(cmd.Context())
				if err != nil {
					return err
				}
				return a.testPolicy([]byte(got.GetYaml()), "the policy in force")
			}
			text, err := readPolicyFile(args[0])
			if err != nil {
				return err
			}
			return a.testPolicy(text, args[0])
		},
	}
}

func (a *app) testPolicy(text []byte, name string) error {
	p, err := policy.Load(text, name)
	if err != nil {
		return err
	}
	results, failed := p.Test(), 0
	for _, r := range results {
		line := "ok    " + r.Name
		if r.Err != nil {
			failed++
			line = a.paint(a.out, red, "FAIL") + "  " + oneLine(fmt.Sprintf("%s (%s:%d): %v", r.Name, name, r.Line, r.Err))
		} else if a.quiet {
			continue
		}
		if _, err := fmt.Fprintln(a.out, line); err != nil {
			return err
		}
	}
	if failed > 0 {
		a.say(red, "policy test: %d of %d cases are not as expected", failed, len(results))
		return exit(statusNo)
	}
	if a.quiet {
		return nil
	}
	_, err = fmt.Fprintf(a.out, "%d cases of policy %s@%s, all as expected\n", len(results), p.Name(), p.Version())
	return err
}

func (a *app) policyCheckCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "check FILE",
		Short: "Say whether a policy's file can be used, and if not where and why",
		Args:  arguments(1, 1, "say which file: firebreak policy check FILE"),
		RunE: func(_ *cobra.Command, args []string) error {
			text, err := readPolicyFile(args[0])
			if err != nil {
				return err
			}
			p, err := policy.Load(text, args[0])
			if err != nil || a.quiet {
				return err
			}
			_, err = fmt.Fprintf(a.out, "%s: policy %s, version %s, %d rules\n", oneLine(args[0]), p.Name(), p.Version(), len(p.Rules()))
			return err
		},
	}
}

func readPolicyFile(name string) ([]byte, error) {
	text, err := policy.ReadFile(name)
	if err != nil {
		return nil, invalid("", err, "")
	}
	return text, nil
}

// unknownBelow is for a command that has others below it.
func unknownBelow(cmd *cobra.Command, word string) error {
	mend := "see " + cmd.CommandPath() + " --help"
	if near := nearCommand(cmd, word); near != "" {
		mend = "did you mean " + near + "?"
	}
	return invalid("", fmt.Errorf("unknown command %q", word), mend)
}
