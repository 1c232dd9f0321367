package process_test

import (
	"path/filepath"
	"testing"

	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/drivertest"
	"github.com/firebreak-dev/firebreak/internal/driver/process"
)

func TestConformance(t *testing.T) {
	drivertest.Suite{
		Name: "process",
		Caps: driver.CapProcesses | driver.CapTerminal | driver.CapDetach,
		New: func(_ testing.TB, p drivertest.Place) driver.Driver {
			return process.New(process.Config{StateDir: p.StateDir, Agent: p.Agent, Log: p.Log})
		},
		Root: func(testing.TB) driver.Root { return driver.Root{Form: driver.FormDirectory, Path: "/"} },
		Work: func(spec driver.Spec) string { return filepath.Join(spec.Dir, "work") },
	}.Run(t)
}
