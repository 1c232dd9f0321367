package wasm_test

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/drivertest"
	"github.com/firebreak-dev/firebreak/internal/driver/wasm"
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
