package auth

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
)

// A key is the prefix and 40 lower-case hexadecimal digits: what E2B's clients accept. The first of them are its ID.
const (
	prefix   = "e2b_"
	idLength = 8
	keyBytes = 20
	keySize  = len(prefix) + 2*keyBytes
	hashSize = sha256.Size
)

// newKey draws a key.
func newKey() (key, id string, hash [hashSize]byte) {
	var secret [keyBytes]byte
	rand.Read(secret[:]) // never fails
	key = prefix + hex.EncodeToString(secret[:])
	return key, key[len(prefix):][:idLength], hashOf(key)
}

// parseKey returns the ID of what has the form of a key.
func parseKey(key string) (id string, ok bool) {
	if len(key) != keySize || key[:len(prefix)] != prefix || !isHex(key[len(prefix):]) {
		return "", false
	}
	return key[len(prefix):][:idLength], true
}

func isID(id string) bool { return len(id) == idLength && isHex(id) }

func isHex(digits string) bool {
	for _, c := range []byte(digits) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// hashOf is what is stored in place of a key, and all that an attacker who reads the database gets. SHA-256 is right
// here: password hashes are slow because a password can be guessed, while of a key 128 bits that were drawn at random
// are not known even to who has seen its ID. Guessing them is out of reach at any speed, and slowness would only be paid
// by us, for each request.
func hashOf(key string) [hashSize]byte {
	var text [keySize]byte // on the stack
	copy(text[:], key)
	return sha256.Sum256(text[:])
}

// NewToken draws a token of one sandbox: 64 hexadecimal digits, 256 bits.
func NewToken() string {
	var token [32]byte
	rand.Read(token[:]) // never fails
	return hex.EncodeToString(token[:])
}

// SameToken reports whether a caller's token is the one that a sandbox has, in a time that does not depend on where they
// differ. Where there is no token, none is right.
func SameToken(given, want string) bool {
	return want != "" && subtle.ConstantTimeCompare([]byte(given), []byte(want)) == 1
}
