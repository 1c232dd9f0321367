package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/firebreak-dev/firebreak"
)

// MCPOptions say what the sandboxes of an MCP client are like.
type MCPOptions struct {
	Template     string
	Workload     firebreak.Workload
	Isolation    string // driver; empty: the policy chooses
	AcceptWeaker string // why Isolation may be weaker than the policy accepts
	Limits       firebreak.Limits
	Workspace    string        // directory of this host that is shared; empty: none
	ReadOnly     bool          // it is not to be written
	Idle         time.Duration // how long a sandbox that no tool uses lives; 0: the default
}

// MCP serves one MCP client on two streams, with a server inside this process, until the client goes away or ctx is done.
// The sandboxes end with it. It closes both streams.
type MCP func(ctx context.Context, server ServerOptions, opts MCPOptions, in io.ReadCloser, out io.WriteCloser) error

type mcpFlags struct {
	workloadFlags
	template, workspace string
	cpus                float64
	memory, disk        sizeFlag
	pids                int64
	idle                durationFlag
}

func (a *app) mcpCommand() *cobra.Command {
	f := &mcpFlags{}
	cmd := &cobra.Command{
		Use:   "mcp",
		Short: "Give an MCP client a sandbox to run code in",
		Long: `Speak the Model Context Protocol on standard input and output, for the chat program or coding agent that started this. Its
model gets tools to run code and commands, to read and write files and more, in a sandbox that is made when it is first
needed and ends with the client. Nothing of this host is visible in it but what --workspace shares.`,
		Example: "  firebreak mcp\n  firebreak mcp --workspace ~/project:ro\n  firebreak mcp --template python:3.13 --memory 2g",
		Args:    arguments(0, 0, "firebreak mcp takes no arguments, only flags; firebreak mcp install CLIENT writes a client's configuration"),
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.mcp(cmd.Context(), f) },
	}
	f.workloadFlags.add(cmd)
	flags := cmd.Flags()
	flags.StringVar(&f.template, "template", "", "`template`, registry reference or path to start from (default host)")
	flags.StringVar(&f.workspace, "workspace", "", "share this directory as /workspace: `dir[:ro]`")
	flags.Float64Var(&f.cpus, "cpus", 0, "processors, fractions allowed")
	flags.Var(&f.memory, "memory", "memory of all programs together, like 512m or 1g")
	flags.Var(&f.disk, "disk", "what may be written to the file system, like 1g")
	flags.Int64Var(&f.pids, "pids", 0, "processes and threads")
	flags.Var(&f.idle, "idle", "end a sandbox that no tool has used for this `time` (default 20m)")
	cmd.AddCommand(a.mcpInstallCommand())
	return cmd
}

func (a *app) mcp(ctx context.Context, f *mcpFlags) error {
	if a.server != "" {
		return invalid("", errors.New("firebreak mcp has its server inside this process, and --server (or FIREBREAK_SERVER) names another one"),
			"leave it out, or have the client speak HTTP to that server: its address, and /mcp")
	}
	opts, err := f.options()
	if err != nil {
		return err
	}
	if a.speakMCP == nil {
		return errors.New("this program cannot speak MCP")
	}
	in, err := newInputReader(a.in)
	if err != nil {
		return err
	}
	defer in.Close()
	return a.speakMCP(ctx, a.serverOptions(), opts, mcpInput{in}, mcpOutput{a.out})
}

// mcpInput can be closed while it is read.
type mcpInput struct{ *inputReader }

func (i mcpInput) Close() error {
	i.Stop()
	return nil
}

// mcpOutput is this process's, and stays open.
type mcpOutput struct{ io.Writer }

func (mcpOutput) Close() error { return nil }

func (f *mcpFlags) options() (MCPOptions, error) {
	opts := MCPOptions{Template: f.template, Isolation: f.isolation, AcceptWeaker: f.acceptWeaker, Idle: time.Duration(f.idle),
		Limits: firebreak.Limits{CPUs: f.cpus, Memory: int64(f.memory), Disk: int64(f.disk), PIDs: f.pids}}
	err := f.check()
	if err == nil {
		opts.Workload, err = f.workload()
	}
	if err == nil {
		opts.Workspace, opts.ReadOnly, err = parseWorkspace(f.workspace)
	}
	if err == nil && f.idle != 0 && opts.Idle < time.Minute {
		err = invalid("", fmt.Errorf("--idle %s is less than a minute", opts.Idle), "give it more")
	}
	return opts, err
}

// workload is what is said of the code.
func (f *workloadFlags) workload() (firebreak.Workload, error) {
	w := firebreak.Workload{GPU: f.gpu, Plugin: f.plugin, Audit: f.audit, StartWithin: firebreak.Duration(f.startWithin)}
	for _, word := range f.words {
		var err error
		switch said := []byte(word.value); word.fact.flag {
		case "origin":
			err = w.Origin.UnmarshalText(said)
		case "tenancy":
			err = w.Tenancy.UnmarshalText(said)
		case "data":
			err = w.Data.UnmarshalText(said)
		case "orchestrator":
			err = w.Orchestrator.UnmarshalText(said)
		case "place":
			err = w.Place.UnmarshalText(said)
		}
		if err != nil {
			return w, err
		}
	}
	var err error
	w.Needs, err = firebreak.ReadNeeds(f.needs...)
	return w, err
}

// parseWorkspace reads dir[:ro].
func parseWorkspace(s string) (dir string, readOnly bool, err error) {
	const mend = "write it like --workspace ./project or --workspace ./project:ro"
	if s == "" {
		return "", false, nil
	}
	dir, readOnly = strings.CutSuffix(s, ":ro")
	if dir == "" || strings.ContainsRune(dir, 0) {
		return "", false, invalid("", fmt.Errorf("--workspace %q is not dir[:ro]", s), mend)
	}
	if rest, home := strings.CutPrefix(dir, "~/"); home {
		base, err := os.UserHomeDir()
		if err != nil {
			return "", false, invalid("", fmt.Errorf("--workspace %q: %w", s, err), mend)
		}
		dir = filepath.Join(base, rest)
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return "", false, invalid("", fmt.Errorf("--workspace %q: %w", s, err), mend)
	}
	fi, err := os.Stat(dir)
	if err != nil || !fi.IsDir() {
		return "", false, invalid("", fmt.Errorf("--workspace %s is no directory", dir), "make it first")
	}
	return dir, readOnly, nil
}
