package build

import (
	"fmt"
	"net"
	"os/exec"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak"
)

func TestSpec(t *testing.T) {
	for about, spec := range map[string]Spec{
		"nothing": {}, "both": {FromImage: "a", FromTemplate: "b"}, "a bad step": {FromImage: "a", Steps: []Step{{Type: "X"}}},
		"a start of bytes": {FromImage: "a", Start: "\xff"}, "a long ready": {FromImage: "a", Ready: strings.Repeat("a", maxCommand+1)},
	} {
		if _, err := spec.check(); firebreak.KindOf(err) != firebreak.KindInvalid {
			t.Errorf("%s: %v", about, err)
		}
	}
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
	if a, b, c := ImageName("acme", "app", "default"), ImageName("", "app", "default"), ImageName("", "app", "v1"); a != "acme/app:default" || b != "app" || c != "app:v1" {
		t.Error(a, b, c)
	}
	if got, err := checkTags([]string{"B", "a", "b"}); err != nil || fmt.Sprint(got) != "[a b]" {
		t.Error(got, err)
	}
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
