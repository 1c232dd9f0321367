package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"strings"
	"text/tabwriter"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/firebreak-dev/firebreak/client"
	firebreakv1 "github.com/firebreak-dev/firebreak/internal/api/firebreak/v1"
)

// maxCell is how much of a field a table shows on a terminal.
const maxCell = 48

// printTable prints rows aligned, the first as head; with --quiet only the first column, without head.
func (a *app) printTable(rows [][]string) error {
	t := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	narrow := isTerminal(a.out)
	for i, row := range rows {
		if a.quiet {
			if i > 0 {
				fmt.Fprintln(t, oneLine(row[0]))
			}
			continue
		}
		cells := make([]string, len(row))
		for j, cell := range row {
			cells[j] = oneLine(cell)
			if runes := []rune(cells[j]); narrow && len(runes) > maxCell {
				cells[j] = string(runes[:maxCell-1]) + "…"
			}
		}
		fmt.Fprintln(t, strings.TrimRight(strings.Join(cells, "\t"), "\t"))
	}
	return t.Flush() // the writes above only fill it
}

// age is how long ago t was: "3m".
func age(t *timestamppb.Timestamp) string {
	if t == nil || t.GetSeconds() <= 0 {
		return "-"
	}
	switch d := max(0, time.Since(t.AsTime())); {
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	default:
		return fmt.Sprintf("%dd", int(d.Hours())/24)
	}
}

// messageJSON is m as indented JSON with the names of the protocol. protojson varies its spaces on purpose; ours do not.
func messageJSON(m proto.Message) ([]byte, error) {
	data, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	err = json.Indent(&out, data, "", "  ")
	return out.Bytes(), err
}

func printMessage(w io.Writer, m proto.Message) error {
	data, err := messageJSON(m)
	if err != nil {
		return err
	}
	_, err = w.Write(append(data, '\n'))
	return err
}

// printMessages prints a JSON array.
func printMessages[M proto.Message](w io.Writer, list []M) error {
	array := make([]json.RawMessage, len(list))
	for i, m := range list {
		data, err := messageJSON(m)
		if err != nil {
			return err
		}
		array[i] = data
	}
	data, err := json.MarshalIndent(array, "", "  ")
	if err != nil {
		return err
	}
	_, err = w.Write(append(data, '\n'))
	return err
}

// arguments checks the number of arguments; most -1 is no bound.
func arguments(least, most int, mend string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		switch {
		case len(args) < least:
			return invalid("", errors.New("an argument is missing"), mend)
		case most >= 0 && len(args) > most:
			return invalid("", fmt.Errorf("unexpected argument %q", args[most]), mend)
		}
		return nil
	}
}

// completionTime bounds how long the shell waits for a completion.
const completionTime = 3 * time.Second

// complete asks the server for names. Completion has no way to tell an error but to offer nothing.
func (a *app) complete(cmd *cobra.Command, names func(context.Context, *client.Client) ([]string, error)) ([]string, cobra.ShellCompDirective) {
	a.readEnvironment()
	a.quiet = true
	ctx := cmd.Context()
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, cancel := context.WithTimeout(ctx, completionTime)
	defer cancel()
	var found []string
	err := a.with(ctx, func(ctx context.Context, c *client.Client) (err error) {
		found, err = names(ctx, c)
		return err
	})
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return found, cobra.ShellCompDirectiveNoFileComp
}

func (a *app) completeSandboxes(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.complete(cmd, func(ctx context.Context, c *client.Client) ([]string, error) {
		list, err := c.Sandboxes.ListSandboxes(ctx, connect.NewRequest(&firebreakv1.ListSandboxesRequest{}))
		if err != nil {
			return nil, err
		}
		var names []string
		for _, sb := range list.Msg.GetSandboxes() {
			names = append(names, cobra.CompletionWithDesc(sb.GetId(), oneLine(sb.GetState()+" "+sb.GetCommand())))
			if sb.GetName() != "" {
				names = append(names, cobra.CompletionWithDesc(oneLine(sb.GetName()), oneLine(sb.GetState()+" "+sb.GetCommand())))
			}
		}
		return names, nil
	})
}

func (a *app) completeTemplates(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.complete(cmd, func(ctx context.Context, c *client.Client) ([]string, error) {
		list, err := c.Templates.ListTemplates(ctx, connect.NewRequest(&firebreakv1.ListTemplatesRequest{}))
		if err != nil {
			return nil, err
		}
		var names []string
		for _, t := range list.Msg.GetTemplates() {
			names = append(names, oneLine(t.GetName()))
		}
		return names, nil
	})
}

func (a *app) versionCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version of firebreak and of the gVisor in it",
		Args:  arguments(0, 0, "firebreak version takes no arguments"),
		RunE: func(*cobra.Command, []string) error {
			if asJSON {
				return json.NewEncoder(a.out).Encode(versionOf(buildInfo()))
			}
			_, err := fmt.Fprintln(a.out, versionOf(buildInfo()))
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

type version struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"`
	Go       string `json:"go"`
	GVisor   string `json:"gvisor"`
}

func (v version) String() string {
	return fmt.Sprintf("firebreak %s (%s, gVisor %s)", v.Version, v.Go, v.GVisor)
}

// buildInfo is nil in a binary that was built without modules.
func buildInfo() *debug.BuildInfo {
	info, _ := debug.ReadBuildInfo()
	return info
}

func versionOf(info *debug.BuildInfo) version {
	v := version{Version: "unknown", Go: "unknown", GVisor: "not linked in"}
	if info == nil {
		return v
	}
	v.Go = info.GoVersion
	if info.Main.Version != "" {
		v.Version = info.Main.Version
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			v.Revision = s.Value
		}
	}
	for _, d := range info.Deps {
		if d.Path == "gvisor.dev/gvisor" {
			v.GVisor = d.Version
		}
	}
	return v
}
