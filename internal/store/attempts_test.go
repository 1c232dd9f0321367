package store

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func attempt(tenant, key string, began time.Time) Attempt {
	return Attempt{Tenant: tenant, Key: key, Asked: []byte("a"), By: "p", Began: began}
}

func TestAttempts(t *testing.T) {
	dir := t.TempDir()
	s, other := open(t, dir), open(t, dir)
	ctx, now := t.Context(), time.UnixMilli(1800000000000).UTC()
	a := attempt("acme", "k", now)
	if _, first, err := s.BeginAttempt(ctx, a); err != nil || !first {
		t.Fatalf("first: %t, %v", first, err)
	}
	old, first, err := other.BeginAttempt(ctx, Attempt{Tenant: "acme", Key: "k", Asked: []byte("b"), By: "q", Began: now.Add(time.Minute)})
	if err != nil || first || string(old.Asked) != "a" || old.By != "p" || old.Began != now || old.Status != 0 {
		t.Errorf("again: %+v, %t, %v", old, first, err)
	}
	for _, another := range []Attempt{attempt("other", "k", now), attempt("", "k", now), attempt("acme", "l", now)} {
		if _, first, err := other.BeginAttempt(ctx, another); err != nil || !first {
			t.Errorf("%q %q: %t, %v", another.Tenant, another.Key, first, err)
		}
	}
	a.Status, a.Answer = 201, []byte("{}")
	if err := s.FinishAttempt(ctx, a); err != nil {
		t.Error(err)
	}
	if old, first, err := open(t, dir).BeginAttempt(ctx, a); err != nil || first || old.Status != 201 || string(old.Answer) != "{}" {
		t.Errorf("after the answer: %+v, %t, %v", old, first, err)
	}
	if err := s.DropAttempt(ctx, a); err != nil {
		t.Error(err)
	}
	if _, first, err := s.BeginAttempt(ctx, a); err != nil || !first {
		t.Errorf("after it was dropped: %t, %v", first, err)
	}
	if _, first, err := s.BeginAttempt(ctx, attempt("acme", "k", now.Add(KeepAttempts+time.Second))); err != nil || !first {
		t.Errorf("after its time: %t, %v", first, err)
	}
}

func TestAttemptsOfOneTenantAreBounded(t *testing.T) {
	s := open(t, t.TempDir())
	now := time.UnixMilli(1800000000000)
	if _, _, err := s.BeginAttempt(t.Context(), attempt("other", "k", now)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.db.Exec(`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
		INSERT INTO attempts SELECT 'acme', 'k' || i, x'00', 'p', ?2 + i, 201, x'' FROM n`, KeepAttemptsMax, now.UnixMilli()); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.BeginAttempt(t.Context(), attempt("acme", "new", now.Add(time.Hour))); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]bool{"k1": false, "k2": true, "new": true} {
		var there bool
		if err := s.db.QueryRow("SELECT count(*) FROM attempts WHERE tenant = 'acme' AND key = ?", key).Scan(&there); err != nil || there != want {
			t.Errorf("%s is there: %t, %v", key, there, err)
		}
	}
	if _, first, err := s.BeginAttempt(t.Context(), attempt("other", "k", now)); err != nil || first {
		t.Errorf("another tenant's was dropped: %t, %v", first, err)
	}
}

func TestOneOfManyBegins(t *testing.T) {
	dir := t.TempDir()
	var all sync.WaitGroup
	var begun atomic.Int32
	for range 4 {
		s := open(t, dir)
		all.Go(func() {
			for i := range 20 {
				_, first, err := s.BeginAttempt(t.Context(), attempt("acme", fmt.Sprint(i), time.Now()))
				if err != nil {
					t.Error(err)
				}
				if first {
					begun.Add(1)
				}
			}
		})
	}
	all.Wait()
	if begun.Load() != 20 {
		t.Errorf("20 attempts began %d times", begun.Load())
	}
}
