package drivertest_test

import (
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/drivertest"
)

// TestRequire: what is skipped for the host's sake fails where the driver is required, and only there.
func TestRequire(t *testing.T) {
	sick := func(i driver.Info) driver.Info {
		i.Problems = []driver.Problem{{Text: "no moon", Mend: "wait for night"}}
		return i
	}
	poor := func(i driver.Info) driver.Info { i.Caps = 0; return i }
	for _, tc := range []struct {
		name, require, check string
		probe                func(driver.Info) driver.Info
		fails                bool
		says                 string
	}{
		{"a sick host", "", "lifecycle", sick, false, "no moon; to mend it: wait for night"},
		{"a sick host and others required", "gvisor,fakes", "lifecycle", sick, false, "no moon"},
		{"a sick host and this required", "gvisor,fake", "lifecycle", sick, true, "no moon"},
		{"a missing bit", "", "pause", poor, false, "pause"},
		{"a missing bit and this required", "fake", "pause", poor, true, "pause"},
		{"a bit it never has", "fake", "terminal", nil, false, "processes, terminal"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Setenv("FIREBREAK_REQUIRE", tc.require)
			sound := fakes()
			suite := drivertest.Suite{
				Name: "fake", InMemory: true, Caps: driver.CapPause | driver.CapDetach,
				Agent: func(testing.TB) string { return "" },
				New: func(_ testing.TB, p drivertest.Place) driver.Driver {
					return &buggy{Driver: sound(p), place: p, probe: tc.probe}
				},
			}
			r := record(t, func(t testing.TB) { suite.RunCheck(t, tc.check) })
			if r.Failed() != tc.fails || r.Skipped() == tc.fails || !strings.Contains(r.said(), tc.says) {
				t.Errorf("failed %v, skipped %v, said: %s", r.Failed(), r.Skipped(), r.said())
			}
		})
	}
}

func TestUnknownCheckFails(t *testing.T) {
	sound := fakes()
	suite := drivertest.Suite{
		Name: "fake", Agent: func(testing.TB) string { return "" },
		New: func(_ testing.TB, p drivertest.Place) driver.Driver { return sound(p) },
	}
	if r := record(t, func(t testing.TB) { suite.RunCheck(t, "no-such-check") }); !r.Failed() {
		t.Error("a check that does not exist passed")
	}
}

func TestCheckNames(t *testing.T) {
	seen := map[string]bool{}
	for _, name := range drivertest.Checks() {
		if name == "" || seen[name] {
			t.Errorf("the name %q is empty or there twice", name)
		}
		seen[name] = true
	}
}
