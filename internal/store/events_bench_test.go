package store

import (
	"syscall"
	"testing"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/event"
)

// BenchmarkUpdate measures the change of a record that ends a create, without and with its event in the same transaction,
// and the event in one of its own.
func BenchmarkUpdate(b *testing.B) {
	l := func(b *testing.B) (*Store, *event.Log) {
		s := open(b, b.TempDir())
		if err := s.Insert(b.Context(), record("abc")); err != nil {
			b.Fatal(err)
		}
		return s, event.New(s)
	}
	cpu := func(b *testing.B) func() {
		var a, z syscall.Rusage
		syscall.Getrusage(0, &a)
		return func() {
			syscall.Getrusage(0, &z)
			b.ReportMetric(float64(z.Utime.Nano()+z.Stime.Nano()-a.Utime.Nano()-a.Stime.Nano())/float64(b.N)/1000, "cpu-µs/op")
		}
	}
	run := func(r *Record) error { r.State = firebreak.StateRunning; return nil }
	b.Run("silent", func(b *testing.B) {
		s, _ := l(b)
		defer cpu(b)()
		for b.Loop() {
			if _, err := s.Update(b.Context(), "abc", run); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("telling", func(b *testing.B) {
		s, _ := l(b)
		defer cpu(b)()
		for b.Loop() {
			if _, err := s.Update(b.Context(), "abc", run, Telling(event.TypeCreated)); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("publish", func(b *testing.B) {
		s, log := l(b)
		e := record("abc").event(event.TypeCreated)
		_ = s
		defer cpu(b)()
		for b.Loop() {
			if err := log.Publish(b.Context(), e); err != nil {
				b.Fatal(err)
			}
		}
	})
}

var _ driver.ID
