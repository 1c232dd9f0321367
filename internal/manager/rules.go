package manager

import (
	"crypto/sha256"
	"encoding/hex"
	"sync"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/policy"
)

// rules is the policy of this manager. Compiling it costs more than all else that a decision needs, so it is read when it
// is first asked for and compiled only for a decision that no earlier process has kept.
type rules struct {
	read    func() (rulesText, error)
	compile func() (*policy.Policy, error)
}

type rulesText struct {
	data   []byte
	name   string // of the file, for messages
	digest string
}

// newRules takes the policy of a file, or the built-in one for none.
func newRules(file string) rules {
	read := sync.OnceValues(func() (rulesText, error) { return readRules(file) })
	return rules{read: read, compile: sync.OnceValues(func() (*policy.Policy, error) {
		text, err := read()
		if err != nil {
			return nil, err
		}
		return policy.Load(text.data, text.name)
	})}
}

func readRules(file string) (rulesText, error) {
	t := rulesText{data: policy.DefaultYAML(), name: "default.yaml"}
	if file != "" {
		var err error
		t.name = file
		t.data, err = policy.ReadFile(file)
		if err != nil {
			return t, &firebreak.Error{Kind: firebreak.KindInvalid, Op: "read policy", Err: err,
				Mend: "name a file that can be read with --policy or FIREBREAK_POLICY"}
		}
	}
	sum := sha256.Sum256(t.data)
	t.digest = hex.EncodeToString(sum[:])
	return t, nil
}
