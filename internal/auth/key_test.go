package auth

import (
	"regexp"
	"strings"
	"testing"
)

// keyForm is what E2B's clients accept, with the length that we give.
func keyForm() *regexp.Regexp { return regexp.MustCompile(`\Ae2b_[0-9a-f]{40}\z`) }

func TestNewKeys(t *testing.T) {
	form, seen := keyForm(), map[string]bool{}
	for range 1000 {
		key, id, hash := newKey()
		parsed, ok := parseKey(key)
		if !form.MatchString(key) || seen[key] || !ok || parsed != id || !isID(id) || !strings.HasPrefix(key, "e2b_"+id) || hash != hashOf(key) {
			t.Errorf("%s: id %s and %s, hash %x", key, id, parsed, hash)
		}
		seen[key] = true
	}
}

func FuzzParseKey(f *testing.F) {
	form := keyForm()
	good := "e2b_0123456789abcdef0123456789abcdef01234567"
	for _, key := range []string{"", good, good[1:], good + "0", strings.ToUpper(good), "e2b-" + good[4:], good[:43] + "\n", good[:43] + "é", "e2b_0"} {
		f.Add(key)
	}
	f.Fuzz(func(t *testing.T, key string) {
		id, ok := parseKey(key)
		if ok != form.MatchString(key) || ok != isID(id) || (ok && !strings.HasPrefix(key, "e2b_"+id)) {
			t.Errorf("%q: %q, %v", key, id, ok)
		}
	})
}

func TestTokens(t *testing.T) {
	a, b := NewToken(), NewToken()
	if len(a) != 64 || !isHex(a) || a == b {
		t.Errorf("%s and %s", a, b)
	}
	for _, c := range []struct {
		given, want string
		same        bool
	}{{a, a, true}, {a, b, false}, {"", a, false}, {a[:63], a, false}, {a + "0", a, false}, {"", "", false}, {a, "", false}} {
		if got := SameToken(c.given, c.want); got != c.same {
			t.Errorf("%q for %q: %v", c.given, c.want, got)
		}
	}
}
