package cli

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/firebreak-dev/firebreak"
)

const (
	docsFile   = "../../docs/cli.md"
	docsMarker = "<!-- What follows is made by: FIREBREAK_UPDATE=1 go test ./internal/cli -run TestDocs -->\n"
)

// describe writes what --help says of a command and those below it.
func describe(b *strings.Builder, cmd *cobra.Command) {
	if !cmd.IsAvailableCommand() || cmd.Name() == "completion" || cmd.Name() == "help" {
		return
	}
	if cmd.HasParent() {
		about := cmd.Long
		if about == "" {
			about = cmd.Short + "."
		}
		fmt.Fprintf(b, "\n## %s\n\n%s\n\n    %s\n", cmd.CommandPath(), about, cmd.UseLine())
		if cmd.Example != "" {
			fmt.Fprintf(b, "\nExamples:\n\n```sh\n%s\n```\n", strings.ReplaceAll(strings.TrimPrefix(cmd.Example, "  "), "\n  ", "\n"))
		}
		cmd.InitDefaultHelpFlag()
		if flags := cmd.LocalNonPersistentFlags().FlagUsages(); cmd.Runnable() && strings.Count(flags, "\n") > 1 {
			fmt.Fprintf(b, "\n```\n%s```\n", flags)
		}
	}
	for _, child := range cmd.Commands() {
		describe(b, child)
	}
}

func TestDocsAreUpToDate(t *testing.T) {
	root := (&app{}).rootCommand()
	var made strings.Builder
	fmt.Fprintf(&made, "\n## Flags of all commands\n\n```\n%s```\n", root.PersistentFlags().FlagUsages())
	describe(&made, root)
	have, err := os.ReadFile(docsFile)
	if err != nil {
		t.Fatal(err)
	}
	byHand, generated, found := strings.Cut(string(have), docsMarker)
	if !found {
		t.Fatalf("%s has lost the line %q", docsFile, docsMarker)
	}
	if os.Getenv("FIREBREAK_UPDATE") != "" {
		if err := os.WriteFile(docsFile, []byte(byHand+docsMarker+made.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if generated != made.String() {
		t.Errorf("%s is out of date: run FIREBREAK_UPDATE=1 go test ./internal/cli -run TestDocs", docsFile)
	}
}

func TestDocsNameEveryExitStatus(t *testing.T) {
	have, err := os.ReadFile(docsFile)
	if err != nil {
		t.Fatal(err)
	}
	for k := firebreak.KindInternal; k <= firebreak.KindUnavailable; k++ {
		if row := fmt.Sprintf("\n| %d |", k.Edge().Exit); !strings.Contains(string(have), row) {
			t.Errorf("%s says nothing of exit status %d (%s)", docsFile, k.Edge().Exit, k)
		}
	}
}
