package manager

import (
	"errors"
	"testing"
)

// BenchmarkDecide is what a new process pays for a decision that an earlier one has kept.
func BenchmarkDecide(b *testing.B) {
	h := newHost(b)
	m := h.policed(b, h.posers())
	if _, err := m.Advise(operator(b.Context()), Question{}); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		m.infos = map[string]probed{}
		m.rules = newRules("")
		if _, _, err := m.decide(operator(b.Context()), Question{}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkDecideAnew is what the first process pays, the drivers' probes apart.
func BenchmarkDecideAnew(b *testing.B) {
	h := newHost(b)
	m := h.policed(b, h.posers())
	m.key = func() (string, error) { return "", errors.New("none") }
	for b.Loop() {
		m.rules = newRules("")
		if _, _, err := m.decide(operator(b.Context()), Question{}); err != nil {
			b.Fatal(err)
		}
	}
}
