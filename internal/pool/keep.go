package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// keep is the pool's own goroutine: it begins what is to be done, and sleeps until a change or the next time at which
// there is something to do.
func (p *Pool[T]) keep() {
	defer close(p.done)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		p.mu.Lock()
		next, end := p.stepLocked(time.Now())
		p.mu.Unlock()
		if end {
			break
		}
		timer.Stop()
		if !next.IsZero() {
			timer.Reset(time.Until(next))
		}
		select {
		case <-p.wake:
		case <-timer.C:
		}
	}
	p.work.Wait() // each has told that it is done, and has nothing left but to return
	p.hurry()
}

// stepLocked begins all that is due and returns when to look again, at the latest; zero: not before a change. It
// reports whether the pool has come to its end.
func (p *Pool[T]) stepLocked(now time.Time) (next time.Time, end bool) {
	sooner := func(t time.Time) {
		if !t.IsZero() && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	if !p.closed {
		target := p.targetLocked(now)
		p.shedLocked(target, now)
		sooner(p.refillLocked(target, now))
		sooner(p.checkLocked(now))
		if len(p.ready) > p.cfg.Min {
			sooner(p.demand.change())
		}
		sooner(p.expiry)
	}
	for len(p.doomed) > 0 && p.discarding < p.cfg.MaxMaking {
		p.discarding++
		t := p.doomed[0]
		p.doomed[0] = thing[T]{}
		p.doomed = p.doomed[1:]
		p.work.Go(func() { p.discard(t) })
	}
	return next, p.closed && p.alive == 0
}

func (p *Pool[T]) targetLocked(now time.Time) int {
	return p.demand.target(now, p.cfg.Min, p.cfg.Max)
}

// presentLocked returns how many things there are that can be claimed, now or when their check is over.
func (p *Pool[T]) presentLocked() int {
	if p.checking == p.current {
		return len(p.ready) + 1
	}
	return len(p.ready)
}

func (p *Pool[T]) stale(t thing[T], now time.Time) bool {
	return p.cfg.IdleTTL > 0 && now.Sub(t.made) >= p.cfg.IdleTTL
}

// shedLocked dooms what has lain too long, and what is beyond the target.
func (p *Pool[T]) shedLocked(target int, now time.Time) {
	if !p.expiry.IsZero() && !now.Before(p.expiry) {
		p.expiry = time.Time{}
		p.ready = slices.DeleteFunc(p.ready, func(t thing[T]) bool {
			if p.stale(t, now) {
				p.doomed = append(p.doomed, t)
				return true
			}
			p.expireLocked(t)
			return false
		})
	}
	if extra := min(p.presentLocked()-p.demand.keep(target, p.cfg.Max), len(p.ready)); extra > 0 {
		p.doomed = append(p.doomed, p.ready[:extra]...)
		p.ready = slices.Delete(p.ready, 0, extra)
	}
}

// refillLocked has made what lacks, and returns when it can go on after a claim or a failure.
func (p *Pool[T]) refillLocked(target int, now time.Time) time.Time {
	if now.Before(p.refill) && len(p.ready) > 0 {
		return p.refill
	}
	allowed := p.failing.allows(p.cfg.MaxMaking, now)
	for p.presentLocked()+p.current.making < target && p.making < allowed {
		p.making++
		p.current.making++
		p.enterLocked(p.current)
		of, epoch := p.current, p.failing.epoch
		p.work.Go(func() { p.produce(of, epoch) })
	}
	if allowed == 0 && p.presentLocked()+p.current.making < target {
		return p.failing.retryAt
	}
	return time.Time{}
}

// checkLocked has that thing checked which was not for the longest time, if its time has come, and returns when it
// will. One at a time: then at most one is withheld from who claims, even when each check hangs.
func (p *Pool[T]) checkLocked(now time.Time) time.Time {
	if p.cfg.Check == nil || p.checking != nil || len(p.ready) == 0 {
		return time.Time{}
	}
	if due := p.ready[0].checked.Add(p.cfg.CheckEvery); due.After(now) {
		return due
	}
	t := p.ready[0]
	p.ready = slices.Delete(p.ready, 0, 1)
	p.checking = t.of
	p.work.Go(func() { p.check(t) })
	return time.Time{}
}

func (p *Pool[T]) enterLocked(g *generation) {
	g.alive++
	p.alive++
}

func (p *Pool[T]) leaveLocked(g *generation) {
	g.alive--
	p.alive--
	if g.alive == 0 && g != p.current {
		close(g.gone)
	}
}

// retireLocked ends a generation; the caller has put another in its place, unless the pool closes.
func (p *Pool[T]) retireLocked(g *generation) {
	g.retire()
	p.doomed = append(p.doomed, p.ready...)
	clear(p.ready)
	p.ready = p.ready[:0]
	if g.alive == 0 && g != p.current {
		close(g.gone)
	}
}

// produce makes one thing.
func (p *Pool[T]) produce(of *generation, epoch int) {
	defer p.poke()
	ctx, cancel := context.WithTimeout(of.ctx, p.cfg.MakeTimeout)
	value, err := p.cfg.Make(ctx)
	cancel()
	now := time.Now()
	p.mu.Lock()
	p.making--
	of.making--
	retired := of.ctx.Err() != nil
	if err != nil {
		p.leaveLocked(of)
		if !retired { // else it was told to fail
			p.counts.Failures++
			p.failing.failed(err, epoch, now, p.cfg.Backoff)
		}
		p.mu.Unlock()
		if !retired {
			p.report(fmt.Errorf("make for pool: %w", err))
		}
		return
	}
	defer p.mu.Unlock()
	p.counts.Made++
	p.failing.succeeded()
	p.placeLocked(thing[T]{value: value, of: of, made: now, checked: now})
}

// placeLocked puts a thing where it can be claimed, or with the doomed if it is of a retired generation.
func (p *Pool[T]) placeLocked(t thing[T]) {
	if t.of.ctx.Err() != nil {
		p.doomed = append(p.doomed, t)
		return
	}
	p.ready = append(p.ready, t)
	p.expireLocked(t)
}

// expireLocked takes note of when a thing that is ready will have lain too long.
func (p *Pool[T]) expireLocked(t thing[T]) {
	if at := t.made.Add(p.cfg.IdleTTL); p.cfg.IdleTTL > 0 && (p.expiry.IsZero() || at.Before(p.expiry)) {
		p.expiry = at
	}
}

func (p *Pool[T]) check(t thing[T]) {
	defer p.poke()
	ctx, cancel := context.WithTimeout(t.of.ctx, p.cfg.CheckTimeout)
	err := p.cfg.Check(ctx, t.value)
	if ctxErr := ctx.Err(); err == nil && errors.Is(ctxErr, context.DeadlineExceeded) {
		err = ctxErr
	}
	cancel()
	t.checked = time.Now()
	p.mu.Lock()
	p.checking = nil
	unhealthy := err != nil && t.of.ctx.Err() == nil
	if unhealthy {
		p.counts.Unhealthy++
		p.doomed = append(p.doomed, t)
	} else {
		p.placeLocked(t)
	}
	p.mu.Unlock()
	if unhealthy {
		p.report(fmt.Errorf("check in pool: %w", err))
	}
}

func (p *Pool[T]) report(err error) {
	if p.cfg.Failed != nil {
		p.cfg.Failed(err)
	}
}

func (p *Pool[T]) discard(t thing[T]) {
	defer p.poke()
	if p.cfg.Discard != nil {
		p.cfg.Discard(p.discards, t.value)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.discarding--
	p.counts.Discarded++
	p.leaveLocked(t.of)
}
