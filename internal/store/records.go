package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/policy"
)

// Insert saves a new record. fs.ErrExist if its ID is taken, or its name by a sandbox that has not ended. The events that
// tell it are kept if and only if it is.
func (s *Store) Insert(ctx context.Context, r Record, tell ...Teller) error {
	const insert = "INSERT INTO sandboxes (id, tenant, name, state, created, ended, record, decision) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
	r.Told = len(tell) > 0 && r.Pool == ""
	text, decision, err := r.encode()
	if err != nil {
		return fmt.Errorf("save sandbox %s: %w", r.ID, err)
	}
	tx, err := s.beginTelling(ctx, insert, insertEvent)
	if err != nil {
		return s.explain("write", err)
	}
	defer tx.rollback()
	_, err = tx.ready[insert].ExecContext(ctx,
		string(r.ID), r.Tenant, r.Name, string(r.State), millis(r.Created), millis(r.Ended), text, decision)
	if err == nil {
		err = tx.tell(ctx, r, false, tell)
	}
	if err == nil {
		err = tx.commit()
	}
	return s.written(r, err)
}

// write runs a statement wholly or, if ctx is done already, not at all: one that is interrupted may have been written.
func (s *Store) write(ctx context.Context, query string, args ...any) (sql.Result, error) {
	conn, err := s.db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close() //nolint:errcheck // it goes back to the pool
	return conn.ExecContext(context.WithoutCancel(ctx), query, args...)
}

// written explains why r was not.
func (s *Store) written(r Record, err error) error {
	if !unique(err) {
		return s.explain("write", err)
	}
	what := fmt.Errorf("sandbox %s: %w", r.ID, fs.ErrExist)
	if r.Name != "" {
		what = fmt.Errorf("a sandbox named %q is there already: %w", r.Name, fs.ErrExist)
	}
	return &firebreak.Error{Kind: firebreak.KindExists, Err: what, Mend: "choose another name, or remove that sandbox"}
}

func unique(err error) bool {
	var se *sqlite.Error
	return errors.As(err, &se) && (se.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE || se.Code() == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY)
}

// Update changes the record of id by change, which sees it as it is and alone: no other writer of any process comes
// between. A decision that it sets is written too. An error of change leaves the record as it was and is returned.
// fs.ErrNotExist if there is no record, fs.ErrExist if the name that it now has is taken. The events that tell the change
// are kept if and only if it is.
func (s *Store) Update(ctx context.Context, id driver.ID, change func(*Record) error, tell ...Teller) (Record, error) {
	const read = "SELECT record FROM sandboxes WHERE id = ?"
	const write = `UPDATE sandboxes SET tenant = ?, name = ?, state = ?, created = ?, ended = ?, record = ?,
		decision = iif(?7 = '', decision, ?7) WHERE id = ?8`
	tx, err := s.beginTelling(ctx, read, write, insertEvent)
	if err != nil {
		return Record{}, s.explain("write", err)
	}
	defer tx.rollback()
	r, err := scan[Record](tx.ready[read].QueryRowContext(ctx, string(id)))
	if errors.Is(err, sql.ErrNoRows) {
		return Record{}, notFound(string(id))
	}
	if err != nil {
		return Record{}, s.explain("read", err)
	}
	if err := change(&r); err != nil {
		return r, err
	}
	told := r.Told
	r.Told = r.Told || len(tell) > 0 && r.Pool == ""
	text, decision, err := r.encode()
	if err != nil {
		return Record{}, fmt.Errorf("save sandbox %s: %w", id, err)
	}
	_, err = tx.ready[write].ExecContext(ctx,
		r.Tenant, r.Name, string(r.State), millis(r.Created), millis(r.Ended), text, decision, string(id))
	if err == nil {
		err = tx.tell(ctx, r, told, tell)
	}
	if err == nil {
		err = tx.commit()
	}
	return r, s.written(r, err)
}

// Decision returns why the sandbox of id has its driver; nil if an older version made it. fs.ErrNotExist if there is no
// record.
func (s *Store) Decision(ctx context.Context, id driver.ID) (*policy.Decision, error) {
	var text string
	err := s.db.QueryRowContext(ctx, "SELECT decision FROM sandboxes WHERE id = ?", string(id)).Scan(&text)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil, notFound(string(id))
	case err != nil:
		return nil, s.explain("read", err)
	case text == "":
		return nil, nil
	}
	d := &policy.Decision{}
	if err := json.Unmarshal([]byte(text), d); err != nil {
		return nil, s.explain("read", damaged("decision", err))
	}
	return d, nil
}

// Delete removes the record of id; nil if there is none. The events that tell it are kept if and only if it is removed,
// and had not ended before: that was told then.
func (s *Store) Delete(ctx context.Context, id driver.ID, tell ...Teller) error {
	if len(tell) == 0 {
		_, err := s.write(ctx, "DELETE FROM sandboxes WHERE id = ?", string(id))
		return s.explain("write", err)
	}
	const remove = "DELETE FROM sandboxes WHERE id = ? RETURNING record"
	tx, err := s.beginTelling(ctx, remove, insertEvent)
	if err != nil {
		return s.explain("write", err)
	}
	defer tx.rollback()
	r, err := scan[Record](tx.ready[remove].QueryRowContext(ctx, string(id)))
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil
	case err == nil && r.State != firebreak.StateEnded:
		err = tx.tell(ctx, r, r.Told, tell)
	}
	if err == nil {
		err = tx.commit()
	}
	return s.explain("write", err)
}

// maxCandidates is how many of several possible sandboxes an error names.
const maxCandidates = 4

// Find returns the record that ref means to a caller, who is told nothing of what belongs to others: an ID, else a name,
// else the only ID that begins with it. A name means a living sandbox before one that has ended, of those the last, and to
// the operator one of his own before a tenant's. fs.ErrNotExist if there is none.
func (s *Store) Find(ctx context.Context, by auth.Caller, ref string) (Record, error) {
	if ref == "" {
		return Record{}, &firebreak.Error{Kind: firebreak.KindInvalid, Op: "find sandbox", Err: errors.New("no id and no name given")}
	}
	stmt, err := s.prepared(ctx, `SELECT record FROM sandboxes WHERE (id = ?1 OR name = ?1) AND (?2 OR tenant = ?3)
		ORDER BY id = ?1 DESC, tenant <> '', state = 'ended', created DESC LIMIT 1`)
	if err != nil {
		return Record{}, s.explain("read", err)
	}
	r, err := scan[Record](stmt.QueryRowContext(ctx, ref, by.Operator, tenantOf(by)))
	if err == nil {
		return r, nil
	}
	if !errors.Is(err, sql.ErrNoRows) {
		return Record{}, s.explain("read", err)
	}
	// '~' sorts after all that an ID may hold.
	found, err := many[Record](ctx, s, `SELECT record FROM sandboxes WHERE id > ?1 AND id < ?1 || '~' AND (?2 OR tenant = ?3)
		ORDER BY id LIMIT ?4`, ref, by.Operator, tenantOf(by), maxCandidates)
	switch {
	case err != nil:
		return Record{}, err
	case len(found) == 0:
		return Record{}, notFound(ref)
	case len(found) > 1:
		var ids []driver.ID
		for _, r := range found {
			ids = append(ids, r.ID)
		}
		return Record{}, &firebreak.Error{Kind: firebreak.KindInvalid, Op: "find sandbox",
			Err: fmt.Errorf("%q may mean any of %v", ref, ids), Mend: "give more of its id"}
	}
	return found[0], nil
}

// tenantOf is whose records a caller may see. Nobody's are the operator's, and no tenant is called so.
func tenantOf(by auth.Caller) string {
	if !by.Operator && by.Tenant.ID == "" {
		return "-" // no tenant can have this ID
	}
	return by.Tenant.ID
}

func notFound(ref string) error {
	return &firebreak.Error{Kind: firebreak.KindNotFound, Op: "find sandbox", Err: fmt.Errorf("there is no sandbox %q: %w", ref, fs.ErrNotExist),
		Mend: "see firebreak ls -a"}
}

// List returns all records that a caller may see, the oldest first.
func (s *Store) List(ctx context.Context, by auth.Caller) ([]Record, error) {
	if by.Operator {
		return many[Record](ctx, s, "SELECT record FROM sandboxes ORDER BY created, id")
	}
	return many[Record](ctx, s, "SELECT record FROM sandboxes WHERE tenant = ? ORDER BY created, id", tenantOf(by))
}

// Prune removes the records of what ended before some time, and of the others that ended all but the last keep.
func (s *Store) Prune(ctx context.Context, before time.Time, keep int) error {
	_, err := s.db.ExecContext(ctx, `DELETE FROM sandboxes WHERE state = 'ended' AND (ended < ?1 OR id IN
		(SELECT id FROM sandboxes WHERE state = 'ended' ORDER BY ended DESC LIMIT -1 OFFSET ?2))`, millis(before), keep)
	return s.explain("write", err)
}

func damaged(what string, err error) error {
	return &firebreak.Error{Kind: firebreak.KindHost, Err: fmt.Errorf("a %s is damaged: %w", what, err),
		Mend: "bring back a copy of the database, or move it away"}
}
