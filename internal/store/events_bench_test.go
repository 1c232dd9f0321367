package store

import (
	"testing"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/event"
)

// BenchmarkUpdate measures the change of a record that ends a create: alone, and with the event that tells it in the same
// transaction; and an event in a transaction of its own.
func BenchmarkUpdate(b *testing.B) {
	s := open(b, b.TempDir())
	if err := s.Insert(b.Context(), record("abc")); err != nil {
		b.Fatal(err)
	}
	update := func(tell ...Teller) func(b *testing.B) {
		return func(b *testing.B) {
			for b.Loop() {
				if _, err := s.Update(b.Context(), "abc", func(r *Record) error { r.State = firebreak.StateRunning; return nil }, tell...); err != nil {
					b.Fatal(err)
				}
			}
		}
	}
	b.Run("silent", update())
	b.Run("telling", update(Telling(event.TypeCreated)))
	b.Run("event", func(b *testing.B) {
		for b.Loop() {
			keep(b, s, happened("acme", "abc", event.TypeUpdated))
		}
	})
}

// BenchmarkListEvents measures the worst that a tenant can ask for: the last page of all that is kept of it.
func BenchmarkListEvents(b *testing.B) {
	s := open(b, b.TempDir())
	batch := make([]event.Event, 1000)
	for range event.KeepTenant / len(batch) {
		for i := range batch {
			batch[i] = happened("loud", "l1", event.TypeUpdated)
		}
		keep(b, s, batch...)
	}
	for b.Loop() {
		if got := list(b, s, event.Filter{Tenant: "loud", Offset: event.MaxOffset - 100, Limit: 100}); len(got) != 100 {
			b.Fatal(len(got))
		}
	}
}
