package code

import (
	"bufio"
	"os/exec"
	"strings"
	"testing"
)

func FuzzFrame(f *testing.F) {
	for _, seed := range []string{"16\n{\"type\":\"ready\"}", "0\n", "-1\n{}", "99999999\n{}", "2\n{}", "4\nnull", "x\n", "27\n{\"type\":\"result\",\"forms\":{}}"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		r := bufio.NewReaderSize(strings.NewReader(string(text)), 64)
		for {
			got, err := readFrame(r)
			if err != nil {
				return
			}
			if got.Type == "" {
				t.Errorf("%q passed without a type", text)
			}
		}
	})
}

func FuzzExecution(f *testing.F) {
	for _, seed := range []string{`{"code":"1"}`, `{"code":null}`, `{"code":"","env_vars":{"a=b":""}}`, `[]`, `{"code":"1","language":"js","context_id":"x"}`, `{} {}`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		e, err := parseExecution(strings.NewReader(text))
		if err == nil && (e.Code == nil || e.Context != "" && e.Language != "") {
			t.Errorf("%q passed", text)
		}
		if err != nil && (statusOf(err) < 400 || statusOf(err) >= 500) {
			t.Errorf("%q: status %d", text, statusOf(err))
		}
	})
}

func TestFramesThatNoKernelWrites(t *testing.T) {
	for text, want := range map[string]string{
		"16\n{\"type\":\"ready\"}":            "",
		"0\n":                                 "length",
		"9000000\n{}":                         "length",
		"100000000000\n{}":                    "no length",
		"+2\n{}":                              "length",
		"{\"type\":\"ready\"}":                "no length",
		"16\n{\"type\":\"rea":                 "read a frame",
		"2\n{}":                               "unknown type",
		"25\n{\"type\":\"ready\",\"more\":1}": "unknown field",
		"18\n{\"type\":\"ready\"} 1":          "more than one",
	} {
		_, err := readFrame(bufio.NewReaderSize(strings.NewReader(text), 4096))
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func TestQuote(t *testing.T) {
	for _, s := range []string{"", "a'b", `\'$x`, "a\nb", "`id`", "!!"} {
		out, err := exec.Command("bash", "-c", "printf %s "+quote(s)).Output()
		if err != nil || string(out) != s {
			t.Errorf("%q came out as %q, %v", s, out, err)
		}
	}
}

func TestWholeRunes(t *testing.T) {
	for text, want := range map[string]int{"": 0, "a": 1, "é": 2, "a\xc3": 1, "a\xf0\x9f\x98": 1, "\xff": 1, "\x80\x80\x80\x80": 4} {
		if got := wholeRunes([]byte(text)); got != want {
			t.Errorf("%q: %d, want %d", text, got, want)
		}
	}
}
