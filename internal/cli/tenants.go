package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/firebreak-dev/firebreak/client"
	firebreakv1 "github.com/firebreak-dev/firebreak/internal/api/firebreak/v1"
)

func (a *app) tenantCommand() *cobra.Command {
	return group("tenant", "Say who may use the server, and how much of it", `Say who may use the server, and how much of it. Tenants see and reach their own sandboxes only. For the operator, as
firebreak key is.`, a.tenantSetCommand(), a.tenantLsCommand())
}

// tenantFlags are what can be said of a tenant.
type tenantFlags struct {
	workloadFlags
	sandboxes, burst int32
	cpus, creates    float64
	memory           sizeFlag
	unlimited        bool
}

func (a *app) tenantSetCommand() *cobra.Command {
	f := &tenantFlags{}
	cmd := &cobra.Command{
		Use:   "set ID",
		Short: "Make a tenant, or change one",
		Long: `Make a tenant, or change one: what is not said stays as it is. What is said about its code holds for all its sandboxes,
and a request can only say something riskier.`,
		Example: "  firebreak tenant set acme --sandboxes 20 --memory 16g --creates-per-second 2 --origin untrusted",
		Args:    arguments(1, 1, "say which tenant: firebreak tenant set ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.check(); err != nil {
				return err
			}
			return a.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				t, err := findTenant(ctx, c, args[0])
				if err != nil {
					return err
				}
				f.apply(cmd, t)
				if _, err := c.Tenants.SetTenant(ctx, connect.NewRequest(&firebreakv1.SetTenantRequest{Tenant: t})); err != nil {
					return err
				}
				_, err = fmt.Fprintln(a.out, oneLine(args[0]))
				return err
			})
		},
	}
	f.addFacts(cmd)
	flags := cmd.Flags()
	flags.Int32Var(&f.sandboxes, "sandboxes", 0, "sandboxes at once")
	flags.Float64Var(&f.cpus, "cpus", 0, "processors of all its sandboxes together")
	flags.Var(&f.memory, "memory", "memory of all its sandboxes together, like 16g")
	flags.Float64Var(&f.creates, "creates-per-second", 0, "sandboxes that it may make each second, in the long run")
	flags.Int32Var(&f.burst, "burst", 0, "sandboxes that it may make at one moment (default: those of a second)")
	flags.BoolVar(&f.unlimited, "unlimited", false, "take all limits away that are not given here")
	return cmd
}

// findTenant returns the tenant as it is, or a new one.
func findTenant(ctx context.Context, c *client.Client, id string) (*firebreakv1.Tenant, error) {
	list, err := c.Tenants.ListTenants(ctx, connect.NewRequest(&firebreakv1.ListTenantsRequest{}))
	if err != nil {
		return nil, err
	}
	for _, t := range list.Msg.GetTenants() {
		if t.GetId() == id {
			return t, nil
		}
	}
	return &firebreakv1.Tenant{Id: id}, nil
}

func (f *tenantFlags) apply(cmd *cobra.Command, t *firebreakv1.Tenant) {
	if t.GetLimits() == nil || f.unlimited {
		t.Limits = &firebreakv1.Tenant_Limits{}
	}
	l, given := t.GetLimits(), cmd.Flags().Changed
	for name, set := range map[string]func(){
		"sandboxes":          func() { l.Sandboxes = f.sandboxes },
		"cpus":               func() { l.Cpus = f.cpus },
		"memory":             func() { l.MemoryBytes = int64(f.memory) },
		"creates-per-second": func() { l.CreatesPerSecond = f.creates },
		"burst":              func() { l.Burst = f.burst },
	} {
		if given(name) {
			set()
		}
	}
	if t.GetWorkload() == nil {
		t.Workload = &firebreakv1.Workload{}
	}
	said := f.message()
	if !given("needs") {
		said.Needs = nil
	}
	proto.Merge(t.Workload, said) // what is not said is not set
	if given("needs") {
		t.Workload.Needs = said.Needs
	}
	for name, into := range map[string]*bool{"gpu": &t.Workload.Gpu, "plugin": &t.Workload.Plugin, "audit": &t.Workload.Audit} {
		if given(name) { // false is not set either
			*into, _ = cmd.Flags().GetBool(name)
		}
	}
}

func (a *app) tenantLsCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List tenants, and their limits",
		Args: arguments(0, 0, "firebreak tenant ls takes no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				list, err := c.Tenants.ListTenants(ctx, connect.NewRequest(&firebreakv1.ListTenantsRequest{}))
				if err != nil {
					return err
				}
				if asJSON {
					return printMessages(a.out, list.Msg.GetTenants())
				}
				return a.printTenants(list.Msg.GetTenants())
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (a *app) printTenants(tenants []*firebreakv1.Tenant) error {
	rows := [][]string{{"ID", "SANDBOXES", "CPUS", "MEMORY", "CREATES/S", "CODE"}}
	for _, t := range tenants {
		l := t.GetLimits()
		memory := "-"
		if l.GetMemoryBytes() > 0 {
			memory = formatSize(l.GetMemoryBytes())
		}
		rows = append(rows, []string{t.GetId(), limited(float64(l.GetSandboxes())), limited(l.GetCpus()), memory, limited(l.GetCreatesPerSecond()), saidCode(t.GetWorkload())})
	}
	return a.printTable(rows)
}

// limited is a limit for people; 0 is none.
func limited(n float64) string {
	if n == 0 {
		return "-"
	}
	return strconv.FormatFloat(n, 'g', -1, 64)
}

// saidCode lists the words that are said of a tenant's code.
func saidCode(w *firebreakv1.Workload) string {
	var said []string
	for _, word := range []string{w.GetOrigin(), w.GetTenancy(), w.GetData(), strings.Join(w.GetNeeds(), " ")} {
		if word != "" {
			said = append(said, word)
		}
	}
	if len(said) == 0 {
		return "-"
	}
	return strings.Join(said, ", ")
}
