package program

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
)

// maxLine bounds a command line that is read, in bytes.
const maxLine = 1 << 20

// unshell returns the program that a command line starts. Clients send all commands through a shell ("/bin/bash -l -c
// COMMAND"); where there is none, a command without anything for the shell to do is run directly.
func (l *Launcher) unshell(line []string) (args []string, env map[string]string, err error) {
	if !slices.Contains([]string{"sh", "bash", "dash", "ash", "zsh", "ksh"}, path.Base(line[0])) {
		return line, nil, nil
	}
	command, err := commandOf(line[1:])
	if err == nil {
		args, env, err = split(command)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("there is no shell in %s: %w", l.Place, err)
	}
	return args, env, nil
}

var errNoCommand = errors.New("one program at a time can be run, as in bash -c 'PROGRAM ARGUMENTS'")

// commandOf is the argument of a shell's -c.
func commandOf(args []string) (string, error) {
	for i, arg := range args {
		switch {
		case arg == "--login":
		case !strings.HasPrefix(arg, "-") || strings.Trim(arg[1:], "lceiux") != "":
			return "", errNoCommand
		case strings.Contains(arg, "c"):
			if len(args) != i+2 {
				return "", errNoCommand
			}
			return args[i+1], nil
		}
	}
	return "", errNoCommand
}

// split reads a command as bash does and returns its words, and the variables that are set for it alone, if it is one
// simple command with nothing to expand. It is no parser of the shell's language, whose depth a stranger chooses: it goes
// once over the text and stops at the first character that means something to a shell.
func split(command string) ([]string, map[string]string, error) {
	if len(command) > maxLine {
		return nil, nil, fmt.Errorf("a command has %d bytes at most", maxLine)
	}
	s, env := splitter{text: command}, map[string]string{}
	var words []string
	for {
		w, ok, err := s.word()
		switch {
		case err != nil:
			return nil, nil, err
		case !ok && (len(words) == 0 || words[0] == ""):
			return nil, nil, errors.New("no command is given")
		case !ok:
			return words, env, nil
		case len(words) == 0 && w.name != "":
			env[w.name] = w.text[len(w.name)+1:]
			continue
		case len(words) == 0 && !w.quoted && slices.Contains(strings.Fields(reserved), w.text):
			return nil, nil, errLanguage
		}
		words = append(words, w.text)
	}
}

// reserved are the words that begin more than a simple command.
const reserved = "! { } [[ ]] case coproc do done elif else esac export fi for function if in select then time until while"

var (
	errLanguage   = errors.New("pipes, lists (&&, ||, ;) and the language of the shell cannot be run; run one command")
	errRedirect   = errors.New("redirections cannot be done; write to a file within the program")
	errBackground = errors.New("nothing can be sent to the background with &; start the command in the background with the client")
	errUnclosed   = errors.New("a quote of the command is not closed")
)

func expansion(what string) error {
	return fmt.Errorf("%s would be expanded by one; give the words as they are, or in single quotes", what)
}

// splitter reads the words of a command.
type splitter struct {
	text string
	at   int
}

// word is one, as the shell would hand it on.
type word struct {
	text   string
	quoted bool   // a part of it
	name   string // of the variable that it sets if it comes before the command
}

// word reads the next one; false at the end of the command.
func (s *splitter) word() (word, bool, error) {
	if more, err := s.skip(); !more {
		return word{}, false, err
	}
	var b strings.Builder
	var w word
	braces := false
	for s.at < len(s.text) {
		c := s.text[s.at]
		switch {
		case strings.IndexByte(" \t\n;", c) >= 0:
			w.text = b.String()
			return w, true, nil
		case c == '\'' || c == '"':
			w.quoted = true
			if err := s.quote(&b, c); err != nil {
				return w, false, err
			}
			continue
		case c == '\\' && s.at+1 < len(s.text):
			if s.at += 2; s.text[s.at-1] != '\n' {
				w.quoted = true
				b.WriteByte(s.text[s.at-1])
			}
			continue
		case c == '=' && !w.quoted && w.name == "" && isName(strings.TrimSuffix(b.String(), "+")):
			if w.name = b.String(); strings.HasSuffix(w.name, "+") {
				return w, false, errors.New("a variable can be set for a command, and not added to")
			}
		case c == '{':
			braces = true
		}
		start := b.Len() == 0 && !w.quoted || w.name != "" && strings.IndexByte("=:", s.text[s.at-1]) >= 0
		if err := s.plain(c, start, braces); err != nil {
			return w, false, err
		}
		b.WriteByte(c)
		s.at++
	}
	w.text = b.String()
	return w, true, nil
}

// skip goes to the next word. After the command there may be no other.
func (s *splitter) skip() (bool, error) {
	ended := false
	for ; s.at < len(s.text); s.at++ {
		switch c := s.text[s.at]; {
		case c == ' ' || c == '\t':
		case c == '\\' && strings.HasPrefix(s.text[s.at:], "\\\n"):
			s.at++
		case c == '\n' && strings.TrimSpace(s.text[:s.at]) == "":
		case c == '\n' || c == ';' && !ended:
			ended = true
		case c == '#':
			end := strings.IndexByte(s.text[s.at:], '\n')
			if end < 0 {
				s.at = len(s.text)
				return false, nil
			}
			s.at += end - 1
		case ended:
			return false, errLanguage
		default:
			return true, nil
		}
	}
	return false, nil
}

// quote adds what stands between quotes.
func (s *splitter) quote(b *strings.Builder, mark byte) error {
	for s.at++; s.at < len(s.text); s.at++ {
		c := s.text[s.at]
		next := s.text[s.at+1:]
		switch {
		case c == mark:
			s.at++
			return nil
		case mark == '\'':
		case c == '`', c == '$' && next != "" && strings.IndexByte("\" \t\n", next[0]) < 0:
			return expansion("$ and ` within double quotes")
		case c == '\\' && next != "" && strings.IndexByte("$`\"\\\n", next[0]) >= 0:
			if s.at++; next[0] == '\n' {
				continue
			}
			c = next[0]
		}
		b.WriteByte(c)
	}
	return errUnclosed
}

// plain refuses a character that means something to a shell outside of quotes; start is where ~ is a home.
func (s *splitter) plain(c byte, start, braces bool) error {
	next := byte(' ')
	if s.at+1 < len(s.text) {
		next = s.text[s.at+1]
	}
	switch {
	case c == '|' || c == '(' || c == ')' || c == '&' && next == '&':
		return errLanguage
	case c == '<' || c == '>' || c == '&' && next == '>':
		return errRedirect
	case c == '&':
		return errBackground
	case c == '`', c == '$' && strings.IndexByte(" \t\n;", next) < 0:
		return expansion("$ and `")
	case c == '*' || c == '?' || c == '[':
		return expansion("*, ? and [] outside of quotes")
	case c == '~' && start:
		return expansion("~")
	case braces && (c == ',' || c == '.' && next == '.'):
		return expansion("{} outside of quotes")
	}
	return nil
}

// isName reports whether a shell can have a variable of this name.
func isName(name string) bool {
	for i, c := range name {
		if c != '_' && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return name != ""
}
