package signature_test

import (
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/signature"
)

func query(pairs ...string) url.Values {
	q := url.Values{}
	for i := 0; i < len(pairs); i += 2 {
		q.Set(pairs[i], pairs[i+1])
	}
	return q
}

// TestSignIsWhatClientsCompute computes it as the protocol says it.
func TestSignIsWhatClientsCompute(t *testing.T) {
	for _, c := range []struct{ text, path, operation, user, expires string }{
		{"/a b:read::token", "/a b", signature.Read, "", ""},
		{"x:write:root:token:99", "x", signature.Write, "root", "99"},
	} {
		sum := sha256.Sum256([]byte(c.text))
		want := "v1_" + base64.RawStdEncoding.EncodeToString(sum[:])
		if got := signature.Sign("token", c.operation, c.path, c.user, c.expires); got != want {
			t.Errorf("%s: %s, want %s", c.text, got, want)
		}
	}
}

func TestParse(t *testing.T) {
	now := time.Unix(100, 0)
	good := signature.Sign("token", signature.Read, "/a", "", "")
	until := func(at string) url.Values {
		return query("path", "/a", "signature_expiration", at, "signature", signature.Sign("token", signature.Read, "/a", "", at))
	}
	for name, c := range map[string]struct {
		q         url.Values
		operation string
		want      string // of the error; "" for a claim by token
	}{
		"good":               {query("path", "/a", "signature", good), signature.Read, ""},
		"not yet expired":    {until("100"), signature.Read, ""},
		"expired":            {until("99"), signature.Read, "already expired"},
		"no time":            {until("soon"), signature.Read, "expiration"},
		"too late a time":    {until("99999999999999999999"), signature.Read, "expiration"},
		"none":               {query("path", "/a"), signature.Read, "missing"},
		"another operation":  {query("path", "/a", "signature", good), signature.Write, "by nobody"},
		"another path":       {query("path", "/b", "signature", good), signature.Read, "by nobody"},
		"another user":       {query("path", "/a", "username", "root", "signature", good), signature.Read, "by nobody"},
		"no operation":       {query("path", "/a", "signature", good), signature.Operation(http.MethodDelete), "invalid"},
		"another version":    {query("path", "/a", "signature", "v2_"+good[3:]), signature.Read, "invalid"},
		"too short":          {query("path", "/a", "signature", good[:45]), signature.Read, "invalid"},
		"a path too long":    {query("path", strings.Repeat("a", 4097), "signature", good), signature.Read, "invalid"},
		"a user too long":    {query("path", "/a", "username", strings.Repeat("a", 257), "signature", good), signature.Read, "invalid"},
		"a user with colons": {query("path", "/a", "username", "b:read:c", "signature", signature.Sign("token", signature.Read, "/a", "b:read:c", "")), signature.Read, "invalid"},
	} {
		claim, err := signature.Parse(c.q, c.operation, now)
		switch {
		case c.want == "" && (err != nil || !claim.By("token") || claim.By("tokem") || claim.By("")):
			t.Errorf("%s: %v", name, err)
		case c.want == "by nobody" && (err != nil || claim.By("token")):
			t.Errorf("%s: it is taken, %v", name, err)
		case c.want != "" && c.want != "by nobody" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("path=/a&signature=v1_x&signature_expiration=12", "token")
	f.Add("path=/a&signature="+url.QueryEscape(signature.Sign("token", signature.Read, "/a", "", "99999")), "token")
	f.Fuzz(func(t *testing.T, text, token string) {
		q, err := url.ParseQuery(text)
		if err != nil {
			return
		}
		now := time.Unix(100, 0)
		claim, err := signature.Parse(q, signature.Read, now)
		if err != nil || !claim.By(token) {
			return
		}
		// What was accepted is signed by this token for this path and nothing else, and not expired.
		if q.Get("signature") != signature.Sign(token, signature.Read, q.Get("path"), q.Get("username"), q.Get("signature_expiration")) {
			t.Errorf("%q was accepted", text)
		}
		for _, changed := range []string{"path", "username", "signature_expiration"} {
			q, _ := url.ParseQuery(text)
			q.Set(changed, q.Get(changed)+"1")
			if claim, err := signature.Parse(q, signature.Read, now); err == nil && claim.By(token) {
				t.Errorf("%q is good for another %s", text, changed)
			}
		}
		if claim, err := signature.Parse(q, signature.Write, now); err == nil && claim.By(token) {
			t.Errorf("%q is good for writing", text)
		}
	})
}

// BenchmarkBy is one token of the many that a signature is tried against.
func BenchmarkBy(b *testing.B) {
	token := strings.Repeat("a", 64)
	claim, err := signature.Parse(query("path", strings.Repeat("a", 4096), "signature", signature.Sign("x", signature.Read, "", "", "")), signature.Read, time.Now())
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		claim.By(token)
	}
}
