package event

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sort"
	"time"

	"github.com/firebreak-dev/firebreak"
)

const (
	// Staleness bounds how much later a watch sees what another process has kept. What this one keeps it sees at once.
	Staleness = 500 * time.Millisecond

	recentMax = 1024 // events held for the watches, and up to twice as many; who falls back behind them is cut
	batchMax  = 64   // events that one watch holds
)

// Watch calls fn for each event that f passes and the caller may see, in order and one at a time, until ctx is done or fn
// fails, and returns that error. It begins with what was kept after the event f.After, or with a greater Seq than f.Seq;
// without either with what comes from now on. Order, offset and limit of f mean nothing here. fn must not change events.
//
// Whoever is so slow that more than a thousand events lie between is cut off with firebreak.KindExhausted, and may go on
// with a new Watch after the last event that he got. Publishers never wait.
func (l *Log) Watch(ctx context.Context, f Filter, fn func(Event) error) error {
	if l == nil {
		<-ctx.Done()
		return ctx.Err()
	}
	f, err := f.scope(ctx)
	if err != nil {
		return err
	}
	if err := l.enter(ctx); err != nil {
		return err
	}
	defer l.leave()
	w := watch{log: l, filter: f, fn: fn}
	if w.at, err = l.start(ctx, f); err != nil {
		return err
	}
	for {
		changed := l.signal()
		more, err := w.step(ctx)
		if err != nil {
			return err
		}
		if !more {
			if err := l.await(ctx, changed); err != nil {
				return err
			}
			w.live = false // it had seen all: if there is much now, it came at once
		}
	}
}

// watch is one call of Watch.
type watch struct {
	log    *Log
	filter Filter
	fn     func(Event) error
	at     int64 // Seq up to which all was seen
	live   bool  // its last events were recent ones
}

// step hands out the next events, and reports whether there may be more at once.
func (w *watch) step(ctx context.Context) (bool, error) {
	batch, to, ok := w.log.after(w.at)
	switch {
	case !ok && w.live:
		return false, &firebreak.Error{Kind: firebreak.KindExhausted, Op: "watch events",
			Err:  fmt.Errorf("too slow: more than %d events have come since the last one that was taken", recentMax),
			Mend: "watch anew after that event"}
	case !ok:
		var err error
		if batch, to, err = w.log.backlog(ctx, w.filter, w.at); err != nil {
			return false, err
		}
	default:
		w.live = true
	}
	for _, e := range batch {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		if w.filter.passes(e) {
			if err := w.fn(e); err != nil {
				return false, err
			}
		}
	}
	more := to > w.at
	w.at = max(w.at, to)
	return more, nil
}

// start returns the Seq after which a watch begins.
func (l *Log) start(ctx context.Context, f Filter) (int64, error) {
	switch {
	case f.After != "":
		e, err := l.storage.FindEvent(ctx, f.Tenant, f.After)
		if errors.Is(err, fs.ErrNotExist) {
			err = &firebreak.Error{Kind: firebreak.KindNotFound, Op: "watch events", Err: err, Mend: "list the events, and watch from the last one on"}
		}
		return e.Seq, err
	case f.Seq != 0:
		return max(f.Seq, 0), nil
	}
	return l.storage.LastEvent(ctx)
}

// enter makes place for a watch. The first one finds recent as the last one left it, perhaps long ago, and empties it.
func (l *Log) enter(ctx context.Context) error {
	l.reading.Lock()
	defer l.reading.Unlock()
	l.mu.Lock()
	first := l.watchers == 0
	l.watchers++
	l.mu.Unlock()
	if !first {
		return nil
	}
	last, err := l.storage.LastEvent(ctx)
	if err != nil {
		l.leave()
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.from, l.to, l.recent, l.looked = last, last, nil, time.Now()
	return nil
}

func (l *Log) leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.watchers--
}

// notify is called by the storage, in the goroutine of whoever has kept an event.
func (l *Log) notify() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dirty = true
	l.broadcastLocked()
}

func (l *Log) broadcastLocked() {
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *Log) signal() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changed
}

// after returns some of the recent events after at, and the Seq up to which these are all. Not ok: recent begins later.
func (l *Log) after(at int64) (batch []Event, to int64, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if at < l.from {
		return nil, at, false
	}
	i := sort.Search(len(l.recent), func(i int) bool { return l.recent[i].Seq > at })
	rest := l.recent[i:]
	if len(rest) > batchMax {
		rest = rest[:batchMax]
		return slices.Clone(rest), rest[batchMax-1].Seq, true
	}
	return slices.Clone(rest), l.to, true
}

// backlog returns events from before the recent ones, and the Seq up to which these are all.
func (l *Log) backlog(ctx context.Context, f Filter, at int64) ([]Event, int64, error) {
	l.mu.Lock()
	to := l.to
	l.mu.Unlock()
	f.Seq, f.Asc, f.Offset, f.Limit = at, true, 0, batchMax
	batch, err := l.storage.ListEvents(ctx, f)
	if n := len(batch); n == batchMax {
		to = batch[n-1].Seq
	} else if n > 0 {
		to = max(to, batch[n-1].Seq)
	}
	return batch, to, err
}

// await returns when there may be events that recent does not hold, and has it hold them.
func (l *Log) await(ctx context.Context, changed <-chan struct{}) error {
	timer := time.NewTimer(Staleness)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-changed:
	case <-timer.C:
	}
	return l.read(ctx)
}

// read asks the storage for what is new, unless somebody just did.
func (l *Log) read(ctx context.Context) error {
	l.reading.Lock()
	defer l.reading.Unlock()
	l.mu.Lock()
	to, stale := l.to, l.dirty || time.Since(l.looked) >= Staleness
	l.dirty, l.looked = false, time.Now()
	l.mu.Unlock()
	for stale {
		batch, err := l.storage.ListEvents(ctx, Filter{Seq: to, Asc: true, Limit: MaxLimit})
		if err != nil {
			l.mu.Lock()
			l.dirty = true
			l.mu.Unlock()
			return err
		}
		if len(batch) > 0 {
			to = batch[len(batch)-1].Seq
			l.add(batch)
		}
		stale = len(batch) == MaxLimit
	}
	return nil
}

func (l *Log) add(batch []Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.recent = append(l.recent, batch...)
	l.to = batch[len(batch)-1].Seq
	if extra := len(l.recent) - recentMax; extra > recentMax { // rarely, for it copies them
		l.from = l.recent[extra-1].Seq
		l.recent = slices.Clone(l.recent[extra:])
	}
	l.broadcastLocked()
}
