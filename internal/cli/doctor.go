package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/firebreak-dev/firebreak/client"
	firebreakv1 "github.com/firebreak-dev/firebreak/internal/api/firebreak/v1"
)

func (a *app) doctorCommand() *cobra.Command {
	var asJSON, fresh bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say what this host can isolate with, and what is missing",
		Long: `Say what this host can isolate with, and what is missing. Nothing is believed: each driver makes a sandbox, and a guest is
booted through /dev/kvm. What was found is kept until the host boots again, what did not work for three minutes.

The exit status is 0 if the built-in policy can serve code that a model wrote for one tenant, and trusted code; else 1.`,
		Args: arguments(0, 0, "firebreak doctor takes no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			report, err := a.doctor(cmd.Context(), fresh)
			if err != nil {
				return err
			}
			if asJSON {
				err = printMessage(a.out, report)
			} else {
				err = a.printReport(report)
			}
			if err == nil && len(unserved(report)) > 0 {
				err = exit(statusNo)
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&fresh, "fresh", false, "try everything anew")
	return cmd
}

// doctor returns the server's report, and shows meanwhile what it is about to try.
func (a *app) doctor(ctx context.Context, fresh bool) (report *firebreakv1.Report, err error) {
	err = a.with(ctx, func(ctx context.Context, c *client.Client) error {
		stream, err := c.Host.Doctor(ctx, connect.NewRequest(&firebreakv1.DoctorRequest{Fresh: fresh}))
		if err != nil {
			return err
		}
		defer stream.Close()
		stop := a.waiting("asking the server")
		defer func() { stop() }()
		for stream.Receive() {
			if p := stream.Msg().GetProgress(); p != nil {
				stop()
				stop = a.waiting(oneLine(p.GetStep()))
			}
			if r := stream.Msg().GetReport(); r != nil {
				report = r
			}
		}
		if err := stream.Err(); err != nil {
			return err
		}
		if report == nil {
			return errors.New("the server ended before the report was made")
		}
		return nil
	})
	return report, err
}

func unserved(r *firebreakv1.Report) []*firebreakv1.CommonCase {
	var list []*firebreakv1.CommonCase
	for _, c := range r.GetCases() {
		if c.GetDecision().GetDriver() == "" {
			list = append(list, c)
		}
	}
	return list
}

func (a *app) printReport(r *firebreakv1.Report) error {
	drivers := [][]cell{cells("DRIVER", "BOUNDARY", "HERE", "TRIED", "VERSION")}
	var notes [][]cell
	for _, d := range r.GetDrivers() {
		state := cell{"healthy", green}
		if !d.GetHealthy() {
			state = cell{"not usable", red}
		}
		drivers = append(drivers, []cell{{text: d.GetName()}, {text: d.GetBoundary()}, state, {text: tried(d)}, {text: d.GetVersion()}})
		for _, p := range d.GetProblems() {
			notes = append(notes, []cell{{d.GetName(), red}, {text: mended(p)}})
		}
		for _, p := range d.GetWarnings() {
			notes = append(notes, []cell{{d.GetName(), yellow}, {text: mended(p)}})
		}
	}
	return errors.Join(a.section("", drivers), a.section("To know", notes), a.section("Host", hostRows(r.GetHost())), a.section("Common cases", caseRows(r)))
}

func tried(d *firebreakv1.DriverReport) string {
	text := "now"
	if d.GetCached() {
		text = age(d.GetTriedAt()) + " ago"
	}
	return fmt.Sprintf("%s, in %d ms", text, d.GetTook().AsDuration().Round(time.Millisecond).Milliseconds())
}

func mended(p *firebreakv1.Problem) string {
	if p.GetMend() == "" {
		return p.GetText()
	}
	return p.GetText() + "; to mend it: " + p.GetMend()
}

func hostRows(h *firebreakv1.Host) [][]cell {
	disk := h.GetStateDisk()
	rows := [][]cell{
		cells("kernel", h.GetKernel()+" "+h.GetArch()),
		cells("processors", fmt.Sprint(h.GetCpus())),
		cells("memory", percent(h.GetMemoryFreeBytes(), h.GetMemoryBytes())),
		cells("disk", percent(disk.GetFreeBytes(), disk.GetTotalBytes())+" in "+disk.GetPath()),
		cells("cgroups", h.GetCgroups()),
		{{text: "user namespaces"}, stateOf(h.GetUserNamespaces(), yesNo(h.GetUserNamespaces()))},
		cells("security modules", joined(h.GetLsms(), "none")),
		cells("GPU", joined(h.GetGpus(), "none")),
		{{text: "KVM"}, stateOf(h.GetKvm().GetUsable(), kvmText(h.GetKvm()))},
	}
	for _, p := range h.GetProblems() {
		rows = append(rows, []cell{{"problem", yellow}, {text: mended(p)}})
	}
	return rows
}

func stateOf(good bool, text string) cell {
	if good {
		return cell{text, green}
	}
	return cell{text, yellow}
}

func kvmText(k *firebreakv1.Host_KVM) string {
	text := "usable: a guest was booted"
	switch {
	case !k.GetUsable() && k.GetPresent():
		text = "present, not usable: " + k.GetDetail()
	case !k.GetUsable():
		text = "absent: " + k.GetDetail()
	case k.GetDetail() != "":
		text = "usable: " + k.GetDetail()
	}
	if !k.GetUsable() && k.GetMend() != "" {
		text += "; to mend it: " + k.GetMend()
	}
	return text
}

func caseRows(r *firebreakv1.Report) [][]cell {
	var rows [][]cell
	for _, c := range r.GetCases() {
		d := c.GetDecision()
		row := []cell{{text: c.GetName()}, {d.GetDriver() + " (" + d.GetBoundary() + ")", green}}
		if d.GetDriver() == "" {
			row[1] = cell{"not served: " + d.GetRefusal().GetText() + "; to mend it: " + d.GetRefusal().GetMend(), red}
		}
		rows = append(rows, row)
	}
	return rows
}
