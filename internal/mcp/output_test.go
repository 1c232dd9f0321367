package mcp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
)

// FuzzOutput compares what is kept of a stream with the stream.
func FuzzOutput(f *testing.F) {
	f.Add([]byte("some text that is longer than what is kept of it"), uint8(8), uint8(3), int64(0))
	f.Add([]byte("äöü€𝄞 and more of it"), uint8(10), uint8(5), int64(-3))
	f.Add([]byte("\xff\xfe\x00"), uint8(2), uint8(1), int64(99))
	f.Fuzz(func(t *testing.T, data []byte, most, step uint8, offset int64) {
		o := newOutput(int(most), nil)
		for rest := data; len(rest) > 0; {
			n := min(len(rest), int(step)+1)
			_, _ = o.Write(rest[:n])
			rest = rest[n:]
		}
		p := o.read(offset, int(most)+1)
		if p.length != int64(len(data)) || !utf8.ValidString(p.text) || p.from < 0 || p.next < p.from || p.next > p.length {
			t.Fatalf("%+v of %q", p, data)
		}
		if got := valid(data[p.from:p.next]); got != p.text {
			t.Errorf("%q, want %q of %q", p.text, got, data)
		}
		if len(data) <= int(most)/2*2 {
			if all := o.read(0, len(data)+1); all.text != valid(data) {
				t.Errorf("%q of %q", all.text, data)
			}
		}
		if shown, _ := o.shown(int(most), "elsewhere"); !utf8.ValidString(shown) {
			t.Errorf("%q is no text", shown)
		}
	})
}

func TestOutputsShareMemory(t *testing.T) {
	spare := &budget{left: 3 * maxKept}
	big := bytes.Repeat([]byte("0123456789abcdef"), maxKept/16)
	var all []*output
	for range 5 {
		o := newOutput(maxKept, spare)
		_, _ = o.Write(big)
		all = append(all, o)
	}
	if spare.left < 0 || spare.left >= maxKept*3/2 {
		t.Errorf("%d bytes are to spare", spare.left)
	}
	for i, o := range all {
		kept := len(o.head) + len(o.tail)
		if rich := o.taken > 0; rich != (i < 2) || rich && kept < maxKept || !rich && kept > 3*maxShown {
			t.Errorf("output %d keeps %d bytes and has taken %d", i, kept, o.taken)
		}
		o.free()
	}
	if spare.left != 3*maxKept {
		t.Errorf("%d bytes came back of %d", spare.left, 3*maxKept)
	}
}

func TestEventsAreBounded(t *testing.T) {
	e, ctx := newEvents(), context.Background()
	read := func(session, stream string, index int) ([]string, error) {
		var got []string
		for data, err := range e.After(ctx, session, stream, index) {
			if err != nil {
				return got, err
			}
			got = append(got, string(data))
		}
		return got, nil
	}
	put := func(session, stream, data string) {
		if err := e.Append(ctx, session, stream, []byte(data)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 3 {
		put("a", "s", fmt.Sprint(i))
	}
	if got, err := read("a", "s", 0); err != nil || strings.Join(got, " ") != "1 2" {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := read("a", "s", 2); err != nil || len(got) != 0 {
		t.Errorf("%q, %v", got, err)
	}
	put("b", "s", strings.Repeat("x", maxStream)) // another session's size is its own matter
	if got, err := read("a", "s", -1); err != nil || len(got) != 3 {
		t.Errorf("%q, %v", got, err)
	}
	put("a", "s", strings.Repeat("x", maxStream-1))
	if _, err := read("a", "s", 0); !errors.Is(err, sdk.ErrEventsPurged) {
		t.Errorf("messages that are gone: %v", err)
	}
	if got, err := read("a", "s", 2); err != nil || len(got) != 1 {
		t.Errorf("%d messages, %v", len(got), err)
	}
	for i := range 2 * maxStreams {
		put("a", fmt.Sprint("t", i), "x")
	}
	if s := e.sessions["a"]; len(s.streams) != maxStreams || len(s.order) != maxStreams {
		t.Errorf("%d streams", len(s.streams))
	}
	if _, err := read("a", "t0", -1); !errors.Is(err, sdk.ErrEventsPurged) {
		t.Errorf("a stream that is gone: %v", err)
	}
	e.spare.left = 10 // others have all there is
	put("c", "s", "hello")
	put("c", "s", strings.Repeat("x", 100))
	if _, err := read("c", "s", 0); !errors.Is(err, sdk.ErrEventsPurged) {
		t.Errorf("what found no room: %v", err)
	}
	before := e.spare.left
	for _, id := range []string{"a", "b", "c"} {
		if err := e.SessionClosed(ctx, id); err != nil {
			t.Fatal(err)
		}
	}
	if len(e.sessions) != 0 || e.spare.left <= before {
		t.Errorf("%d sessions, %d bytes to spare", len(e.sessions), e.spare.left)
	}
}

func TestApply(t *testing.T) {
	for name, c := range map[string]struct {
		content string
		edits   []edit
		want    string
		n       int
	}{
		"one":      {"a b", []edit{{Old: "a", New: "x"}}, "x b", 1},
		"all":      {"a a", []edit{{Old: "a", New: "x", All: true}}, "x x", 2},
		"in order": {"a", []edit{{Old: "a", New: "b"}, {Old: "b", New: "c"}}, "c", 2},
		"twice":    {"a a", []edit{{Old: "a", New: "x"}}, "", -1},
		"none":     {"a", []edit{{Old: "b", New: "x"}}, "", -1},
		"empty":    {"a", []edit{{New: "x"}}, "", -1},
		"a bomb":   {strings.Repeat("a", 1<<20), []edit{{Old: "a", New: strings.Repeat("x", 100), All: true}}, "", -1},
	} {
		got, n, err := apply(c.content, c.edits)
		if got != c.want || (err != nil) != (c.n < 0) || err == nil && n != c.n {
			t.Errorf("%s: %q, %d, %v", name, got, n, err)
		}
	}
}
