package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/client"
	firebreakv1 "github.com/firebreak-dev/firebreak/internal/api/firebreak/v1"
)

// resolve finds a sandbox by id, name or the beginning of its id.
func resolve(ctx context.Context, c *client.Client, word string) (*firebreakv1.GetSandboxResponse, error) {
	got, err := c.Sandboxes.GetSandbox(ctx, connect.NewRequest(&firebreakv1.GetSandboxRequest{Id: word}))
	if firebreak.KindOf(err) == firebreak.KindNotFound {
		return nil, &firebreak.Error{Kind: firebreak.KindNotFound, Err: fmt.Errorf("there is no sandbox %q", word),
			Mend: sandboxMend(ctx, c, word)}
	}
	if err != nil {
		return nil, err
	}
	return got.Msg, nil
}

func sandboxMend(ctx context.Context, c *client.Client, word string) string {
	list, err := c.Sandboxes.ListSandboxes(ctx, connect.NewRequest(&firebreakv1.ListSandboxesRequest{}))
	if err == nil {
		var names []string
		for _, sb := range list.Msg.GetSandboxes() {
			names = append(names, sb.GetId())
			if sb.GetName() != "" {
				names = append(names, sb.GetName())
			}
		}
		if near := nearest(word, names); near != "" {
			return "did you mean " + near + "?"
		}
	}
	return "firebreak ls shows those that run"
}

// resolveLive finds a sandbox that programs can be started in.
func resolveLive(ctx context.Context, c *client.Client, word string) (string, error) {
	got, err := resolve(ctx, c, word)
	if err != nil {
		return "", err
	}
	sb := got.GetSandbox()
	if firebreak.State(sb.GetState()) == firebreak.StateEnded {
		return "", &firebreak.Error{Kind: firebreak.KindState, Err: fmt.Errorf("sandbox %s has ended%s", sb.GetId(), endText(sb)),
			Mend: "start another with firebreak run --detach"}
	}
	if sb.GetElsewhere() {
		return "", &firebreak.Error{Kind: firebreak.KindState, Err: fmt.Errorf("sandbox %s lives within the process of firebreak that made it", sb.GetId()),
			Mend: "ask the server that made it: --server unix://PATH or FIREBREAK_SERVER"}
	}
	return sb.GetId(), nil
}

func endText(sb *firebreakv1.Sandbox) string {
	switch {
	case sb.GetEndDetail() != "":
		return ": " + sb.GetEndDetail()
	case sb.GetEndReason() != "":
		return ": " + sb.GetEndReason()
	}
	return ""
}

func (a *app) execCommand() *cobra.Command {
	f := &processFlags{}
	cmd := &cobra.Command{
		Use:               "exec [flags] SANDBOX [--] COMMAND [ARG…]",
		Short:             "Run a program in a sandbox that runs already",
		Example:           "  firebreak exec -it work -- bash\n  firebreak exec 3fa ls -l",
		Args:              arguments(2, -1, "write firebreak exec SANDBOX COMMAND"),
		ValidArgsFunction: a.completeSandboxes,
	}
	cmd.Flags().SetInterspersed(false)
	f.add(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		word, command := args[0], args[1:]
		if command[0] == "--" { // pflag has stopped at the sandbox
			command = command[1:]
		}
		if len(command) == 0 {
			return invalid("", errors.New("no program"), "write firebreak exec "+word+" COMMAND")
		}
		return a.exec(cmd.Context(), f, cmd.Flags(), word, command)
	}
	return cmd
}

func (a *app) exec(ctx context.Context, f *processFlags, flags *pflag.FlagSet, word string, command []string) error {
	envs, err := a.environment(f.env, f.envFiles)
	if err != nil {
		return err
	}
	p, err := a.program(f, flags)
	if err != nil {
		return err
	}
	p.command = command
	if p.envs == nil {
		p.envs = map[string]string{}
	}
	for name, value := range envs {
		p.envs[name] = value
	}
	return a.with(ctx, func(ctx context.Context, c *client.Client) error {
		id, err := resolveLive(ctx, c, word)
		if err != nil {
			return err
		}
		if p.tty {
			if err := a.makeRaw(); err != nil {
				return fmt.Errorf("set up the terminal: %w", err)
			}
			defer a.restoreTerminal()
		}
		res, err := a.attach(ctx, c, id, p)
		a.restoreTerminal()
		return a.ended(ctx, c, id, "exec", outcome{result: res, err: err, timeout: p.timeout})
	})
}

// ended says how a program ended whose sandbox is kept.
func (a *app) ended(ctx context.Context, c *client.Client, id, op string, o outcome) error {
	if kind := firebreak.KindOf(o.err); o.err != nil && (kind == firebreak.KindUnavailable || kind == firebreak.KindNotFound) {
		ctx, cancel := cleanup(ctx)
		defer cancel()
		l := &launch{app: a, client: c, sandbox: &firebreakv1.Sandbox{Id: id}}
		l.awaitEnd(ctx)
		if sb, usage, lastErr := l.last(ctx, true); lastErr == nil {
			o.sandbox, o.usage = sb, usage
		}
	}
	o.judge()
	if o.text != "" {
		a.say(red, "%s: %s", op, o.text)
	}
	if o.err != nil {
		return o.err
	}
	return exit(o.code)
}

func (a *app) lsCommand() *cobra.Command {
	var all, asJSON bool
	var states, metadata []string
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list", "ps"},
		Short:   "List sandboxes",
		Args:    arguments(0, 0, "firebreak ls takes no arguments; firebreak inspect shows one sandbox"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			req := &firebreakv1.ListSandboxesRequest{States: states}
			var err error
			if req.Metadata, err = parseMetadata(metadata); err != nil {
				return err
			}
			return a.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				list, err := c.Sandboxes.ListSandboxes(ctx, connect.NewRequest(req))
				if err != nil {
					return err
				}
				shown := list.Msg.GetSandboxes()[:0]
				for _, sb := range list.Msg.GetSandboxes() {
					if all || len(states) > 0 || firebreak.State(sb.GetState()) != firebreak.StateEnded {
						shown = append(shown, sb)
					}
				}
				sort.SliceStable(shown, func(i, j int) bool {
					return shown[i].GetCreatedAt().AsTime().Before(shown[j].GetCreatedAt().AsTime())
				})
				if asJSON {
					return printMessages(a.out, shown)
				}
				return a.printSandboxes(shown)
			})
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "show those that have ended too")
	cmd.Flags().StringSliceVar(&states, "state", nil, "only those in these `states`: creating, running, paused, stopping, ended")
	cmd.Flags().StringArrayVar(&metadata, "metadata", nil, "only those of which this was said: `NAME=VALUE`")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	complete(cmd, "state", []string{"creating", "running", "paused", "stopping", "ended"})
	return cmd
}

func parseMetadata(pairs []string) (map[string]string, error) {
	if len(pairs) == 0 {
		return nil, nil
	}
	metadata := map[string]string{}
	for _, pair := range pairs {
		name, value, found := strings.Cut(pair, "=")
		if !found || name == "" {
			return nil, invalid("", fmt.Errorf("--metadata %q has no name", pair), "write it like --metadata job=nightly")
		}
		metadata[name] = value
	}
	return metadata, nil
}

func (a *app) printSandboxes(sandboxes []*firebreakv1.Sandbox) error {
	rows := [][]string{{"ID", "NAME", "STATE", "ISOLATION", "BOUNDARY", "TEMPLATE", "AGE", "COMMAND"}}
	tenants := a.apiKey == "" && slices.ContainsFunc(sandboxes, func(sb *firebreakv1.Sandbox) bool { return sb.GetTenant() != "" })
	if tenants { // who has a key sees his own only
		rows[0] = slices.Insert(rows[0], 2, "TENANT")
	}
	for _, sb := range sandboxes {
		state := sb.GetState()
		if sb.GetEndReason() != "" {
			state += " (" + sb.GetEndReason() + ")"
		}
		row := []string{sb.GetId(), sb.GetName(), state, sb.GetDriver(), sb.GetBoundary(), sb.GetTemplate(), age(sb.GetCreatedAt()), sb.GetCommand()}
		if tenants {
			row = slices.Insert(row, 2, nameOr(sb.GetTenant(), "-"))
		}
		rows = append(rows, row)
	}
	return a.printTable(rows)
}

func (a *app) killCommand() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:               "kill SANDBOX… | --all",
		Aliases:           []string{"rm", "stop"},
		Short:             "End and remove sandboxes",
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: a.completeSandboxes,
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if all == (len(args) > 0) {
			return invalid("", errors.New("say which sandboxes, or --all, but not both"), "firebreak ls shows them")
		}
		return a.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
			if all {
				list, err := c.Sandboxes.ListSandboxes(ctx, connect.NewRequest(&firebreakv1.ListSandboxesRequest{}))
				if err != nil {
					return err
				}
				for _, sb := range list.Msg.GetSandboxes() {
					args = append(args, sb.GetId())
				}
			}
			return a.each(cmd, args, func(word string) error {
				defer a.waiting("removing " + oneLine(word))()
				_, err := c.Sandboxes.DeleteSandbox(ctx, connect.NewRequest(&firebreakv1.DeleteSandboxRequest{Id: word}))
				if firebreak.KindOf(err) != firebreak.KindNotFound {
					return err
				}
				if all {
					return nil // it has ended meanwhile
				}
				_, err = resolve(ctx, c, word)
				return err
			})
		})
	}
	cmd.Flags().BoolVar(&all, "all", false, "all sandboxes of the server")
	return cmd
}

// each does do for every word and prints those for which it went well; the first error's exit status is the command's.
func (a *app) each(cmd *cobra.Command, words []string, do func(word string) error) error {
	var code int
	for _, word := range words {
		err := do(word)
		switch {
		case err == nil:
			if _, err := fmt.Fprintln(a.out, oneLine(word)); err != nil {
				return err
			}
		case len(words) == 1 || context.Cause(cmd.Context()) != nil:
			return err
		default:
			a.report(cmd, err)
			if code == 0 {
				code = exitCode(err)
			}
		}
	}
	return exit(code)
}

func (a *app) inspectCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "inspect SANDBOX",
		Short:             "Print all there is to know about a sandbox, as JSON",
		Args:              arguments(1, 1, "say which sandbox: firebreak inspect SANDBOX"),
		ValidArgsFunction: a.completeSandboxes,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				got, err := resolve(ctx, c, args[0])
				if err != nil {
					return err
				}
				return printMessage(a.out, got)
			})
		},
	}
}
