package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/event"
)

var _ event.Storage = (*Store)(nil)

// eventsSchema is the step to the version with events. The newest event of a tenant is never removed: the numbers of
// those to come go on from its own.
func eventsSchema() string {
	return `
		CREATE TABLE events (
			seq     INTEGER PRIMARY KEY,
			number  INTEGER NOT NULL,
			id      TEXT NOT NULL,
			tenant  TEXT NOT NULL,
			sandbox TEXT NOT NULL,
			type    TEXT NOT NULL,
			time    INTEGER NOT NULL,
			record  TEXT NOT NULL
		) STRICT;
		CREATE INDEX events_tenant ON events (tenant);
		CREATE INDEX events_sandbox ON events (sandbox)`
}

// Teller says what a change of a record is to others.
type Teller func(Record) event.Event

// Telling tells a change of a record as an event of type t.
func Telling(t event.Type) Teller {
	return func(r Record) event.Event { return r.event(t) }
}

// event is what is told of r: nothing that opens it, or that it was handed.
func (r Record) event(t event.Type) event.Event {
	e := event.Event{Type: t, Tenant: r.Tenant, Sandbox: string(r.ID), Template: r.Template, Digest: r.Digest, Driver: r.Driver,
		Data: event.Data{Metadata: r.Metadata, Deadline: r.Deadline}}
	switch t {
	case event.TypeKilled:
		e.Data.Reason, e.Data.Detail, e.Data.CPU = string(r.Exit.Reason), r.Exit.Detail, r.Usage.CPU
		fallthrough
	case event.TypePaused:
		e.Data.Started, e.Data.CPUs, e.Data.Memory = r.Created, r.Spec.Limits.CPUs, r.Spec.Limits.Memory
	}
	return e
}

// telling is a transaction in which events may be kept, with statements that were made ready for it.
type telling struct {
	*sql.Tx
	store *Store
	ready map[string]*sql.Stmt
	kept  bool
}

const insertEvent = `INSERT INTO events (number, id, tenant, sandbox, type, time, record)
	VALUES (coalesce((SELECT number FROM events WHERE tenant = ?2 ORDER BY seq DESC LIMIT 1), 0) + 1, ?1, ?2, ?3, ?4, ?5, ?6)
	RETURNING seq, number`

func (s *Store) beginTelling(ctx context.Context, queries ...string) (*telling, error) {
	t := &telling{store: s, ready: map[string]*sql.Stmt{}}
	var err error
	for _, q := range queries {
		if t.ready[q], err = s.prepared(ctx, q); err != nil {
			return nil, err
		}
	}
	if t.Tx, err = s.db.BeginTx(ctx, nil); err != nil {
		return nil, err
	}
	for q, stmt := range t.ready {
		t.ready[q] = t.StmtContext(ctx, stmt)
	}
	return t, nil
}

// rollback undoes what was not committed.
func (t *telling) rollback() { _ = t.Rollback() } // after Commit it has nothing to do

func (t *telling) commit() error {
	err := t.Commit()
	if err == nil && t.kept {
		t.store.tellEvents()
	}
	return err
}

// tell keeps what the tellers say of r. Of what lies in a pool nobody is told: it is nobody's yet. Nor is anybody told of
// the end of what nobody was told of: it was never whole.
func (t *telling) tell(ctx context.Context, r Record, told bool, tell []Teller) error {
	if r.Pool != "" {
		return nil
	}
	for _, say := range tell {
		e := say(r)
		if e.Type == event.TypeKilled && !told {
			continue
		}
		if err := e.Prepare(time.Now()); err != nil {
			return err
		}
		if err := t.append(ctx, &e); err != nil {
			return err
		}
	}
	return nil
}

func (t *telling) append(ctx context.Context, e *event.Event) error {
	text, err := json.Marshal(e)
	if err != nil {
		return err
	}
	prefix := event.NewPrefix()
	err = t.ready[insertEvent].QueryRowContext(ctx, prefix, e.Tenant, e.Sandbox, string(e.Type), e.Time.UnixMilli(), string(text)).Scan(&e.Seq, &e.Number)
	if err != nil {
		return err
	}
	e.ID, t.kept = event.IDOf(prefix, e.Number), true
	return t.prune(ctx, e)
}

// pruneEvery is how many events come between two removals of old ones.
const pruneEvery = 64

// prune removes what need not be kept, a bounded piece at a time, so that nobody waits long for it.
func (t *telling) prune(ctx context.Context, e *event.Event) error {
	if e.Number%pruneEvery == 0 {
		_, err := t.ExecContext(ctx, "DELETE FROM events WHERE seq IN (SELECT seq FROM events WHERE tenant = ? ORDER BY seq LIMIT ?) AND number <= ?",
			e.Tenant, 2*pruneEvery, e.Number-event.KeepTenant)
		if err != nil {
			return err
		}
	}
	if e.Seq%pruneEvery != 0 {
		return nil
	}
	_, err := t.ExecContext(ctx, `DELETE FROM events WHERE seq IN (SELECT seq FROM events ORDER BY seq LIMIT ?) AND (seq <= ? OR time < ?)
		AND EXISTS (SELECT 1 FROM events AS newer WHERE newer.tenant = events.tenant AND newer.seq > events.seq)`,
		2*pruneEvery, e.Seq-event.KeepAll, time.Now().Add(-event.KeepFor).UnixMilli())
	return err
}

// AppendEvents implements event.Storage.
func (s *Store) AppendEvents(ctx context.Context, events []event.Event) error {
	t, err := s.beginTelling(ctx, insertEvent)
	if err != nil {
		return s.explain("write", err)
	}
	defer t.rollback()
	for i := range events {
		if err := t.append(ctx, &events[i]); err != nil {
			return s.explain("write", err)
		}
	}
	return s.explain("write", t.commit())
}

// NotifyEvents implements event.Storage.
func (s *Store) NotifyEvents(changed func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onEvents = append(s.onEvents, changed)
}

func (s *Store) tellEvents() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, changed := range s.onEvents {
		changed()
	}
}

// reader returns a connection of its own for those who read events: however many ask, no writer waits for them.
func (s *Store) reader() (*sql.DB, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reads != nil {
		return s.reads, nil
	}
	db, err := s.connect()
	if err == nil {
		s.reads = db
	}
	return db, err
}

// ListEvents implements event.Storage.
func (s *Store) ListEvents(ctx context.Context, f event.Filter) ([]event.Event, error) {
	db, err := s.reader()
	if err != nil {
		return nil, s.explain("read", err)
	}
	query, args := eventQuery(f, time.Now())
	var all []event.Event
	err = each(ctx, db, query, func(rows *sql.Rows) error {
		e, err := scanEvent(rows)
		all = append(all, e)
		return err
	}, args...)
	return all, s.explain("read", err)
}

const selectEvent = "SELECT seq, number, id, record FROM events WHERE "

// eventQuery writes f in SQL. The index of a sandbox, or else that of a tenant, gives the order too; the + keeps SQLite
// from taking the worse of both. What is too old is not there, whether or not it has been removed yet.
func eventQuery(f event.Filter, now time.Time) (string, []any) {
	since := f.Since
	if oldest := now.Add(-event.KeepFor); since.Before(oldest) {
		since = oldest
	}
	where, args := "seq > ? AND time >= ?", []any{f.Seq, since.UnixMilli()}
	switch {
	case f.Sandbox != "" && f.Tenant != "":
		where, args = where+" AND sandbox = ? AND +tenant = ?", append(args, f.Sandbox, f.Tenant)
	case f.Sandbox != "":
		where, args = where+" AND sandbox = ?", append(args, f.Sandbox)
	case f.Tenant != "":
		where, args = where+" AND tenant = ?", append(args, f.Tenant)
	}
	if len(f.Types) > 0 {
		where += " AND type IN (?" + strings.Repeat(", ?", len(f.Types)-1) + ")"
		for _, t := range f.Types {
			args = append(args, string(t))
		}
	}
	order, limit := " DESC", f.Limit
	if f.Asc {
		order = ""
	}
	if limit == 0 {
		limit = event.MaxLimit
	}
	return selectEvent + where + " ORDER BY seq" + order + " LIMIT ? OFFSET ?", append(args, limit, f.Offset)
}

func scanEvent(row interface{ Scan(...any) error }) (event.Event, error) {
	var e event.Event
	var prefix, text string
	var seq, number int64
	if err := row.Scan(&seq, &number, &prefix, &text); err != nil {
		return e, err
	}
	if err := json.Unmarshal([]byte(text), &e); err != nil {
		return e, damaged("event", err)
	}
	e.Seq, e.Number, e.ID = seq, number, event.IDOf(prefix, number)
	return e, nil
}

// LastEvent implements event.Storage.
func (s *Store) LastEvent(ctx context.Context) (int64, error) {
	var last int64
	db, err := s.reader()
	if err == nil {
		err = db.QueryRowContext(ctx, "SELECT coalesce(max(seq), 0) FROM events").Scan(&last)
	}
	return last, s.explain("read", err)
}

// FindEvent implements event.Storage.
func (s *Store) FindEvent(ctx context.Context, tenant, id string) (event.Event, error) {
	prefix, number, ok := event.ParseID(id)
	if !ok {
		return event.Event{}, noEvent(id)
	}
	db, err := s.reader()
	if err != nil {
		return event.Event{}, s.explain("read", err)
	}
	where, args := "number = ? AND id = ?", []any{number, prefix}
	if tenant != "" {
		where, args = where+" AND tenant = ?", append(args, tenant)
	}
	e, err := scanEvent(db.QueryRowContext(ctx, selectEvent+where, args...))
	if errors.Is(err, sql.ErrNoRows) {
		return e, noEvent(id)
	}
	return e, s.explain("read", err)
}

func noEvent(id string) error {
	return &firebreak.Error{Kind: firebreak.KindNotFound, Err: fmt.Errorf("the event %.60q is not kept: %w", id, fs.ErrNotExist)}
}
