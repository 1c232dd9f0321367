package manager

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/event"
	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/lifecycle"
	"github.com/firebreak-dev/firebreak/internal/store"
)

// take waits for the turn to change a sandbox's time or state; leave gives it up.
func (b *box) take(ctx context.Context) error {
	select {
	case b.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (b *box) leave() { <-b.turn }

// alone calls do with the living sandbox that ref means to the caller, while nobody else in this process changes its
// time or state, and with what is known of it now.
func (m *Manager) alone(ctx context.Context, ref string, do func(ctx context.Context, b *box) (store.Record, error)) (store.Record, error) {
	ctx, done, err := m.begin(ctx)
	if err != nil {
		return store.Record{}, err
	}
	defer done()
	rec, err := m.find(ctx, ref)
	if err != nil {
		return rec, err
	}
	b, err := m.attach(ctx, rec)
	if err != nil {
		return rec, err
	}
	if err := b.take(ctx); err != nil {
		return rec, err
	}
	defer b.leave()
	if err := m.refresh(ctx, b); err != nil {
		return rec, err
	}
	return do(ctx, b)
}

// SetTimeout has the sandbox end d from now, or only later than it would anyway if extendOnly. KindState if it is not
// running.
func (m *Manager) SetTimeout(ctx context.Context, ref string, d time.Duration, extendOnly bool) (store.Record, error) {
	if err := checkTimeout(d); err != nil {
		return store.Record{}, err
	}
	return m.alone(ctx, ref, func(ctx context.Context, b *box) (store.Record, error) {
		if rec := b.record(); extendOnly && lasts(rec, d) {
			return rec, nil // nothing to tell
		}
		rec, err := m.change(ctx, b, func(r *store.Record) error {
			if r.State != firebreak.StateRunning {
				return stateError(*r)
			}
			giveTime(r, d, extendOnly)
			return nil
		}, store.Telling(event.TypeUpdated))
		if err != nil {
			return rec, err
		}
		if err := m.tell(ctx, b.guest, rec); err != nil && !overdue(rec, time.Now()) { // else it has ended, as was asked
			return rec, err
		}
		return rec, nil
	})
}

func checkTimeout(d time.Duration) error {
	if d <= 0 || d > maxTimeout {
		return &firebreak.Error{Kind: firebreak.KindInvalid, Op: "give a sandbox time", Err: fmt.Errorf("a timeout of %s is not between 0 and %s", d, maxTimeout)}
	}
	return nil
}

func giveTime(r *store.Record, d time.Duration, extendOnly bool) {
	if extendOnly && lasts(*r, d) {
		return
	}
	r.Deadline, r.Timeout = time.Now().Add(d).UTC(), d
}

// lasts reports whether a sandbox that runs has as much time anyway.
func lasts(r store.Record, d time.Duration) bool {
	return r.State == firebreak.StateRunning && (r.Deadline.IsZero() || time.Until(r.Deadline) >= d)
}

func stateError(r store.Record) error {
	return &firebreak.Error{Kind: firebreak.KindState, Err: fmt.Errorf("sandbox %s is %s", r.ID, r.State)}
}

// Pause freezes a sandbox with its memory kept. KindState if it is not running, so also if it is paused already;
// KindUnsupported if its driver cannot.
func (m *Manager) Pause(ctx context.Context, ref string) (store.Record, error) {
	return m.alone(ctx, ref, m.freeze)
}

// freeze first takes the deadline from the agent, whose clock goes on while it is frozen, and writes down last: what dies
// in between leaves a record of state running, which the next process makes true.
func (m *Manager) freeze(ctx context.Context, b *box) (store.Record, error) {
	rec := b.record()
	if rec.State != firebreak.StateRunning {
		return rec, stateError(rec)
	}
	p, err := pauser(b, rec)
	if err != nil {
		return rec, err
	}
	paused := rec
	paused.State = firebreak.StatePaused
	if err := m.tell(ctx, b.guest, paused); err != nil {
		return rec, err
	}
	err = p.Pause(ctx)
	if err == nil {
		rec, err = m.change(ctx, b, func(r *store.Record) (err error) {
			r.Paused = time.Now().UTC()
			r.State, err = lifecycle.Next(r.State, lifecycle.EventFrozen)
			return err
		}, store.Telling(event.TypePaused))
	}
	if err != nil { // back to what the record says
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerTimeout)
		defer cancel()
		return b.record(), errors.Join(fmt.Errorf("pause sandbox %s: %w", rec.ID, err), p.Resume(ctx), m.tell(ctx, b.guest, b.record()))
	}
	return rec, nil
}

func pauser(b *box, rec store.Record) (driver.Pauser, error) {
	p, err := driver.As[driver.Pauser](b.sb)
	if err != nil {
		return nil, cannotPause("pause sandbox "+string(rec.ID), rec.Driver)
	}
	return p, nil
}

// cannotPause says the same of one that is to be paused now and of one that is to be paused at its end.
func cannotPause(op, driver string) error {
	return &firebreak.Error{Kind: firebreak.KindUnsupported, Op: op, Err: fmt.Errorf("%s cannot pause a sandbox here", driver),
		Mend: "kill it when it is of no more use, or make it from a template that gvisor or container runs"}
}

// Resume lets a paused sandbox go on, and reports whether it was paused. One that runs is only given time, and never
// less than it has. d is that time; 0 is what it was given last, for one that was paused, and else nothing.
func (m *Manager) Resume(ctx context.Context, ref string, d time.Duration) (rec store.Record, resumed bool, err error) {
	if d != 0 {
		if err := checkTimeout(d); err != nil {
			return rec, false, err
		}
	}
	rec, err = m.alone(ctx, ref, func(ctx context.Context, b *box) (rec store.Record, err error) {
		rec = b.record()
		if rec.State == firebreak.StatePaused {
			resumed = true
			return m.thaw(ctx, b, d)
		}
		if rec.State != firebreak.StateRunning || d == 0 || lasts(rec, d) {
			return rec, nil
		}
		rec, err = m.change(ctx, b, func(r *store.Record) error { giveTime(r, d, true); return nil }, store.Telling(event.TypeUpdated))
		if err != nil {
			return rec, err
		}
		return rec, m.tell(ctx, b.guest, rec)
	})
	if err == nil && rec.State != firebreak.StateRunning {
		err = stateError(rec)
	}
	return rec, resumed && err == nil, err
}

// thaw is the other way round: what dies in between leaves a record of state paused.
func (m *Manager) thaw(ctx context.Context, b *box, d time.Duration) (store.Record, error) {
	rec := b.record()
	p, err := pauser(b, rec)
	if err != nil {
		return rec, err
	}
	if err := p.Resume(ctx); err != nil {
		return rec, fmt.Errorf("resume sandbox %s: %w", rec.ID, err)
	}
	rec, err = m.change(ctx, b, func(r *store.Record) (err error) {
		if d == 0 {
			d = r.Timeout
		}
		r.Paused = time.Time{}
		if d > 0 {
			giveTime(r, d, false)
		}
		r.State, err = lifecycle.Next(r.State, lifecycle.EventThawed)
		return err
	}, store.Telling(event.TypeResumed))
	if err != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerTimeout)
		defer cancel()
		return rec, errors.Join(fmt.Errorf("resume sandbox %s: %w", rec.ID, err), p.Pause(ctx))
	}
	return rec, m.tell(ctx, b.guest, rec)
}

// change writes what change makes of a sandbox's record, and notes and tells it.
func (m *Manager) change(ctx context.Context, b *box, change func(*store.Record) error, tell ...store.Teller) (store.Record, error) {
	rec, err := m.cfg.Store.Update(ctx, b.record().ID, change, tell...)
	if err == nil {
		b.note(rec)
	}
	return rec, err
}

// tell configures the agent as its record says. It ends the sandbox at the deadline by itself, for when no process of
// ours lives, but cannot pause it.
func (m *Manager) tell(ctx context.Context, g *guest.Guest, rec store.Record) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	cfg := guest.Config{Envs: rec.Agent.Envs, User: rec.Agent.User, Workdir: rec.Agent.Workdir, SandboxID: string(rec.ID), TemplateID: rec.Template}
	if rec.State != firebreak.StatePaused && rec.OnTimeout != firebreak.TimeoutPause {
		cfg.Deadline = rec.Deadline
	}
	if err := g.Init(ctx, cfg); err != nil {
		return fmt.Errorf("configure agent: %w", err)
	}
	return nil
}

// settle makes the sandbox be what its record says, which the process before may have died in the middle of.
func (m *Manager) settle(ctx context.Context, b *box) error {
	if err := b.take(ctx); err != nil {
		return err
	}
	defer b.leave()
	if err := m.refresh(ctx, b); err != nil {
		return err
	}
	rec := b.record()
	p, err := driver.As[driver.Pauser](b.sb)
	switch {
	case rec.State == firebreak.StatePaused && err == nil:
		return p.Pause(ctx)
	case rec.State != firebreak.StateRunning:
		return nil
	case err == nil:
		if err := p.Resume(ctx); err != nil {
			return err
		}
	}
	return m.tell(ctx, b.guest, rec)
}
