// Package step reads what describes a build: its steps, the values in them, and the archives that go with them. All of it
// comes from clients and is hostile; nothing here runs anything or reaches a file.
package step

import (
	"encoding/json"
	"fmt"
	"path"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/firebreak-dev/firebreak"
)

// Raw is a step as the client sent it.
type Raw struct {
	Type      string // COPY, RUN, ENV, WORKDIR or USER
	Args      []string
	FilesHash string // COPY: which upload
	Force     bool   // this step, and so all after it, run although they were kept
}

const (
	maxSteps    = 200
	maxArgs     = 400       // of one step: 200 variables
	maxArg      = 120 << 10 // bytes; one argument of a program may have 128 KiB
	maxVariable = 256       // bytes of a variable's name
	maxShown    = 200       // bytes of a step in the log
)

// MaxText bounds the arguments of all steps together, and the variables of a template: bytes.
const MaxText = 1 << 20

// MaxPath bounds a path: bytes.
const MaxPath = 4096

// The kinds of steps.
const (
	KindCopy    = "COPY"
	KindRun     = "RUN"
	KindEnv     = "ENV"
	KindWorkdir = "WORKDIR"
	KindUser    = "USER"
)

// Step is a step that was checked.
type Step struct {
	Raw
	Number int // from 1 on
	Kind   string

	Command   string      // RUN
	User      string      // RUN: as whom, "" as everything; USER
	Variables [][2]string // ENV: names and values
	Dir       string      // WORKDIR
	Sudo      bool        // USER: it may become root
	Copy      Copy        // COPY
}

// Copy is what a COPY step copies.
type Copy struct {
	Source string // clean and relative; where the files lie in the upload
	Dest   string
	Owner  string // name, name:group; "" for the user of the step
	Mode   string // octal; "" as uploaded
}

func invalid(format string, args ...any) error {
	return &firebreak.Error{Kind: firebreak.KindInvalid, Op: "read the build", Err: fmt.Errorf(format, args...)}
}

// ParseAll reads the steps of a build.
func ParseAll(raw []Raw) ([]Step, error) {
	if len(raw) > maxSteps {
		return nil, invalid("%d steps are more than %d", len(raw), maxSteps)
	}
	total := 0
	steps := make([]Step, 0, len(raw))
	for i, one := range raw {
		for _, arg := range one.Args {
			total += len(arg)
		}
		if total > MaxText {
			return nil, invalid("the steps have more than %d bytes", MaxText)
		}
		s, err := parse(i+1, one)
		if err != nil {
			return nil, invalid("step %d: %w", i+1, err)
		}
		steps = append(steps, s)
	}
	return steps, nil
}

// Plain reports whether text can be an argument of a program.
func Plain(text string) bool { return utf8.ValidString(text) && !strings.ContainsRune(text, 0) }

func parse(number int, raw Raw) (Step, error) {
	s := Step{Raw: raw, Number: number, Kind: strings.ToUpper(raw.Type)}
	if len(raw.Args) == 0 || len(raw.Args) > maxArgs {
		return s, fmt.Errorf("%.20s has %d arguments", s.Kind, len(raw.Args))
	}
	for _, arg := range raw.Args {
		if len(arg) > maxArg || !Plain(arg) {
			return s, fmt.Errorf("an argument of %d bytes is too long, or no text", len(arg))
		}
	}
	var err error
	switch s.Kind {
	case KindCopy:
		err = s.parseCopy()
	case KindRun:
		s.Command, s.User = raw.Args[0], optional(raw.Args, 1)
		err = checkUser(s.User, true)
	case KindEnv:
		err = s.parseEnv()
	case KindWorkdir:
		if s.Dir = raw.Args[0]; s.Dir == "" || len(s.Dir) > MaxPath {
			err = fmt.Errorf("%.50q is no directory", s.Dir)
		}
	case KindUser:
		s.User, s.Sudo = raw.Args[0], optional(raw.Args, 1) == "true"
		err = checkUser(s.User, false)
	default:
		err = fmt.Errorf("there is no step %.20q: they are COPY, RUN, ENV, WORKDIR and USER", raw.Type)
	}
	return s, err
}

func optional(args []string, n int) string {
	if n < len(args) {
		return args[n]
	}
	return ""
}

var userPattern = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}\$?(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,63})?$`)
})

func checkUser(name string, empty bool) error {
	if name == "" && empty || userPattern().MatchString(name) {
		return nil
	}
	return fmt.Errorf("%.50q is no user", name)
}

func (s *Step) parseEnv() error {
	if len(s.Args)%2 != 0 {
		return fmt.Errorf("ENV has a variable without a value")
	}
	for i := 0; i < len(s.Args); i += 2 {
		name := s.Args[i]
		if name == "" || len(name) > maxVariable || strings.Contains(name, "=") {
			return fmt.Errorf("%.50q is no variable", name)
		}
		s.Variables = append(s.Variables, [2]string{name, s.Args[i+1]})
	}
	return nil
}

var hashPattern = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[0-9a-f]{64}$`)
})

// IsHash reports whether text can be the hash of an upload: SHA-256 in hexadecimal.
func IsHash(text string) bool { return hashPattern().MatchString(text) }

func (s *Step) parseCopy() error {
	if len(s.Args) < 2 || len(s.Args) > 4 {
		return fmt.Errorf("COPY has %d arguments, and not a source, a destination, an owner and a mode", len(s.Args))
	}
	c := &s.Copy
	c.Dest, c.Owner, c.Mode = s.Args[1], optional(s.Args, 2), optional(s.Args, 3)
	var err error
	if c.Source, err = sourceOf(s.Args[0]); err != nil {
		return err
	}
	switch {
	case c.Dest == "" || len(c.Dest) > MaxPath:
		return fmt.Errorf("COPY to %.50q, which is no place", c.Dest)
	case !IsHash(s.FilesHash):
		return fmt.Errorf("COPY without the hash of its files")
	}
	if mode, err := strconv.ParseUint(c.Mode, 8, 32); c.Mode != "" && (err != nil || mode > 0o7777) {
		return fmt.Errorf("%.20q is no mode in octal", c.Mode)
	}
	return checkUser(c.Owner, true)
}

// sourceOf returns the part of a source before any pattern in it: what the pattern matched lies below in the upload.
func sourceOf(source string) (string, error) {
	if source == "" || len(source) > MaxPath || path.IsAbs(source) {
		return "", fmt.Errorf("%.50q is no path below the directory of the build", source)
	}
	var before []string
	for part := range strings.SplitSeq(source, "/") {
		if isPattern(part) {
			break
		}
		before = append(before, part)
	}
	clean := path.Clean(strings.Join(before, "/"))
	if clean == ".." || strings.HasPrefix(clean, "../") {
		return "", fmt.Errorf("%.50q leads out of the directory of the build", source)
	}
	return clean, nil
}

// isPattern reports whether a part of a path is one of those that clients expand.
func isPattern(part string) bool {
	if strings.ContainsAny(part, "*?{[") {
		return true
	}
	for _, group := range []string{"@(", "+(", "!("} {
		if strings.Contains(part, group) {
			return true
		}
	}
	return false
}

// Text is the step as the log shows it.
func (s Step) Text() string {
	text := s.Kind + " " + strings.Join(s.Args, " ")
	text = strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
	if len(text) > maxShown {
		text = strings.ToValidUTF8(text[:maxShown], "") + "…"
	}
	return text
}

// Identity is all that decides what the step makes of what was before.
func (s Step) Identity() []byte {
	b, _ := json.Marshal([]any{s.Kind, s.Args, s.FilesHash}) // texts
	return b
}
