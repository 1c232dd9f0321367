package pool

import (
	"errors"
	"math"
	"testing"
	"time"
)

func TestDemand(t *testing.T) {
	const window = 10 * time.Second
	// Each row is one window in which so many were asked for, with the target before and after, and what is kept before.
	for name, rows := range map[string][]struct{ asked, before, after, keep int }{
		"nothing":     {{0, 1, 1, 1}, {0, 1, 1, 1}},
		"a burst":     {{20, 1, 20, 1}, {0, 20, 20, 20}, {0, 10, 10, 20}, {0, 5, 5, 10}, {0, 3, 3, 5}, {0, 2, 2, 3}, {0, 1, 1, 2}, {0, 1, 1, 1}},
		"steady":      {{7, 1, 7, 1}, {7, 7, 7, 7}, {7, 7, 7, 7}, {6, 7, 7, 7}, {7, 6, 7, 7}},
		"beyond most": {{500, 1, 50, 1}, {0, 50, 50, 50}, {0, 50, 50, 50}, {0, 50, 50, 50}, {0, 50, 50, 50}, {0, 32, 32, 50}},
		"rises again": {{8, 1, 8, 1}, {0, 8, 8, 8}, {6, 4, 6, 8}, {1, 6, 6, 6}, {1, 3, 3, 6}},
	} {
		var d demand
		now := time.Unix(1000, 0)
		d.start(now, window)
		for i, row := range rows {
			before := d.target(now, 1, 50)
			if keep := d.keep(before, 50); before != row.before || keep != row.keep {
				t.Errorf("%s: window %d begins with a target of %d and keeps %d, want %d and %d", name, i, before, keep, row.before, row.keep)
			}
			for range row.asked {
				d.ask(now.Add(window - 1))
			}
			if got := d.target(now.Add(window-1), 1, 50); got != row.after {
				t.Errorf("%s: window %d ends with a target of %d, want %d", name, i, got, row.after)
			}
			now = now.Add(window)
		}
	}
}

// To look once after several windows is the same as to look in each.
func TestDemandDoesNotDependOnWhoLooks(t *testing.T) {
	const window = time.Second
	for asked := range 40 {
		for gap := range 12 {
			var often, seldom demand
			now := time.Unix(1000, 0)
			often.start(now, window)
			seldom.start(now, window)
			for range asked {
				often.ask(now)
				seldom.ask(now)
			}
			for i := range gap {
				often.roll(now.Add(time.Duration(i) * window))
			}
			now = now.Add(time.Duration(gap) * window)
			a, b := often.target(now, 0, 100), seldom.target(now, 0, 100)
			if a != b || often.keep(a, 100) != seldom.keep(b, 100) {
				t.Errorf("%d asked, %d windows later: targets %d and %d, kept %d and %d", asked, gap, a, b, often.keep(a, 100), seldom.keep(b, 100))
			}
		}
	}
}

func TestDemandIsForgotten(t *testing.T) {
	d := demand{level: 1e300}
	d.start(time.Unix(0, 0), 1)
	if got := d.target(time.Unix(0, 0), 0, 10); got != 10 {
		t.Errorf("a huge level is a target of %d", got)
	}
	if got := d.target(time.Unix(1e9, 0), 0, 10); got != 0 || !d.change().IsZero() {
		t.Errorf("after a long time the target is %d and changes at %s", got, d.change())
	}
}

func TestBackoff(t *testing.T) {
	b := Backoff{First: 100 * time.Millisecond, Max: 3 * time.Second}
	for failures, full := range map[int]time.Duration{
		1: 100 * time.Millisecond, 2: 200 * time.Millisecond, 5: 1600 * time.Millisecond, 6: 3 * time.Second, 7: 3 * time.Second,
		63: 3 * time.Second, 64: 3 * time.Second, 1 << 40: 3 * time.Second,
	} {
		seen := map[time.Duration]bool{}
		for range 100 {
			d := b.pause(failures)
			seen[d] = true
			if d < full/2 || d > full {
				t.Errorf("after %d failures: %s, want %s to %s", failures, d, full/2, full)
			}
		}
		if len(seen) < 10 {
			t.Errorf("after %d failures: hardly random", failures)
		}
	}
	if d := (Backoff{First: math.MaxInt64, Max: 1}).pause(1); d > 1 {
		t.Errorf("%s is more than the most", d)
	}
}

func TestFailingTogetherCountsOnce(t *testing.T) {
	b, now, bad := Backoff{First: time.Second, Max: time.Hour}, time.Unix(1000, 0), errors.New("bad")
	var f failing
	if got := f.allows(4, now); got != 4 {
		t.Errorf("at first %d are allowed", got)
	}
	for range 4 {
		f.failed(bad, 0, now, b)
	}
	if f.inRow != 1 || f.allows(4, now) != 0 || f.allows(4, f.retryAt) != 1 {
		t.Errorf("%+v allows %d now, %d later", f, f.allows(4, now), f.allows(4, f.retryAt))
	}
	f.failed(bad, f.epoch, now, b)
	if f.inRow != 2 {
		t.Errorf("%d in a row, want 2", f.inRow)
	}
	f.succeeded()
	if f.allows(4, now) != 4 || f.err != nil {
		t.Errorf("after a success %d are allowed, and %v", f.allows(4, now), f.err)
	}
}
