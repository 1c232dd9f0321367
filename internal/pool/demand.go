package pool

import (
	"math"
	"math/rand/v2"
	"time"
)

// demand decides how many things are worth keeping: as many as were asked for in the busiest of the windows of time so
// far, where each window that has gone by since that one halves its number. Hits and misses count alike, because both
// are things that somebody wanted at once. So the target rises with the very request that shows it too low, and falls
// slowly enough that what comes every few windows still finds something ready.
type demand struct {
	window time.Duration
	began  time.Time // of the window that is under way
	asked  int       // in it
	level  float64   // what earlier windows left
	before float64   // what the window before this one was to keep
}

func (d *demand) start(now time.Time, window time.Duration) { d.began, d.window = now, window }

func (d *demand) ask(now time.Time) {
	d.roll(now)
	d.asked++
}

// roll ends the windows that have gone by.
func (d *demand) roll(now time.Time) {
	passed := now.Sub(d.began) / d.window
	if passed <= 0 {
		return
	}
	d.began = d.began.Add(passed * d.window)
	d.before = max(d.level, float64(d.asked))
	d.level = max(d.level/2, float64(d.asked))
	d.asked = 0
	if passed > 1 {
		d.before = d.level * math.Pow(0.5, float64(passed-2))
		d.level = d.before / 2
	}
	d.before, d.level = forget(d.before), forget(d.level)
}

// forget takes less than half a thing for none, so that demand comes to an end.
func forget(level float64) float64 {
	if level < 0.5 {
		return 0
	}
	return level
}

// target returns how many are to be ready, between least and most.
func (d *demand) target(now time.Time, least, most int) int {
	d.roll(now)
	return min(max(up(d.level, most), d.asked, least), most)
}

// keep returns beyond how many, at least the target, things are too many. It falls one window after the target: in
// between claims take what is too many, which would otherwise be discarded, and made again, with each whim of demand.
func (d *demand) keep(target, most int) int { return max(target, up(d.before, most)) }

// up rounds up, to most at the utmost; a huge float has no int.
func up(level float64, most int) int { return int(math.Ceil(min(level, float64(most)))) }

// change returns when the window ends; zero if the demand cannot fall any more.
func (d *demand) change() time.Time {
	if d.level == 0 && d.asked == 0 && d.before == 0 {
		return time.Time{}
	}
	return d.began.Add(d.window)
}

// Backoff is the pause after a failure: First, twice that after the second in a row, and so on up to Max. A random part
// of up to a half is taken off, lest all pools of a host try at the same moment.
type Backoff struct {
	First time.Duration // 0 is 100 ms
	Max   time.Duration // 0 is 30 s
}

func (b Backoff) pause(failures int) time.Duration {
	d := b.Max
	if shift := failures - 1; shift < 62 && b.First <= b.Max>>shift {
		d = b.First << shift
	}
	return d - rand.N(d/2+1)
}

// failing is what is known of failures in a row.
type failing struct {
	inRow   int
	epoch   int // changes with each pause: several that fail together are one failure in a row
	err     error
	retryAt time.Time
}

// failed tells of a failure of what was begun in some epoch.
func (f *failing) failed(err error, epoch int, now time.Time, b Backoff) {
	f.err = err
	if epoch != f.epoch {
		return
	}
	f.inRow++
	f.epoch++
	f.retryAt = now.Add(b.pause(f.inRow))
}

func (f *failing) succeeded() { *f = failing{epoch: f.epoch} }

// allows returns how many of most may be under way at once: after a failure one tries for all.
func (f *failing) allows(most int, now time.Time) int {
	switch {
	case f.inRow == 0:
		return most
	case now.Before(f.retryAt):
		return 0
	}
	return 1
}
