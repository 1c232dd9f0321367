package gvisor

import (
	"errors"
	"io/fs"
	"os"
	"testing"
)

// TestALateStateIsNobodyElses: what a Create is late to save does not get into the record of another sandbox of its name.
func TestALateStateIsNobodyElses(t *testing.T) {
	d := New(Config{StateDir: t.TempDir()})
	late, err := d.reserve("same")
	if err != nil {
		t.Fatal(err)
	}
	defer late.close()
	if err := errors.Join((state{}).save(late.inside()), os.RemoveAll(late.path)); err != nil {
		t.Fatal(err)
	}
	next, err := d.reserve("same")
	if err != nil {
		t.Fatal(err)
	}
	defer next.close()
	if err := (state{}).save(late.inside()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("saved in a record that was removed: %v", err)
	}
	if entries, err := os.ReadDir(next.path); err != nil || len(entries) > 0 {
		t.Errorf("the next record holds %v, %v", entries, err)
	}
}
