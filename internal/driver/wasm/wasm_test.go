package wasm_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/drivertest"
	"github.com/firebreak-dev/firebreak/internal/driver/wasm"
	"github.com/firebreak-dev/firebreak/internal/guest"
)

// empty is a module that does nothing.
const empty = "\x00asm\x01\x00\x00\x00"

func TestConformance(t *testing.T) {
	var hosts sync.Map // by state directory: the one driver of this process
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "module.wasm"), []byte(empty), 0o600); err != nil {
		t.Fatal(err)
	}
	drivertest.Suite{
		Name:     "wasm",
		InMemory: true,
		Caps: driver.CapLimitMemory | driver.CapLimitDisk | driver.CapLimitPIDs | driver.CapMounts | driver.CapPrivateRoot |
			driver.CapPrivatePIDs | driver.CapPrivateNet,
		Agent:    func(testing.TB) string { return "" },
		Language: &drivertest.Language{},
		Root: func(testing.TB) driver.Root {
			return driver.Root{Form: driver.FormModule, Path: root, Command: []string{"empty"}}
		},
		New: func(t testing.TB, p drivertest.Place) driver.Driver {
			made := wasm.New(wasm.Config{StateDir: p.StateDir, Log: p.Log})
			first, there := hosts.LoadOrStore(p.StateDir, made)
			if !there {
				t.Cleanup(func() { _ = made.Close(context.Background()) })
			}
			if p.Mute {
				return first.(*wasm.Driver).Mute()
			}
			return first.(driver.Driver)
		},
	}.Run(t)
}

// TestStreams: the agent answers on streams too, from the first one on, and its time is up for these as well.
func TestStreams(t *testing.T) {
	root, dir := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "module.wasm"), []byte(empty), 0o600); err != nil {
		t.Fatal(err)
	}
	d := wasm.New(wasm.Config{StateDir: dir, Log: slog.New(slog.DiscardHandler)})
	defer d.Close(context.Background())
	spec := driver.Spec{ID: "streams", Root: driver.Root{Form: driver.FormModule, Path: root, Command: []string{"empty"}}, Dir: dir}
	sb, err := d.Create(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	g := guest.New(sb.Dial, "the token")
	defer g.Close()
	if err := g.Init(t.Context(), guest.Config{}); err != nil {
		t.Fatal(err)
	}
	if err := guest.To(sb, "another's").Init(t.Context(), guest.Config{}); err == nil {
		t.Error("without a stream anybody may configure the agent")
	}
	if err := guest.To(sb, "the token").Init(t.Context(), guest.Config{}); err != nil {
		t.Error(err)
	}
	// Its end may cut off the answer.
	_ = guest.To(sb, "the token").Init(t.Context(), guest.Config{Deadline: time.Now().Add(time.Millisecond)})
	if exit, err := sb.Wait(t.Context()); err != nil || exit.Reason != firebreak.EndDeadline {
		t.Errorf("%+v, %v", exit, err)
	}
	if err := g.Health(t.Context()); err == nil {
		t.Error("it answers after its end")
	}
	if err := d.Destroy(t.Context(), spec); err != nil {
		t.Error(err)
	}
}
