package auth_test

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/store"
)

// process returns what one of several processes has of a state directory: a database and an Auth of its own.
func process(t testing.TB, dir string) *auth.Auth {
	t.Helper()
	s, err := store.Open(t.Context(), dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	a := auth.New(s, slog.New(slog.DiscardHandler))
	t.Cleanup(func() {
		a.Close()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return a
}

func TestProcessesShareKeys(t *testing.T) {
	dir := t.TempDir()
	a, b := process(t, dir), process(t, dir)
	if _, _, err := a.Create(t.Context(), "acme", ""); firebreak.KindOf(err) != firebreak.KindNotFound || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a key of no tenant: %v", err)
	}
	want := auth.Tenant{ID: "acme", Limits: auth.Limits{Sandboxes: 7, CPUs: 1.5, Memory: 1 << 33, CreatesPerSecond: 0.1, Burst: 2},
		Workload: firebreak.Workload{Origin: firebreak.OriginModel, Needs: firebreak.NeedLinux | firebreak.NeedNetwork, Audit: true}}
	if err := a.SetTenant(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	if err := b.SetTenant(t.Context(), auth.Tenant{ID: "empty"}); err != nil {
		t.Fatal(err)
	}
	key, shown, err := a.Create(t.Context(), "acme", "laptop")
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range map[string]*auth.Auth{"first": a, "second": b, "later": process(t, dir)} {
		if got, err := p.Authenticate(t.Context(), key); err != nil || got != want {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		if got, err := p.Tenant(t.Context(), "acme"); err != nil || got != want {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		keys, err := p.List(t.Context())
		if err != nil || len(keys) != 1 {
			t.Fatalf("%s: %+v, %v", name, keys, err)
		}
		keys[0].Used = time.Time{}
		if keys[0] != shown {
			t.Errorf("%s: %+v, want %+v", name, keys[0], shown)
		}
	}
	if err := a.Revoke(t.Context(), shown.ID); err != nil {
		t.Fatal(err)
	}
	revoked, err := a.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for firebreak.KindOf(err) != firebreak.KindDenied { // or the test's time is up
		_, err = b.Authenticate(t.Context(), key)
	}
	if err := b.Revoke(t.Context(), shown.ID); err != nil {
		t.Errorf("revoked again: %v", err)
	}
	if again, err := b.List(t.Context()); err != nil || again[0].Revoked.IsZero() || again[0].Revoked != revoked[0].Revoked {
		t.Errorf("%+v, %v, was %+v", again, err, revoked)
	}
	if err := b.Revoke(t.Context(), "00000000"); !errors.Is(err, fs.ErrNotExist) || firebreak.KindOf(err) != firebreak.KindNotFound {
		t.Errorf("revoke what is not there: %v", err)
	}
}

func TestLastUseIsKept(t *testing.T) {
	dir := t.TempDir()
	a := process(t, dir)
	if err := a.SetTenant(t.Context(), auth.Tenant{ID: "acme"}); err != nil {
		t.Fatal(err)
	}
	key, _, err := a.Create(t.Context(), "acme", "")
	if err != nil {
		t.Fatal(err)
	}
	var first time.Time
	for range 3 { // processes, one after the other within a minute
		p := process(t, dir)
		if _, err := p.Authenticate(t.Context(), key); err != nil {
			t.Fatal(err)
		}
		p.Close()
		keys, err := a.List(t.Context())
		if err != nil || keys[0].Used.IsZero() {
			t.Fatalf("%+v, %v", keys, err)
		}
		if first.IsZero() {
			first = keys[0].Used
		}
		if keys[0].Used != first {
			t.Errorf("used at %s, and written at %s again", first, keys[0].Used)
		}
	}
}

// The files of the database hold nothing of a key beyond its ID.
func TestNoKeyIsOnDisk(t *testing.T) {
	dir := t.TempDir()
	a := process(t, dir)
	if err := a.SetTenant(t.Context(), auth.Tenant{ID: "acme"}); err != nil {
		t.Fatal(err)
	}
	key, shown, err := a.Create(t.Context(), "acme", "")
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, suffix := range []string{"", "-wal"} {
		b, err := os.ReadFile(filepath.Join(dir, store.File+suffix))
		if err != nil {
			t.Fatal(err)
		}
		found = found || strings.Contains(string(b), shown.ID)
		if strings.Contains(string(b), key[12:20]) {
			t.Errorf("%s holds the key", store.File+suffix)
		}
	}
	if !found {
		t.Error("the key is nowhere at all: this tests nothing")
	}
}

func TestManyProcessesAtOnce(t *testing.T) {
	dir := t.TempDir()
	if err := process(t, dir).SetTenant(t.Context(), auth.Tenant{ID: "acme"}); err != nil {
		t.Fatal(err)
	}
	const each = 10
	var all sync.WaitGroup
	for range 4 {
		a := process(t, dir)
		all.Go(func() {
			for i := range each {
				key, shown, err := a.Create(t.Context(), "acme", fmt.Sprint(i))
				if err != nil {
					t.Error(err)
				}
				if _, err := a.Authenticate(t.Context(), key); err != nil {
					t.Error(err)
				}
				if i%2 == 0 {
					if err := a.Revoke(t.Context(), shown.ID); err != nil {
						t.Error(err)
					}
				}
				if _, err := a.Authenticate(t.Context(), key); (err != nil) != (i%2 == 0) {
					t.Errorf("key %d: %v", i, err)
				}
			}
		})
	}
	all.Wait()
	if keys, err := process(t, dir).List(t.Context()); err != nil || len(keys) != 4*each {
		t.Errorf("%d keys, %v", len(keys), err)
	}
}

func benchmarkWith(b *testing.B, keys int) (a *auth.Auth, dir, key string) {
	dir = b.TempDir()
	a = process(b, dir)
	if err := a.SetTenant(b.Context(), auth.Tenant{ID: "acme"}); err != nil {
		b.Fatal(err)
	}
	for range keys {
		var err error
		if key, _, err = a.Create(b.Context(), "acme", "one of many"); err != nil {
			b.Fatal(err)
		}
	}
	return a, dir, key
}

// BenchmarkStored is Authenticate on a database, with the looks at it that are due: "after a change" each time reads
// all keys.
func BenchmarkStored(b *testing.B) {
	for _, n := range []int{1, 1000} {
		b.Run(fmt.Sprintf("warm, %d keys", n), func(b *testing.B) {
			a, _, key := benchmarkWith(b, n)
			for b.Loop() {
				if _, err := a.Authenticate(b.Context(), key); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("after a change, %d keys", n), func(b *testing.B) {
			a, _, key := benchmarkWith(b, n)
			for b.Loop() {
				if err := a.SetTenant(b.Context(), auth.Tenant{ID: "acme"}); err != nil {
					b.Fatal(err)
				}
				if _, err := a.Authenticate(b.Context(), key); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
