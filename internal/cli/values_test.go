package cli

import (
	"math"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestParseSize(t *testing.T) {
	for s, want := range map[string]int64{
		"1": 1, "512b": 512, "1k": 1024, "512m": 512 << 20, "512MB": 512 << 20, "512 MiB": 512 << 20, "1g": 1 << 30, "1.5G": 3 << 29, "2t": 2 << 40, " 7kib ": 7 << 10,
	} {
		if got, err := parseSize(s); got != want || err != nil {
			t.Errorf("%q is %d, %v, want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "g", "0", "-1m", "1x", "1gg", "nan", "inf", "1e30", "0x10", "1_0", "1 2", "9999999t", "1ib", "0.1", "m1", "ⅷm"} {
		if got, err := parseSize(s); err == nil {
			t.Errorf("%q was taken as %d", s, got)
		}
	}
}

func FuzzParseSize(f *testing.F) {
	for _, s := range []string{"1", "512m", "1.5GiB", "-3k", "1e3", "inf", "9223372036854775807", "kib"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := parseSize(s)
		if err == nil && n <= 0 {
			t.Errorf("%q is %d", s, n)
		}
		if err != nil || n >= 1<<50 {
			return
		}
		if back, err := parseSize(formatSize(n)); err != nil || math.Abs(float64(back-n)) > 0.06*float64(n) {
			t.Errorf("%q is %d, shown as %q, which is %d, %v", s, n, formatSize(n), back, err)
		}
	})
}

func TestParseDuration(t *testing.T) {
	for s, want := range map[string]time.Duration{"30s": 30 * time.Second, "5m": 5 * time.Minute, "1h30m": 90 * time.Minute, "30": 30 * time.Second, "0.5": time.Second / 2} {
		var d durationFlag
		if err := d.Set(s); err != nil || time.Duration(d) != want {
			t.Errorf("%q is %s, %v", s, time.Duration(d), err)
		}
	}
	for _, s := range []string{"", "0", "-1s", "5x", "1e30", "inf", "nan"} {
		var d durationFlag
		if err := d.Set(s); err == nil {
			t.Errorf("%q was taken as %s", s, time.Duration(d))
		}
	}
}

func TestParseVolume(t *testing.T) {
	for s, want := range map[string]string{
		"/a:/b": "/a /b rw", "/a:/b:ro": "/a /b ro", "/a:/b:rw": "/a /b rw", "./a:/b": "/here/a /b rw", "a/../c:/b/": "/here/c /b rw", "/a/:/b/../c": "/a /c rw", ".:/work": "/here /work rw",
	} {
		m, err := parseVolume(s, "/here")
		if err != nil {
			t.Errorf("%q: %v", s, err)
			continue
		}
		access := map[bool]string{false: "rw", true: "ro"}[m.ReadOnly]
		if got := m.Source + " " + m.Target + " " + access; got != want {
			t.Errorf("%q is %q, want %q", s, got, want)
		}
	}
	for _, s := range []string{"", "/a", "/a:", ":/b", "/a:b", "/a:/b:rx", "/a:/b:ro:ro", "/a:/", "/a:/b/..", "/a:/b\x00"} {
		if m, err := parseVolume(s, "/here"); err == nil {
			t.Errorf("%q was taken as %v", s, m)
		}
	}
	if m, err := parseVolume("./a:/b", ""); err == nil {
		t.Errorf("a relative path of another host was taken as %v", m)
	}
}

func FuzzParseVolume(f *testing.F) {
	for _, s := range []string{"/a:/b:ro", "./x:/y", "~/x:/y", "a:b:c:d", ":::"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		m, err := parseVolume(s, "/here")
		if err == nil && (!filepath.IsAbs(m.Source) || !filepath.IsAbs(m.Target) || m.Target == "/" || filepath.Clean(m.Target) != m.Target) {
			t.Errorf("%q is %v", s, m)
		}
	})
}

func TestReadEnvFile(t *testing.T) {
	lines, err := readEnvFile(strings.NewReader("\ufeffA=1\n\n  # no\nB= x \r\n\tC\nD=\"q\"#x"))
	if want := "A=1|B= x |C|D=\"q\"#x"; strings.Join(lines, "|") != want || err != nil {
		t.Errorf("got %q, %v", strings.Join(lines, "|"), err)
	}
	if _, err := readEnvFile(strings.NewReader(strings.Repeat("x", maxEnvFile+1))); err == nil {
		t.Error("a file of any size is taken")
	}
}

func TestSplitRemote(t *testing.T) {
	for s, want := range map[string]string{"abc:/x": "abc /x", "my-box_1.2:": "my-box_1.2 .", "abc:a:b": "abc a:b"} {
		if id, file, ok := splitRemote(s); !ok || id+" "+file != want {
			t.Errorf("%q is %q %q %v", s, id, file, ok)
		}
	}
	for _, s := range []string{"/abc:/x", "./a:b", "x", "", ":/x", "-", "../a:b"} {
		if id, file, ok := splitRemote(s); ok {
			t.Errorf("%q was taken as %q %q", s, id, file)
		}
	}
}

func TestNearest(t *testing.T) {
	words := []string{"--memory", "--template", "--timeout", "--tty", "gvisor", "container"}
	for word, want := range map[string]string{"--memroy": "--memory", "--time-out": "--timeout", "gvizor": "gvisor", "docker": "", "contianer": "container", "--xyzzy": "", "": ""} {
		if got := nearest(word, words); got != want {
			t.Errorf("nearest to %q is %q, want %q", word, got, want)
		}
	}
}

func TestOneLineCannotSteerTheTerminal(t *testing.T) {
	if got := oneLine(" a\x1b[2J\nb\tc\x00\u202ed \u00e9 "); got != "a\ufffd[2J b c\ufffd\ufffdd é" {
		t.Errorf("got %q", got)
	}
}
