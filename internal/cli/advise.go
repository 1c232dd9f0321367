package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/firebreak-dev/firebreak/client"
	firebreakv1 "github.com/firebreak-dev/firebreak/internal/api/firebreak/v1"
)

// statusNo is the exit status of a question whose answer is no: nothing may be chosen, a case fails, a host lacks
// something. Firebreak itself did not fail.
const statusNo = 1

type adviseFlags struct {
	workloadFlags
	timeout        durationFlag
	template, lang string
	json, explain  bool
}

func (a *app) adviseCommand() *cobra.Command {
	f := &adviseFlags{}
	cmd := &cobra.Command{
		Use:   "advise",
		Short: "Say what code must run behind on this host, and why",
		Long: `Say what code must run behind on this host, and why, without running anything. What you do not say about the code is
taken to be the careful word. On a terminal and without flags about the code it asks.

The exit status is 0 if something was chosen and 1 if nothing may be.`,
		Example: "  firebreak advise\n  firebreak advise --origin trusted --needs linux,file-io\n  firebreak advise --tenancy multi --explain",
		Args:    arguments(0, 0, "firebreak advise takes no arguments, only flags"),
	}
	f.add(cmd)
	cmd.Flags().Var(&f.timeout, "timeout", "the sandbox would be destroyed after this `time`, like 30s or 5m")
	cmd.Flags().StringVar(&f.template, "template", "", "the sandbox would start from this `template` (default host, or the language's)")
	cmd.Flags().StringVar(&f.lang, "lang", "", "the code is written in this `language`")
	complete(cmd, "lang", languageNames())
	_ = cmd.RegisterFlagCompletionFunc("template", a.completeTemplates) // fails only for a flag that does not exist
	cmd.Flags().BoolVar(&f.json, "json", false, "print JSON")
	cmd.Flags().BoolVar(&f.explain, "explain", false, "print every rule, every duty and why not the others")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := f.check(); err != nil {
			return err
		}
		workload := f.message()
		if !f.said() && !f.json && isTerminal(a.in) && isTerminal(a.errOut) {
			if err := a.askWorkload(cmd.Context(), workload); err != nil {
				return err
			}
		}
		return a.advise(cmd.Context(), f, workload)
	}
	return cmd
}

func (a *app) advise(ctx context.Context, f *adviseFlags, workload *firebreakv1.Workload) error {
	req := &firebreakv1.AdviseRequest{Workload: workload, Driver: f.isolation, AcceptWeaker: f.acceptWeaker,
		Template: f.template, Language: f.lang}
	if l := languageByName(f.lang); f.lang != "" && l != nil {
		req.Language = l.names[0]
	}
	if f.timeout > 0 {
		req.TimeLimit = durationpb.New(time.Duration(f.timeout))
	}
	return a.with(ctx, func(ctx context.Context, c *client.Client) error {
		stop := a.waiting("trying the drivers")
		got, err := c.Policy.Advise(ctx, connect.NewRequest(req))
		stop()
		if err != nil {
			return err
		}
		d := got.Msg.GetDecision()
		if f.json {
			err = printMessage(a.out, d)
		} else {
			err = a.printDecision(d, f.explain)
		}
		if err == nil && d.GetDriver() == "" {
			err = exit(statusNo)
		}
		return err
	})
}

// printDecision is for people: what was chosen, for what, by which rules; with explain all that is known.
func (a *app) printDecision(d *firebreakv1.Decision, explain bool) error {
	head := [][]cell{{{text: "chosen"}, {text: d.GetDriver() + " (" + d.GetBoundary() + ")", color: green}}}
	if r := d.GetRefusal(); r != nil {
		head = [][]cell{{{text: "refused"}, {text: r.GetText(), color: red}}}
		if r.GetMend() != "" {
			head = append(head, cells("to mend it", r.GetMend()))
		}
	}
	if o := d.GetOverride(); o != nil {
		head = append(head, []cell{{text: "although"}, {text: "it is weaker than the policy accepts, by rule " + joined(o.GetRules(), "none"), color: yellow}},
			cells("because", o.GetWhy()))
	}
	head = append(head, cells("for", saidOf(d.GetWorkload())))
	for _, s := range d.GetDefaults() {
		head = append(head, cells("", fmt.Sprintf("%s %s was taken, as %s", s.GetFact(), s.GetValue(), s.GetReason())))
	}
	head = append(head, cells("acceptable", joined(d.GetDrivers(), "nothing")), cells("policy", d.GetPolicy()))
	if missing := notEnforced(d); len(missing) > 0 && d.GetDriver() != "" && !explain {
		head = append(head, []cell{{text: "not enforced"}, {text: joined(missing, ""), color: yellow}})
	}
	if err := a.section("", head); err != nil {
		return err
	}
	if !explain {
		return a.section("Rules that fired", traceRows(d, false))
	}
	return errors.Join(a.section("Rules", traceRows(d, true)), a.section("Duties", dutyRows(d)), a.section("Not chosen", otherRows(d)))
}

func notEnforced(d *firebreakv1.Decision) []string {
	var list []string
	for _, s := range d.GetDuties() {
		if slices.Contains([]string{"not-enforced-yet", "waived"}, s.GetStatus()) {
			list = append(list, s.GetDuty())
		}
	}
	return list
}

func traceRows(d *firebreakv1.Decision, all bool) [][]cell {
	var rows [][]cell
	for _, s := range d.GetTrace() {
		switch {
		case s.GetError() != "":
			rows = append(rows, []cell{{text: s.GetRule()}, {text: s.GetWhen()}, {text: s.GetError(), color: red}})
		case all && s.GetFired():
			rows = append(rows, []cell{{text: s.GetRule(), color: green}, {text: "fired", color: green}, {text: s.GetReason()}})
		case all:
			rows = append(rows, cells(s.GetRule(), "-", "when "+s.GetWhen()))
		case s.GetFired() && s.GetWhen() != "true":
			rows = append(rows, cells(s.GetRule(), s.GetReason()))
		}
	}
	return rows
}

func dutyRows(d *firebreakv1.Decision) [][]cell {
	var rows [][]cell
	for _, s := range d.GetDuties() {
		c := yellow
		if s.GetStatus() == "enforced" {
			c = green
		}
		rows = append(rows, []cell{{text: s.GetDuty()}, {text: s.GetStatus(), color: c}, {text: s.GetText() + " (rule " + joined(s.GetRules(), "") + ")"}})
	}
	return rows
}

func otherRows(d *firebreakv1.Decision) [][]cell {
	var rows [][]cell
	for _, o := range d.GetOthers() {
		text := strings.TrimSuffix(o.GetText(), ".") + "."
		switch p := o.GetProblem(); {
		case len(o.GetRules()) > 0:
			text += " (rule " + joined(o.GetRules(), "") + ")"
		case p.GetMend() != "":
			text += " To have it: " + p.GetMend() + "."
		}
		rows = append(rows, cells(o.GetDriver(), o.GetBoundary(), text))
	}
	return rows
}
