package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/auth"
)

var _ auth.Storage = (*Store)(nil)

// keysSchema is the step to the version with keys and tenants. The triggers count changes, so that no statement can
// forget to; the last use of a key is none.
func keysSchema() string {
	const count = " BEGIN UPDATE auth_version SET version = version + 1; END;"
	return `
		CREATE TABLE tenants (
			id     TEXT PRIMARY KEY,
			record TEXT NOT NULL
		) STRICT, WITHOUT ROWID;
		CREATE TABLE keys (
			id      TEXT PRIMARY KEY,
			hash    BLOB NOT NULL CHECK (length(hash) = 32),
			tenant  TEXT NOT NULL,
			name    TEXT NOT NULL,
			created INTEGER NOT NULL,
			used    INTEGER NOT NULL,
			revoked INTEGER NOT NULL
		) STRICT, WITHOUT ROWID;
		CREATE TABLE auth_version (version INTEGER NOT NULL) STRICT;
		INSERT INTO auth_version VALUES (1);
		CREATE TRIGGER tenants_insert AFTER INSERT ON tenants` + count + `
		CREATE TRIGGER tenants_update AFTER UPDATE ON tenants` + count + `
		CREATE TRIGGER tenants_delete AFTER DELETE ON tenants` + count + `
		CREATE TRIGGER keys_insert AFTER INSERT ON keys` + count + `
		CREATE TRIGGER keys_update AFTER UPDATE OF id, hash, tenant, name, created, revoked ON keys` + count + `
		CREATE TRIGGER keys_delete AFTER DELETE ON keys` + count
}

// LoadAuth implements auth.Storage.
func (s *Store) LoadAuth(ctx context.Context, since int64) (auth.Records, error) {
	var all auth.Records
	// In this order, what changes in between does no harm: more is read than the version says, and then once more; and no
	// key comes without its tenant, which was there before it.
	if err := s.db.QueryRowContext(ctx, "SELECT version FROM auth_version").Scan(&all.Version); err != nil {
		return auth.Records{}, s.explain("read", err)
	}
	if all.Version == since {
		return all, nil
	}
	err := each(ctx, s.db, "SELECT id, hash, tenant, name, created, used, revoked FROM keys ORDER BY created, id", func(rows *sql.Rows) error {
		k, err := scanKey(rows)
		all.Keys = append(all.Keys, k)
		return err
	})
	if err == nil {
		err = each(ctx, s.db, "SELECT record FROM tenants ORDER BY id", func(rows *sql.Rows) error {
			t, err := scanTenant(rows)
			all.Tenants = append(all.Tenants, t)
			return err
		})
	}
	return all, s.explain("read", err)
}

// each calls scan for each row of a query.
func each(ctx context.Context, db *sql.DB, query string, scan func(*sql.Rows) error, args ...any) error {
	rows, err := db.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

func scanKey(rows *sql.Rows) (auth.KeyRecord, error) {
	var k auth.KeyRecord
	var hash sql.RawBytes
	var created, used, revoked int64
	err := rows.Scan(&k.ID, &hash, &k.Tenant, &k.Name, &created, &used, &revoked)
	copy(k.Hash[:], hash)
	k.Created, k.Used, k.Revoked = timeOf(created), timeOf(used), timeOf(revoked)
	return k, err
}

func scanTenant(rows *sql.Rows) (auth.Tenant, error) {
	var t auth.Tenant
	var record sql.RawBytes
	if err := rows.Scan(&record); err != nil {
		return t, err
	}
	if err := json.Unmarshal(record, &t); err != nil {
		return t, damaged("tenant", err)
	}
	return t, nil
}

// timeOf is the other way of millis.
func timeOf(millis int64) time.Time {
	if millis == 0 {
		return time.Time{}
	}
	return time.UnixMilli(millis).UTC()
}

// InsertKey implements auth.Storage.
func (s *Store) InsertKey(ctx context.Context, k auth.KeyRecord) error {
	done, err := s.write(ctx, `INSERT INTO keys (id, hash, tenant, name, created, used, revoked)
		SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7 WHERE EXISTS (SELECT 1 FROM tenants WHERE id = ?3)`,
		k.ID, k.Hash[:], k.Tenant, k.Name, millis(k.Created), millis(k.Used), millis(k.Revoked))
	if unique(err) {
		return &firebreak.Error{Kind: firebreak.KindExists, Err: fmt.Errorf("key %s: %w", k.ID, fs.ErrExist)}
	}
	return s.oneRow(done, err, fmt.Errorf("there is no tenant %q: %w", k.Tenant, fs.ErrNotExist))
}

// RevokeKey implements auth.Storage.
func (s *Store) RevokeKey(ctx context.Context, id string, at time.Time) error {
	done, err := s.write(ctx, "UPDATE keys SET revoked = iif(revoked = 0, ?2, revoked) WHERE id = ?1", id, millis(at))
	return s.oneRow(done, err, fmt.Errorf("there is no key %q: %w", id, fs.ErrNotExist))
}

// oneRow returns otherwise, as firebreak.KindNotFound, when a statement that succeeded has changed nothing.
func (s *Store) oneRow(done sql.Result, err, otherwise error) error {
	if err != nil {
		return s.explain("write", err)
	}
	n, err := done.RowsAffected()
	if err == nil && n == 0 {
		return &firebreak.Error{Kind: firebreak.KindNotFound, Err: otherwise}
	}
	return s.explain("write", err)
}

// TouchKeys implements auth.Storage.
func (s *Store) TouchKeys(ctx context.Context, used map[string]time.Time) error {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return s.explain("write", err)
	}
	for id, at := range used {
		_, err := tx.ExecContext(ctx, "UPDATE keys SET used = ?2 WHERE id = ?1 AND used <= ?2 - ?3", id, millis(at), auth.UsedEvery.Milliseconds())
		if err != nil {
			return s.explain("write", errors.Join(err, tx.Rollback()))
		}
	}
	return s.explain("write", tx.Commit())
}

// PutTenant implements auth.Storage.
func (s *Store) PutTenant(ctx context.Context, t auth.Tenant) error {
	text, err := json.Marshal(t)
	if err != nil {
		return fmt.Errorf("save tenant %s: %w", t.ID, err)
	}
	_, err = s.write(ctx, `INSERT INTO tenants (id, record) VALUES (?, ?)
		ON CONFLICT (id) DO UPDATE SET record = excluded.record`, t.ID, string(text))
	return s.explain("write", err)
}
