package store

import (
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/auth"
)

func keyRecord(id string) auth.KeyRecord {
	return auth.KeyRecord{Key: auth.Key{ID: id, Tenant: "acme", Name: "x", Created: time.UnixMilli(1700000000000).UTC()}, Hash: [32]byte{1, 2, 3}}
}

func TestAuthVersionCountsChanges(t *testing.T) {
	dir := t.TempDir()
	s, other := open(t, dir), open(t, dir)
	ctx, now := t.Context(), time.UnixMilli(1800000000000).UTC()
	last := int64(0)
	for _, step := range []struct {
		what    string
		do      func() error
		changes bool
	}{
		{"nothing", func() error { return nil }, true}, // from none
		{"tenant", func() error { return s.PutTenant(ctx, auth.Tenant{ID: "acme"}) }, true},
		{"tenant again", func() error { return s.PutTenant(ctx, auth.Tenant{ID: "acme", Limits: auth.Limits{Sandboxes: 1}}) }, true},
		{"key", func() error { return s.InsertKey(ctx, keyRecord("0000000a")) }, true},
		{"use", func() error { return s.TouchKeys(ctx, map[string]time.Time{"0000000a": now, "gone": now}) }, false},
		{"sandbox", func() error { return s.Insert(ctx, record("abc")) }, false},
		{"revoke", func() error { return s.RevokeKey(ctx, "0000000a", now) }, true},
	} {
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.what, err)
		}
		r, err := other.LoadAuth(ctx, last)
		if err != nil || (r.Version != last) != step.changes || (len(r.Tenants) > 0) != (step.changes && last > 0) {
			t.Errorf("%s: %+v after version %d, %v", step.what, r, last, err)
		}
		last = r.Version
	}
	want := keyRecord("0000000a")
	want.Used, want.Revoked = now, now
	if r, err := other.LoadAuth(ctx, 0); err != nil || len(r.Keys) != 1 || r.Keys[0] != want {
		t.Errorf("got  %+v, %v\nwant %+v", r.Keys, err, want)
	}
}

func TestKeysOfNoTenantAndTwice(t *testing.T) {
	s := open(t, t.TempDir())
	if err := s.InsertKey(t.Context(), keyRecord("0000000a")); !errors.Is(err, fs.ErrNotExist) || firebreak.KindOf(err) != firebreak.KindNotFound {
		t.Errorf("a key of no tenant: %v", err)
	}
	if err := s.PutTenant(t.Context(), auth.Tenant{ID: "acme"}); err != nil {
		t.Fatal(err)
	}
	for i, want := range []error{nil, fs.ErrExist} {
		if err := s.InsertKey(t.Context(), keyRecord("0000000a")); !errors.Is(err, want) {
			t.Errorf("insert %d: %v, want %v", i, err, want)
		}
	}
	if _, err := s.db.Exec("UPDATE tenants SET record = '{'"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.LoadAuth(t.Context(), 0); firebreak.KindOf(err) != firebreak.KindHost {
		t.Errorf("a damaged tenant: %v", err)
	}
}

func TestDatabaseWithoutKeysIsBroughtUp(t *testing.T) {
	dir := t.TempDir()
	db, err := sql.Open("sqlite", filepath.Join(dir, File))
	if err != nil {
		t.Fatal(err)
	}
	for i, step := range migrations()[:2] {
		if _, err := db.Exec(step + fmt.Sprintf("; PRAGMA user_version = %d", i+1)); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := open(t, dir).PutTenant(t.Context(), auth.Tenant{ID: "acme"}); err != nil {
		t.Error(err)
	}
	if r, err := open(t, dir).LoadAuth(t.Context(), 0); err != nil || len(r.Tenants) != 1 {
		t.Errorf("%+v, %v", r, err)
	}
}
