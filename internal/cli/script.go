package cli

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/client"
)

// maxScript bounds a script: more is data, which has better ways in.
const maxScript = 64 << 20

// language is how scripts of one kind are run: the commands to try in turn, each followed by the script's name.
type language struct {
	names      []string // for --lang and in a #! line, versions cut off
	extensions []string
	commands   [][]string
}

func languages() []language {
	node, deno, bun := []string{"node"}, []string{"deno", "run", "-A"}, []string{"bun", "run"}
	return []language{
		{[]string{"python", "py"}, []string{".py"}, [][]string{{"python3"}, {"python"}}},
		{[]string{"javascript", "js", "node", "nodejs"}, []string{".js", ".mjs", ".cjs"}, [][]string{node, deno, bun}},
		{[]string{"typescript", "ts", "deno", "bun", "tsx"}, []string{".ts", ".mts"},
			[][]string{deno, bun, {"tsx"}, {"node", "--experimental-strip-types"}}},
		{[]string{"bash"}, []string{".bash"}, [][]string{{"bash"}}},
		{[]string{"sh", "shell", "dash"}, []string{".sh"}, [][]string{{"sh"}}},
		{[]string{"ruby", "rb"}, []string{".rb"}, [][]string{{"ruby"}}},
		{[]string{"perl", "pl"}, []string{".pl"}, [][]string{{"perl"}}},
		{[]string{"php"}, []string{".php"}, [][]string{{"php"}}},
		{[]string{"lua", "luajit"}, []string{".lua"}, [][]string{{"lua"}, {"lua5.4"}, {"luajit"}}},
		{[]string{"r", "rscript"}, []string{".r", ".R"}, [][]string{{"Rscript"}}},
		{[]string{"julia", "jl"}, []string{".jl"}, [][]string{{"julia"}}},
		{[]string{"awk", "gawk", "mawk"}, []string{".awk"}, [][]string{{"awk", "-f"}}},
		{[]string{"tcl", "tclsh"}, []string{".tcl"}, [][]string{{"tclsh"}}},
		{[]string{"go", "golang"}, []string{".go"}, [][]string{{"go", "run"}}},
		{[]string{"zsh"}, []string{".zsh"}, [][]string{{"zsh"}}},
		{[]string{"fish"}, []string{".fish"}, [][]string{{"fish"}}},
		{[]string{"powershell", "pwsh"}, []string{".ps1"}, [][]string{{"pwsh", "-File"}}},
	}
}

func languageNames() []string {
	var names []string
	for _, l := range languages() {
		names = append(names, l.names[0])
	}
	return names
}

func languageOf(match func(language) bool) *language {
	for _, l := range languages() {
		if match(l) {
			return &l
		}
	}
	return nil
}

func languageByExtension(name string) *language {
	ext := filepath.Ext(name)
	return languageOf(func(l language) bool { return contains(l.extensions, ext) })
}

func languageByName(name string) *language {
	name = strings.ToLower(name)
	return languageOf(func(l language) bool {
		return contains(l.names, name) || contains(l.names, strings.TrimRight(name, "0123456789.-"))
	})
}

func contains(list []string, s string) bool {
	for _, e := range list {
		if e == s {
			return true
		}
	}
	return false
}

// script is a file of the caller that is run in the sandbox.
type script struct {
	name     string     // its base name, kept in the sandbox
	content  io.Reader  // what is uploaded
	language string     // empty: one that nobody but its interpreter knows
	commands [][]string // to try in turn, each followed by the name and the arguments
	close    func() error
}

// findScript reports whether the first argument names a script of the caller: a file with an extension of a language or
// one that begins with #!. After -- everything is a command of the sandbox, and findScript is not asked.
func findScript(arg, lang string, stdin *os.File) (*script, error) {
	if arg == "-" {
		return scriptFromInput(lang, stdin)
	}
	byExtension := languageByExtension(arg)
	info, err := os.Stat(arg)
	switch {
	case err != nil && byExtension == nil && !strings.ContainsRune(arg, '/'):
		return nil, nil
	case errors.Is(err, fs.ErrNotExist) && byExtension == nil && lang == "":
		return nil, nil // a path in the sandbox
	case err != nil:
		return nil, missingScript(arg, err)
	case info.IsDir() && strings.ContainsRune(arg, '/'):
		return nil, invalid("", fmt.Errorf("%s is a directory", arg), "name the script in it")
	case !info.Mode().IsRegular():
		return nil, nil
	}
	if byExtension == nil && lang == "" && !strings.ContainsRune(arg, '/') {
		return nil, nil // "run ls" means the sandbox's ls, whatever lies in this directory
	}
	return openScript(arg, lang, info)
}

func openScript(file, lang string, info fs.FileInfo) (*script, error) {
	if info.Size() > maxScript {
		return nil, invalid("", fmt.Errorf("script %s is larger than %s", file, formatSize(maxScript)), "use --volume or firebreak cp for data")
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, invalid("", err, "")
	}
	head := bufio.NewReader(f)
	language, commands, err := interpreters(file, lang, head)
	if err != nil {
		_ = f.Close() // opened for reading only
		return nil, err
	}
	if commands == nil {
		_ = f.Close() // opened for reading only
		if strings.HasPrefix(file, "/") {
			return nil, nil // /bin/ls is the sandbox's
		}
		return nil, invalid("", fmt.Errorf("%s is no script: it has neither a known extension nor a #! line", file),
			"say --lang, or copy a program of this host in: "+withInput(file))
	}
	return &script{name: filepath.Base(file), content: io.LimitReader(head, maxScript), language: language, commands: commands, close: f.Close}, nil
}

// scriptFromInput reads a whole script from standard input, whose program then gets none.
func scriptFromInput(lang string, stdin *os.File) (*script, error) {
	if isTerminal(stdin) {
		return nil, invalid("", errors.New("a script is expected on standard input"), "write firebreak run - < FILE")
	}
	data, err := io.ReadAll(io.LimitReader(stdin, maxScript+1))
	if err != nil {
		return nil, fmt.Errorf("read script: %w", err)
	}
	if len(data) > maxScript {
		return nil, invalid("", fmt.Errorf("the script is larger than %s", formatSize(maxScript)), "")
	}
	language, commands, err := interpreters("", lang, bufio.NewReader(bytes.NewReader(data)))
	if err != nil {
		return nil, err
	}
	if commands == nil {
		return nil, invalid("", errors.New("the script on standard input has no #! line"), "say its language: --lang python")
	}
	name := "script"
	if l := languageByName(lang); l != nil {
		name += l.extensions[0]
	}
	return &script{name: name, content: bytes.NewReader(data), language: language, commands: commands, close: func() error { return nil }}, nil
}

// interpreters finds what a script is written in and what runs it: --lang, else a #! line that fits the extension, else the
// extension. Nil: none.
func interpreters(file, lang string, r *bufio.Reader) (string, [][]string, error) {
	if lang != "" {
		l := languageByName(lang)
		if l == nil {
			mend := "one of " + strings.Join(languageNames(), ", ")
			if near := nearest(lang, languageNames()); near != "" {
				mend = "did you mean " + near + "?"
			}
			return "", nil, invalid("", fmt.Errorf("unknown language %q", lang), mend)
		}
		return l.names[0], l.commands, nil
	}
	byExtension := languageByExtension(file)
	command := shebang(r)
	if command == nil {
		if byExtension == nil {
			return "", nil, nil
		}
		return byExtension.names[0], byExtension.commands, nil
	}
	named := languageByName(command[0])
	shells := func(l *language) bool { return l != nil && contains([]string{"sh", "bash", "zsh"}, l.names[0]) }
	switch {
	case byExtension != nil && (named == nil || named.names[0] != byExtension.names[0]) && !(shells(named) && shells(byExtension)):
		return byExtension.names[0], byExtension.commands, nil
	case named != nil && len(command) == 1 && named.names[0] == "python":
		return named.names[0], named.commands, nil // "python" in the line is no wish for a system that has only that
	case named != nil:
		return named.names[0], [][]string{command}, nil
	}
	return "", [][]string{command}, nil
}

// shebang returns the interpreter of a #! line by its base name, because the sandbox has it elsewhere, with its
// arguments.
func shebang(r *bufio.Reader) []string {
	head, err := r.Peek(256)
	if err != nil && !errors.Is(err, io.EOF) || !bytes.HasPrefix(head, []byte("#!")) {
		return nil
	}
	line, _, _ := bytes.Cut(head[2:], []byte("\n"))
	words := strings.Fields(string(line))
	if len(words) > 0 && path.Base(words[0]) == "env" {
		words = words[1:]
		for len(words) > 0 && (strings.HasPrefix(words[0], "-") || strings.ContainsRune(words[0], '=')) {
			words = words[1:]
		}
	}
	if len(words) == 0 {
		return nil
	}
	words[0] = path.Base(words[0])
	return words
}

func missingScript(file string, err error) error {
	if !errors.Is(err, fs.ErrNotExist) {
		return invalid("", err, "")
	}
	return noFile(file, "a command inside the sandbox goes after --")
}

// noFile is the error of a file that is not there, with one that may be meant in place of mend.
func noFile(file, mend string) error {
	entries, readErr := os.ReadDir(filepath.Dir(file))
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if near := nearest(filepath.Base(file), names); readErr == nil && near != "" {
		mend = "did you mean " + filepath.Join(filepath.Dir(file), near) + "?"
	}
	return invalid("", fmt.Errorf("there is no file %s here", file), mend)
}

// upload puts the script into the sandbox's work directory under its own name, and returns that name as the program
// sees it.
func (s *script) upload(ctx context.Context, c *client.Client, id, boundary string, p program) (string, error) {
	name := s.name
	if p.cwd != "" {
		name = path.Join(p.cwd, s.name)
	}
	if boundary == firebreak.BoundaryNone.String() {
		// The directory is one of this host, perhaps the one where the script lies.
		at := remotePath{client: c, id: id, path: name, user: p.user}
		if entry, err := at.stat(ctx); err == nil {
			return "", &firebreak.Error{Kind: firebreak.KindExists, Op: "upload script", Err: fmt.Errorf("%s exists", entry.GetPath()),
				Mend: "choose another work directory with --workdir"}
		}
	}
	if err := c.WriteFile(ctx, id, name, p.user, s.content); err != nil {
		return "", fmt.Errorf("upload script: %w", err)
	}
	if strings.HasPrefix(s.name, "-") {
		return "./" + s.name, nil
	}
	return s.name, nil
}
