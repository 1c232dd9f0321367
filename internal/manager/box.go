package manager

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moby/sys/mountinfo"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/event"
	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/lifecycle"
	"github.com/firebreak-dev/firebreak/internal/store"
)

// box is a living sandbox with a handle in this process, which made it or found it.
type box struct {
	sb       driver.Sandbox
	guest    *guest.Guest
	fleeting bool          // its driver is
	ending   atomic.Bool   // by endHere
	done     chan struct{} // closed when its watch has ended
	turn     chan struct{} // holds one token while somebody pauses, resumes, claims or gives it time

	mu      sync.Mutex
	rec     store.Record // guarded by mu: as last known
	known   time.Time    // guarded by mu: when that was
	due     *time.Timer  // guarded by mu: ends the watch's wait at the deadline
	release func()       // guarded by mu: gives back what its tenant's limits count
}

// staleness bounds for how long what another process did to a sandbox may go unseen.
const staleness = 500 * time.Millisecond

func (b *box) record() store.Record {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.rec
}

// note takes what is now known of the sandbox, and with it the time at which it is due.
func (b *box) note(rec store.Record) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.noteLocked(rec)
}

// learn is note for what began to be read at some time: what was noted since is newer.
func (b *box) learn(rec store.Record, at time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.known.After(at) {
		b.noteLocked(rec)
	}
}

func (b *box) noteLocked(rec store.Record) {
	b.rec, b.known = rec, time.Now()
	if b.due != nil {
		b.dueLocked()
	}
}

// charge has a sandbox that has become somebody's count for its tenant until it ends, which it may have done already.
func (m *Manager) charge(b *box, release func()) {
	b.mu.Lock()
	b.release = release
	b.mu.Unlock()
	if m.box(b.record().ID) != b {
		release()
	}
}

func (b *box) stale() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return time.Since(b.known) > staleness
}

// arm has cancel called when the sandbox's time is up, whatever that time is made meanwhile.
func (b *box) arm(cancel context.CancelFunc) (stop func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.due = time.AfterFunc(time.Hour, cancel)
	b.dueLocked()
	return func() { b.due.Stop() }
}

func (b *box) dueLocked() {
	if b.rec.State != firebreak.StateRunning || b.rec.Deadline.IsZero() {
		b.due.Stop()
		return
	}
	b.due.Reset(time.Until(b.rec.Deadline))
}

// keep registers the handle of a living sandbox and watches it; where one is registered already, that one stays.
func (m *Manager) keep(rec store.Record, sb driver.Sandbox, g *guest.Guest, release func()) *box {
	fleeting := m.fleeting(rec.Driver)
	m.mu.Lock()
	defer m.mu.Unlock()
	if b := m.boxes[rec.ID]; b != nil {
		g.Close()
		return b
	}
	if release == nil {
		release = m.hold(rec)
	}
	b := &box{rec: rec, known: time.Now(), sb: sb, guest: g, fleeting: fleeting, release: release,
		done: make(chan struct{}), turn: make(chan struct{}, 1)}
	m.boxes[rec.ID] = b
	// The caller's own place in m.work, or recover's, holds Close off until here.
	m.work.Go(func() {
		defer close(b.done)
		m.watch(b)
	})
	return b
}

// hold counts a sandbox that is there anyway.
func (m *Manager) hold(rec store.Record) func() {
	if rec.Tenant == "" {
		return func() {}
	}
	return m.limiter.Hold(rec.Tenant, auth.Request{CPUs: rec.Spec.Limits.CPUs, Memory: rec.Spec.Limits.Memory})
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
		b.mu.Lock()
		release := b.release
		b.mu.Unlock()
		release()
	}
}

// errElsewhere marks the error for a sandbox that only another process can reach.
var errElsewhere = errors.New("it lives within the process of firebreak that made it")

// attach returns the handle of a sandbox that is running or paused. fs.ErrNotExist if nothing of it lives, errElsewhere
// (wrapped) if it is alive and within another process.
func (m *Manager) attach(ctx context.Context, rec store.Record) (*box, error) {
	if b := m.box(rec.ID); b != nil {
		return b, nil
	}
	if rec.State != firebreak.StateRunning && rec.State != firebreak.StatePaused {
		return nil, &firebreak.Error{Kind: firebreak.KindState, Err: fmt.Errorf("sandbox %s is %s", rec.ID, rec.State)}
	}
	d, err := m.cfg.Drivers.Keeper(rec.Driver)
	if err != nil {
		return nil, m.driverError(rec.Driver, err)
	}
	sb, err := d.Open(ctx, rec.Spec)
	if errors.Is(err, fs.ErrNotExist) && rec.Bound && rec.Owner != m.owner.name && m.owner.alive(rec.Owner) {
		return nil, &firebreak.Error{Kind: firebreak.KindState, Op: "reach sandbox " + string(rec.ID), Err: errElsewhere,
			Mend: "ask the server that made it: --server unix://PATH or FIREBREAK_SERVER"}
	}
	if err != nil {
		return nil, fmt.Errorf("reach sandbox %s: %w", rec.ID, err)
	}
	return m.keep(rec, sb, guest.To(sb, rec.Token), nil), nil
}

// watch ends b when it ends by itself, and ends or pauses it when its time is up.
func (m *Manager) watch(b *box) {
	for {
		ctx, cancel := context.WithCancel(m.ctx)
		stop := b.arm(cancel)
		exit, err := b.sb.Wait(ctx)
		stop()
		due := ctx.Err() != nil && err != nil
		cancel()
		switch {
		case m.ctx.Err() != nil && err != nil:
			return // Close sees to it
		case due && m.timeUp(b):
			continue
		}
		m.ended(b, exit, err)
		return
	}
}

// ended sees to a sandbox that is no more, or whose time is up.
func (m *Manager) ended(b *box, exit driver.Exit, err error) {
	if b.ending.Load() {
		return // what was seen is its doing
	}
	rec := b.record()
	cause := lifecycle.EventExited
	switch {
	case overdue(rec, time.Now()), exit.Reason == firebreak.EndDeadline:
		// The agent keeps the deadline too, for when no process of ours lives, and may have been first.
		cause, exit = lifecycle.EventExpired, expired(rec)
	case err != nil:
		cause, exit = lifecycle.EventLost, driver.Exit{Reason: firebreak.EndLost, Code: -1, Detail: err.Error()}
	}
	if cause != lifecycle.EventExpired && exit.Reason != firebreak.EndDestroyed {
		m.log.Warn("a sandbox ended by itself", "sandbox", rec.ID, "driver", rec.Driver, "reason", exit.Reason, "detail", exit.Detail)
	}
	if rec.Pool != "" {
		cause = lifecycle.EventDeleted // nobody asks what became of it
	}
	if _, err := m.end(context.WithoutCancel(m.ctx), rec, cause, exit, b.sb); err != nil {
		m.drop(rec.ID)
		m.log.Warn("end sandbox", "sandbox", rec.ID, "err", err)
	}
}

// timeUp looks at a sandbox whose time seems to be up, and reports whether it lives on: another process may have given it
// more, or it is to be paused.
func (m *Manager) timeUp(b *box) bool {
	ctx, cancel := context.WithTimeout(m.ctx, destroyTimeout)
	defer cancel()
	if err := m.refresh(ctx, b); err != nil {
		return false
	}
	rec := b.record()
	if rec.State == firebreak.StatePaused || rec.State == firebreak.StateRunning && !overdue(rec, time.Now()) {
		return true
	}
	if rec.State != firebreak.StateRunning || rec.OnTimeout != firebreak.TimeoutPause {
		return false
	}
	if err := b.take(ctx); err != nil {
		return false
	}
	defer b.leave()
	if _, err := m.freeze(ctx, b); err != nil && b.record().State != firebreak.StatePaused {
		m.log.Warn("pause a sandbox whose time is up", "sandbox", rec.ID, "err", err)
		return !overdue(b.record(), time.Now())
	}
	return true
}

// refresh reads what is known of b anew.
func (m *Manager) refresh(ctx context.Context, b *box) error {
	at := time.Now()
	rec, err := m.cfg.Store.Find(ctx, everybody(), string(b.record().ID))
	if err == nil {
		b.learn(rec, at)
	}
	return err
}

// everybody is who sees all sandboxes: this process, for itself.
func everybody() auth.Caller { return auth.Caller{Operator: true} }

func overdue(r store.Record, now time.Time) bool {
	return r.State == firebreak.StateRunning && !r.Deadline.IsZero() && !now.Before(r.Deadline)
}

func expired(r store.Record) driver.Exit {
	return driver.Exit{Reason: firebreak.EndDeadline, Code: 124,
		Detail: fmt.Sprintf("its time of %s was up", r.Deadline.Sub(r.Created).Round(10*time.Millisecond))}
}

// end takes a sandbox through stopping to its end, and returns the last that was known of it. What somebody wanted gone
// leaves no record; what ended by itself leaves one that says why, for as long as somebody may ask.
func (m *Manager) end(ctx context.Context, rec store.Record, cause lifecycle.Event, exit driver.Exit, sb driver.Sandbox) (store.Record, error) {
	ctx, cancel := context.WithTimeout(ctx, destroyTimeout)
	defer cancel()
	usage := readUsage(ctx, sb)
	if b := m.box(rec.ID); b != nil && b.fleeting && cause == lifecycle.EventDeleted && b.ending.CompareAndSwap(false, true) {
		return m.endHere(ctx, rec, exit, usage)
	}
	last, first, err := m.stop(ctx, rec.ID, cause, exit, usage)
	if firebreak.KindOf(err) == firebreak.KindExhausted {
		// The disk is full, perhaps by this very sandbox, so it goes before that can be written down. If this process dies
		// in between, the next one finds a record with nothing behind it.
		if err := m.destroy(ctx, rec); err != nil {
			return last, err
		}
		last, first, err = m.stop(ctx, rec.ID, cause, exit, usage)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		m.drop(rec.ID) // another process was first, and is through
		rec.State, rec.Exit = firebreak.StateEnded, exit
		return rec, nil
	case firebreak.KindOf(err) == firebreak.KindState && cause != lifecycle.EventDeleted:
		m.drop(rec.ID)
		return last, nil // somebody else ends it
	case err != nil:
		return last, err
	}
	if first && last.Pool == "" { // once, whoever else ends it too or has to try again
		m.cfg.Metrics.Ended(last.Driver, string(last.Exit.Reason), last.Usage.CPU)
	}
	if last.State == firebreak.StateStopping {
		if err := m.destroy(ctx, last); err != nil {
			return last, err
		}
	}
	m.drop(rec.ID)
	if cause == lifecycle.EventDeleted {
		last.State = firebreak.StateEnded
		return last, m.cfg.Store.Delete(ctx, rec.ID, store.Telling(event.TypeKilled))
	}
	ended, err := m.cfg.Store.Update(ctx, rec.ID, func(r *store.Record) (err error) {
		r.Ended = time.Now().UTC()
		r.State, err = lifecycle.Next(r.State, lifecycle.EventCleared)
		return err
	}, store.Telling(event.TypeKilled))
	if errors.Is(err, fs.ErrNotExist) || firebreak.KindOf(err) == firebreak.KindState {
		return last, nil // deleted meanwhile
	}
	return ended, err
}

// endHere is end for what somebody wants gone, and of which nobody but this process knows more than the record: that it
// stops need not be written down. If this process dies meanwhile, the next one finds a record with nothing behind it.
func (m *Manager) endHere(ctx context.Context, rec store.Record, exit driver.Exit, usage driver.Usage) (store.Record, error) {
	err := m.destroy(ctx, rec)
	m.drop(rec.ID)
	if err != nil {
		return rec, err
	}
	rec.State, rec.Exit, rec.Usage = firebreak.StateEnded, exit, usage
	first := false // somebody else may have written down that it stops, and counted it
	err = m.cfg.Store.Delete(ctx, rec.ID, func(r store.Record) event.Event {
		first = r.State != firebreak.StateStopping
		r.Exit, r.Usage = exit, usage
		return store.Telling(event.TypeKilled)(r)
	})
	if err == nil && first {
		m.cfg.Metrics.Ended(rec.Driver, string(exit.Reason), usage.CPU)
	}
	return rec, err
}

// fleeting reports whether the sandboxes of a driver leave nothing on the host.
func (m *Manager) fleeting(name string) bool {
	d, err := m.cfg.Drivers.Keeper(name)
	if err != nil {
		return false
	}
	_, ok := d.(driver.Fleeting)
	return ok
}

// stop records that a sandbox is being ended, by this process and why, and reports whether it was the first to. The first
// reason stays. Anybody may delete; all else is for the process that owns the sandbox, as long as it lives.
func (m *Manager) stop(ctx context.Context, id driver.ID, cause lifecycle.Event, exit driver.Exit, usage driver.Usage) (rec store.Record, first bool, err error) {
	rec, err = m.cfg.Store.Update(ctx, id, func(r *store.Record) error {
		next, err := lifecycle.Next(r.State, cause)
		if err != nil {
			return err
		}
		if cause != lifecycle.EventDeleted && r.Owner != m.owner.name && m.owner.alive(r.Owner) {
			return &firebreak.Error{Kind: firebreak.KindState, Err: errors.New("another process sees to it")}
		}
		if first = r.State != firebreak.StateStopping && r.State != firebreak.StateEnded; first {
			r.Exit, r.Usage = exit, usage
		}
		r.State, r.Owner = next, m.owner.name
		return nil
	})
	return rec, first, err
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
	if _, none := d.(driver.Fleeting); none {
		return nil
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
