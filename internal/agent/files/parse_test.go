package files

import (
	"net/http"
	"strings"
	"testing"
)

func TestNegotiate(t *testing.T) {
	for _, test := range []struct {
		accept string
		ranged bool
		want   string
	}{
		{"", false, "identity"}, {"gzip", false, "gzip"}, {"gzip", true, "identity"}, {"GZip ; q=1", false, "gzip"},
		{"gzip;q=0", false, "identity"}, {"identity, gzip;q=0.5", false, "identity"}, {"gzip;q=0.5, identity;q=0.1", false, "gzip"},
		{"*", false, "gzip"}, {"*;q=0", false, ""}, {"identity;q=0", false, ""}, {"identity;q=0, gzip", false, "gzip"}, {"identity;q=0, gzip", true, ""},
		{"br, deflate", false, "identity"}, {"gzip;q=nonsense", false, "identity"}, {"gzip;q=NaN", false, "identity"}, {"*;q=0, identity", false, "identity"},
	} {
		if got, err := negotiate(test.accept, test.ranged); got != test.want || (err == nil) != (test.want != "") {
			t.Errorf("%q ranged %v: %q, %v, want %q", test.accept, test.ranged, got, err, test.want)
		}
	}
}

func FuzzNegotiate(f *testing.F) {
	f.Add("gzip;q=0.5, *;q=0", true)
	f.Fuzz(func(t *testing.T, accept string, ranged bool) {
		got, err := negotiate(accept, ranged)
		if err == nil && got != "gzip" && got != "identity" || ranged && got == "gzip" {
			t.Errorf("%q: %q, %v", accept, got, err)
		}
	})
}

func FuzzPartPath(f *testing.F) {
	f.Add(`form-data; name="file"; filename="/tmp/a.txt"`)
	f.Add(`form-data; name="file"; filename*=UTF-8''%2Ftmp%2Fa`)
	f.Add(`form-data; filename="a` + "\x00" + `b"`)
	f.Fuzz(func(t *testing.T, disposition string) {
		name, err := partPath(disposition)
		if err == nil && (name == "" || strings.Contains(name, "\x00") || strings.HasSuffix(name, "/")) {
			t.Errorf("%q gives %q", disposition, name)
		}
		if err != nil && statusOf(err) != http.StatusBadRequest {
			t.Errorf("%q: status %d", disposition, statusOf(err))
		}
	})
}

func FuzzMetadata(f *testing.F) {
	f.Add("Key", "value")
	f.Fuzz(func(t *testing.T, key, value string) {
		meta, err := metadataOf(http.Header{"X-Metadata-" + key: {value, value}, "Other": {"x"}})
		if err != nil {
			return
		}
		for k, v := range meta {
			if k == "" || len(k) > maxKey || len(k)+len(v) > maxMetadata || strings.ContainsFunc(k+v, func(c rune) bool { return c < ' ' || c > '~' }) {
				t.Errorf("metadata %q: %q", k, v)
			}
		}
	})
}
