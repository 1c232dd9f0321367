package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"io/fs"

	"github.com/firebreak-dev/firebreak/internal/webhook"
)

var _ webhook.Storage = (*Store)(nil)

// webhooksSchema is the step to the version with webhooks.
func webhooksSchema() string {
	return `
		CREATE TABLE webhooks (
			id      TEXT PRIMARY KEY,
			created INTEGER NOT NULL,
			secret  TEXT NOT NULL,
			cursor  INTEGER NOT NULL,
			record  TEXT NOT NULL
		) STRICT, WITHOUT ROWID`
}

// InsertWebhook implements webhook.Storage.
func (s *Store) InsertWebhook(ctx context.Context, r webhook.Record) error {
	text, err := json.Marshal(r.Webhook)
	if err != nil {
		return err
	}
	_, err = s.write(ctx, "INSERT INTO webhooks (id, created, secret, cursor, record) VALUES (?, ?, ?, ?, ?)",
		r.ID, millis(r.Created), string(r.Secret), r.Cursor, string(text))
	return s.explain("write", err)
}

// ListWebhooks implements webhook.Storage.
func (s *Store) ListWebhooks(ctx context.Context) ([]webhook.Record, error) {
	var all []webhook.Record
	err := each(ctx, s.db, "SELECT secret, cursor, record FROM webhooks ORDER BY created, id", func(rows *sql.Rows) error {
		var r webhook.Record
		var secret, text string
		if err := rows.Scan(&secret, &r.Cursor, &text); err != nil {
			return err
		}
		if err := json.Unmarshal([]byte(text), &r.Webhook); err != nil {
			return damaged("webhook", err)
		}
		r.Secret = webhook.Secret(secret)
		all = append(all, r)
		return nil
	})
	return all, s.explain("read", err)
}

// PutWebhook implements webhook.Storage.
func (s *Store) PutWebhook(ctx context.Context, r webhook.Record) error {
	text, err := json.Marshal(r.Webhook)
	if err != nil {
		return err
	}
	done, err := s.write(ctx, "UPDATE webhooks SET secret = ?2, cursor = ?3, record = ?4 WHERE id = ?1",
		r.ID, string(r.Secret), r.Cursor, string(text))
	return s.oneRow(done, err, fmt.Errorf("there is no webhook %q: %w", r.ID, fs.ErrNotExist))
}

// DeleteWebhook implements webhook.Storage.
func (s *Store) DeleteWebhook(ctx context.Context, id string) error {
	_, err := s.write(ctx, "DELETE FROM webhooks WHERE id = ?", id)
	return s.explain("write", err)
}

// MoveWebhook implements webhook.Storage.
func (s *Store) MoveWebhook(ctx context.Context, id string, cursor int64) error {
	_, err := s.write(ctx, "UPDATE webhooks SET cursor = max(cursor, ?2) WHERE id = ?1", id, cursor)
	return s.explain("write", err)
}
