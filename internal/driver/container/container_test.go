package container

import (
	"context"
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/drivertest"
	"github.com/firebreak-dev/firebreak/internal/image"
)

// TestContract: the conformance suite, with each runtime.
func TestContract(t *testing.T) {
	for name, path := range runtimes() {
		t.Run(name, func(t *testing.T) {
			images, err := image.Open(filepath.Join(t.TempDir(), "images"), slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			drivertest.Suite{
				Name: "container",
				New: func(_ testing.TB, p drivertest.Place) driver.Driver {
					return New(Config{StateDir: p.StateDir, Agent: p.Agent, Runtime: path, Log: p.Log})
				},
				Root: func(t testing.TB) driver.Root {
					root, err := images.Root(context.Background(), "host", forms())
					if err != nil {
						t.Fatal(err)
					}
					return root
				},
				Caps: driver.CapLimitCPU | driver.CapLimitMemory | driver.CapLimitDisk | driver.CapLimitPIDs | driver.CapMounts |
					driver.CapProcesses | driver.CapTerminal | driver.CapUsers | driver.CapPrivateRoot | driver.CapPrivatePIDs |
					driver.CapPrivateNet | driver.CapPause | driver.CapDetach,
			}.Run(t)
		})
	}
}
