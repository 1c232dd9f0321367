package manager

import (
	"errors"
	"log/slog"
	"testing"
	"time"
)

// BenchmarkDecide is what a new process pays for a decision that an earlier one has kept.
func BenchmarkDecide(b *testing.B) {
	h := newHost(b)
	m := h.policed(b, h.posers())
	if _, err := m.Advise(operator(b.Context()), Question{}); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		m.infos, m.decided.all = map[string]probed{}, nil
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
		m.rules, m.decided.all = newRules(""), nil
		if _, _, err := m.decide(operator(b.Context()), Question{}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkFit is what every create pays so that drivers of a language are not chosen for what they cannot run.
func BenchmarkFit(b *testing.B) {
	m := newHost(b).linguists().manager(b)
	all, err := m.probes(operator(b.Context()), none)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := m.fit(Question{}, all); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkClaim is a create that finds a sandbox ready.
func BenchmarkClaim(b *testing.B) {
	h := newHost(b)
	m := h.process(b, func(c *Config) { c.Log = slog.New(slog.DiscardHandler) })
	ctx := operator(b.Context())
	if err := m.SetPools(ctx, []Pool{{Min: 64, Max: 64}}); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		b.StopTimer()
		for m.Pools()[0].Ready == 0 {
			time.Sleep(time.Millisecond)
		}
		b.StartTimer()
		if _, timings, err := m.Create(ctx, Request{Timeout: time.Hour, Detached: true}); err != nil || timings.Pool == "" {
			b.Fatalf("%+v, %v", timings, err)
		}
	}
}
