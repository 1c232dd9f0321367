package program

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

var simple = []struct {
	command string
	words   []string
}{
	{"python x.py", []string{"python", "x.py"}},
	{"  python   x.py # comment", []string{"python", "x.py"}},
	{`python -c 'print("a b")'`, []string{"python", "-c", `print("a b")`}},
	{`python -c "print('a\"b\\n')"`, []string{"python", "-c", `print('a"b\n')`}},
	{`a\ b "c d"'e f'g`, []string{"a b", "c de fg"}},
	{"x '' \"\"", []string{"x", "", ""}},
	{"x 'a\nb'", []string{"x", "a\nb"}},
	{"x a\\\nb", []string{"x", "ab"}},
	{"x \"a\\\nb\"", []string{"x", "ab"}},
	{`x \* \? \[ \~ \$HOME \{a,b\}`, []string{"x", "*", "?", "[", "~", "$HOME", "{a,b}"}},
	{`x '*' "?" "[a]" '~'`, []string{"x", "*", "?", "[a]", "~"}},
	{`x {} a~b a=b -n=1 {a} "\a"`, []string{"x", "{}", "a~b", "a=b", "-n=1", "{a}", `\a`}},
	{"x a#b 5$ \"5$\" $ a{b", []string{"x", "a#b", "5$", "5$", "$", "a{b"}},
	{"\n\n x 1 ; \n # done\n", []string{"x", "1"}},
	{"x 1 # one\n", []string{"x", "1"}},
	{"x \\\n 1", []string{"x", "1"}},
	{`x \a\`, []string{"x", `a\`}},
	{"x a=b +=", []string{"x", "a=b", "+="}},
	{"x 1if then", []string{"x", "1if", "then"}},
	{"'if' 1", []string{"if", "1"}},
	{"x ünï 😀", []string{"x", "ünï", "😀"}},
}

func TestSplit(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Fatal("bash is what this is compared with: ", err)
	}
	for _, test := range simple {
		words, _, err := split(test.command)
		if err != nil || !slices.Equal(words, test.words) {
			t.Errorf("%q: %q, %v", test.command, words, err)
		}
		out, err := exec.Command(bash, "-c", "printf '%s\\0' "+strings.TrimSpace(test.command)).Output()
		if want := strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00"); err != nil || !slices.Equal(words, want) {
			t.Errorf("%q: %q, and bash reads %q, %v", test.command, words, want, err)
		}
	}
	words, env, err := split(`A=1 B='x y' C= python x.py`)
	if err != nil || len(words) != 2 || len(env) != 3 || env["A"] != "1" || env["B"] != "x y" {
		t.Errorf("%q, %q, %v", words, env, err)
	}
}

func TestSplitRefuses(t *testing.T) {
	for command, want := range map[string]string{
		"": "no command", "# nothing": "no command", "''": "no command", "A=1": "no command", ";": "no command", "x 'a": "not closed",
		`x "a`: "not closed", `x "a\"`: "not closed", "a; b": "lists", "a\nb": "lists", "a | b": "pipes", "a && b": "lists", "a || b": "lists",
		"! a": "language", "a > f": "redirections", "a < f": "redirections", "a 2>&1": "redirections", "a <<E\nE": "redirections",
		"a &> f": "redirections", "a &": "background", "(a)": "language", "{ a; }": "language", "if a; then b; fi": "language",
		"f() { a; }": "language", "[[ a ]]": "expanded", "]] a": "language", "export A=1": "language", "x $A": "expanded", "x ${A}": "expanded",
		`x "$A"`: "expanded", "x `a`": "expanded", "x $(a)": "expanded", `x "$(a)"`: "expanded", "x $((1))": "expanded", "x $'a'": "expanded",
		`x $"a"`: "expanded", "x <(a)": "redirections", "x *.py": "expanded", "x a?": "expanded", "x [a]": "expanded", "x ~": "expanded",
		"x ~/a": "expanded", "x {a,b}": "expanded", "x {1..3}": "expanded", "$X a": "expanded", "A+=1 x": "not added to", "A=(1) x": "language",
		"A=$B x": "expanded", "A=~ x": "expanded", "A=b:~ x": "expanded", "a ;; b": "lists", "x @(a)": "language", "x a#b;c": "lists",
		"x " + strings.Repeat("a", maxLine): "at most", strings.Repeat("(", maxLine): "language", strings.Repeat("$(", maxLine/2): "expanded",
	} {
		if words, _, err := split(command); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %q, %v", command, words, err)
		}
	}
}

func TestUnshell(t *testing.T) {
	l := New(Config{Place: "a test"})
	for _, test := range []struct{ line, want []string }{
		{[]string{"/bin/bash", "-l", "-c", "python x.py"}, []string{"python", "x.py"}},
		{[]string{"sh", "-c", "'a b'"}, []string{"a b"}},
		{[]string{"bash", "-lc", "x 1"}, []string{"x", "1"}},
		{[]string{"bash", "--login", "-e", "-c", "x"}, []string{"x"}},
		{[]string{"python", "-c", "a; b"}, []string{"python", "-c", "a; b"}},
		{[]string{"bash"}, nil}, {[]string{"bash", "script.sh"}, nil}, {[]string{"bash", "-c"}, nil}, {[]string{"bash", "-s"}, nil},
		{[]string{"bash", "-c", "x", "name"}, nil}, {[]string{"/bin/sh", "-c", "a | b"}, nil}, {[]string{"bash", "--", "x"}, nil},
	} {
		got, _, err := l.unshell(test.line)
		if !slices.Equal(got, test.want) || (err == nil) != (test.want != nil) {
			t.Errorf("%q: %q, %v", test.line, got, err)
		}
		if err != nil && !strings.HasPrefix(err.Error(), "there is no shell in a test: ") {
			t.Errorf("%q: %v", test.line, err)
		}
	}
}

// FuzzSplit: whatever it takes, the shell has nothing to do with the words, which are found again when they are quoted.
func FuzzSplit(f *testing.F) {
	for _, test := range simple {
		f.Add(test.command)
	}
	f.Add("a $(b) | c && `d` > e; A=1 B+=2 ~ {c,d}")
	f.Fuzz(func(t *testing.T, command string) {
		words, _, err := split(command)
		if err != nil {
			return
		}
		if strings.Contains(strings.Join(words, ""), "\x00") {
			return // no command line can hold it
		}
		quoted := make([]string, len(words))
		for i, w := range words {
			quoted[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
		again, _, err := split(strings.Join(quoted, " "))
		if err != nil || !slices.Equal(words, again) {
			t.Errorf("%q gives %q, and quoted %q, %v", command, words, again, err)
		}
	})
}
