package manager

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/moby/sys/mountinfo"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/lifecycle"
	"github.com/firebreak-dev/firebreak/internal/store"
)

// box is a living sandbox with a handle in this process, which made it or found it.
type box struct {
	rec   store.Record // as of when the handle was got
	sb    driver.Sandbox
	guest *guest.Guest
	done  chan struct{} // closed when its watch has ended
}

// keep registers the handle of a living sandbox and watches it; where one is registered already, that one stays.
func (m *Manager) keep(rec store.Record, sb driver.Sandbox, g *guest.Guest) *box {
	m.mu.Lock()
	defer m.mu.Unlock()
	if b := m.boxes[rec.ID]; b != nil {
		g.Close()
		return b
	}
	b := &box{rec: rec, sb: sb, guest: g, done: make(chan struct{})}
	m.boxes[rec.ID] = b
	// The caller's own place in m.work, or recover's, holds Close off until here.
	m.work.Go(func() {
		defer close(b.done)
		m.watch(b)
	})
	return b
}

func (m *Manager) box(id driver.ID) *box {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.boxes[id]
}

// drop forgets the handle of what has ended.
func (m *Manager) drop(id driver.ID) {
	m.mu.Lock()
	b := m.boxes[id]
	delete(m.boxes, id)
	m.mu.Unlock()
	if b != nil {
		b.guest.Close()
	}
}

// attach returns the handle of a running sandbox. fs.ErrNotExist if nothing of it lives.
func (m *Manager) attach(ctx context.Context, rec store.Record) (*box, error) {
	if b := m.box(rec.ID); b != nil {
		return b, nil
	}
	if rec.State != firebreak.StateRunning {
		return nil, &firebreak.Error{Kind: firebreak.KindState, Err: fmt.Errorf("sandbox %s is %s", rec.ID, rec.State)}
	}
	d, err := m.cfg.Drivers.Keeper(rec.Driver)
	if err != nil {
		return nil, m.driverError(rec.Driver, err)
	}
	sb, err := d.Open(ctx, rec.Spec)
	if err != nil {
		return nil, fmt.Errorf("reach sandbox %s: %w", rec.ID, err)
	}
	return m.keep(rec, sb, guest.New(sb.Dial, rec.Token)), nil
}

// watch ends b when it ends by itself or its time is up.
func (m *Manager) watch(b *box) {
	ctx, cancel := m.ctx, context.CancelFunc(func() {})
	if !b.rec.Deadline.IsZero() {
		ctx, cancel = context.WithDeadline(m.ctx, b.rec.Deadline)
	}
	defer cancel()
	exit, err := b.sb.Wait(ctx)
	event := lifecycle.EventExited
	switch {
	case m.ctx.Err() != nil && err != nil:
		return // Close sees to it
	case overdue(b.rec, time.Now()), exit.Reason == firebreak.EndDeadline:
		// The agent keeps the deadline too, for when no process of ours lives, and may have been first.
		event, exit = lifecycle.EventExpired, expired(b.rec)
	case err != nil:
		event, exit = lifecycle.EventLost, driver.Exit{Reason: firebreak.EndLost, Code: -1, Detail: err.Error()}
	}
	if _, err := m.end(context.WithoutCancel(m.ctx), b.rec, event, exit, b.sb); err != nil {
		m.drop(b.rec.ID)
		m.log.Warn("end sandbox", "sandbox", b.rec.ID, "err", err)
	}
}

func overdue(r store.Record, now time.Time) bool {
	return !r.Deadline.IsZero() && !now.Before(r.Deadline)
}

func expired(r store.Record) driver.Exit {
	return driver.Exit{Reason: firebreak.EndDeadline, Code: 124,
		Detail: fmt.Sprintf("its time of %s was up", r.Deadline.Sub(r.Created).Round(10*time.Millisecond))}
}

// end takes a sandbox through stopping to its end, and returns the last that was known of it. What somebody wanted gone
// leaves no record; what ended by itself leaves one that says why, for as long as somebody may ask.
func (m *Manager) end(ctx context.Context, rec store.Record, event lifecycle.Event, exit driver.Exit, sb driver.Sandbox) (store.Record, error) {
	ctx, cancel := context.WithTimeout(ctx, destroyTimeout)
	defer cancel()
	usage := readUsage(ctx, sb)
	last, err := m.stop(ctx, rec.ID, event, exit, usage)
	if firebreak.KindOf(err) == firebreak.KindExhausted {
		// The disk is full, perhaps by this very sandbox, so it goes before that can be written down. If this process dies
		// in between, the next one finds a record with nothing behind it.
		if err := m.destroy(ctx, rec); err != nil {
			return last, err
		}
		last, err = m.stop(ctx, rec.ID, event, exit, usage)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		m.drop(rec.ID) // another process was first, and is through
		rec.State, rec.Exit = firebreak.StateEnded, exit
		return rec, nil
	case firebreak.KindOf(err) == firebreak.KindState && event != lifecycle.EventDeleted:
		m.drop(rec.ID)
		return last, nil // somebody else ends it
	case err != nil:
		return last, err
	}
	if last.State == firebreak.StateStopping {
		if err := m.destroy(ctx, last); err != nil {
			return last, err
		}
	}
	m.drop(rec.ID)
	if event == lifecycle.EventDeleted {
		last.State = firebreak.StateEnded
		return last, m.cfg.Store.Delete(ctx, rec.ID)
	}
	ended, err := m.cfg.Store.Update(ctx, rec.ID, func(r *store.Record) (err error) {
		r.Ended = time.Now().UTC()
		r.State, err = lifecycle.Next(r.State, lifecycle.EventCleared)
		return err
	})
	if errors.Is(err, fs.ErrNotExist) || firebreak.KindOf(err) == firebreak.KindState {
		return last, nil // deleted meanwhile
	}
	return ended, err
}

// stop records that a sandbox is being ended, by this process and why. The first reason stays. Anybody may delete; all
// else is for the process that owns the sandbox, as long as it lives.
func (m *Manager) stop(ctx context.Context, id driver.ID, event lifecycle.Event, exit driver.Exit, usage driver.Usage) (store.Record, error) {
	return m.cfg.Store.Update(ctx, id, func(r *store.Record) error {
		next, err := lifecycle.Next(r.State, event)
		if err != nil {
			return err
		}
		if event != lifecycle.EventDeleted && r.Owner != m.owner.name && m.owner.alive(r.Owner) {
			return &firebreak.Error{Kind: firebreak.KindState, Err: errors.New("another process sees to it")}
		}
		if r.State != firebreak.StateStopping && r.State != firebreak.StateEnded {
			r.Exit, r.Usage = exit, usage
		}
		r.State, r.Owner = next, m.owner.name
		return nil
	})
}

// destroy removes all that there is of a sandbox on the host.
func (m *Manager) destroy(ctx context.Context, rec store.Record) error {
	d, err := m.cfg.Drivers.Keeper(rec.Driver)
	if err != nil {
		return m.driverError(rec.Driver, err)
	}
	if err := d.Destroy(ctx, rec.Spec); err != nil {
		return fmt.Errorf("destroy sandbox %s: %w", rec.ID, err)
	}
	return removeDir(rec.Spec.Dir)
}

func readUsage(ctx context.Context, sb driver.Sandbox) driver.Usage {
	if sb == nil {
		return driver.Usage{}
	}
	ctx, cancel := context.WithTimeout(ctx, usageTimeout)
	defer cancel()
	u, err := sb.Usage(ctx)
	if err != nil {
		return driver.Usage{} // it has ended, and its counters with it
	}
	return u
}

// noMounts is an error if something is mounted at or below dir in this process's view.
func noMounts(dir string) error {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return fmt.Errorf("look for mounts: %w", err)
	}
	if len(mounts) > 0 {
		return fmt.Errorf("remove %s: %s is still mounted", dir, mounts[0].Mountpoint)
	}
	return nil
}
