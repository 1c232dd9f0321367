package cli

import (
	"context"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/firebreak-dev/firebreak/client"
	firebreakv1 "github.com/firebreak-dev/firebreak/internal/api/firebreak/v1"
)

func (a *app) poolCommand() *cobra.Command {
	return group("pool", "Keep sandboxes ready, so that a create need not wait", `Keep sandboxes ready, so that a create need not wait. Pools are a server's: name it with --server, by its unix socket. What
is set here holds until it ends; its file of settings says what it begins with.`,
		a.poolLsCommand(), a.poolSetCommand(), a.poolDrainCommand(), a.poolRmCommand())
}

func (a *app) poolLsCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List pools, and what they have and did",
		Args: arguments(0, 0, "firebreak pool ls takes no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				list, err := c.Pools.ListPools(ctx, connect.NewRequest(&firebreakv1.ListPoolsRequest{}))
				if err != nil {
					return err
				}
				if asJSON {
					return printMessages(a.out, list.Msg.GetPools())
				}
				return a.printPools(list.Msg.GetPools())
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (a *app) printPools(pools []*firebreakv1.PoolStatus) error {
	rows := [][]string{{"NAME", "TEMPLATE", "ISOLATION", "MIN", "MAX", "READY", "MAKING", "CLAIMS", "MISSES", "FAILURES"}}
	for _, s := range pools {
		p := s.GetPool()
		row := []string{p.GetName(), p.GetTemplate(), nameOr(p.GetDriver(), "by policy")}
		for _, n := range []uint64{uint64(p.GetMin()), uint64(p.GetMax()), uint64(s.GetReady()), uint64(s.GetMaking()), s.GetClaims(), s.GetMisses(), s.GetFailures()} {
			row = append(row, fmt.Sprint(n))
		}
		rows = append(rows, row)
	}
	if err := a.printTable(rows); err != nil {
		return err
	}
	for _, p := range pools {
		if p.GetFailing() != "" {
			a.warn("pool %s cannot be filled: %s", p.GetPool().GetName(), p.GetFailing())
		}
	}
	return nil
}

func nameOr(name, otherwise string) string {
	if name == "" {
		return otherwise
	}
	return name
}

// poolFlags are what can be said of a pool.
type poolFlags struct {
	workloadFlags
	name, driver string
	least, most  int32
	warm         []string
	cpus         float64
	memory, disk sizeFlag
	pids         int64
}

func (a *app) poolSetCommand() *cobra.Command {
	f := &poolFlags{}
	cmd := &cobra.Command{
		Use:   "set TEMPLATE",
		Short: "Make a pool, or change one, which is then filled anew",
		Long: `Make a pool, or change one, which is then filled anew. A create is served from it that would be given the same: template,
isolation and limits. What is said about the code helps the policy choose the isolation.`,
		Example:           "  firebreak --server unix:///run/firebreak.sock pool set base --min 2 --max 8 --warm python",
		Args:              arguments(1, 1, "say of which template: firebreak pool set TEMPLATE"),
		ValidArgsFunction: a.completeTemplates,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.check(); err != nil {
				return err
			}
			p := &firebreakv1.Pool{Name: f.name, Template: args[0], Driver: f.driver, Workload: f.message(), Warm: f.warm, Min: f.least, Max: f.most,
				Limits: &firebreakv1.Limits{Cpus: f.cpus, MemoryBytes: int64(f.memory), DiskBytes: int64(f.disk), Pids: f.pids}}
			if p.Max == 0 {
				p.Max = max(p.Min, 1)
			}
			return a.setPool(cmd.Context(), p)
		},
	}
	f.addFacts(cmd)
	flags := cmd.Flags()
	flags.StringVar(&f.name, "name", "", "`name` of the pool (default: the template's, with the driver's if there is one)")
	flags.StringVar(&f.driver, "isolation", "", "`driver` (default: the policy chooses)")
	flags.Int32Var(&f.least, "min", 1, "how many lie ready at least")
	flags.Int32Var(&f.most, "max", 0, "how many lie ready at most (default: as min)")
	flags.StringSliceVar(&f.warm, "warm", nil, "`languages` whose code context is started too, like python")
	flags.Float64Var(&f.cpus, "cpus", 0, "processors of each, fractions allowed")
	flags.Var(&f.memory, "memory", "memory of each, like 512m or 1g")
	flags.Var(&f.disk, "disk", "what each may write to its file system, like 1g")
	flags.Int64Var(&f.pids, "pids", 0, "processes and threads of each")
	complete(cmd, "isolation", drivers())
	return cmd
}

func (a *app) setPool(ctx context.Context, p *firebreakv1.Pool) error {
	return a.with(ctx, func(ctx context.Context, c *client.Client) error {
		set, err := c.Pools.SetPool(ctx, connect.NewRequest(&firebreakv1.SetPoolRequest{Pool: p}))
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(a.out, oneLine(set.Msg.GetPool().GetPool().GetName()))
		return err
	})
}

// drainTime bounds the wait for what a pool held to be gone.
const drainTime = 5 * time.Minute

func (a *app) poolDrainCommand() *cobra.Command {
	return &cobra.Command{
		Use: "drain POOL…", Short: "Throw away what pools hold, and fill them anew",
		Args: arguments(1, -1, "say which pool: firebreak pool drain POOL"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				return a.each(cmd, args, func(name string) error {
					defer a.waiting("draining " + oneLine(name))()
					ctx, cancel := context.WithTimeout(ctx, drainTime)
					defer cancel()
					_, err := c.Pools.DrainPool(ctx, connect.NewRequest(&firebreakv1.DrainPoolRequest{Name: name}))
					return err
				})
			})
		},
	}
}

func (a *app) poolRmCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rm POOL…", Short: "End pools",
		Args: arguments(1, -1, "say which pool: firebreak pool rm POOL"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				return a.each(cmd, args, func(name string) error {
					_, err := c.Pools.DeletePool(ctx, connect.NewRequest(&firebreakv1.DeletePoolRequest{Name: name}))
					return err
				})
			})
		},
	}
}
