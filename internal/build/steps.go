package build

import (
	"encoding/json"
	"fmt"
	"path"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/firebreak-dev/firebreak"
)

// Spec says what to build.
type Spec struct {
	FromImage    string // an image in a registry, or a template of that name that the operator made
	FromTemplate string // a template's name or ID; one of the two is set
	Username     string // for the image's registry
	Password     string
	Force        bool // use nothing that an earlier build kept
	Steps        []Step
	Start        string // what is to run in the background of every sandbox; for bash
	Ready        string // succeeds once Start is at work; for bash
}

// Step is a step as the client sent it.
type Step struct {
	Type      string // COPY, RUN, ENV, WORKDIR or USER
	Args      []string
	FilesHash string // COPY: which upload
	Force     bool   // this step, and so all after it, run although they were kept
}

const (
	maxSteps    = 200
	maxArgs     = 400       // of one step: 200 variables
	maxArg      = 120 << 10 // bytes; one argument of a program may have 128 KiB
	maxSpec     = 1 << 20   // bytes of all arguments
	maxCommand  = 64 << 10  // of the start and of the ready command
	maxVariable = 256       // bytes of a variable's name
	maxPath     = 4096
	maxShown    = 200 // bytes of a step in the log
)

// The kinds of steps.
const (
	kindCopy    = "COPY"
	kindRun     = "RUN"
	kindEnv     = "ENV"
	kindWorkdir = "WORKDIR"
	kindUser    = "USER"
)

// step is a step that was checked.
type step struct {
	Step
	number int // from 1 on
	kind   string

	command   string      // RUN
	user      string      // RUN: as whom, "" as everything; USER
	variables [][2]string // ENV
	dir       string      // WORKDIR
	sudo      bool        // USER
	copy      copyArgs    // COPY
}

type copyArgs struct {
	source string // clean and relative; where the files lie in the upload
	dest   string
	owner  string // name, name:group; "" for the user of the step
	mode   string // octal; "" as uploaded
}

func invalid(format string, args ...any) error {
	return &firebreak.Error{Kind: firebreak.KindInvalid, Op: "read the build", Err: fmt.Errorf(format, args...)}
}

// check refuses what cannot be built, and returns the steps.
func (s Spec) check() ([]step, error) {
	switch {
	case (s.FromImage == "") == (s.FromTemplate == ""):
		return nil, invalid("one of an image and a template to begin with is needed, and only one")
	case len(s.Steps) > maxSteps:
		return nil, invalid("%d steps are more than %d", len(s.Steps), maxSteps)
	case len(s.Start) > maxCommand || len(s.Ready) > maxCommand:
		return nil, invalid("the start or the ready command is longer than %d bytes", maxCommand)
	case !plain(s.Start) || !plain(s.Ready):
		return nil, invalid("the start or the ready command is no text")
	}
	total := 0
	steps := make([]step, 0, len(s.Steps))
	for i, raw := range s.Steps {
		for _, arg := range raw.Args {
			total += len(arg)
		}
		if total > maxSpec {
			return nil, invalid("the steps have more than %d bytes", maxSpec)
		}
		st, err := parse(i+1, raw)
		if err != nil {
			return nil, invalid("step %d: %w", i+1, err)
		}
		steps = append(steps, st)
	}
	return steps, nil
}

// plain reports whether text can be an argument of a program.
func plain(text string) bool { return utf8.ValidString(text) && !strings.ContainsRune(text, 0) }

func parse(number int, raw Step) (step, error) {
	s := step{Step: raw, number: number, kind: strings.ToUpper(raw.Type)}
	if len(raw.Args) == 0 || len(raw.Args) > maxArgs {
		return s, fmt.Errorf("%.20s has %d arguments", s.kind, len(raw.Args))
	}
	for _, arg := range raw.Args {
		if len(arg) > maxArg || !plain(arg) {
			return s, fmt.Errorf("an argument of %d bytes is too long, or no text", len(arg))
		}
	}
	var err error
	switch s.kind {
	case kindCopy:
		err = s.parseCopy()
	case kindRun:
		s.command, s.user = raw.Args[0], optional(raw.Args, 1)
		err = checkUser(s.user, true)
	case kindEnv:
		err = s.parseEnv()
	case kindWorkdir:
		if s.dir = raw.Args[0]; s.dir == "" || len(s.dir) > maxPath {
			err = fmt.Errorf("%.50q is no directory", s.dir)
		}
	case kindUser:
		s.user, s.sudo = raw.Args[0], optional(raw.Args, 1) == "true"
		err = checkUser(s.user, false)
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

var userPattern = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}\$?(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,63})?$`)

func checkUser(name string, empty bool) error {
	if name == "" && empty || userPattern.MatchString(name) {
		return nil
	}
	return fmt.Errorf("%.50q is no user", name)
}

func (s *step) parseEnv() error {
	if len(s.Args)%2 != 0 {
		return fmt.Errorf("ENV has a variable without a value")
	}
	for i := 0; i < len(s.Args); i += 2 {
		name := s.Args[i]
		if name == "" || len(name) > maxVariable || strings.Contains(name, "=") {
			return fmt.Errorf("%.50q is no variable", name)
		}
		s.variables = append(s.variables, [2]string{name, s.Args[i+1]})
	}
	return nil
}

var hashPattern = regexp.MustCompile(`^[0-9a-f]{64}$`)

func (s *step) parseCopy() error {
	if len(s.Args) < 2 || len(s.Args) > 4 {
		return fmt.Errorf("COPY has %d arguments, and not a source, a destination, an owner and a mode", len(s.Args))
	}
	c := &s.copy
	c.dest, c.owner, c.mode = s.Args[1], optional(s.Args, 2), optional(s.Args, 3)
	var err error
	if c.source, err = sourceOf(s.Args[0]); err != nil {
		return err
	}
	switch {
	case c.dest == "" || len(c.dest) > maxPath:
		return fmt.Errorf("COPY to %.50q, which is no place", c.dest)
	case !hashPattern.MatchString(s.FilesHash):
		return fmt.Errorf("COPY without the hash of its files")
	}
	if mode, err := strconv.ParseUint(c.mode, 8, 32); c.mode != "" && (err != nil || mode > 0o7777) {
		return fmt.Errorf("%.20q is no mode in octal", c.mode)
	}
	return checkUser(c.owner, true)
}

// sourceOf returns the part of a source before any pattern in it: what the pattern matched lies below in the upload.
func sourceOf(source string) (string, error) {
	if source == "" || len(source) > maxPath || path.IsAbs(source) {
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

// text is the step as the log shows it.
func (s step) text() string {
	text := s.kind + " " + strings.Join(s.Args, " ")
	text = strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
	if len(text) > maxShown {
		text = strings.ToValidUTF8(text[:maxShown], "") + "…"
	}
	return text
}

// identity is all that decides what the step makes of what was before.
func (s step) identity() []byte {
	b, _ := json.Marshal([]any{s.kind, s.Args, s.FilesHash}) // texts
	return b
}
