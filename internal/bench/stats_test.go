package main

import (
	"testing"
	"time"
)

func TestQuantile(t *testing.T) {
	s := sample{5, 1, 4, 2, 3}
	for q, want := range map[float64]time.Duration{0: 1, 0.5: 3, 1: 5} {
		if got := s.quantile(q); got != want {
			t.Errorf("quantile(%v) = %v, want %v", q, got, want)
		}
	}
	if sample(nil).median() != 0 {
		t.Error("the median of nothing is not zero")
	}
}

func TestRatioIsTheMedianOfPairs(t *testing.T) {
	if got := ratio(sample{2, 40, 6}, sample{1, 10, 2}); got != 3 {
		t.Errorf("ratio = %v, want 3", got)
	}
}

func TestExcessIsTheMedianOfPairs(t *testing.T) {
	if got := excess(sample{20, 400, 62}, sample{10, 100, 20}, 2); got != 22 {
		t.Errorf("excess = %v, want 22", got)
	}
}
