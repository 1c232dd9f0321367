package driver_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
)

func TestIDCheck(t *testing.T) {
	for id, ok := range map[driver.ID]bool{
		"a": true, "0": true, "abc123": true, driver.ID(strings.Repeat("x", 40)): true,
		"": false, "A": false, "a-b": false, "a_b": false, "a.b": false, "..": false, "a/b": false, " a": false, "a\n": false,
		"ä": false, "a\x00": false, driver.ID(strings.Repeat("x", 41)): false,
	} {
		err := id.Check()
		if ok && err != nil {
			t.Errorf("ID %q: %v, want it to be fine", id, err)
		}
		if !ok && firebreak.KindOf(err) != firebreak.KindInvalid {
			t.Errorf("ID %q: %v, want an error of kind invalid", id, err)
		}
	}
}

func TestMissing(t *testing.T) {
	for _, tc := range []struct {
		have, need, want driver.Caps
	}{
		{0, 0, 0},
		{driver.CapPause, 0, 0},
		{driver.CapPause, driver.CapPause, 0},
		{0, driver.CapPause, driver.CapPause},
		{driver.CapLimitCPU | driver.CapPause, driver.CapLimitCPU | driver.CapLimitDisk, driver.CapLimitDisk},
		{driver.CapMounts, driver.CapLimitCPU | driver.CapLimitDisk, driver.CapLimitCPU | driver.CapLimitDisk},
	} {
		if got := driver.Missing(tc.have, tc.need); got != tc.want {
			t.Errorf("Missing(%v, %v) = %v, want %v", tc.have.Names(), tc.need.Names(), got.Names(), tc.want.Names())
		}
		if has := tc.have.Has(tc.need); has != (tc.want == 0) {
			t.Errorf("%v.Has(%v) = %v", tc.have.Names(), tc.need.Names(), has)
		}
	}
}

func TestNeeds(t *testing.T) {
	for name, tc := range map[string]struct {
		spec driver.Spec
		want []string
	}{
		"nothing":   {driver.Spec{ID: "a", Dir: "/d", Options: map[string]string{"x": "y"}}, nil},
		"processor": {driver.Spec{Limits: firebreak.Limits{CPUs: 0.1}}, []string{"limit-cpu"}},
		"memory":    {driver.Spec{Limits: firebreak.Limits{Memory: 1}}, []string{"limit-memory"}},
		"disk":      {driver.Spec{Limits: firebreak.Limits{Disk: 1}}, []string{"limit-disk"}},
		"processes": {driver.Spec{Limits: firebreak.Limits{PIDs: 1}}, []string{"limit-pids"}},
		"mounts":    {driver.Spec{Mounts: []driver.Mount{{Source: "/a", Target: "/b"}}}, []string{"mounts"}},
		"all": {driver.Spec{
			Limits: firebreak.Limits{CPUs: 1, Memory: 1, Disk: 1, PIDs: 1}, Mounts: make([]driver.Mount, 1),
		}, []string{"limit-cpu", "limit-memory", "limit-disk", "limit-pids", "mounts"}},
	} {
		if got := tc.spec.Needs().Names(); !slices.Equal(got, tc.want) {
			t.Errorf("%s: Needs = %v, want %v", name, got, tc.want)
		}
	}
}

// TestCapNames: every bit has a name of its own; a bit without one would vanish from messages.
func TestCapNames(t *testing.T) {
	all := driver.Caps(driver.CapDetach<<1 - 1)
	names := all.Names()
	if len(names) != 14 || slices.Contains(names, "") {
		t.Errorf("the names of all bits are %v", names)
	}
	if sorted := slices.Compact(slices.Sorted(slices.Values(names))); len(sorted) != len(names) {
		t.Errorf("two bits share a name: %v", names)
	}
	if got := driver.CapPause.Names(); !slices.Equal(got, []string{"pause"}) {
		t.Errorf("CapPause is named %v", got)
	}
}

func TestInfoErr(t *testing.T) {
	info := driver.Info{Name: "x", Warnings: []driver.Problem{{Text: "slow"}}}
	if err := info.Err(); err != nil || !info.Healthy() {
		t.Errorf("with a warning only: %v", err)
	}
	info.Problems = []driver.Problem{{Text: "no moon", Mend: "wait for night"}, {Text: "second"}}
	err := info.Err()
	if firebreak.KindOf(err) != firebreak.KindHost || info.Healthy() {
		t.Errorf("with a problem: %v of kind %v", err, firebreak.KindOf(err))
	}
	if want := "x cannot run here: no moon; to mend it: wait for night"; err.Error() != want {
		t.Errorf("it says %q, want %q", err, want)
	}
	var e *firebreak.Error
	if !errors.As(err, &e) || e.Mend != "wait for night" {
		t.Errorf("the mend is lost: %#v", err)
	}
}

func TestFormString(t *testing.T) {
	for f, want := range map[driver.Form]string{
		driver.FormInvalid: "invalid", driver.FormDirectory: "directory", driver.FormDisk: "disk", driver.Form(9): "invalid",
	} {
		if f.String() != want {
			t.Errorf("form %d is %q, want %q", f, f, want)
		}
	}
}
