// Package signature checks signed URLs of files: whoever holds the token of a sandbox's agent can let others read or
// write one file, without the token and for a limited time. The form is E2B's.
package signature

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"hash"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// What a URL may be signed for.
const (
	Read  = "read"
	Write = "write"
)

const (
	version = "v1_"
	maxPath = 4096 // bytes, of the kernel
	maxUser = 256  // bytes
)

// Operation returns what a request to /files does; "" for what no signature allows.
func Operation(method string) string {
	switch method {
	case http.MethodGet, http.MethodHead:
		return Read
	case http.MethodPost:
		return Write
	}
	return ""
}

// Sign returns the signature for path, as it stands in the query, by the owner of token. User and expires, in seconds
// since 1970, may be empty.
func Sign(token, operation, path, user, expires string) string {
	return encode(sum(begin(operation, path, user), token, expires))
}

// Claim is what a URL says it was signed for. It may be used concurrently.
type Claim struct {
	given   string
	expires string
	begun   hash.Hash // of all that comes before the token, so that many tokens are tried at the cost of one block each
}

// Parse reads the query of a URL, which anybody may have made. Its errors are for the client: there is no signature, it
// cannot be one, or its time is over.
func Parse(q url.Values, operation string, now time.Time) (*Claim, error) {
	c := &Claim{given: q.Get("signature"), expires: q.Get("signature_expiration")}
	path, user := q.Get("path"), q.Get("username")
	switch {
	case c.given == "":
		return nil, errors.New("missing signature query parameter")
	case len(c.given) != len(version)+base64.RawStdEncoding.EncodedLen(sha256.Size), !strings.HasPrefix(c.given, version),
		operation == "", len(path) > maxPath, len(user) > maxUser, strings.Contains(user, ":"): // else a part of the path could pass as the user
		return nil, errors.New("invalid signature")
	}
	if c.expires != "" {
		at, err := strconv.ParseInt(c.expires, 10, 64)
		if err != nil {
			return nil, errors.New("invalid signature expiration")
		}
		if at < now.Unix() {
			return nil, errors.New("signature is already expired")
		}
	}
	c.begun = begin(operation, path, user)
	return c, nil
}

// By reports whether the owner of token signed it, and takes the same time for every token of one length.
func (c *Claim) By(token string) bool {
	if token == "" {
		return false
	}
	return subtle.ConstantTimeCompare([]byte(c.given), []byte(encode(sum(c.begun, token, c.expires)))) == 1
}

func begin(operation, path, user string) hash.Hash {
	h := sha256.New()
	h.Write([]byte(path + ":" + operation + ":" + user + ":")) // never fails
	return h
}

// sum leaves h as it is.
func sum(h hash.Hash, token, expires string) []byte {
	if expires != "" {
		token += ":" + expires
	}
	clone, err := h.(hash.Cloner).Clone()
	if err != nil {
		panic("sha256 cannot be cloned: " + err.Error()) // documented to be possible
	}
	clone.Write([]byte(token))
	return clone.Sum(nil)
}

func encode(sum []byte) string { return version + base64.RawStdEncoding.EncodeToString(sum) }
