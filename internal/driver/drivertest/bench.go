package drivertest

import (
	"slices"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/driver"
)

// BenchmarkPause reports the medians of how long it takes to pause sb, to resume it, and then to dial its agent.
func BenchmarkPause(b *testing.B, sb driver.Sandbox) {
	p, err := driver.As[driver.Pauser](sb)
	if err != nil {
		b.Fatal(err)
	}
	var pause, resume, dial []time.Duration
	for b.Loop() {
		begin := time.Now()
		if err := p.Pause(b.Context()); err != nil {
			b.Fatal(err)
		}
		paused := time.Now()
		if err := p.Resume(b.Context()); err != nil {
			b.Fatal(err)
		}
		resumed := time.Now()
		conn, err := sb.Dial(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		dial = append(dial, time.Since(resumed))
		pause, resume = append(pause, paused.Sub(begin)), append(resume, resumed.Sub(paused))
		if err := conn.Close(); err != nil {
			b.Fatal(err)
		}
	}
	for what, times := range map[string][]time.Duration{"ms/pause": pause, "ms/resume": resume, "ms/dial": dial} {
		slices.Sort(times)
		b.ReportMetric(float64(times[len(times)/2].Microseconds())/1000, what)
	}
}
