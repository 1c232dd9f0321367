package cli

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/firebreak-dev/firebreak"
)

// deciding are the flags of firebreak run that decide what code runs behind and what it may have. They may also stand
// right after the file that is run. The others may not: programs have flags such as --verbose, --output and -e, too.
func (f *runFlags) deciding(flags *pflag.FlagSet) *pflag.FlagSet {
	set := pflag.NewFlagSet("deciding", pflag.ContinueOnError)
	set.AddFlagSet(f.workloadFlags.set)
	for _, name := range []string{"allow", "exclusive", "option", "cpus", "memory", "disk", "pids", "timeout"} {
		set.AddFlag(flags.Lookup(name))
	}
	return set
}

// takeAfter reads the flags of ours that follow the file in args, and returns args without them. The first word that is none
// begins the program's own, and so does --, which is left out. Whether another flag of ours after the first would be the
// program's, nobody could tell; so that is refused.
func (f *runFlags) takeAfter(cmd *cobra.Command, args []string) ([]string, error) {
	set, at := f.deciding(cmd.Flags()), 1
	for at < len(args) && args[at] != "--" {
		name, _, whole := strings.Cut(strings.TrimPrefix(args[at], "--"), "=")
		flag := set.Lookup(name)
		if flag == nil || !strings.HasPrefix(args[at], "--") {
			break
		}
		if at++; !whole && flag.NoOptDefVal == "" {
			at++ // its value
		}
	}
	at = min(at, len(args))
	if err := set.Parse(args[1:at]); err != nil {
		return nil, afterError(flagError(cmd, err), args)
	}
	rest := args[at:]
	switch {
	case len(rest) > 0 && rest[0] == "--":
		rest = rest[1:]
	case at > 1 && len(rest) > 0 && strings.HasPrefix(rest[0], "--"):
		word, _, _ := strings.Cut(rest[0], "=")
		if contains(flagNames(cmd), word) {
			return nil, invalid("", fmt.Errorf("%s after %s could be a flag of firebreak or of the program", word, args[0]),
				"write it before "+args[0]+", or -- before what is the program's own")
		}
	}
	return append([]string{args[0]}, rest...), nil
}

// afterError is an error of a flag after the file, which may have been meant for the program.
func afterError(err error, args []string) error {
	var e *firebreak.Error
	if !errors.As(err, &e) {
		return err
	}
	return &firebreak.Error{Kind: e.Kind, Err: e.Err, Mend: fmt.Sprintf("%s (if it is for the program: firebreak run %s -- %s)",
		e.Mend, args[0], strings.Join(args[1:], " "))}
}
