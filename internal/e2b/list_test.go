package e2b_test

import (
	"encoding/base64"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

func mustParse(t *testing.T, text string) *url.URL {
	t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// list returns the ids of a list, and what its headers say.
func (w *world) list(tenant, path string) (ids []string, next, running string) {
	w.t.Helper()
	res := w.ask(tenant, "GET", path, nil)
	res.want(w.t, path, 200)
	var all []struct{ SandboxID string }
	res.into(w.t, &all)
	for _, sb := range all {
		ids = append(ids, sb.SandboxID)
	}
	return ids, res.Header.Get("X-Next-Token"), res.Header.Get("X-Total-Running")
}

func reversed(ids []string) []string {
	ids = slices.Clone(ids)
	slices.Reverse(ids)
	return ids
}

func TestLists(t *testing.T) {
	w := newWorld(t, nil)
	if res := w.ask("acme", "GET", "/v2/sandboxes", nil); string(res.body) != "[]" {
		t.Errorf("none at all: %s", res.body)
	}
	var ids []string
	for _, body := range []object{
		{"metadata": object{"n": "0", "user": "a b"}},
		{"metadata": object{"n": "1", "c&d=é": "100%"}},
		{"metadata": object{"n": "2", "user": "a b"}, "templateID": "own"},
		{"templateID": "base"},
		{},
	} {
		ids = append(ids, w.make("acme", body).SandboxID)
	}
	w.make("other", nil)
	w.ask("acme", "POST", "/sandboxes/"+ids[1]+"/pause", nil).want(t, "pause", 204)
	second := w.record(ids[1]).Created
	for _, c := range []struct {
		path string
		want []string // in the order in which they were made
	}{
		{"/v2/sandboxes", ids},
		{"/sandboxes", []string{ids[0], ids[2], ids[3], ids[4]}},
		{"/v2/sandboxes?state=running", []string{ids[0], ids[2], ids[3], ids[4]}},
		{"/v2/sandboxes?state=paused", ids[1:2]},
		{"/v2/sandboxes?state=running,paused", ids},
		{"/v2/sandboxes?state=running&state=paused", ids},
		{"/v2/sandboxes?template=own", ids[2:3]},
		{"/v2/sandboxes?template=base", ids[3:4]},
		{"/v2/sandboxes?template=nowhere", nil},
		{"/v2/sandboxes?startedAfter=" + url.QueryEscape(second.Format(time.RFC3339Nano)), ids[1:]},
		// As clients encode: keys and values, the whole, and by the query once more.
		{"/v2/sandboxes?metadata=user%3Da%252520b", []string{ids[0], ids[2]}},
		{"/v2/sandboxes?metadata=user%3Da%252520b%26n%3D2", ids[2:3]},
		{"/v2/sandboxes?metadata=c%252526d%25253D%2525C3%2525A9%3D100%252525", ids[1:2]},
		{"/v2/sandboxes?metadata=user%3Da%2520b", []string{ids[0], ids[2]}}, // by others, less often
		{"/v2/sandboxes?metadata=user%3Da+b", []string{ids[0], ids[2]}},
		{"/v2/sandboxes?metadata=n%3D1%26n%3D2", nil},
		{"/v2/sandboxes?metadata=n", nil},
		{"/sandboxes?metadata=n%3D0", ids[:1]},
	} {
		got, next, running := w.list("acme", c.path)
		if !slices.Equal(got, reversed(c.want)) || next != "" || strings.HasPrefix(c.path, "/v2") && running != "4" {
			t.Errorf("%s: %v, want %v, next %q, running %s", c.path, got, reversed(c.want), next, running)
		}
	}
	if all, _, running := w.list("operator", "/v2/sandboxes"); len(all) != 6 || running != "5" {
		t.Errorf("the operator sees %d, %s running", len(all), running)
	}
	for _, query := range []string{"state=dead", "order=up", "limit=0", "limit=101", "limit=x", "limit=1x", "startedAfter=now", "nextToken=x",
		"nextToken=" + base64.RawURLEncoding.EncodeToString([]byte("2026-01-01T00:00:00Z__a__asc")), "metadata=" + strings.Repeat("x", 9000)} {
		w.ask("acme", "GET", "/v2/sandboxes?"+query, nil).want(t, query, 400)
	}
}

// TestPages holds that pages together are the list, also when sandboxes come and go in between.
func TestPages(t *testing.T) {
	w := newWorld(t, nil)
	var ids []string
	for range 7 {
		ids = append(ids, w.make("acme", nil).SandboxID)
	}
	for order, want := range map[string][]string{"asc": ids, "desc": reversed(ids)} {
		var got []string
		for next, first := "", true; first || next != ""; first = false {
			var page []string
			page, next, _ = w.list("acme", "/v2/sandboxes?limit=3&order="+order+"&nextToken="+url.QueryEscape(next))
			got = append(got, page...)
			if len(page) > 3 || len(got) > 7 {
				t.Fatalf("%s: %v", order, got)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", order, got, want)
		}
	}
	first, next, _ := w.list("acme", "/v2/sandboxes?limit=2")
	w.ask("acme", "DELETE", "/sandboxes/"+first[1], nil).want(t, "kill", 204) // the one that the token names
	w.make("acme", nil)
	if second, _, _ := w.list("acme", "/v2/sandboxes?limit=2&nextToken="+next); !slices.Equal(second, reversed(ids)[2:4]) {
		t.Errorf("%v, then %v of %v", first, second, reversed(ids))
	}
}
