package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/aymanbagabas/go-udiff"
	"github.com/spf13/cobra"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/mcp/install"
)

type installFlags struct {
	print, yes bool
	command    string
}

func (a *app) mcpInstallCommand() *cobra.Command {
	f := &installFlags{}
	cmd := &cobra.Command{
		Use:   "install CLIENT [-- FLAGS OF firebreak mcp…]",
		Short: "Add Firebreak to an MCP client's configuration",
		Long: `Add Firebreak to an MCP client's configuration: ` + strings.Join(install.Names(), ", ") + `.
It shows the change and asks before it writes. All else in the file stays as it is; where that cannot be, nothing is written, and
the text to paste is shown.`,
		Example:   "  firebreak mcp install cursor\n  firebreak mcp install codex -- --workspace ~/project:ro\n  firebreak mcp install --print claude-desktop",
		Args:      arguments(1, -1, "say which client: firebreak mcp install CLIENT, one of "+strings.Join(install.Names(), ", ")),
		ValidArgs: install.Names(),
		RunE:      func(_ *cobra.Command, args []string) error { return a.installMCP(f, args[0], args[1:]) },
	}
	flags := cmd.Flags()
	flags.BoolVar(&f.print, "print", false, "print what to paste, and write nothing")
	flags.BoolVarP(&f.yes, "yes", "y", false, "write without asking")
	flags.StringVar(&f.command, "command", "", "`path` of the program that the client is to start (default: this one)")
	return cmd
}

func (a *app) installMCP(f *installFlags, name string, args []string) error {
	client, err := install.Find(name)
	if err != nil {
		return err
	}
	if err := a.checkMCPFlags(args); err != nil {
		return err
	}
	entry := install.Entry{Command: f.command, Args: append([]string{"mcp"}, args...)}
	if entry.Command == "" {
		if entry.Command, err = ownPath(); err != nil {
			return err
		}
	}
	places, err := a.places()
	if err != nil {
		return err
	}
	if f.print {
		_, err := fmt.Fprintf(a.out, "%s", client.Paste(entry))
		a.say(plain, "this goes into %s", client.Path(places))
		return err
	}
	change, err := client.Plan(places, entry)
	if firebreak.KindOf(err) == firebreak.KindState {
		_, printErr := io.WriteString(a.out, client.Paste(entry))
		if printErr != nil {
			return printErr
		}
		return err
	}
	if err != nil {
		return err
	}
	if change.Empty() {
		a.say(plain, "%s has it already: %s", client.Title, change.Path)
		return nil
	}
	if _, err := io.WriteString(a.out, udiff.Unified(change.Path, change.Path, string(change.Before), string(change.After))); err != nil {
		return err
	}
	if !f.yes {
		if err := a.confirm("Write this?"); err != nil {
			return err
		}
	}
	if err := change.Write(); err != nil {
		return err
	}
	a.say(plain, "it is in %s now. %s", change.Path, client.Note)
	return nil
}

// checkMCPFlags refuses flags that firebreak mcp does not take, before a client finds that out.
func (a *app) checkMCPFlags(args []string) error {
	cmd, _, err := (&app{lookupEnv: a.lookupEnv}).rootCommand().Find([]string{"mcp"})
	if err != nil {
		return err
	}
	if err := cmd.ParseFlags(args); err != nil {
		return flagError(cmd, err)
	}
	return cmd.ValidateArgs(cmd.Flags().Args())
}

// ownPath is where this program lies, for others to start it.
func ownPath() (string, error) {
	path, err := os.Executable()
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if err != nil {
		return "", invalid("", fmt.Errorf("find this program: %w", err), "name it with --command")
	}
	if strings.Contains(path, "/go-build") {
		return "", invalid("", errors.New("this program was built by go run and is gone when it ends"), "make one with `make build` and run bin/firebreak mcp install, or name one with --command")
	}
	return path, nil
}

func (a *app) places() (install.Places, error) {
	p := install.Places{Env: func(name string) string {
		value, _ := a.lookupEnv(name)
		return value
	}}
	var err error
	if p.Home, err = os.UserHomeDir(); err != nil {
		return p, invalid("", err, "set HOME")
	}
	if p.Config = p.Env("XDG_CONFIG_HOME"); !filepath.IsAbs(p.Config) {
		p.Config = filepath.Join(p.Home, ".config")
	}
	p.Work, err = os.Getwd()
	return p, err
}

// confirm asks for a yes. Who cannot be asked says it with --yes.
func (a *app) confirm(question string) error {
	if !isTerminal(a.in) || !isTerminal(a.errOut) {
		return invalid("", errors.New("nothing was written: nobody can be asked here"), "write it with --yes")
	}
	if _, err := fmt.Fprintf(a.errOut, "%s [y/N] ", question); err != nil {
		return err
	}
	answer, err := bufio.NewReader(a.in).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if word := strings.ToLower(strings.TrimSpace(answer)); word != "y" && word != "yes" {
		return invalid("", errors.New("nothing was written"), "")
	}
	return nil
}
