package store

import (
	"context"
	"database/sql"
	"errors"
	"time"
)

// Attempt is a request of a tenant that has a key, so that it is done once however often it is sent, and its answer.
type Attempt struct {
	Tenant string // empty: the operator
	Key    string // the client's
	Asked  []byte // stands for what was asked for
	By     string // the process that is at it
	Began  time.Time
	Status int    // of the answer, as in HTTP; 0: there is none yet
	Answer []byte // its body
}

// What is kept of attempts: for how long, and of one tenant the last how many.
const (
	KeepAttempts    = 24 * time.Hour
	KeepAttemptsMax = 10_000
)

func attemptsSchema() string {
	return `
		CREATE TABLE attempts (
			tenant TEXT NOT NULL,
			key    TEXT NOT NULL,
			asked  BLOB NOT NULL,
			process TEXT NOT NULL,
			began  INTEGER NOT NULL,
			status INTEGER NOT NULL,
			answer BLOB NOT NULL,
			PRIMARY KEY (tenant, key)
		) STRICT, WITHOUT ROWID;
		CREATE INDEX attempts_began ON attempts (began);
		CREATE INDEX attempts_tenant ON attempts (tenant, began)`
}

// BeginAttempt saves that a is begun, and returns true; or, where one with its tenant and key is saved already, returns
// that and false.
func (s *Store) BeginAttempt(ctx context.Context, a Attempt) (Attempt, bool, error) {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return a, false, s.explain("write", err)
	}
	defer func() { _ = tx.Rollback() }() // after Commit it has nothing to do
	_, err = tx.ExecContext(ctx, "DELETE FROM attempts WHERE began < ?", millis(a.Began.Add(-KeepAttempts)))
	if err != nil {
		return a, false, s.explain("write", err)
	}
	old := Attempt{Tenant: a.Tenant, Key: a.Key}
	var began int64
	err = tx.QueryRowContext(ctx, "SELECT asked, process, began, status, answer FROM attempts WHERE tenant = ? AND key = ?", a.Tenant, a.Key).
		Scan(&old.Asked, &old.By, &began, &old.Status, &old.Answer)
	if err == nil {
		old.Began = timeOf(began)
		return old, false, s.explain("write", tx.Commit())
	}
	if !errors.Is(err, sql.ErrNoRows) {
		return a, false, s.explain("read", err)
	}
	_, err = tx.ExecContext(ctx, "INSERT INTO attempts (tenant, key, asked, process, began, status, answer) VALUES (?, ?, ?, ?, ?, 0, x'')",
		a.Tenant, a.Key, a.Asked, a.By, millis(a.Began))
	if err == nil {
		_, err = tx.ExecContext(ctx, `DELETE FROM attempts WHERE tenant = ?1 AND began <=
			(SELECT began FROM attempts WHERE tenant = ?1 ORDER BY began DESC LIMIT 1 OFFSET ?2)`, a.Tenant, KeepAttemptsMax)
	}
	if err == nil {
		err = tx.Commit()
	}
	return a, err == nil, s.explain("write", err)
}

// FinishAttempt saves the answer of an attempt.
func (s *Store) FinishAttempt(ctx context.Context, a Attempt) error {
	_, err := s.write(ctx, "UPDATE attempts SET status = ?, answer = ? WHERE tenant = ? AND key = ?", a.Status, a.Answer, a.Tenant, a.Key)
	return s.explain("write", err)
}

// DropAttempt forgets an attempt, so that its key may be used again.
func (s *Store) DropAttempt(ctx context.Context, a Attempt) error {
	_, err := s.write(ctx, "DELETE FROM attempts WHERE tenant = ? AND key = ?", a.Tenant, a.Key)
	return s.explain("write", err)
}
