package host

import (
	"context"
	"encoding/json"
	"testing"
)

// TestLookHere looks at this host for real.
func TestLookHere(t *testing.T) {
	f := Look(context.Background(), t.TempDir()+"/not/yet")
	text, err := json.MarshalIndent(f, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", text)
	if f.Kernel == "" || f.Arch == "" || f.CPUs < 1 || f.Memory <= 0 || f.MemoryFree > f.Memory || f.StateDisk.Total < f.StateDisk.Free {
		t.Error("these facts cannot be")
	}
	if f.KVM != (KVM{}) {
		t.Errorf("KVM was looked at: %+v", f.KVM)
	}
}
