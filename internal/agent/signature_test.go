package agent

import (
	"net/url"
	"testing"
	"time"
)

func FuzzSignature(f *testing.F) {
	f.Add("path=/a&signature=v1_x&signature_expiration=12", "token")
	f.Add("path=/a&signature="+url.QueryEscape(sign("/a", "read", "", "token", "99")), "token")
	f.Fuzz(func(t *testing.T, query, token string) {
		q, err := url.ParseQuery(query)
		if err != nil {
			return
		}
		now := time.Unix(100, 0)
		if checkSignature(q, "read", token, now) != nil {
			return
		}
		// What was accepted is signed by this token for this path and nothing else, and not expired.
		if q.Get("signature") != sign(q.Get("path"), "read", q.Get("username"), token, q.Get("signature_expiration")) {
			t.Errorf("%q was accepted", query)
		}
		q.Set("path", q.Get("path")+"x")
		if checkSignature(q, "read", token, now) == nil {
			t.Errorf("%q is good for another path", query)
		}
	})
}
