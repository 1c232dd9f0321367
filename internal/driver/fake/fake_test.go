package fake_test

import (
	"sync"
	"testing"

	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/drivertest"
	"github.com/firebreak-dev/firebreak/internal/driver/fake"
)

func TestConformance(t *testing.T) {
	var hosts sync.Map // by state directory: the driver of the first process there
	drivertest.Suite{
		Name:     "fake",
		InMemory: true,
		Caps:     driver.CapPause | driver.CapDetach,
		Agent:    func(testing.TB) string { return "" },
		New: func(_ testing.TB, p drivertest.Place) driver.Driver {
			first, _ := hosts.LoadOrStore(p.StateDir, fake.New())
			if p.Mute {
				return first.(*fake.Driver).Mute()
			}
			return first.(*fake.Driver).Again()
		},
	}.Run(t)
}
