package policy

import (
	"testing"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
)

// The budget is 50 µs for a decision.
func BenchmarkDecide(b *testing.B) {
	p := loadDefault(b)
	host := []driver.Info{
		{Name: "gvisor", Boundary: firebreak.BoundaryUserKernel}, {Name: "container", Boundary: firebreak.BoundarySharedKernel},
		{Name: "process", Boundary: firebreak.BoundaryNone},
	}
	for name, w := range map[string]firebreak.Workload{
		"nothing-said": {},
		"all-said": {
			Origin: firebreak.OriginUntrusted, Tenancy: firebreak.TenancyMulti, Data: firebreak.DataHealth, GPU: true, Audit: true,
			Needs: firebreak.NeedLinux | firebreak.NeedNetwork | firebreak.NeedFileIO, StartWithin: 1e7,
		},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				Decide(p, w, host)
			}
		})
	}
}

func BenchmarkLoadDefault(b *testing.B) {
	for b.Loop() {
		loadDefault(b)
	}
}
