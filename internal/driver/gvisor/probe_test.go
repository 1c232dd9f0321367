package gvisor

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestProbeSaysWhatIsMissing(t *testing.T) {
	dir := t.TempDir()
	blocked := filepath.Join(dir, "file")
	if err := os.WriteFile(blocked, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	exe := os.Getenv("FIREBREAK_GVISOR_PROGRAM")
	for name, tt := range map[string]struct {
		cfg  Config
		text string
		mend string
	}{
		"a program with a loader": {Config{StateDir: dir, Agent: exe, Exe: "/bin/true"}, "linked dynamically", "CGO_ENABLED=0"},
		"no program":              {Config{StateDir: dir, Agent: exe, Exe: "/no/such"}, "no such file", ""},
		"no agent":                {Config{StateDir: dir, Agent: "/no/such", Exe: exe}, "/no/such", ""},
		"a blocked state dir":     {Config{StateDir: filepath.Join(blocked, "x"), Agent: exe, Exe: exe}, "not a directory", ""},
		"an agent that is none":   {Config{StateDir: dir, Agent: exe, Exe: exe}, "the sandbox has ended", ""},
	} {
		t.Run(name, func(t *testing.T) {
			info, err := New(tt.cfg).Probe(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if len(info.Problems) != 1 || !strings.Contains(info.Problems[0].Text, tt.text) || !strings.Contains(info.Problems[0].Mend, tt.mend) {
				t.Errorf("problems = %+v", info.Problems)
			}
			if info.Err() == nil || info.Problems[0].Mend == "" {
				t.Errorf("nothing says how to mend it: %v", info.Err())
			}
		})
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".probe-*")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
