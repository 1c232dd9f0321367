// Package store keeps the records of sandboxes, keys, tenants, events, webhooks, built templates and requests that may be
// repeated, in one SQLite database per state directory that several processes use at once. Whatever a method returned as
// done survives the death of the process at any later instant.
package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/policy"
)

// File is the database's name in the state directory. SQLite puts two more beside it, with -wal and -shm added.
const File = "firebreak.db"

// Store is an open database. It may be used concurrently.
type Store struct {
	path string
	log  *slog.Logger
	db   *sql.DB

	mu       sync.Mutex
	reads    *sql.DB              // guarded by mu; a second connection, nil until somebody reads events
	ready    map[string]*sql.Stmt // guarded by mu; by their text
	onEvents []func()             // guarded by mu; called when events were kept
}

// options are what every connection sets. Of the settings:
//
//   - The timeout bounds the wait of one process for another to have written.
//   - synchronous(normal) loses nothing when a process dies, as the kernel holds what was written. A host that loses
//     power may lose the last commits, never the database; the sandboxes that they told of are gone with it.
//   - wal_autocheckpoint is low because the log survives Close, and the next process reads all of it to open it.
const options = "_txlock=immediate&_pragma=busy_timeout(10000)&_pragma=synchronous(normal)" +
	"&_pragma=wal_autocheckpoint(200)&_pragma=trusted_schema(0)"

// Open opens the database in dir, and makes it if there is none. A database that is damaged, or of a newer version, is
// an error and stays as it is.
func Open(ctx context.Context, dir string, log *slog.Logger) (*Store, error) {
	s := &Store{path: filepath.Join(dir, File), log: log, ready: map[string]*sql.Stmt{}}
	// SQLite would make the file with the umask's mode; it holds the tokens of the agents.
	f, err := os.OpenFile(s.path, os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		return nil, s.explain("open", err)
	}
	// A POSIX lock would be gone as soon as anything in this process closes the file once more, as Close does.
	if _, err := sqlite.OFDLocking(true); err != nil && !errors.Is(err, sqlite.ErrOFDLockingUnavailable) {
		return nil, s.explain("open", err)
	}
	// One connection: writers would queue anyway, and a second one costs as much to open as the first.
	if s.db, err = s.connect(); err != nil {
		return nil, s.explain("open", err)
	}
	if err := s.migrate(ctx); err != nil {
		return nil, errors.Join(s.explain("open", err), s.db.Close())
	}
	return s, nil
}

// connect returns a pool of one connection.
func (s *Store) connect() (*sql.DB, error) {
	db, err := sql.Open("sqlite", "file:"+(&url.URL{Path: s.path}).EscapedPath()+"?"+options)
	if err == nil {
		db.SetMaxOpenConns(1)
	}
	return db, err
}

// applicationID marks the file as ours ("frbk"), for file(1) and against opening another program's database.
const applicationID = 0x6672626b

// migrations lead from the schema of one version, the index, to the next. What is published is never changed.
func migrations() []string {
	return []string{`
		CREATE TABLE sandboxes (
			id       TEXT PRIMARY KEY,
			name     TEXT NOT NULL,
			state    TEXT NOT NULL,
			created  INTEGER NOT NULL,
			ended    INTEGER NOT NULL,
			record   TEXT NOT NULL
		) STRICT, WITHOUT ROWID;
		CREATE UNIQUE INDEX sandboxes_name ON sandboxes (name) WHERE name <> '' AND state <> 'ended';
		CREATE INDEX sandboxes_ended ON sandboxes (ended) WHERE state = 'ended';
		PRAGMA application_id = ` + fmt.Sprint(applicationID),
		// Beside the record, which is read and written often and is a tenth as long.
		`ALTER TABLE sandboxes ADD COLUMN decision TEXT NOT NULL DEFAULT ''`,
		keysSchema(),
		`ALTER TABLE sandboxes ADD COLUMN tenant TEXT NOT NULL DEFAULT '';
		DROP INDEX sandboxes_name;
		CREATE UNIQUE INDEX sandboxes_name ON sandboxes (tenant, name) WHERE name <> '' AND state <> 'ended';
		CREATE INDEX sandboxes_tenant ON sandboxes (tenant, created)`,
		attemptsSchema(),
		eventsSchema(),
		webhooksSchema(),
		buildsSchema(),
	}
}

// migrate brings the database to our version. The check costs one read; only an old or empty one is locked. With a
// write-ahead log, which is a lasting property of the file, readers and a writer of several processes work at once.
func (s *Store) migrate(ctx context.Context) error {
	steps := migrations()
	version, err := s.version(ctx, s.db)
	if err != nil || version == len(steps) {
		return err
	}
	if err := s.useLog(ctx); err != nil {
		return err
	}
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // after Commit it has nothing to do
	if version, err = s.version(ctx, tx); err != nil {
		return err
	}
	for ; version < len(steps); version++ {
		if _, err := tx.ExecContext(ctx, steps[version]+fmt.Sprintf("; PRAGMA user_version = %d", version+1)); err != nil {
			return err
		}
	}
	return tx.Commit()
}

// useLog gives the database a write-ahead log. Unlike any other statement it does not wait for a process that does the
// same, as several do on their first start.
func (s *Store) useLog(ctx context.Context) error {
	for end := time.Now().Add(10 * time.Second); ; {
		_, err := s.db.ExecContext(ctx, "PRAGMA journal_mode = wal")
		var se *sqlite.Error
		if !errors.As(err, &se) || se.Code()&0xff != sqlite3.SQLITE_BUSY || time.Now().After(end) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// prepared keeps a statement ready that is asked for often, because reading it takes SQLite as long as obeying it. A
// transaction has the only connection, so it must be asked for before one begins.
func (s *Store) prepared(ctx context.Context, query string) (*sql.Stmt, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if stmt := s.ready[query]; stmt != nil {
		return stmt, nil
	}
	stmt, err := s.db.PrepareContext(ctx, query)
	if err == nil {
		s.ready[query] = stmt
	}
	return stmt, err
}

type querier interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

func (s *Store) version(ctx context.Context, q querier) (int, error) {
	var version, application, tables int
	err := q.QueryRowContext(ctx, "SELECT user_version, application_id, (SELECT count(*) FROM sqlite_schema) "+
		"FROM pragma_user_version, pragma_application_id").Scan(&version, &application, &tables)
	switch {
	case err != nil:
		return 0, err
	case application != applicationID && (version != 0 || tables != 0):
		return 0, &firebreak.Error{Kind: firebreak.KindHost, Err: errors.New("it is another program's database"),
			Mend: "use another state directory (FIREBREAK_STATE_DIR)"}
	case version > len(migrations()):
		return 0, &firebreak.Error{Kind: firebreak.KindHost,
			Err:  fmt.Errorf("a newer firebreak wrote it (version %d, this one knows up to %d)", version, len(migrations())),
			Mend: "use that firebreak, or another state directory (FIREBREAK_STATE_DIR)"}
	}
	return version, nil
}

// Close closes the database and leaves its write-ahead log to the next process. SQLite's own way, when the last
// connection closes, is to copy the log into the database with three flushes to the disk, which safety does not need
// and every one-shot run would pay for: a shared lock of ours on the bytes that SQLite locks for it makes it refrain.
func (s *Store) Close() error {
	f, err := os.Open(s.path)
	if err != nil {
		return errors.Join(s.explain("close", err), s.closeAll())
	}
	defer f.Close()
	lock := syscall.Flock_t{Type: syscall.F_RDLCK, Start: 0x40000002, Len: 510} // SHARED_FIRST, SHARED_SIZE
	const ofdSetLock = 37                                                       // F_OFD_SETLK
	if err := syscall.FcntlFlock(f.Fd(), ofdSetLock, &lock); err != nil {
		s.log.Debug("close store with a checkpoint", "err", err)
	}
	return s.explain("close", s.closeAll())
}

func (s *Store) closeAll() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.db.Close()
	if s.reads != nil {
		err = errors.Join(err, s.reads.Close())
	}
	return err
}

// explain says what was being done, and what can be done about the errors that a user may see.
func (s *Store) explain(op string, err error) error {
	if err == nil {
		return nil
	}
	op += " " + s.path
	var e *firebreak.Error
	var se *sqlite.Error
	switch {
	case errors.As(err, &e):
		return &firebreak.Error{Kind: e.Kind, Op: op, Err: e.Err, Mend: e.Mend}
	case errors.As(err, &se):
		return explainSQLite(op, se)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return noSpace(op, err)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return &firebreak.Error{Kind: firebreak.KindHost, Op: op, Err: err,
			Mend: "use a state directory that you may write (FIREBREAK_STATE_DIR)"}
	}
	return fmt.Errorf("%s: %w", op, err)
}

func explainSQLite(op string, err *sqlite.Error) error {
	if err.Code() == sqlite3.SQLITE_IOERR_SHMSIZE { // no room for the index of its log
		return noSpace(op, err)
	}
	switch err.Code() & 0xff {
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return &firebreak.Error{Kind: firebreak.KindHost, Op: op, Err: fmt.Errorf("the database is damaged: %w", err),
			Mend: "bring back a copy, or move the file away: firebreak then starts with no records and removes the sandboxes it no longer knows"}
	case sqlite3.SQLITE_FULL:
		return noSpace(op, err)
	case sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM:
		return &firebreak.Error{Kind: firebreak.KindHost, Op: op, Err: err,
			Mend: "use a state directory that you may write (FIREBREAK_STATE_DIR)"}
	case sqlite3.SQLITE_BUSY:
		return &firebreak.Error{Kind: firebreak.KindUnavailable, Op: op, Err: fmt.Errorf("another process keeps it locked: %w", err)}
	case sqlite3.SQLITE_INTERRUPT:
		return fmt.Errorf("%s: %w", op, context.Canceled)
	}
	return fmt.Errorf("%s: %w", op, err)
}

func noSpace(op string, err error) error {
	return &firebreak.Error{Kind: firebreak.KindExhausted, Op: op, Err: fmt.Errorf("no space left on device: %w", err),
		Mend: "free space there, or use another state directory (FIREBREAK_STATE_DIR)"}
}

// Record is all that is kept of a sandbox.
type Record struct {
	ID        driver.ID          `json:"id"`
	Tenant    string             `json:"tenant,omitempty"` // whose it is; empty: the operator's
	Name      string             `json:"name,omitempty"`   // unique among those of its tenant that have not ended
	Pool      string             `json:"pool,omitempty"`   // where it lies, made ahead and nobody's yet; empty: it is somebody's
	Owner     string             `json:"owner"`            // the process that made it or is ending it
	State     firebreak.State    `json:"state"`
	Detached  bool               `json:"detached,omitempty"`
	Bound     bool               `json:"bound,omitempty"` // it lives within its owner's process, and ends with that, detached or not
	Elsewhere bool               `json:"-"`               // it is bound to another process than the one that looked
	Driver    string             `json:"driver"`
	Boundary  firebreak.Boundary `json:"boundary"`
	Decision  *policy.Decision   `json:"-"` // why that driver; it never changes, and only Decision reads it
	Template  string             `json:"template"`
	Digest    string             `json:"digest,omitempty"` // of the template's image
	Command   string             `json:"command,omitempty"`
	Spec      driver.Spec        `json:"spec"`
	Token     string             `json:"token"` // of its agent
	Warnings  []string           `json:"warnings,omitempty"`

	Metadata     map[string]string       `json:"metadata,omitempty"`    // the caller's
	Annotations  map[string]string       `json:"annotations,omitempty"` // the door's own; nobody else reads them
	TrafficToken string                  `json:"traffic_token,omitempty"`
	OnTimeout    firebreak.TimeoutAction `json:"on_timeout,omitempty"`
	AutoResume   bool                    `json:"auto_resume,omitempty"` // traffic resumes it when it is paused
	Agent        Agent                   `json:"agent,omitzero"`
	Told         bool                    `json:"told,omitempty"` // some event tells that it is there; only Update and Delete use it

	Created  time.Time     `json:"created"`
	Deadline time.Time     `json:"deadline,omitzero"` // of state running
	Timeout  time.Duration `json:"timeout,omitempty"` // that Deadline was made of last; zero: none
	Paused   time.Time     `json:"paused,omitzero"`   // since when, in state paused
	Ended    time.Time     `json:"ended,omitzero"`
	Exit     driver.Exit   `json:"exit,omitzero"` // why and how it ended, known from state stopping on
	Usage    driver.Usage  `json:"usage,omitzero"`
}

// Agent is what its agent was told, to be told again after a change of the deadline.
type Agent struct {
	Envs    map[string]string `json:"envs,omitempty"`
	User    string            `json:"user,omitempty"`
	Workdir string            `json:"workdir,omitempty"`
}

// encode returns the texts of the record and of its decision, empty if it has none.
func (r Record) encode() (text, decision string, err error) {
	b, err := json.Marshal(r)
	if err != nil || r.Decision == nil {
		return string(b), "", err
	}
	d, err := json.Marshal(r.Decision)
	return string(b), string(d), err
}

func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}
