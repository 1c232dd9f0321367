package cli

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"unicode"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/firebreak-dev/firebreak"
)

// exitError carries the exit status of a program through cobra. What there was to say has been said.
type exitError struct{ code int }

func (e *exitError) Error() string { return fmt.Sprintf("exit status %d", e.code) }

func exit(code int) error {
	if code == 0 {
		return nil
	}
	return &exitError{code}
}

// report prints err as one line and returns the exit status.
func (a *app) report(cmd *cobra.Command, err error) int {
	if err == nil {
		return 0
	}
	var done *exitError
	if errors.As(err, &done) {
		return done.code
	}
	a.say(red, "%s", errorLine(cmd, err))
	return exitCode(err)
}

// exitCode is what the shell is told of an error of ours.
func exitCode(err error) int {
	var coded interface{ ExitCode() int }
	if errors.As(err, &coded) {
		return coded.ExitCode()
	}
	return firebreak.KindOf(err).Edge().Exit
}

// errorLine is "<op>: <what>; <mend>" on one line. Parts of it may come from a sandbox, so nothing in it may steer the
// terminal.
func errorLine(cmd *cobra.Command, err error) string {
	text := err.Error()
	if e, ok := err.(*firebreak.Error); ok && e.Mend != "" {
		text = strings.TrimSuffix(text, "; to mend it: "+e.Mend) + "; " + e.Mend
	} else {
		text = strings.Replace(text, "; to mend it: ", "; ", 1)
	}
	if cmd != nil && cmd.HasParent() {
		op := strings.TrimPrefix(cmd.CommandPath(), cmd.Root().Name()+" ")
		if !strings.HasPrefix(text, op+": ") {
			text = op + ": " + text
		}
	}
	return oneLine(text)
}

// oneLine makes text from anywhere safe to print on a line of its own.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case unicode.IsPrint(r):
			return r
		}
		return unicode.ReplacementChar
	}, strings.TrimSpace(s))
	return strings.Join(strings.Fields(s), " ")
}

type color string

const (
	plain  color = ""
	red    color = "\x1b[1;31m"
	yellow color = "\x1b[1;33m"
)

// say prints one line of ours to standard error.
func (a *app) say(c color, format string, args ...any) {
	prefix, end := "firebreak:", "\n"
	if c != plain && a.colored(a.errOut) {
		prefix = string(c) + prefix + "\x1b[0m"
	}
	if a.terminal.Load() != nil {
		end = "\r\n"
	}
	fmt.Fprint(a.errOut, prefix, " ", oneLine(fmt.Sprintf(format, args...)), end) // nobody is left to tell if this fails
}

func (a *app) warn(format string, args ...any) {
	if !a.quiet {
		a.say(yellow, "warning: "+format, args...)
	}
}

// flagError makes pflag's errors ours, with the nearest flag for an unknown one.
func flagError(cmd *cobra.Command, err error) error {
	if errors.Is(err, pflag.ErrHelp) {
		return err
	}
	var unknown *pflag.NotExistError
	var value *pflag.InvalidValueError
	mend := "see " + cmd.CommandPath() + " --help"
	switch {
	case errors.As(err, &value):
		what := fmt.Errorf("--%s %q: %w", value.GetFlag().Name, value.GetValue(), value.Unwrap())
		return invalid("", what, mendOf(value.Unwrap(), mend))
	case errors.As(err, &unknown):
		if shorts := unknown.GetSpecifiedShortnames(); shorts != "" {
			what := fmt.Errorf("unknown flag -%s", unknown.GetSpecifiedName())
			return invalid("", what, shortMend(cmd, unknown.GetSpecifiedName(), mend))
		}
		if near := nearest("--"+unknown.GetSpecifiedName(), flagNames(cmd)); near != "" {
			mend = "did you mean " + near + "?"
		}
		return invalid("", fmt.Errorf("unknown flag --%s", unknown.GetSpecifiedName()), mend)
	}
	return invalid("", err, mend)
}

// shortMend knows the letters that other tools have taught people.
func shortMend(cmd *cobra.Command, letter, otherwise string) string {
	long := map[string]string{"m": "memory", "c": "cpus", "n": "name", "o": "output", "T": "timeout"}[letter]
	if long != "" && cmd.Flags().Lookup(long) != nil {
		return "did you mean --" + long + "?"
	}
	return otherwise
}

func flagNames(cmd *cobra.Command) []string {
	var names []string
	add := func(f *pflag.Flag) {
		if !f.Hidden {
			names = append(names, "--"+f.Name)
		}
	}
	cmd.Flags().VisitAll(add)
	cmd.InheritedFlags().VisitAll(add)
	return names
}

func mendOf(err error, otherwise string) string {
	var e *firebreak.Error
	if errors.As(err, &e) && e.Mend != "" {
		return e.Mend
	}
	return otherwise
}

func unknownCommand(root *cobra.Command, args []string) error {
	what := fmt.Errorf("unknown command %q", args[0])
	if near := root.SuggestionsFor(args[0]); len(near) > 0 {
		return invalid("", what, "did you mean "+root.Name()+" "+near[0]+"?")
	}
	if _, err := os.Stat(args[0]); err == nil {
		return invalid("", what, "to run that file: "+root.Name()+" run "+strings.Join(args, " "))
	}
	return invalid("", what, "to run a program: "+root.Name()+" run -- "+strings.Join(args, " "))
}

// nearest returns the candidate that differs least from word, "" if none is near.
func nearest(word string, candidates []string) string {
	best, bound := "", 1+len(word)/3
	for _, c := range candidates {
		if d := distance(word, c, bound); d <= bound {
			best, bound = c, d-1
		}
	}
	return best
}

// distance is the number of letters to insert, remove or change to get from a to b (Levenshtein); over bound, any number
// over bound.
func distance(a, b string, bound int) int {
	if diff := len(a) - len(b); diff > bound || -diff > bound {
		return bound + 1
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}
