package main

import (
	"fmt"
	"slices"
	"time"
)

// sample is a set of durations of the same thing.
type sample []time.Duration

// quantile returns the q-th quantile, 0 <= q <= 1; zero of an empty sample.
func (s sample) quantile(q float64) time.Duration {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s))
	return sorted[int(q*float64(len(sorted)-1)+0.5)]
}

func (s sample) median() time.Duration { return s.quantile(0.5) }

// pair is what the same thing took after a rest, and at once after another.
type pair struct{ rested, busy sample }

// pairs measures something twice in each round, after a rest.
func pairs(rounds int, rest time.Duration, do func() error) (p pair, err error) {
	for range rounds {
		time.Sleep(rest)
		for _, to := range []*sample{&p.rested, &p.busy} {
			begin := time.Now()
			if err := do(); err != nil {
				return p, err
			}
			*to = append(*to, time.Since(begin))
		}
	}
	return p, nil
}

// ratio returns the median over rounds of a/b, which holds still when the machine's speed drifts.
func ratio(a, b sample) float64 {
	var ratios []float64
	for i := range min(len(a), len(b)) {
		if b[i] > 0 {
			ratios = append(ratios, float64(a[i])/float64(b[i]))
		}
	}
	if len(ratios) == 0 {
		return 0
	}
	slices.Sort(ratios)
	return ratios[len(ratios)/2]
}

// milliseconds prints d the way the report wants it.
func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%.2f", float64(d)/float64(time.Millisecond))
}

// excess is the median over rounds of what a took beyond factor times b.
func excess(a, b sample, factor float64) time.Duration {
	var beyond sample
	for i := range min(len(a), len(b)) {
		beyond = append(beyond, a[i]-time.Duration(factor*float64(b[i])))
	}
	return beyond.median()
}
