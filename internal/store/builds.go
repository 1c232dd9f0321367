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
)

// buildsSchema is the step to the version with built templates, their builds, and the layers that builds use again.
func buildsSchema() string {
	return `
		CREATE TABLE templates (
			id     TEXT PRIMARY KEY,
			tenant TEXT NOT NULL,
			name   TEXT NOT NULL,
			record TEXT NOT NULL,
			UNIQUE (tenant, name)
		) STRICT, WITHOUT ROWID;
		CREATE TABLE builds (
			id       TEXT PRIMARY KEY,
			template TEXT NOT NULL,
			created  INTEGER NOT NULL,
			finished INTEGER NOT NULL,
			record   TEXT NOT NULL
		) STRICT, WITHOUT ROWID;
		CREATE INDEX builds_template ON builds (template, created);
		CREATE INDEX builds_unfinished ON builds (created) WHERE finished = 0;
		CREATE TABLE layers (
			image  TEXT PRIMARY KEY,
			tenant TEXT NOT NULL,
			key    TEXT NOT NULL,
			used   INTEGER NOT NULL,
			record TEXT NOT NULL
		) STRICT, WITHOUT ROWID;
		CREATE INDEX layers_key ON layers (tenant, key)`
}

// Template is a template that clients build: a name, and under each tag an image.
type Template struct {
	ID      string           `json:"id"`
	Tenant  string           `json:"tenant"` // whose it is; empty: the operator's
	Name    string           `json:"name"`   // unique among those of its tenant
	Public  bool             `json:"public,omitempty"`
	Limits  firebreak.Limits `json:"limits,omitzero"` // asked for by the last build
	Tags    map[string]Tag   `json:"tags,omitempty"`
	Builds  int              `json:"builds"` // asked for so far
	Created time.Time        `json:"created"`
	Updated time.Time        `json:"updated"`
}

// Tag is what one tag of a template leads to.
type Tag struct {
	Build   string    `json:"build"`
	Created time.Time `json:"created"`
}

// BuildState is where a build stands.
type BuildState string

// The states of a build.
const (
	BuildRequested BuildState = "requested" // its files may be uploaded
	BuildQueued    BuildState = "queued"    // it waits for its turn
	BuildRunning   BuildState = "running"
	BuildReady     BuildState = "ready"
	BuildFailed    BuildState = "failed"
)

// Build is one making of a template.
type Build struct {
	ID       string           `json:"id"`
	Template string           `json:"template"` // its ID
	Tenant   string           `json:"tenant"`
	State    BuildState       `json:"state"`
	Tags     []string         `json:"tags"` // that lead to what is made
	Limits   firebreak.Limits `json:"limits,omitzero"`
	Created  time.Time        `json:"created"`
	Started  time.Time        `json:"started,omitzero"`
	Finished time.Time        `json:"finished,omitzero"`
	Reason   string           `json:"reason,omitempty"` // why it failed
	Step     string           `json:"step,omitempty"`   // at which step it failed
}

// Layer is an image that a build has kept for those that begin in the same way.
type Layer struct {
	Image  string    `json:"image"`  // its name in the image store
	Tenant string    `json:"tenant"` // who may use it; empty: all
	Key    string    `json:"key"`    // of all that went into it
	Digest string    `json:"digest,omitempty"`
	Size   int64     `json:"size,omitempty"`
	Ready  bool      `json:"ready,omitempty"` // false: it is being made, or is of use to its build only
	Build  string    `json:"build,omitempty"` // which made it
	Used   time.Time `json:"used"`
}

// InsertTemplate saves a new template. fs.ErrExist if its tenant has one of that name.
func (s *Store) InsertTemplate(ctx context.Context, t Template) error {
	text, err := json.Marshal(t)
	if err != nil {
		return fmt.Errorf("save template %s: %w", t.Name, err)
	}
	_, err = s.write(ctx, "INSERT INTO templates (id, tenant, name, record) VALUES (?, ?, ?, ?)", t.ID, t.Tenant, t.Name, string(text))
	if unique(err) {
		return &firebreak.Error{Kind: firebreak.KindExists, Err: fmt.Errorf("a template named %q is there already: %w", t.Name, fs.ErrExist)}
	}
	return s.explain("write", err)
}

// Template returns the template of id. fs.ErrNotExist if there is none.
func (s *Store) Template(ctx context.Context, id string) (Template, error) {
	return one[Template](ctx, s, s.db, "template "+id, "SELECT record FROM templates WHERE id = ?", id)
}

// TemplateNamed returns a tenant's template of this name. fs.ErrNotExist if there is none.
func (s *Store) TemplateNamed(ctx context.Context, tenant, name string) (Template, error) {
	return one[Template](ctx, s, s.db, fmt.Sprintf("template %q", name), "SELECT record FROM templates WHERE tenant = ? AND name = ?", tenant, name)
}

// FindTemplate returns the tenant's template of this name, or else the one whose ID is id. fs.ErrNotExist if there is neither.
func (s *Store) FindTemplate(ctx context.Context, tenant, name, id string) (Template, error) {
	stmt, err := s.prepared(ctx, "SELECT record FROM templates WHERE tenant = ?1 AND name = ?2 OR id = ?3 ORDER BY id = ?3 LIMIT 1")
	if err != nil {
		return Template{}, s.explain("read", err)
	}
	return found[Template](s, fmt.Sprintf("template %q", name), stmt.QueryRowContext(ctx, tenant, name, id))
}

// Templates returns the templates of a tenant, by name.
func (s *Store) Templates(ctx context.Context, tenant string) ([]Template, error) {
	return many[Template](ctx, s, "SELECT record FROM templates WHERE tenant = ? ORDER BY name", tenant)
}

// UpdateTemplate changes a template by change, which sees it as it is and alone. An error of change leaves it as it was
// and is returned. fs.ErrNotExist if there is none. Name and tenant stay what they are.
func (s *Store) UpdateTemplate(ctx context.Context, id string, change func(*Template) error) (Template, error) {
	return update(ctx, s, "template "+id, "SELECT record FROM templates WHERE id = ?", id, change, func(_ Template, text string) (string, []any) {
		return "UPDATE templates SET record = ? WHERE id = ?", []any{text, id}
	})
}

// DeleteTemplate removes a template with its builds; nil if there is none.
func (s *Store) DeleteTemplate(ctx context.Context, id string) error {
	_, err := s.write(ctx, "DELETE FROM builds WHERE template = ?1; DELETE FROM templates WHERE id = ?1", id)
	return s.explain("write", err)
}

// InsertBuild saves a new build.
func (s *Store) InsertBuild(ctx context.Context, b Build) error {
	text, err := json.Marshal(b)
	if err != nil {
		return fmt.Errorf("save build %s: %w", b.ID, err)
	}
	_, err = s.write(ctx, "INSERT INTO builds (id, template, created, finished, record) VALUES (?, ?, ?, ?, ?)",
		b.ID, b.Template, millis(b.Created), millis(b.Finished), string(text))
	return s.explain("write", err)
}

// Build returns the build of id. fs.ErrNotExist if there is none.
func (s *Store) Build(ctx context.Context, id string) (Build, error) {
	return one[Build](ctx, s, s.db, "build "+id, "SELECT record FROM builds WHERE id = ?", id)
}

// Builds returns the builds of a template, the latest first.
func (s *Store) Builds(ctx context.Context, template string) ([]Build, error) {
	return many[Build](ctx, s, "SELECT record FROM builds WHERE template = ? ORDER BY created DESC, id", template)
}

// UnfinishedBuilds returns the builds that are neither ready nor failed, the oldest first.
func (s *Store) UnfinishedBuilds(ctx context.Context) ([]Build, error) {
	return many[Build](ctx, s, "SELECT record FROM builds WHERE finished = 0 ORDER BY created, id")
}

// UpdateBuild is UpdateTemplate for a build.
func (s *Store) UpdateBuild(ctx context.Context, id string, change func(*Build) error) (Build, error) {
	return update(ctx, s, "build "+id, "SELECT record FROM builds WHERE id = ?", id, change, func(b Build, text string) (string, []any) {
		return "UPDATE builds SET finished = ?, record = ? WHERE id = ?", []any{millis(b.Finished), text, id}
	})
}

// DeleteBuild removes a build; nil if there is none.
func (s *Store) DeleteBuild(ctx context.Context, id string) error {
	_, err := s.write(ctx, "DELETE FROM builds WHERE id = ?", id)
	return s.explain("write", err)
}

// PutLayer saves a layer, or replaces what is known of that image.
func (s *Store) PutLayer(ctx context.Context, l Layer) error {
	text, err := json.Marshal(l)
	if err != nil {
		return fmt.Errorf("save layer: %w", err)
	}
	_, err = s.write(ctx, "INSERT OR REPLACE INTO layers (image, tenant, key, used, record) VALUES (?, ?, ?, ?, ?)",
		l.Image, l.Tenant, l.Key, millis(l.Used), string(text))
	return s.explain("write", err)
}

// LayersOf returns the layers that a tenant has under key.
func (s *Store) LayersOf(ctx context.Context, tenant, key string) ([]Layer, error) {
	return many[Layer](ctx, s, "SELECT record FROM layers WHERE tenant = ? AND key = ? ORDER BY used DESC", tenant, key)
}

// Layers returns all layers, that first which was not used for the longest time.
func (s *Store) Layers(ctx context.Context) ([]Layer, error) {
	return many[Layer](ctx, s, "SELECT record FROM layers ORDER BY used, image")
}

// DeleteLayer forgets the layer that is this image; nil if there is none.
func (s *Store) DeleteLayer(ctx context.Context, image string) error {
	_, err := s.write(ctx, "DELETE FROM layers WHERE image = ?", image)
	return s.explain("write", err)
}

// one reads the record that a query finds. What it is of says what is missing if there is none.
func one[T any](ctx context.Context, s *Store, from querier, of, query string, args ...any) (T, error) {
	return found[T](s, of, from.QueryRowContext(ctx, query, args...))
}

func found[T any](s *Store, of string, row *sql.Row) (T, error) {
	v, err := scan[T](row)
	if errors.Is(err, sql.ErrNoRows) {
		return v, &firebreak.Error{Kind: firebreak.KindNotFound, Err: fmt.Errorf("there is no %s: %w", of, fs.ErrNotExist)}
	}
	return v, s.explain("read", err)
}

// many reads all records that a query finds.
func many[T any](ctx context.Context, s *Store, query string, args ...any) ([]T, error) {
	var all []T
	err := each(ctx, s.db, query, func(rows *sql.Rows) error {
		v, err := scan[T](rows)
		all = append(all, v)
		return err
	}, args...)
	if err != nil {
		return nil, s.explain("read", err)
	}
	return all, nil
}

// scan reads a record, the only column of a row.
func scan[T any](row interface{ Scan(...any) error }) (T, error) {
	var text string
	var v T
	err := row.Scan(&text)
	if err == nil {
		if err = json.Unmarshal([]byte(text), &v); err != nil {
			err = damaged("record", err)
		}
	}
	return v, err
}

// update reads a record, changes it, and writes it by the statement that write gives.
func update[T any](ctx context.Context, s *Store, of, query, id string, change func(*T) error, write func(v T, text string) (string, []any)) (T, error) {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return *new(T), s.explain("write", err)
	}
	defer func() { _ = tx.Rollback() }() // after Commit it has nothing to do
	v, err := one[T](ctx, s, tx, of, query, id)
	if err != nil {
		return v, err
	}
	if err := change(&v); err != nil {
		return v, err
	}
	text, err := json.Marshal(v)
	if err != nil {
		return v, fmt.Errorf("save %s: %w", of, err)
	}
	statement, args := write(v, string(text))
	if _, err = tx.ExecContext(ctx, statement, args...); err == nil {
		err = tx.Commit()
	}
	return v, s.explain("write", err)
}
