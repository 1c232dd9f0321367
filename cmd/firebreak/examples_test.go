package main_test

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak/internal/config"
	"github.com/firebreak-dev/firebreak/internal/e2b"
)

// TestUnits has systemd read the example units, and us the file of settings beside them.
func TestUnits(t *testing.T) {
	const dir = "../../examples/systemd"
	none := func(string) (string, bool) { return "", false }
	if _, err := config.Load(filepath.Join(dir, "firebreak.yaml"), none, nil); err != nil {
		t.Error(err)
	}
	tool, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skipf("systemd is not installed: %v", err)
	}
	made := t.TempDir()
	var units []string
	for _, name := range []string{"firebreak.service", "firebreak.socket"} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		unit := filepath.Join(made, name)
		if err := os.WriteFile(unit, []byte(strings.ReplaceAll(string(text), "/usr/local/bin/firebreak", "/bin/true")), 0o600); err != nil {
			t.Fatal(err)
		}
		units = append(units, unit)
	}
	if out, err := exec.CommandContext(t.Context(), tool, append([]string{"verify"}, units...)...).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%v: %s", err, out)
	}
}

// TestSettingsAreWhatTheDoorTakes holds what --print-config shows to what the door does where nobody says anything.
func TestSettingsAreWhatTheDoorTakes(t *testing.T) {
	c := config.Default()
	if c.EnvdVersion != e2b.EnvdVersion || !maps.Equal(c.Aliases, e2b.DefaultAliases()) {
		t.Errorf("%s, %v; the door has %s, %v", c.EnvdVersion, c.Aliases, e2b.EnvdVersion, e2b.DefaultAliases())
	}
}
