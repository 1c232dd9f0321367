package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/api/filesystem"
	firebreakv1 "github.com/firebreak-dev/firebreak/internal/api/firebreak/v1"
)

// withSandbox is a server whose sandbox runs.
func withSandbox(t *testing.T) *server {
	s := newServer(t)
	s.sandboxes[sandboxID] = &firebreakv1.Sandbox{Id: sandboxID, Name: "work", State: "running", Driver: "gvisor", Boundary: "user-kernel", Template: "host", Command: "sh\x1b[2J"}
	return s
}

// tree makes files below dir: "name mode content", "name/ mode" or "name -> target".
func tree(t *testing.T, dir string, lines ...string) {
	t.Helper()
	for _, line := range lines {
		var err error
		words := strings.SplitN(line, " ", 3)
		name := filepath.Join(dir, words[0])
		var perm fs.FileMode
		_, _ = fmt.Sscanf(words[1], "%o", &perm) // a link has none
		switch {
		case words[1] == "->":
			err = os.Symlink(words[2], name)
		case strings.HasSuffix(words[0], "/"):
			err = errors.Join(os.MkdirAll(name, 0o755), os.Chmod(name, perm))
		default:
			err = errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(words[2]), 0o644), os.Chmod(name, perm))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// wantTree checks that dir holds just these.
func wantTree(t *testing.T, dir string, want ...string) {
	t.Helper()
	var got []string
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == dir {
			return err
		}
		below, _ := filepath.Rel(dir, name)
		info, err := d.Info()
		if err != nil {
			return err
		}
		switch {
		case d.Type()&fs.ModeSymlink != 0:
			target, _ := os.Readlink(name)
			got = append(got, below+" -> "+target)
		case d.IsDir():
			got = append(got, fmt.Sprintf("%s/ %04o", below, info.Mode().Perm()))
		default:
			data, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			got = append(got, fmt.Sprintf("%s %04o %s", below, info.Mode().Perm(), data))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestCopyOut(t *testing.T) {
	s, dst := withSandbox(t), t.TempDir()
	tree(t, s.dir, "data/a 0640 one", "data/sub/run 0755 #!", "data/sub/ 0711", "data/empty/ 0755", "data/in -> sub/run",
		"data/up -> ../secret", "data/abs -> /etc/passwd", "data/sub/back -> ../a", "data/sub/sneak -> ../sub/../../secret", "data/resolved -> /data/sub/run", "link -> data", "home/rel 0600 r")
	run{s: s}.do(t, "cp", "work:/data", dst).want(t, 0, "", strings.Join([]string{
		`firebreak: warning: "abs" is left out: it is a link that leads out of what is copied`,
		`firebreak: warning: "sub/sneak" is left out: it is a link that leads out of what is copied`,
		`firebreak: warning: "up" is left out: it is a link that leads out of what is copied`, ""}, "\n"))
	want := []string{"data/ 0755", "data/a 0640 one", "data/empty/ 0755", "data/in -> sub/run", "data/resolved -> sub/run", "data/sub/ 0711", "data/sub/back -> ../a", "data/sub/run 0755 #!"}
	wantTree(t, dst, want...)
	if got := (run{s: s}).do(t, "cp", "-q", "work:/data", dst); got.code != 0 {
		t.Errorf("a second time: %+v", got)
	}
	wantTree(t, dst, want...)
	fresh := filepath.Join(t.TempDir(), "fresh")
	run{s: s}.do(t, "cp", "-q", "3fa:/link", fresh).want(t, 0, "", "")
	wantTree(t, fresh, "a 0640 one", "empty/ 0755", "in -> sub/run", "resolved -> sub/run", "sub/ 0711", "sub/back -> ../a", "sub/run 0755 #!")
	file := filepath.Join(dst, "named")
	run{s: s}.do(t, "cp", "work:rel", file).want(t, 0, "", "")
	if data, err := os.ReadFile(file); string(data) != "r" || err != nil {
		t.Errorf("%q, %v", data, err)
	}
	run{s: s}.do(t, "cp", "work:/data/a", "-").want(t, 0, "one", "")
}

func TestCopyIn(t *testing.T) {
	s, src := withSandbox(t), t.TempDir()
	tree(t, src, "top/a 0644 one", "top/tool 0755 #!", "top/sub/b 0600 two", "top/in -> sub/b", "top/out -> /etc/passwd", "top/-n 0755 dash")
	got := run{s: s}.do(t, "cp", filepath.Join(src, "top"), "work:/data")
	if got.code != 0 || strings.Count(got.stderr, "left out") != 1 || !strings.Contains(got.stderr, `"out" is left out`) {
		t.Errorf("got %+v", got)
	}
	// The permissions are chmod's work, and the server of this test has paths of its own: it sees them beside home.
	for name, want := range map[string]string{"a": "one", "tool": "#!", "sub/b": "two", "in": "two", "-n": "dash"} {
		if data, err := os.ReadFile(filepath.Join(s.dir, "data", name)); string(data) != want || err != nil {
			t.Errorf("%s is %q, %v", name, data, err)
		}
	}
	if _, err := os.Lstat(filepath.Join(s.dir, "data/out")); err == nil {
		t.Error("a link that leads out was followed")
	}
	run{s: s}.do(t, "cp", filepath.Join(src, "top/a"), "work:dir/").want(t, 0, "", "")
	in := pipeWith(t, func(w io.Writer) { _, _ = io.WriteString(w, "piped") })
	run{s: s, stdin: in}.do(t, "cp", "-", "work:p").want(t, 0, "", "")
	wantTree(t, filepath.Join(s.dir, "home"), "dir/ 0755", "dir/a 0644 one", "p 0644 piped")
}

func TestCopyKeepsPermissions(t *testing.T) {
	s, src := withSandbox(t), t.TempDir()
	s.dir = "/" // so that chmod and the server mean the same
	dst := filepath.Join(t.TempDir(), "to")
	tree(t, src, "a 0644 one", "tool 0755 #!", "secret 0600 s", "closed/x 0400 x", "closed/ 0500")
	run{s: s}.do(t, "cp", src, "work:"+dst).want(t, 0, "", "")
	wantTree(t, dst, "a 0644 one", "closed/ 0700", "closed/x 0400 x", "secret 0600 s", "tool 0755 #!")
}

func TestCopyRefuses(t *testing.T) {
	s, dst := withSandbox(t), t.TempDir()
	tree(t, s.dir, "data/a 0644 one", "loop -> loop")
	tree(t, dst, "file 0644 x")
	for _, c := range []struct {
		args []string
		text string
	}{
		{[]string{"a", "b"}, "neither is in a sandbox; write SANDBOX:PATH"},
		{[]string{"work:a", "work:b"}, "both are in a sandbox"},
		{[]string{"work:/nothing", dst}, "no such file"},
		{[]string{"work:/loop", dst}, "leads nowhere"},
		{[]string{"wrok:/data", dst}, `there is no sandbox "wrok"; did you mean work?`},
		{[]string{"work:/data", dst + "/file"}, "is a directory, and"},
		{[]string{"work:/data/a", dst + "/none/"}, "there is no directory"},
		{[]string{dst + "/none", "work:/x"}, "no such file or directory"},
		{[]string{dst, "work:/data/a"}, "is a directory, and"},
		{[]string{"--limit", "2b", "work:/data", dst}, "more than 2 B would come out; raise it with firebreak cp --limit"},
	} {
		run{s: s}.do(t, append([]string{"cp"}, c.args...)...).wantError(t, 125, "firebreak: cp: ", c.text)
	}
}

// hostile is a sandbox whose agent lies: every directory holds the same entries.
func hostile(t *testing.T, entries ...*filesystem.EntryInfo) *server {
	s := withSandbox(t)
	tree(t, s.dir, "x/y 0644 y")
	s.entries = func(string) []*filesystem.EntryInfo { return entries }
	s.file = func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hostile content") }
	return s
}

func file(name string) *filesystem.EntryInfo {
	return &filesystem.EntryInfo{Name: name, Type: filesystem.FileType_FILE_TYPE_FILE, Size: 100, Mode: 0o7777}
}

func directory(name string) *filesystem.EntryInfo {
	return &filesystem.EntryInfo{Name: name, Type: filesystem.FileType_FILE_TYPE_DIRECTORY, Mode: 0o777}
}

func symlink(name, target string) *filesystem.EntryInfo {
	return &filesystem.EntryInfo{Name: name, Type: filesystem.FileType_FILE_TYPE_SYMLINK, SymlinkTarget: &target}
}

func TestHostileNamesStayBelowTheDestination(t *testing.T) {
	outer := t.TempDir()
	dst := filepath.Join(outer, "dst")
	tree(t, outer, "precious 0644 p", "dst/ 0755", "dst/trap -> ../precious", "dst/hole -> ..")
	s := hostile(t, file("../precious"), file("/etc/firebreak-test"), file(".."), file("."), file(""), file("a/b"), file("nul\x00"), directory(".."),
		file(strings.Repeat("n", 256)), file("trap"), symlink("s", "../.."), file("s"), file("ok\x1b[2J"), symlink("hole", "/"), file("hole"))
	got := run{s: s}.do(t, "cp", "work:/x/.", dst)
	if got.code != 0 || strings.Contains(got.stderr, "\x1b") || strings.Count(got.stderr, "\n") != maxSkipWarnings+1 {
		t.Errorf("got %+v", got)
	}
	wantTree(t, outer, "dst/ 0755", "dst/hole 0777 hostile content", "dst/ok\x1b[2J 0777 hostile content", "dst/s 0777 hostile content", "dst/trap 0777 hostile content", "precious 0644 p")
}

func TestHostileTreesEnd(t *testing.T) {
	run{s: hostile(t, directory("d"))}.do(t, "cp", "work:/x", t.TempDir()).wantError(t, 125, "directories deep")
	huge := file("sparse")
	huge.Size = 1 << 50
	run{s: hostile(t, huge)}.do(t, "cp", "work:/x", t.TempDir()).wantError(t, 125, "more than 10 GiB would come out")
	endless := hostile(t, file("endless"))
	endless.file = func(w http.ResponseWriter, _ *http.Request) {
		for {
			if _, err := w.Write(make([]byte, 4096)); err != nil {
				return
			}
		}
	}
	dst := t.TempDir()
	run{s: endless}.do(t, "cp", "work:/x/.", dst).want(t, 0, "", "")
	if info, err := os.Stat(filepath.Join(dst, "endless")); err != nil || info.Size() != 100 || info.Mode() != 0o777 {
		t.Errorf("%v, %v: more than it claimed to be, or with setuid", info, err)
	}
}

func FuzzHostileEntries(f *testing.F) {
	f.Add("a", "b", "../x", uint8(1))
	f.Add("s", "s/../..", "..", uint8(7))
	f.Add("d", "d", ".", uint8(14))
	f.Add("s", "s", "s/../../precious", uint8(11))
	f.Fuzz(func(t *testing.T, one, two, target string, types uint8) {
		make := func(name string, kind uint8) *filesystem.EntryInfo {
			return []*filesystem.EntryInfo{file(name), symlink(name, target), file(name), symlink(name, "..")}[kind&3]
		}
		outer := t.TempDir()
		tree(t, outer, "precious 0644 p", "dst/ 0755")
		s := hostile(t, make(one, types), make(two, types>>2), make(two+"/"+one, types>>4))
		run{s: s}.do(t, "cp", "work:/x/.", filepath.Join(outer, "dst"))
		run{s: s}.do(t, "cp", "work:/x/.", filepath.Join(outer, "dst")) // through links of the first time
		checkUnharmed(t, outer)
	})
}

// checkUnharmed fails if anything beside dst has changed or a link in it leads out.
func checkUnharmed(t *testing.T, outer string) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(outer, "precious"))
	entries, dirErr := os.ReadDir(outer)
	if string(data) != "p" || err != nil || dirErr != nil || len(entries) != 2 {
		t.Fatalf("outside are %v, precious is %q, %v", entries, data, err)
	}
	links, err := os.ReadDir(filepath.Join(outer, "dst"))
	if err != nil {
		t.Fatal(err)
	}
	real, err := filepath.EvalSymlinks(filepath.Join(outer, "dst"))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		to, err := filepath.EvalSymlinks(filepath.Join(outer, "dst", l.Name()))
		if err == nil && to != real && !strings.HasPrefix(to, real+"/") {
			t.Errorf("%q leads to %q", l.Name(), to)
		}
	}
}

func TestStaysBelow(t *testing.T) {
	for _, c := range []struct {
		dir, target string
		want        bool
	}{
		{"", "a", true}, {"", "./a/b", true}, {"d", "../a", true}, {"d/e", "../../a", true}, {"d", "..", true},
		{"", "..", false}, {"d", "../..", false}, {"", "/a", false}, {"d", "a/../b", false}, {"d", "../e/..", false}, {"", "", false}, {"", "a\x00", false},
	} {
		if got := staysBelow(c.dir, c.target); got != c.want {
			t.Errorf("staysBelow(%q, %q) = %v", c.dir, c.target, got)
		}
	}
}

func TestRunCopiesFilesIn(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	tree(t, dir, "a.txt 0644 one\n", "d/ 0755", "d/b 0644 two\n", "x:y 0644 three\n", "s.sh 0644 cat \"$@\"\n")
	run{s: newServer(t)}.do(t, "run", "-q", "--input", "a.txt", "--input", "d", "--input", "x:y", "--input", "a.txt:other/c", "--input", "d:e", "s.sh", "a.txt", "d/b", "x:y", "other/c", "e/b").
		want(t, 0, "one\ntwo\nthree\none\ntwo\n", "")
	run{s: newServer(t)}.do(t, "run", "-q", "-w", "/home", "--input", "a.txt", "--input", "d/b:f/", "--input", "a.txt:/home/g", "--", "cat", "a.txt", "f/b", "g").want(t, 0, "one\ntwo\none\n", "")
	run{s: newServer(t)}.do(t, "run", "-q", "--input", ".", "--", "sh", "-c", "cat a.txt d/b").want(t, 0, "one\ntwo\n", "")
	for args, want := range map[string]string{
		"--input b.txt -- true":                            "run: there is no file b.txt here; did you mean a.txt?",
		"--input nothing:like -- true":                     "run: there is no file nothing here; write --input HOST or --input HOST:GUEST",
		"--isolation process -q --input a.txt -- true":     "run: nothing is copied in: programs without isolation have this host's files",
		"--input a.txt:c --input d:c -- true":              "run: copy d in: d is a directory, and c in the sandbox is none",
		"--input a.txt --output none.txt -- true":          "run: copy none.txt out: no such file",
		"--input= -- true":                                 "run: there is no file here; write --input HOST",
		"-d --input a.txt --input d --rm=false -- sleep 9": "",
	} {
		s := newServer(t)
		got := run{s: s}.do(t, append([]string{"run"}, strings.Fields(args)...)...)
		if want == "" && got.code != 0 || want != "" && (got.code != 125 || !strings.Contains(got.stderr, want)) {
			t.Errorf("%s: %+v, want %s", args, got, want)
		}
	}
}

// TestTimeUpWhileCopyingIn: the program that was to be stopped has not begun.
func TestTimeUpWhileCopyingIn(t *testing.T) {
	for reason, want := range map[firebreak.EndReason]string{firebreak.EndDeadline: "the sandbox's time was up while", firebreak.EndDestroyed: "", firebreak.EndLost: "ended before"} {
		gone := &firebreak.Error{Kind: firebreak.KindNotFound, Err: errors.New("gone")}
		o := outcome{err: fmt.Errorf("%w x in: %w", errCopyIn, gone), sandbox: &firebreakv1.Sandbox{EndReason: string(reason)}}
		o.judge()
		if !strings.Contains(o.text, want) || want == "" && o.err == nil || want != "" && o.code != 125 {
			t.Errorf("%s: %+v", reason, o)
		}
	}
}

// TestRunSuggestsInput: a program that failed may have looked for a file of this host.
func TestRunSuggestsInput(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	tree(t, dir, "a.txt 0644 one", "d/ 0755", "d/b 0644 two", "s.sh 0644 cat \"$@\"")
	for args, want := range map[string]string{
		"-- grep x a.txt":                   "firebreak: a.txt lies on this host and not in the sandbox; --input a.txt copies it in\n",
		"s.sh ./d/b":                        "firebreak: ./d/b lies on this host and not in the sandbox; --input d copies it in\n",
		"-w /home s.sh d/b a.txt":           "--input d copies it in\n",
		"--input a.txt -- grep x a.txt":     "",
		"-- sh -c true a.txt":               "",
		"-- sh -c false d none /dev/null":   "",
		"-- sh -c false " + dir + "/a.txt":  "",
		"-q -- grep x a.txt":                "",
		"-- ./a.txt":                        "./a.txt: not found in the sandbox; it lies on this host: firebreak run --input a.txt -- ./a.txt\n",
		"-- d/b":                            "; it lies on this host: firebreak run --input d -- ./d/b\n",
		"./d/b":                             "nor a #! line; say --lang, or copy a program of this host in: firebreak run --input d -- ./d/b\n",
		"../" + filepath.Base(dir) + "/d/b": "copy a program of this host in: firebreak run --input ../" + filepath.Base(dir) + "/d/b -- ./b\n",
		"--json -- grep x a.txt":            "",
	} {
		got := run{s: newServer(t)}.do(t, append([]string{"run"}, strings.Fields(args)...)...)
		if strings.Contains(got.stderr, "--input") != (want != "") || !strings.HasSuffix(got.stderr, want) {
			t.Errorf("%s: %+v", args, got)
		}
	}
}

func TestRunCopiesResultsOut(t *testing.T) {
	s, dst := newServer(t), t.TempDir()
	run{s: s}.do(t, "run", "--output", "r.txt:"+dst, "--output", "d:"+dst+"/e", "--", "sh", "-c", "echo result >r.txt; mkdir d; echo x >d/f").want(t, 0, "", "")
	wantTree(t, dst, "e/ 0755", "e/f 0644 x\n", "r.txt 0644 result\n")
	run{s: newServer(t)}.do(t, "run", "--output", "none:"+dst, "--", "true").wantError(t, 125, "run: copy none out: no such file")
	got := run{s: newServer(t)}.do(t, "run", "--output", "none:"+dst, "--", "false")
	got.want(t, 1, "", "firebreak: warning: none was not copied out: no such file\n")
}
