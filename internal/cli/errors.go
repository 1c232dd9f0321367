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

// errorText is an error of ours without what was being done, for who has just done it.
func errorText(err error) string {
	var e *firebreak.Error
	if !errors.As(err, &e) {
		return err.Error()
	}
	if e.Mend == "" {
		return e.Err.Error()
	}
	return e.Err.Error() + "; " + e.Mend
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
	green  color = "\x1b[1;32m"
	bold   color = "\x1b[1m"
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
		cause := value.Unwrap()
		if e := new(firebreak.Error); errors.As(cause, &e) {
			cause, mend = e.Err, e.Mend
		}
		return invalid("", fmt.Errorf("--%s %q: %w", value.GetFlag().Name, value.GetValue(), cause), mend)
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

// nearCommand returns the subcommand that is meant, "" if none is near. Of two that are equally near it is the one whose
// name it is, not one that has it as an alias: "rum" is run, and not rm, which is kill.
func nearCommand(parent *cobra.Command, word string) string {
	byName, names, aliases := map[string]string{}, []string{}, []string{}
	for _, c := range parent.Commands() {
		if !c.IsAvailableCommand() {
			continue
		}
		names, aliases = append(names, c.Name()), append(aliases, c.Aliases...)
		for _, name := range append([]string{c.Name()}, c.Aliases...) {
			byName[name] = c.Name()
		}
	}
	return byName[nearest(word, append(names, aliases...))]
}

func unknownCommand(root *cobra.Command, args []string) error {
	what := fmt.Errorf("unknown command %q", args[0])
	if near := nearCommand(root, args[0]); near != "" {
		return invalid("", what, "did you mean "+root.Name()+" "+near+"?")
	}
	if _, err := os.Stat(args[0]); err == nil {
		return invalid("", what, "to run that file: "+root.Name()+" run "+strings.Join(args, " "))
	}
	return invalid("", what, "to run a program: "+root.Name()+" run -- "+strings.Join(args, " "))
}

// nearest returns the candidate that differs least from word, "" if none is near.
func nearest(word string, candidates []string) string {
	if len(word) > 64 {
		return "" // nobody's typing
	}
	best, bound := "", 0
	if len(word) > 2 { // two letters are near to too many words
		bound = 1 + len(word)/3
	}
	for _, c := range candidates {
		if d := distance(word, c, bound); d <= bound {
			best, bound = c, d-1
		}
	}
	return best
}

// distance is the number of letters to insert, remove, change or swap to get from a to b; over bound, any number over
// bound.
func distance(a, b string, bound int) int {
	if diff := len(a) - len(b); diff > bound || -diff > bound {
		return bound + 1
	}
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			change := rows[i-1][j-1]
			if a[i-1] != b[j-1] {
				change++
			}
			rows[i][j] = min(change, rows[i-1][j]+1, rows[i][j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}
