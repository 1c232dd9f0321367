package event

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/auth"
)

// What is kept: for how long, and how many events of one tenant and of all, so that nobody can crowd out the others'.
const (
	KeepFor    = 30 * 24 * time.Hour
	KeepTenant = 20_000
	KeepAll    = 500_000
)

// Storage keeps events. Its methods may be called concurrently, and by several processes.
type Storage interface {
	// AppendEvents keeps events, all or none, and gives each its Seq and Number. What it returned as kept survives the
	// death of the process.
	AppendEvents(ctx context.Context, events []Event) error
	// ListEvents returns what a filter passes: its tenant as it stands there, nobody is asked.
	ListEvents(ctx context.Context, f Filter) ([]Event, error)
	// LastEvent returns the Seq of the event that was kept last; 0: none was.
	LastEvent(ctx context.Context) (int64, error)
	// FindEvent returns the event of an ID, if it is of that tenant; empty: of any. fs.ErrNotExist if there is none, or it is
	// no longer kept.
	FindEvent(ctx context.Context, tenant, id string) (Event, error)
	// NotifyEvents has changed called whenever this process has kept events, those of other calls too. It must not block.
	NotifyEvents(changed func())
}

// Filter says which events, and in which order. The zero value is the newest of all that the caller may see.
type Filter struct {
	Tenant  string    // empty: all, for the operator; for anybody else his own
	Sandbox string    // empty: all
	Types   []Type    // empty: all
	Since   time.Time // events from then on; zero: all
	After   string    // ID of an event: those kept after it; Watch only
	Seq     int64     // those with a greater Seq; Watch: negative means from the oldest on, 0 from the next on
	Asc     bool      // the oldest first
	Offset  int       // how many to leave out, up to MaxOffset
	Limit   int       // how many at the most, up to MaxLimit; 0 is MaxLimit
}

// The bounds of one List: one that asks for more is refused.
const (
	MaxLimit  = 1000
	MaxOffset = KeepTenant
)

func (f Filter) check() error {
	if f.Offset < 0 || f.Offset > MaxOffset || f.Limit < 0 || f.Limit > MaxLimit {
		return &firebreak.Error{Kind: firebreak.KindInvalid, Op: "list events",
			Err: fmt.Errorf("an offset is from 0 to %d, a limit from 0 to %d", MaxOffset, MaxLimit)}
	}
	return nil
}

// scope narrows f to what the caller of ctx may see.
func (f Filter) scope(ctx context.Context) (Filter, error) {
	c, err := auth.CallerOf(ctx)
	switch {
	case err != nil:
		return f, err
	case c.Operator:
		return f, nil
	case c.Tenant.ID == "" || f.Tenant != "" && !c.May(f.Tenant):
		return f, &firebreak.Error{Kind: firebreak.KindDenied, Op: "read events", Err: errors.New("they are another tenant's")}
	}
	f.Tenant = c.Tenant.ID
	return f, nil
}

func (f Filter) passes(e Event) bool {
	return (f.Tenant == "" || f.Tenant == e.Tenant) && (f.Sandbox == "" || f.Sandbox == e.Sandbox) && !e.Time.Before(f.Since) &&
		(len(f.Types) == 0 || slices.Contains(f.Types, e.Type))
}

// Log is the events of one state directory. It may be used concurrently. A nil Log keeps nothing, and has nothing.
type Log struct {
	storage Storage

	reading sync.Mutex // held while the storage is asked for what is new, lest all watchers do at once

	mu       sync.Mutex
	watchers int           // guarded by mu
	changed  chan struct{} // guarded by mu; closed, and replaced, when there may be more than is in recent
	dirty    bool          // guarded by mu; the storage has been told of more
	looked   time.Time     // guarded by mu; when it was last asked
	from, to int64         // guarded by mu; recent holds all events with from < Seq <= to
	recent   []Event       // guarded by mu
}

// New returns the log of what storage keeps. It owns no goroutine, and need not be closed.
func New(storage Storage) *Log {
	l := &Log{storage: storage, changed: make(chan struct{})}
	storage.NotifyEvents(l.notify)
	return l
}

// Publish keeps an event: when it returns nil, the event survives the death of this process. Time may be left out.
func (l *Log) Publish(ctx context.Context, e Event) error {
	if l == nil {
		return nil
	}
	if err := e.Prepare(time.Now()); err != nil {
		return err
	}
	if err := l.storage.AppendEvents(ctx, []Event{e}); err != nil {
		return fmt.Errorf("keep event: %w", err)
	}
	return nil
}

// List returns the events that f passes and the caller may see, the newest first unless f says otherwise.
func (l *Log) List(ctx context.Context, f Filter) ([]Event, error) {
	if l == nil {
		return nil, nil
	}
	f, err := f.scope(ctx)
	if err == nil {
		err = f.check()
	}
	if err != nil {
		return nil, err
	}
	return l.storage.ListEvents(ctx, f)
}

// Last returns the Seq of the event that was kept last: a watch of what comes after begins there.
func (l *Log) Last(ctx context.Context) (int64, error) {
	if l == nil {
		return 0, nil
	}
	return l.storage.LastEvent(ctx)
}
