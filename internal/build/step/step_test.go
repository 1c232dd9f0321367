package step

import (
	"reflect"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak"
)

func TestParseSteps(t *testing.T) {
	hash := strings.Repeat("a", 64)
	for _, c := range []struct {
		raw  Raw
		want Step // its parsed fields
	}{
		{Raw{Type: "run", Args: []string{"echo a\nb"}}, Step{Kind: KindRun, Command: "echo a\nb"}},
		{Raw{Type: "RUN", Args: []string{"x", "root"}}, Step{Kind: KindRun, Command: "x", User: "root"}},
		{Raw{Type: "ENV", Args: []string{"A", "1", "B", ""}}, Step{Kind: KindEnv, Variables: [][2]string{{"A", "1"}, {"B", ""}}}},
		{Raw{Type: "WORKDIR", Args: []string{"/a b"}}, Step{Kind: KindWorkdir, Dir: "/a b"}},
		{Raw{Type: "USER", Args: []string{"web", "true"}}, Step{Kind: KindUser, User: "web", Sudo: true}},
		{Raw{Type: "USER", Args: []string{"1000:1000"}}, Step{Kind: KindUser, User: "1000:1000"}},
		{Raw{Type: "COPY", Args: []string{"./a/../b", "/c", "", ""}, FilesHash: hash}, Step{Kind: KindCopy, Copy: Copy{Source: "b", Dest: "/c"}}},
		{Raw{Type: "COPY", Args: []string{".", "/c", "web:web", "0755"}, FilesHash: hash}, Step{Kind: KindCopy, Copy: Copy{Source: ".", Dest: "/c", Owner: "web:web", Mode: "0755"}}},
		{Raw{Type: "COPY", Args: []string{"a/*.txt", "/c"}, FilesHash: hash}, Step{Kind: KindCopy, Copy: Copy{Source: "a", Dest: "/c"}}},
		{Raw{Type: "COPY", Args: []string{"**/x", "/c"}, FilesHash: hash}, Step{Kind: KindCopy, Copy: Copy{Source: ".", Dest: "/c"}}},
		{Raw{Type: "COPY", Args: []string{"..a/b", "/c"}, FilesHash: hash}, Step{Kind: KindCopy, Copy: Copy{Source: "..a/b", Dest: "/c"}}},
	} {
		got, err := parse(7, c.raw)
		c.want.Raw, c.want.Number = c.raw, 7
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%v: %+v, %v", c.raw, got, err)
		}
	}
	for _, raw := range []Raw{
		{}, {Type: "RUN"}, {Type: "FROM", Args: []string{"x"}}, {Type: "RUN", Args: []string{"a\x00b"}}, {Type: "RUN", Args: []string{"\xff"}},
		{Type: "RUN", Args: []string{strings.Repeat("a", maxArg+1)}}, {Type: "RUN", Args: []string{"a", "ro ot"}}, {Type: "RUN", Args: make([]string, maxArgs+1)},
		{Type: "ENV", Args: []string{"A"}}, {Type: "ENV", Args: []string{"A=B", "c"}}, {Type: "ENV", Args: []string{"", "c"}},
		{Type: "USER", Args: []string{"a;b"}}, {Type: "USER", Args: []string{"-x"}}, {Type: "WORKDIR", Args: []string{""}},
		{Type: "COPY", Args: []string{"a"}, FilesHash: hash}, {Type: "COPY", Args: []string{"a", "/b"}}, {Type: "COPY", Args: []string{"a", "/b"}, FilesHash: "../../x"},
		{Type: "COPY", Args: []string{"/a", "/b"}, FilesHash: hash}, {Type: "COPY", Args: []string{"../a", "/b"}, FilesHash: hash},
		{Type: "COPY", Args: []string{"a/../../b", "/b"}, FilesHash: hash}, {Type: "COPY", Args: []string{"a", ""}, FilesHash: hash},
		{Type: "COPY", Args: []string{"a", "/b", "", "rwx"}, FilesHash: hash}, {Type: "COPY", Args: []string{"a", "/b", "", "10000"}, FilesHash: hash},
		{Type: "COPY", Args: []string{"a", "/b", "$(id)"}, FilesHash: hash},
	} {
		if s, err := parse(1, raw); err == nil {
			t.Errorf("%.100v passed as %+v", raw, s)
		}
	}
	many := make([]Raw, maxSteps+1)
	var big []Raw
	for range 10 {
		big = append(big, Raw{Type: "RUN", Args: []string{strings.Repeat("a", maxArg)}})
	}
	for about, raw := range map[string][]Raw{"many steps": many, "much text": big, "a bad one": {{Type: "X", Args: []string{"y"}}}} {
		if _, err := ParseAll(raw); firebreak.KindOf(err) != firebreak.KindInvalid {
			t.Errorf("%s: %v", about, err)
		}
	}
	if all, err := ParseAll([]Raw{{Type: "RUN", Args: []string{"a"}}, {Type: "ENV", Args: []string{"A", "b"}}}); err != nil || len(all) != 2 || all[1].Number != 2 {
		t.Errorf("%+v, %v", all, err)
	}
}

func FuzzStep(f *testing.F) {
	f.Add("COPY", "src/*", "/app", "user", "0755", strings.Repeat("a", 64))
	f.Add("RUN", "echo", "root", "", "", "")
	f.Add("ENV", "A", "$B", "C", "d", "")
	f.Fuzz(func(t *testing.T, kind, a, b, c, d, hash string) {
		s, err := parse(1, Raw{Type: kind, Args: []string{a, b, c, d}, FilesHash: hash})
		if err != nil {
			return
		}
		if s.Kind == KindCopy && (strings.HasPrefix(s.Copy.Source, "/") || s.Copy.Source == ".." || strings.HasPrefix(s.Copy.Source, "../")) {
			t.Errorf("the source %q", s.Copy.Source)
		}
		if text := s.Text(); len(text) > maxShown+4 || strings.ContainsAny(text, "\n\r") {
			t.Errorf("shown as %q", text)
		}
	})
}

func TestExpand(t *testing.T) {
	envs := map[string]string{"A": "one", "B": "", "LONG_1": "two", "SELF": "$A"}
	for value, want := range map[string]string{
		"": "", "plain": "plain", "$A": "one", "${A}": "one", "x$A-y": "xone-y", "$LONG_1$A": "twoone", "$B": "", "$NONE": "", "$SELF": "$A",
		"${A:-x}": "one", "${B:-x y}": "x y", "${NONE:-}": "", "${A:+x}": "x", "${B:+x}": "", `\$A`: "$A", `\\$A`: `\$A`, `a\b`: `a\b`,
		"$": "$", "$$A": "$one", "${": "${", "${A": "${A", "${}": "${}", "${A!x}": "${A!x}", "$1": "$1", "100%$": "100%$", "$(rm -rf /)": "$(rm -rf /)", "`id`": "`id`", "ü$Aü": "üoneü",
	} {
		got, err := Expand(value, func(name string) string { return envs[name] })
		if err != nil || got != want {
			t.Errorf("%s: %q, %v, want %q", value, got, err, want)
		}
	}
	if _, err := Expand(strings.Repeat("$A", 1000), func(string) string { return strings.Repeat("x", 1000) }); err == nil {
		t.Error("a value of a million bytes passed")
	}
}

func FuzzExpand(f *testing.F) {
	for _, s := range []string{"$A", "${A:-x}", `\$`, "${", "$$", "${A:+"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, value string) {
		got, err := Expand(value, func(string) string { return "v" })
		if err == nil && (len(got) > maxExpanded || !strings.Contains(value, "$") && got != value) {
			t.Errorf("%q became %q", value, got)
		}
	})
}
