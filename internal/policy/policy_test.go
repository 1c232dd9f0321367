package policy

import (
	"flag"
	"os"
	"path/filepath"
	"testing"
)

func loadDefault(t testing.TB) *Policy {
	t.Helper()
	p, err := Default()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestDefaultKeepsItsTableTreeAndTests(t *testing.T) {
	for _, r := range loadDefault(t).Test() {
		t.Run(r.Name, func(t *testing.T) {
			if r.Err != nil {
				t.Errorf("default.yaml:%d: %v", r.Line, r.Err)
			}
		})
	}
}

var update = flag.Bool("update", false, "write docs/choosing.md anew")

func TestPageIsOfThisPolicy(t *testing.T) {
	path := filepath.Join("..", "..", "docs", "choosing.md")
	want := "# Choosing a boundary\n\nGenerated from `internal/policy/default.yaml`; write it anew with `go test ./internal/policy -update`.\n\n" +
		loadDefault(t).Markdown()
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s is not what the policy says; write it anew with: go test ./internal/policy -update", path)
	}
}
