package manager

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/lifecycle"
	"github.com/firebreak-dev/firebreak/internal/store"
)

// Get returns the sandbox that ref, an ID, a name or the beginning of an ID, means, and in it what it has used so far and
// why it has its driver.
func (m *Manager) Get(ctx context.Context, ref string) (store.Record, error) {
	ctx, done, err := m.begin(ctx)
	if err != nil {
		return store.Record{}, err
	}
	defer done()
	rec, err := m.find(ctx, ref)
	if err != nil {
		return rec, err
	}
	decision, err := m.cfg.Store.Decision(ctx, rec.ID)
	if err == nil && (rec.State == firebreak.StateRunning || rec.State == firebreak.StatePaused) {
		rec, err = m.look(ctx, rec)
	}
	rec.Decision = decision
	return rec, err
}

// look brings what is known of a living sandbox up to date.
func (m *Manager) look(ctx context.Context, rec store.Record) (store.Record, error) {
	b, err := m.attach(ctx, rec)
	if errors.Is(err, fs.ErrNotExist) {
		return m.lost(ctx, rec)
	}
	rec.Elsewhere = errors.Is(err, errElsewhere)
	if err == nil {
		rec.Usage = readUsage(ctx, b.sb)
	}
	return rec, nil
}

// lost ends the record of what is not there any more.
func (m *Manager) lost(ctx context.Context, rec store.Record) (store.Record, error) {
	exit := driver.Exit{Reason: firebreak.EndLost, Code: -1, Detail: "it was gone when firebreak looked"}
	event := lifecycle.EventLost
	if overdue(rec, time.Now()) {
		event, exit = lifecycle.EventExpired, expired(rec)
	}
	return m.end(ctx, rec, event, exit, nil)
}

// List returns all sandboxes that the caller may see, the oldest first, those that ended too but none that lies in a
// pool. It waits until what earlier processes left has been seen to, so that it shows what there is.
func (m *Manager) List(ctx context.Context) ([]store.Record, error) {
	ctx, done, err := m.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	select {
	case <-m.recovered:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	by, err := auth.CallerOf(ctx)
	if err != nil {
		return nil, err
	}
	all, err := m.cfg.Store.List(ctx, by)
	return slices.DeleteFunc(all, func(r store.Record) bool { return r.Pool != "" }), err
}

// find returns the record that ref means to the caller.
func (m *Manager) find(ctx context.Context, ref string) (store.Record, error) {
	by, err := auth.CallerOf(ctx)
	if err != nil {
		return store.Record{}, err
	}
	return m.cfg.Store.Find(ctx, by, ref)
}

// Find returns what is known of the sandbox that ref means, as Get does but without looking at it. For an ID it costs next
// to nothing, and may miss for a moment what another process did.
func (m *Manager) Find(ctx context.Context, ref string) (store.Record, error) {
	by, err := auth.CallerOf(ctx)
	if err != nil {
		return store.Record{}, err
	}
	if b := m.box(driver.ID(ref)); b != nil && !b.stale() {
		if rec := b.record(); by.May(rec.Tenant) {
			return rec, nil
		}
	}
	at := time.Now()
	rec, err := m.cfg.Store.Find(ctx, by, ref)
	if b := m.box(rec.ID); err == nil && b != nil {
		b.learn(rec, at)
	}
	return rec, err
}

// Signed returns the living sandbox of this process whose agent's token match accepts. fs.ErrNotExist if there is none.
func (m *Manager) Signed(ctx context.Context, match func(token string) bool) (store.Record, error) {
	by, err := auth.CallerOf(ctx)
	if err != nil {
		return store.Record{}, err
	}
	m.mu.Lock()
	boxes := slices.Collect(maps.Values(m.boxes))
	m.mu.Unlock()
	for _, b := range boxes {
		if rec := b.record(); by.May(rec.Tenant) && match(rec.Token) {
			return rec, nil
		}
	}
	return store.Record{}, &firebreak.Error{Kind: firebreak.KindNotFound, Op: "find sandbox", Err: fmt.Errorf("nobody's token: %w", fs.ErrNotExist)}
}

// pollInterval is how often Wait looks at a sandbox that another process is making or ending.
const pollInterval = 50 * time.Millisecond

// Wait blocks until the sandbox has ended, and returns the last that was known of it.
func (m *Manager) Wait(ctx context.Context, ref string) (store.Record, error) {
	ctx, done, err := m.begin(ctx)
	if err != nil {
		return store.Record{}, err
	}
	defer done()
	rec, err := m.find(ctx, ref)
	if err != nil {
		return rec, err
	}
	for rec.State != firebreak.StateEnded {
		if err := m.waitOnce(ctx, rec); err != nil {
			return rec, err
		}
		next, err := m.cfg.Store.Find(ctx, everybody(), string(rec.ID))
		if errors.Is(err, fs.ErrNotExist) {
			rec.State = firebreak.StateEnded
			if rec.Exit.Reason == "" {
				rec.Exit = driver.Exit{Reason: firebreak.EndDestroyed, Code: -1}
			}
			return rec, nil
		}
		if err != nil {
			return rec, err
		}
		rec = next
	}
	return rec, nil
}

// waitOnce waits for the end of a running sandbox, or a moment for that of another process's doing.
func (m *Manager) waitOnce(ctx context.Context, rec store.Record) error {
	b, err := m.attach(ctx, rec)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := m.lost(ctx, rec); err != nil {
			return err
		}
	}
	ended, again := (<-chan struct{})(nil), time.After(pollInterval)
	if err == nil {
		ended, again = b.done, nil
	}
	select {
	case <-ended:
		return m.ctx.Err() // a watch that Close ended saw no end
	case <-again:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Delete ends a sandbox, whoever made it, and forgets it. It returns what was last known of it: what it used, and why it
// ended if it did so before.
func (m *Manager) Delete(ctx context.Context, ref string) (store.Record, error) {
	ctx, done, err := m.begin(ctx)
	if err != nil {
		return store.Record{}, err
	}
	defer done()
	rec, err := m.toDelete(ctx, ref)
	if err != nil {
		return rec, err
	}
	var sb driver.Sandbox
	switch b, err := m.attach(ctx, rec); {
	case err == nil:
		sb = b.sb // for its usage; without a handle there is none to tell
	case errors.Is(err, errElsewhere):
		return rec, err
	}
	// The caller may go away: half an end is none.
	return m.end(context.WithoutCancel(ctx), rec, lifecycle.EventDeleted, driver.Exit{Reason: firebreak.EndDestroyed, Code: -1}, sb)
}

// toDelete is find. For what is only of this process it knows the record by itself.
func (m *Manager) toDelete(ctx context.Context, ref string) (store.Record, error) {
	by, err := auth.CallerOf(ctx)
	if err != nil {
		return store.Record{}, err
	}
	if b := m.box(driver.ID(ref)); b != nil && b.fleeting {
		if rec := b.record(); by.May(rec.Tenant) {
			return rec, nil
		}
	}
	return m.cfg.Store.Find(ctx, by, ref)
}

// Guest returns the host's end of the talk with a sandbox's agent, after resuming a paused one that traffic resumes.
// fs.ErrNotExist if there is no such sandbox, or it has ended; KindState if it is paused.
func (m *Manager) Guest(ctx context.Context, ref string) (*guest.Guest, error) {
	rec, err := m.Find(ctx, ref)
	if err != nil {
		return nil, err
	}
	if b := m.box(rec.ID); b != nil {
		// One that is being paused is frozen before its record says so.
		if err := b.take(ctx); err != nil {
			return nil, err
		}
		b.leave()
		rec = b.record()
	}
	if rec.State == firebreak.StatePaused && rec.AutoResume {
		if rec, _, err = m.Resume(ctx, string(rec.ID), 0); err != nil {
			return nil, err
		}
	}
	if b := m.box(rec.ID); b != nil && rec.State == firebreak.StateRunning {
		return b.guest, nil
	}
	if rec.State == firebreak.StatePaused {
		return nil, stateError(rec)
	}
	ctx, done, err := m.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	b, err := m.attach(ctx, rec)
	if err != nil {
		return nil, err
	}
	return b.guest, nil
}

// Digests returns the digests of the images that sandboxes start from: what must not be collected as garbage.
func (m *Manager) Digests(ctx context.Context) (map[string]bool, error) {
	all, err := m.cfg.Store.List(ctx, everybody())
	if err != nil {
		return nil, err
	}
	used := map[string]bool{}
	for _, r := range all {
		if r.State != firebreak.StateEnded {
			used[r.Digest] = true
		}
	}
	return used, nil
}
