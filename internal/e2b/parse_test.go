package e2b

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/store"
)

// FuzzMetadata holds that what clients encode comes out as it was, and that no filter is an endless one.
func FuzzMetadata(f *testing.F) {
	for _, pair := range [][2]string{{"a b", "c&d=é"}, {"100%", "+"}, {"", "%zz"}, {"user", "a%20b"}, {"=", "&&"}} {
		f.Add(pair[0], pair[1], pair[0]+"="+pair[1])
	}
	f.Fuzz(func(t *testing.T, key, value, raw string) {
		if pairs, err := parseMetadata(raw); err == nil && (len(pairs) > maxPairs || len(raw) > maxFilter) {
			t.Errorf("%d pairs of %d bytes", len(pairs), len(raw))
		}
		escape := func(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }
		encoded := escape(escape(key) + "=" + escape(value))
		pairs, err := parseMetadata(encoded)
		if len(encoded) > maxFilter {
			return
		}
		if err != nil || len(pairs) != 1 || pairs[0] != [2]string{key, value} {
			t.Errorf("%q: %q is read as %q, %v", encoded, [2]string{key, value}, pairs, err)
		}
	})
}

// FuzzCursor holds that only what encode writes is read, and comes back as it was.
func FuzzCursor(f *testing.F) {
	f.Add(cursor{time.Unix(1, 5), "abc"}.encode(true), true)
	f.Add(cursor{time.Unix(1, 0), "abc"}.encode(false), false)
	f.Add("MDAwMS0wMS0wMVQwMDowMDowMFpfX2E", false)
	f.Fuzz(func(t *testing.T, token string, asc bool) {
		c, err := parseCursor(token, asc)
		if err != nil {
			return
		}
		if c.id == "" || len(token) > maxCursor {
			t.Errorf("%q is read as %+v", token, c)
		}
		again, err := parseCursor(c.encode(asc), asc)
		if err != nil || !again.started.Equal(c.started) || again.id != c.id {
			t.Errorf("%+v comes back as %+v, %v", c, again, err)
		}
		if _, err := parseCursor(c.encode(asc), !asc); err == nil {
			t.Errorf("%+v is good for the other order", c)
		}
	})
}

// FuzzCreation holds that what check takes is within its bounds, and that a body means the same however it is written.
func FuzzCreation(f *testing.F) {
	f.Add([]byte(`{"templateID":"base","timeout":60,"secure":true,"allow_internet_access":true}`))
	f.Add([]byte(`{"templateID":"a","network":{"allowOut":["a.com"],"denyOut":["0.0.0.0/0"],"maskRequestHost":"x:${PORT}"},"autoPause":true}`))
	f.Add([]byte(`{"templateID":"a","metadata":{"a":"b"},"mcp":{"a":[[[]]]},"envVars":null,"autoResume":{"enabled":true}}`))
	f.Add([]byte(`[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[`))
	v := versions()[1]
	f.Fuzz(func(t *testing.T, body []byte) {
		var c creation
		if decode(body, &c) != nil || c.check() != nil {
			return
		}
		text, err := json.Marshal(c)
		if err != nil {
			t.Fatalf("%+v cannot be written: %v", c, err)
		}
		var again creation
		if err := decode(text, &again); err != nil || string(fingerprint(v, again)) != string(fingerprint(v, c)) {
			t.Errorf("%s means something else than %s, %v", text, body, err)
		}
		for key, value := range c.notes() {
			if len(value) > maxCreate || strings.ContainsAny(value, "\r\n") && key != noteNetwork {
				t.Errorf("noted %q: %q", key, value)
			}
		}
	})
}

func FuzzHostMask(f *testing.F) {
	for _, mask := range []string{"localhost:${PORT}", "a.b-c_d", "[::1]:80", "a\r\nb", "${PORT", "a b"} {
		f.Add(mask)
	}
	f.Fuzz(func(t *testing.T, mask string) {
		if !isHostMask(mask) {
			return
		}
		host := strings.ReplaceAll(mask, "${PORT}", "8080")
		if strings.ContainsAny(host, " \t\r\n/@\\\x00${}") || len(mask) > maxHost {
			t.Errorf("%q becomes the host %q", mask, host)
		}
	})
}

func TestDepth(t *testing.T) {
	for text, want := range map[string]int{`{}`: 1, `{"a":[{}]}`: 3, `"[[[["`: 0, `["\"[["]`: 1, `[[`: 2, `]]`: 0, ``: 0, `"\`: 0} {
		if got := depthOf([]byte(text)); got != want {
			t.Errorf("%s: %d, want %d", text, got, want)
		}
	}
}

func TestQueryNumbers(t *testing.T) {
	for text, want := range map[string]bool{"": true, "1": true, "100": true, "0": false, "101": false, "1x": false, "0x1": false, "-1": false, "9999999999999999999999": false} {
		if _, err := queryInt(httptest.NewRequest(http.MethodGet, "/?n="+text, nil), "n", 7, 1, 100); (err == nil) != want {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestDomains(t *testing.T) {
	for text, want := range map[string]bool{"example.com": true, "*.example.com": true, "*": true, "localhost": true, "a_b.c": true,
		"": false, "*.": false, "a..b": false, "-a.com": false, "a.*.com": false, "http://a.com": false, "a.com/x": false, "a b": false,
		strings.Repeat("a", 64) + ".com": false, strings.Repeat("a.", 200) + "com": false} {
		if isDomain(text) != want {
			t.Errorf("%q: %t", text, !want)
		}
	}
}

// noTemplates has just one, and tells what it was asked for.
type noTemplates struct {
	Templates
	has   string
	asked []string
}

func (n *noTemplates) Has(name string) bool {
	n.asked = append(n.asked, name)
	return name == n.has
}

// FuzzTemplateName holds that no name leads to what belongs to another tenant.
func FuzzTemplateName(f *testing.F) {
	for _, name := range []string{"base", "a:b", "other/x", "other/x:default", "acme/x", "acme/other/x", "ghcr.io/o/i:v1", "~" + strings.Repeat("a", 26), "acme/../other/x"} {
		f.Add(name)
	}
	by := auth.Caller{Tenant: auth.Tenant{ID: "acme"}}
	f.Fuzz(func(t *testing.T, name string) {
		templates := &noTemplates{}
		d := New(Config{Templates: templates})
		if _, err := d.resolve(t.Context(), by, name); err == nil {
			t.Errorf("%q is a template", name)
		}
		for _, asked := range templates.asked {
			if !visible(by, asked) || strings.HasPrefix(asked, "~") {
				t.Errorf("%q had %q looked up", name, asked)
			}
		}
	})
}

func TestStartsFrom(t *testing.T) {
	acme := auth.Caller{Tenant: auth.Tenant{ID: "acme"}}
	for _, c := range []struct {
		template, image, of string
		want                bool
	}{
		{"", "", "host", true}, {"host", "host", "host", true}, {"gone", "", "acme/gone:default", true}, {"other", "", "host", false},
		{"own", "acme/own:v1", "acme/own:v1", true}, {"own", "acme/own:default", "acme/own:v1", true}, {"id1", "acme/own:v1", "acme/own:v2", true},
		{"own:v1", "acme/own:v1", "acme/own:v1", true}, {"own:v1", "acme/own:v1", "acme/own:v2", false}, {"own", "acme/own:v1", "acme/owner:v1", false},
	} {
		l := listing{template: c.template, image: c.image}
		if got := l.startsFrom(acme, store.Record{Template: c.of}); got != c.want {
			t.Errorf("%q, which is %q, of %q: %t", c.template, c.image, c.of, got)
		}
	}
}
