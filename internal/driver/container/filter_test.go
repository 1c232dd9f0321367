package container

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestKeptFilter: containers get the very filter that the runtime compiles, whether it compiled it or was given it.
func TestKeptFilter(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		kept := func() []string {
			found, err := filepath.Glob(filepath.Join(p.cfg.StateDir, ".filter-*"))
			if err != nil {
				t.Fatal(err)
			}
			return found
		}
		compiled := p.box(p.spec())
		first := filterOf(t, compiled)
		if !strings.Contains(t.Name(), "crun") {
			if names := kept(); len(names) > 0 {
				t.Errorf("kept %v, which this runtime cannot use", names)
			}
			return
		}
		names := kept()
		if len(names) != 1 {
			t.Fatalf("kept %v, want one filter", names)
		}
		given := p.box(p.spec())
		if second := filterOf(t, given); !bytes.Equal(first, second) {
			t.Errorf("a filter of %d bytes was given, one of %d is installed", len(first), len(second))
		}
		// A damaged one does not keep containers from being made, nor makes them without one, and is replaced.
		text, err := os.ReadFile(names[0])
		if err != nil {
			t.Fatal(err)
		}
		damaged := bytes.Clone(text)
		damaged[len(damaged)/2] ^= 1
		if err := os.WriteFile(names[0], damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		if third := filterOf(t, p.box(p.spec())); !bytes.Equal(first, third) {
			t.Errorf("with a damaged file, a filter of %d bytes is installed, want %d", len(third), len(first))
		}
		if now, err := os.ReadFile(names[0]); err != nil || !bytes.Equal(now, text) {
			t.Errorf("the damaged filter was not replaced: %v", err)
		}
	})
}

func filterOf(t *testing.T, b box) []byte {
	t.Helper()
	rec, err := readRecord(b.spec)
	if err != nil {
		t.Fatal(err)
	}
	filter, err := installedFilter(rec.PID)
	if err != nil {
		t.Fatal(err)
	}
	// It goes on.
	if got := b.sh("echo here"); got != "here" {
		t.Errorf("after it was looked at, the agent answers %q", got)
	}
	return filter
}
