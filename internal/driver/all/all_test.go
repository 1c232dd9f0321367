package all

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestEveryDriverKeepsWithoutAnAgent(t *testing.T) {
	dir := t.TempDir()
	s := New(dir, slog.New(slog.DiscardHandler))
	names := s.Names()
	if !slices.Equal(names, []string{"gvisor", "container", "wasm", "v8", "process"}) {
		t.Errorf("names %v", names)
	}
	for _, name := range names {
		d, err := s.Keeper(name)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := s.Keeper(name); err != nil || again != d {
			t.Errorf("%s is made twice, %v", name, err)
		}
		if ids, err := d.List(t.Context()); err != nil || len(ids) != 0 {
			t.Errorf("%s holds %v, %v in a new state directory", name, ids, err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "agent")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an agent was made although nothing was created: %v", err)
	}
}

// TestOneDriverHoldsWhatIsInThisProcess: a second one would not find what the first has made.
func TestOneDriverHoldsWhatIsInThisProcess(t *testing.T) {
	dir := t.TempDir()
	s := New(dir, slog.New(slog.DiscardHandler))
	keeper, err := s.Keeper("wasm")
	if err != nil {
		t.Fatal(err)
	}
	if maker, err := s.Maker(t.Context(), "wasm"); err != nil || maker != keeper {
		t.Errorf("%p makes what %p keeps, %v", maker, keeper, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "agent")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an agent was made for a driver that needs none: %v", err)
	}
}

func TestUnknownDriver(t *testing.T) {
	s := New(t.TempDir(), slog.New(slog.DiscardHandler))
	if _, err := s.Keeper("zen"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("keeper: %v", err)
	}
	if _, err := s.Maker(t.Context(), "zen"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("maker: %v", err)
	}
}
