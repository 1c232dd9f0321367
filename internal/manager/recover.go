package manager

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/event"
	"github.com/firebreak-dev/firebreak/internal/lifecycle"
	"github.com/firebreak-dev/firebreak/internal/store"
)

// wreck is something on the host that no record tells of.
type wreck struct {
	driver string // empty: only a directory
	id     driver.ID
}

// recover sees to what earlier processes left. What goes wrong with one sandbox is logged and tried again by the next
// process; it keeps nobody from making others.
func (m *Manager) recover(ctx context.Context) {
	// The host first, then the records: a sandbox that another process makes meanwhile has its record before anything
	// else, so what was seen on the host and is in no record read afterwards belongs to nobody.
	seen := m.seen(ctx)
	records, err := m.cfg.Store.List(ctx, everybody())
	if err != nil {
		m.log.Warn("see to earlier sandboxes", "err", err)
		return
	}
	known := map[wreck]bool{}
	for _, r := range records {
		if r.State != firebreak.StateEnded {
			known[wreck{r.Driver, r.ID}], known[wreck{"", r.ID}] = true, true
		}
	}
	var wrecks, dirs []wreck
	for _, w := range seen {
		switch {
		case known[w]:
		case w.driver == "":
			dirs = append(dirs, w)
		default:
			wrecks = append(wrecks, w)
		}
	}
	each(wrecks, func(w wreck) { m.clear(ctx, w) })
	each(dirs, func(w wreck) { m.clear(ctx, w) }) // after their sandboxes
	each(records, func(r store.Record) { m.recoverOne(ctx, r) })
	if err := errors.Join(m.cfg.Store.Prune(ctx, time.Now().Add(-keepEnded), keepEndedMax), m.owner.sweep()); err != nil {
		m.log.Warn("tidy the records", "err", err)
	}
}

// seen lists what all drivers hold, and the directories of sandboxes.
func (m *Manager) seen(ctx context.Context) []wreck {
	var all []wreck
	for _, name := range m.cfg.Drivers.Names() {
		d, err := m.cfg.Drivers.Keeper(name)
		if err != nil {
			m.log.Warn("see to earlier sandboxes", "driver", name, "err", err)
			continue
		}
		if _, none := d.(driver.Fleeting); none {
			continue // what it holds is of this process, and may have no record yet
		}
		ids, err := d.List(ctx)
		if err != nil {
			m.log.Warn("list sandboxes", "driver", name, "err", err)
		}
		for _, id := range ids {
			all = append(all, wreck{name, id})
		}
	}
	entries, err := os.ReadDir(filepath.Join(m.cfg.StateDir, "sandboxes"))
	if err != nil {
		m.log.Warn("list sandboxes", "err", err)
	}
	for _, e := range entries {
		if id := driver.ID(e.Name()); id.Check() == nil { // what else lies there is not ours
			all = append(all, wreck{"", id})
		}
	}
	return all
}

func (m *Manager) clear(ctx context.Context, w wreck) {
	ctx, cancel := context.WithTimeout(ctx, destroyTimeout)
	defer cancel()
	rec := store.Record{ID: w.id, Driver: w.driver, Spec: driver.Spec{ID: w.id, Dir: m.dir(w.id)}}
	var err error
	if w.driver == "" {
		err = removeDir(rec.Spec.Dir)
	} else {
		err = m.destroy(ctx, rec)
	}
	if err != nil {
		m.log.Warn("clear what no record tells of", "sandbox", w.id, "driver", w.driver, "err", err)
		return
	}
	m.log.Debug("cleared what no record tells of", "sandbox", w.id, "driver", w.driver)
}

func (m *Manager) recoverOne(ctx context.Context, r store.Record) {
	f := lifecycle.Found{State: r.State, Owned: m.owner.alive(r.Owner), Detached: r.Detached, Overdue: overdue(r, time.Now()),
		Pauses: r.OnTimeout == firebreak.TimeoutPause}
	goal, event := lifecycle.Recover(f)
	var err error
	switch goal {
	case lifecycle.GoalKeep:
		if r.Bound && !f.Owned {
			_, err = m.end(ctx, r, lifecycle.EventLost, diedWithMaker(), nil)
			break
		}
		err = m.keepFound(ctx, r)
	case lifecycle.GoalRemove:
		err = m.removeFound(ctx, r, event)
	case lifecycle.GoalForget:
		err = m.cfg.Store.Delete(ctx, r.ID)
	}
	if err != nil {
		m.log.Warn("see to an earlier sandbox", "sandbox", r.ID, "goal", goal, "err", err)
		return
	}
	m.log.Debug("saw to an earlier sandbox", "sandbox", r.ID, "goal", goal)
}

// diedWithMaker is how a sandbox ended that no process of its own kept alive.
func diedWithMaker() driver.Exit {
	return driver.Exit{Reason: firebreak.EndLost, Code: -1, Detail: "it lived within a process of firebreak, which ended"}
}

// keepFound gets a handle of a sandbox that shall live on, and makes it this process's own if that is to stay.
func (m *Manager) keepFound(ctx context.Context, r store.Record) error {
	if m.cfg.Adopt {
		adopted, err := m.cfg.Store.Update(ctx, r.ID, func(r *store.Record) error {
			if m.owner.alive(r.Owner) {
				return stateError(*r) // another process was first
			}
			r.Owner = m.owner.name
			return nil
		}, store.Telling(event.TypeRecovered))
		if err != nil {
			return err
		}
		r = adopted
	}
	b, err := m.attach(ctx, r)
	if errors.Is(err, fs.ErrNotExist) {
		_, err = m.lost(ctx, r)
		return err
	}
	if err == nil && m.cfg.Adopt {
		err = m.settle(ctx, b)
	}
	return err
}

// removeFound removes a sandbox that nobody owns. Its record stays only if it was detached and once ran: then somebody
// may ask what became of it.
func (m *Manager) removeFound(ctx context.Context, r store.Record, event lifecycle.Event) error {
	exit := driver.Exit{Reason: firebreak.EndLost, Code: -1, Detail: fmt.Sprintf("the process that had it %s ended before it was done", r.State)}
	if event == lifecycle.EventExpired {
		exit = expired(r)
	}
	told := r.Detached && (r.State == firebreak.StateRunning || r.State == firebreak.StatePaused || r.State == firebreak.StateStopping && r.Exit.Reason != firebreak.EndDestroyed)
	if !told {
		event = lifecycle.EventDeleted
	}
	_, err := m.end(ctx, r, event, exit, nil)
	return err
}
