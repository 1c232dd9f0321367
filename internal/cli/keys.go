package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/firebreak-dev/firebreak/client"
	firebreakv1 "github.com/firebreak-dev/firebreak/internal/api/firebreak/v1"
)

// group makes a command that has others below it and does nothing by itself.
func group(use, short, long string, below ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Long: long, Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownBelow(cmd, args[0])
			}
			return cmd.Help()
		},
	}
	cmd.AddCommand(below...)
	return cmd
}

func (a *app) keyCommand() *cobra.Command {
	return group("key", "Create, list and revoke API keys", `Create, list and revoke the API keys with which clients of firebreak serve say who they are. Only the operator may: on the
server's unix socket, or beside a server on the same state directory. A running server knows of a change within a second.`,
		a.keyCreateCommand(), a.keyLsCommand(), a.keyRevokeCommand())
}

func (a *app) keyCreateCommand() *cobra.Command {
	var tenant, name string
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "create",
		Short:   "Make a key and print it: it is not kept, and cannot be shown again",
		Example: "  firebreak key create --name laptop\n  firebreak key create --tenant acme",
		Args:    arguments(0, 0, "firebreak key create takes no arguments; --tenant and --name say whose it is and what for"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				made, err := c.Keys.CreateKey(ctx, connect.NewRequest(&firebreakv1.CreateKeyRequest{Tenant: tenant, Name: name}))
				if err != nil {
					return err
				}
				if asJSON {
					return printMessage(a.out, made.Msg)
				}
				_, err = fmt.Fprintln(a.out, oneLine(made.Msg.GetSecret()))
				return err
			})
		},
	}
	cmd.Flags().StringVar(&tenant, "tenant", "", "`tenant` whose key it is (default: default)")
	cmd.Flags().StringVar(&name, "name", "", "`name` for people")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (a *app) keyLsCommand() *cobra.Command {
	var tenant string
	var all, asJSON bool
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List keys, without what is secret of them",
		Args: arguments(0, 0, "firebreak key ls takes no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				list, err := c.Keys.ListKeys(ctx, connect.NewRequest(&firebreakv1.ListKeysRequest{Tenant: tenant}))
				if err != nil {
					return err
				}
				keys := list.Msg.GetKeys()[:0]
				for _, k := range list.Msg.GetKeys() {
					if all || k.GetRevokedAt() == nil {
						keys = append(keys, k)
					}
				}
				if asJSON {
					return printMessages(a.out, keys)
				}
				return a.printKeys(keys)
			})
		},
	}
	cmd.Flags().StringVar(&tenant, "tenant", "", "of this `tenant` only")
	cmd.Flags().BoolVarP(&all, "all", "a", false, "show those that were revoked too")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (a *app) printKeys(keys []*firebreakv1.Key) error {
	rows := [][]string{{"ID", "TENANT", "NAME", "AGE", "LAST USED", "STATE"}}
	for _, k := range keys {
		state := "valid"
		if k.GetRevokedAt() != nil {
			state = "revoked " + age(k.GetRevokedAt()) + " ago"
		}
		used := "never"
		if k.GetUsedAt() != nil {
			used = age(k.GetUsedAt()) + " ago"
		}
		rows = append(rows, []string{k.GetId(), k.GetTenant(), k.GetName(), age(k.GetCreatedAt()), used, state})
	}
	return a.printTable(rows)
}

func (a *app) keyRevokeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "revoke ID…", Aliases: []string{"rm", "delete"}, Short: "Have keys refused from now on",
		Args: arguments(1, -1, "say which key: firebreak key revoke ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, id := range args {
				if strings.HasPrefix(id, "e2b_") { // it is not to be repeated in a message
					return invalid("", errors.New("that is a key, and not the ID of one"), "firebreak key ls shows the IDs: its first digits")
				}
			}
			return a.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				return a.each(cmd, args, func(id string) error {
					_, err := c.Keys.RevokeKey(ctx, connect.NewRequest(&firebreakv1.RevokeKeyRequest{Id: id}))
					return err
				})
			})
		},
	}
}
