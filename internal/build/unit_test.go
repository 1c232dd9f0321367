package build

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak"
)

func TestParseSteps(t *testing.T) {
	hash := strings.Repeat("a", 64)
	for _, c := range []struct {
		raw  Step
		want step // its parsed fields
	}{
		{Step{Type: "run", Args: []string{"echo a\nb"}}, step{kind: kindRun, command: "echo a\nb"}},
		{Step{Type: "RUN", Args: []string{"x", "root"}}, step{kind: kindRun, command: "x", user: "root"}},
		{Step{Type: "ENV", Args: []string{"A", "1", "B", ""}}, step{kind: kindEnv, variables: [][2]string{{"A", "1"}, {"B", ""}}}},
		{Step{Type: "WORKDIR", Args: []string{"/a b"}}, step{kind: kindWorkdir, dir: "/a b"}},
		{Step{Type: "USER", Args: []string{"web", "true"}}, step{kind: kindUser, user: "web", sudo: true}},
		{Step{Type: "USER", Args: []string{"1000:1000"}}, step{kind: kindUser, user: "1000:1000"}},
		{Step{Type: "COPY", Args: []string{"./a/../b", "/c", "", ""}, FilesHash: hash}, step{kind: kindCopy, copy: copyArgs{source: "b", dest: "/c"}}},
		{Step{Type: "COPY", Args: []string{".", "/c", "web:web", "0755"}, FilesHash: hash}, step{kind: kindCopy, copy: copyArgs{source: ".", dest: "/c", owner: "web:web", mode: "0755"}}},
		{Step{Type: "COPY", Args: []string{"a/*.txt", "/c"}, FilesHash: hash}, step{kind: kindCopy, copy: copyArgs{source: "a", dest: "/c"}}},
		{Step{Type: "COPY", Args: []string{"**/x", "/c"}, FilesHash: hash}, step{kind: kindCopy, copy: copyArgs{source: ".", dest: "/c"}}},
		{Step{Type: "COPY", Args: []string{"..a/b", "/c"}, FilesHash: hash}, step{kind: kindCopy, copy: copyArgs{source: "..a/b", dest: "/c"}}},
	} {
		got, err := parse(7, c.raw)
		c.want.Step, c.want.number = c.raw, 7
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%v: %+v, %v", c.raw, got, err)
		}
	}
	for _, raw := range []Step{
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
	many := Spec{FromImage: "x", Steps: make([]Step, maxSteps+1)}
	big := Spec{FromImage: "x"}
	for range 10 {
		big.Steps = append(big.Steps, Step{Type: "RUN", Args: []string{strings.Repeat("a", maxArg)}})
	}
	for about, spec := range map[string]Spec{
		"nothing": {}, "both": {FromImage: "a", FromTemplate: "b"}, "many steps": many, "much text": big,
		"a start of bytes": {FromImage: "a", Start: "\xff"}, "a long ready": {FromImage: "a", Ready: strings.Repeat("a", maxCommand+1)},
	} {
		if _, err := spec.check(); firebreak.KindOf(err) != firebreak.KindInvalid {
			t.Errorf("%s: %v", about, err)
		}
	}
}

func FuzzStep(f *testing.F) {
	f.Add("COPY", "src/*", "/app", "user", "0755", strings.Repeat("a", 64))
	f.Add("RUN", "echo", "root", "", "", "")
	f.Add("ENV", "A", "$B", "C", "d", "")
	f.Fuzz(func(t *testing.T, kind, a, b, c, d, hash string) {
		s, err := parse(1, Step{Type: kind, Args: []string{a, b, c, d}, FilesHash: hash})
		if err != nil {
			return
		}
		if s.kind == kindCopy && (strings.HasPrefix(s.copy.source, "/") || s.copy.source == ".." || strings.HasPrefix(s.copy.source, "../")) {
			t.Errorf("the source %q", s.copy.source)
		}
		if text := s.text(); len(text) > maxShown+4 || strings.ContainsAny(text, "\n\r") {
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
		got, err := expand(value, func(name string) string { return envs[name] })
		if err != nil || got != want {
			t.Errorf("%s: %q, %v, want %q", value, got, err, want)
		}
	}
	if _, err := expand(strings.Repeat("$A", 1000), func(string) string { return strings.Repeat("x", 1000) }); err == nil {
		t.Error("a value of a million bytes passed")
	}
}

func FuzzExpand(f *testing.F) {
	for _, s := range []string{"$A", "${A:-x}", `\$`, "${", "$$", "${A:+"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, value string) {
		got, err := expand(value, func(string) string { return "v" })
		if err == nil && (len(got) > maxExpanded || !strings.Contains(value, "$") && got != value) {
			t.Errorf("%q became %q", value, got)
		}
	})
}

func TestRefs(t *testing.T) {
	for text, want := range map[string]Ref{
		"app": {Name: "app"}, "App:V1": {Name: "app", Tag: "v1"}, " acme/app:x.y_z-1 ": {"acme", "app", "x.y_z-1"}, "a_b-c": {Name: "a_b-c"},
	} {
		if got, err := ParseRef(text); err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", ":v1", "a:", "-a", "a/b/c", "/a", "a.b", "a b", "-x/a", "a:b:c", "~a", "a/", strings.Repeat("a", 64), "a:" + strings.Repeat("a", 64), "../a"} {
		if got, err := ParseRef(text); firebreak.KindOf(err) != firebreak.KindInvalid {
			t.Errorf("%q passed as %+v", text, got)
		}
	}
	for name, want := range map[string]bool{"base": true, "python:3": true, "ghcr.io/a/b": true, "localhost:5000/a": true, "acme/app": false, "acme/app:v1": false} {
		if Shared(name) != want {
			t.Errorf("%s is shared: %v", name, !want)
		}
	}
	if a, b, c := ImageName("acme", "app", "default"), ImageName("", "app", "default"), ImageName("", "app", "v1"); a != "acme/app:default" || b != "app" || c != "app:v1" {
		t.Error(a, b, c)
	}
	if got, err := checkTags([]string{"B", "a", "b"}); err != nil || fmt.Sprint(got) != "[a b]" {
		t.Error(got, err)
	}
}

// archive makes an uncompressed archive of headers; files hold their names.
func archive(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if h.Typeflag == 0 {
			h.Typeflag, h.Size = tar.TypeReg, int64(len(h.Name))
		}
		must(t, w.WriteHeader(&h))
		if h.Typeflag == tar.TypeReg {
			_, err := io.WriteString(w, h.Name)
			must(t, err)
		}
	}
	must(t, w.Close())
	return b.Bytes()
}

func dir(name string) tar.Header { return tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755} }

func file(name string) tar.Header { return tar.Header{Name: name, Mode: 0o644} }

func link(kind byte, name, target string) tar.Header {
	return tar.Header{Name: name, Typeflag: kind, Linkname: target}
}

// passed returns what would be sent into a sandbox: "name" or "name>target", and the name of the only file.
func passed(packed []byte, source string) (names []string, single string, err error) {
	u, err := openUpload(bytes.NewReader(packed), source, 1<<20)
	if err != nil {
		return nil, "", err
	}
	var b bytes.Buffer
	single = u.single()
	if err := u.writeTo(&b); err != nil {
		return nil, single, err
	}
	for r := tar.NewReader(&b); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return names, single, nil
		}
		if err != nil {
			return names, single, err
		}
		text := h.Name
		if h.Linkname != "" {
			text += ">" + h.Linkname
		}
		names = append(names, text)
	}
}

func TestUploads(t *testing.T) {
	src := []tar.Header{dir("src/"), file("src/a"), dir("src/sub"), file("src/sub/b"), link(tar.TypeSymlink, "src/l", "../out"), link(tar.TypeLink, "src/h", "src/a"), file("srcother"), file("z")}
	for _, c := range []struct {
		source string
		in     []tar.Header
		want   string
		single string
	}{
		{"src", src, "[./ a sub/ sub/b l>../out h>a]", ""},
		{"src/sub", src, "[./ b]", ""},
		{"src/a", src, "[a]", "a"},
		{"src/l", src, "[l>../out]", "l"},
		{"z", src, "[z]", "z"},
		{".", []tar.Header{dir("./"), file("./a"), file("b")}, "[./ a b]", ""},
		{".", []tar.Header{file("x/a")}, "[x/a]", ""},
		{"x", []tar.Header{file("x/a"), dir("x")}, "[a ./]", ""},
	} {
		names, single, err := passed(archive(t, c.in...), c.source)
		if err != nil || fmt.Sprint(names) != c.want || single != c.single {
			t.Errorf("%s of %d: %v, %q, %v, want %s", c.source, len(c.in), names, single, err, c.want)
		}
	}
	for about, in := range map[string][]tar.Header{
		"nothing of that name": {file("other")}, "nothing": {}, "a way up": {dir("src"), file("src/../../a")}, "a way up elsewhere": {dir("src"), file("../a")},
		"an absolute name": {dir("src"), file("/src/a")}, "a file behind its own link": {dir("src"), link(tar.TypeSymlink, "src/l", "/etc"), file("src/l/passwd")},
		"a link to nothing": {dir("src"), link(tar.TypeLink, "src/h", "src/none")}, "a link out": {dir("src"), file("a"), link(tar.TypeLink, "src/h", "a")},
		"a link up":        {dir("src"), link(tar.TypeLink, "src/h", "../../etc/passwd")},
		"a link to a link": {dir("src"), link(tar.TypeSymlink, "src/l", "/etc/shadow"), link(tar.TypeLink, "src/h", "src/l")},
		"a device":         {dir("src"), {Name: "src/d", Typeflag: tar.TypeChar}}, "a FIFO": {dir("src"), {Name: "src/d", Typeflag: tar.TypeFifo}},
		"a file and files below it": {file("src"), file("src/a")}, "a file twice": {file("src"), file("src")},
	} {
		if names, _, err := passed(archive(t, in...), "src"); firebreak.KindOf(err) != firebreak.KindInvalid {
			t.Errorf("%s: %v, %v", about, names, err)
		}
	}
	for about, data := range map[string][]byte{
		"no archive": []byte(strings.Repeat("text ", 1000)), "half an archive": archive(t, dir("src"), file("src/a"))[:1026],
		"half a compressed one": packed(t, "src/", "", "src/a", "text")[:40], "nothing compressed": {0x1f, 0x8b, 8},
	} {
		if names, _, err := passed(data, "src"); firebreak.KindOf(err) != firebreak.KindInvalid {
			t.Errorf("%s: %v, %v", about, names, err)
		}
	}
	bomb := packed(t, "src/", "", "src/zeros", strings.Repeat("\x00", 2<<20))
	if _, _, err := passed(bomb, "src"); len(bomb) > 100<<10 || firebreak.KindOf(err) != firebreak.KindExhausted {
		t.Errorf("a bomb of %d bytes: %v", len(bomb), err)
	}
}

func FuzzUpload(f *testing.F) {
	f.Add(archive(f, dir("src"), file("src/a"), link(tar.TypeSymlink, "src/l", ".."), link(tar.TypeLink, "src/h", "src/a")), "src")
	f.Add(archive(f, file("a")), "a")
	f.Add(packed(f, "src/", "", "src/a", "text"), ".")
	f.Fuzz(func(t *testing.T, data []byte, source string) {
		clean, err := sourceOf(source)
		if err != nil {
			return
		}
		names, single, err := passed(data, clean)
		if err != nil {
			return
		}
		links := map[string]bool{}
		for _, text := range names {
			name, _, isLink := strings.Cut(text, ">")
			name = strings.TrimSuffix(name, "/")
			for part := range strings.SplitSeq(name, "/") {
				if part == ".." || part == "" {
					t.Errorf("the name %q", name)
				}
			}
			for at := range links {
				if strings.HasPrefix(name, at+"/") {
					t.Errorf("%q lies behind %q", name, at)
				}
			}
			if isLink {
				links[name] = true
			}
		}
		if single != "" && len(names) != 1 {
			t.Errorf("%d entries, and one was promised", len(names))
		}
	})
}

func TestLines(t *testing.T) {
	for in, want := range map[string]string{
		"a\nb\n": "a|b", "a\r\nb": "a|b", "10%\r50%\r100%\ndone": "100%|done", "\n\n": "", "x\r": "x", "\r\r\n": "", strings.Repeat("l", 5000): strings.Repeat("l", maxLine+1),
	} {
		for _, size := range []int{1, 3, 10000} {
			var got []string
			w := &lineWriter{line: func(s string) { got = append(got, s) }}
			for rest := []byte(in); len(rest) > 0; rest = rest[min(size, len(rest)):] {
				w.write(rest[:min(size, len(rest))])
			}
			w.end()
			if strings.Join(got, "|") != want {
				t.Errorf("%.40q in pieces of %d: %.80q", in, size, got)
			}
		}
	}
	if got := tidy("a\x00b\xff \t\r"); got != "ab\ufffd" {
		t.Errorf("%q", got)
	}
}

func TestLog(t *testing.T) {
	dir := t.TempDir()
	must(t, exec.Command("mkdir", dir+"/logs").Run())
	l, ok, err := openLog(dir, "b")
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	if _, ok, err := openLog(dir, "b"); ok || err != nil {
		t.Errorf("opened twice: %v, %v", ok, err)
	}
	l.begin("1")
	for i := range maxLogLines + 10 {
		l.output(LevelInfo, fmt.Sprint("line ", i))
	}
	l.add(LevelError, "the end")
	if tail := l.tail(); len(tail) != keptLines || tail[keptLines-1] != fmt.Sprint("line ", maxLogLines+9) {
		t.Errorf("the tail is %v", tail)
	}
	live := l.snapshot()
	must(t, l.close())
	kept, err := readLog(dir, "b")
	if err != nil || len(kept) != maxLogLines+2 || !reflect.DeepEqual(kept, live) {
		t.Fatalf("%d lines kept of %d, %v", len(kept), len(live), err)
	}
	if a, b := kept[maxLogLines].Text, kept[maxLogLines+1]; !strings.Contains(a, "full") || b.Text != "the end" || b.Step != "1" {
		t.Errorf("it ends with %q, %+v", a, b)
	}
	if none, err := readLog(dir, "none"); err != nil || len(none) != 0 {
		t.Errorf("of no build: %v, %v", none, err)
	}
}

// TestSS holds the script to what waitForPort of E2B's SDKs asks of ss.
func TestSS(t *testing.T) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	must(t, err)
	defer listener.Close()
	port := listener.Addr().(*net.TCPAddr).Port
	ss := func(args ...string) (string, error) {
		out, err := exec.Command("bash", append([]string{"ss.sh"}, args...)...).CombinedOutput()
		return string(out), err
	}
	for _, args := range [][]string{{"-Htuln", "sport", "=", fmt.Sprint(":", port)}, {"-H", "-tl", "-n", fmt.Sprint("( sport = :", port, " )")}} {
		if out, err := ss(args...); err != nil || !strings.Contains(out, fmt.Sprint("127.0.0.1:", port)) || !strings.Contains(out, "LISTEN") || strings.Count(out, "\n") != 1 {
			t.Errorf("%v: %q, %v", args, out, err)
		}
	}
	must(t, listener.Close())
	if out, err := ss("-Htuln", "sport", "=", fmt.Sprint(":", port)); err != nil || out != "" {
		t.Errorf("of a port that is closed: %q, %v", out, err)
	}
	if out, err := ss("-tuln"); err != nil || !strings.HasPrefix(out, "Netid") {
		t.Errorf("with a head: %q, %v", out, err)
	}
	for _, args := range [][]string{{"--tcp"}, {"-Z"}, {"dst", "1.2.3.4"}} {
		if out, err := ss(args...); err == nil {
			t.Errorf("%v: %q", args, out)
		}
	}
}

func TestTokens(t *testing.T) {
	tk, now := tokens{all: map[string]token{}}, time.Unix(1e9, 0)
	id, err := tk.give(token{tenant: "a", template: "t", hash: "h"}, now)
	must(t, err)
	if _, _, err := tk.take("other", now); firebreak.KindOf(err) != firebreak.KindDenied {
		t.Errorf("a made-up one: %v", err)
	}
	if _, _, err := tk.take(id, now.Add(2*tokenTime)); firebreak.KindOf(err) != firebreak.KindDenied {
		t.Errorf("an old one: %v", err)
	}
	what, done, err := tk.take(id, now)
	if err != nil || what.tenant != "a" || what.hash != "h" {
		t.Errorf("%+v, %v", what, err)
	}
	done()
	if _, _, err := tk.take(id, now); firebreak.KindOf(err) != firebreak.KindDenied {
		t.Errorf("used twice: %v", err)
	}
	for range maxTokens {
		_, err := tk.give(token{tenant: "a"}, now)
		must(t, err)
	}
	if _, err := tk.give(token{tenant: "a"}, now); firebreak.KindOf(err) != firebreak.KindExhausted {
		t.Errorf("too many: %v", err)
	}
	if _, err := tk.give(token{tenant: "b"}, now); err != nil {
		t.Errorf("of another tenant: %v", err)
	}
	if _, err := tk.give(token{tenant: "a"}, now.Add(2*tokenTime)); err != nil || len(tk.all) != 1 {
		t.Errorf("when they are old: %d, %v", len(tk.all), err)
	}
	var ids []string
	for range maxUploading + 1 {
		id, err := tk.give(token{tenant: "c"}, now)
		must(t, err)
		ids = append(ids, id)
	}
	for i, id := range ids {
		if _, _, err := tk.take(id, now); (err != nil) != (i == maxUploading) {
			t.Errorf("upload %d at once: %v", i, err)
		}
	}
}
