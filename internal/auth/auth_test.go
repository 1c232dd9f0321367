package auth

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/firebreak-dev/firebreak"
)

// memory is a Storage without a disk, and counts what it is asked.
type memory struct {
	mu      sync.Mutex
	records Records // guarded by mu
	fail    error   // guarded by mu; of all methods
	loads   int     // guarded by mu
	touches int     // guarded by mu; of single keys
	full    error   // guarded by mu; of TouchKeys
}

func (m *memory) lock() (unlock func(), err error) {
	m.mu.Lock()
	return m.mu.Unlock, m.fail
}

func (m *memory) LoadAuth(_ context.Context, since int64) (Records, error) {
	unlock, err := m.lock()
	defer unlock()
	m.loads++
	if since == m.records.Version {
		return Records{Version: since}, err
	}
	return Records{Version: m.records.Version, Keys: slices.Clone(m.records.Keys), Tenants: slices.Clone(m.records.Tenants)}, err
}

func (m *memory) InsertKey(_ context.Context, k KeyRecord) error {
	unlock, err := m.lock()
	defer unlock()
	m.records.Keys = append(m.records.Keys, k)
	m.records.Version++
	return err
}

func (m *memory) RevokeKey(_ context.Context, id string, at time.Time) error {
	unlock, err := m.lock()
	defer unlock()
	for i := range m.records.Keys {
		if m.records.Keys[i].ID == id {
			m.records.Keys[i].Revoked = at
			m.records.Version++
			return err
		}
	}
	return errors.Join(err, fs.ErrNotExist)
}

func (m *memory) TouchKeys(_ context.Context, used map[string]time.Time) error {
	unlock, err := m.lock()
	defer unlock()
	m.touches += len(used)
	for i, k := range m.records.Keys {
		if at, ok := used[k.ID]; ok {
			m.records.Keys[i].Used = at
		}
	}
	return errors.Join(err, m.full)
}

func (m *memory) PutTenant(_ context.Context, t Tenant) error {
	unlock, err := m.lock()
	defer unlock()
	m.records.Tenants = slices.DeleteFunc(m.records.Tenants, func(old Tenant) bool { return old.ID == t.ID })
	m.records.Tenants = append(m.records.Tenants, t)
	m.records.Version++
	return err
}

func (m *memory) set(change func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change()
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// withKey returns an Auth on s with one tenant, which has one key.
func withKey(t testing.TB, s Storage) (a *Auth, tenant Tenant, key string, shown Key) {
	t.Helper()
	a = New(s, quiet())
	t.Cleanup(a.Close)
	tenant = Tenant{ID: "acme", Limits: Limits{Sandboxes: 3, Burst: 2, CreatesPerSecond: 1}, Workload: firebreak.Workload{Origin: firebreak.OriginUntrusted}}
	if err := a.SetTenant(t.Context(), tenant); err != nil {
		t.Fatal(err)
	}
	key, shown, err := a.Create(t.Context(), tenant.ID, "laptop")
	if err != nil {
		t.Fatal(err)
	}
	return a, tenant, key, shown
}

func wantDenied(t *testing.T, a *Auth, key string) {
	t.Helper()
	got, err := a.Authenticate(t.Context(), key)
	if firebreak.KindOf(err) != firebreak.KindDenied || err.Error() != denied().Error() || got != (Tenant{}) {
		t.Errorf("%.60q: %+v, %v, want the one refusal", key, got, err)
	}
}

func wantTenant(t *testing.T, a *Auth, key string, want Tenant) {
	t.Helper()
	if got, err := a.Authenticate(t.Context(), key); err != nil || got != want {
		t.Errorf("got  %+v, %v\nwant %+v", got, err, want)
	}
}

func TestAuthenticate(t *testing.T) {
	m := &memory{}
	a, tenant, key, shown := withKey(t, m)
	wantTenant(t, a, key, tenant)
	if shown.ID != key[4:12] || shown.Name != "laptop" || shown.Tenant != "acme" || shown.Created.IsZero() {
		t.Errorf("%+v of %s", shown, key)
	}
	other, _, _ := newKey()
	for _, bad := range []string{
		"", "e2b_", key[:len(key)-1], key + "0", strings.ToUpper(key), " " + key, key[4:], shown.ID, "e2b_" + shown.ID,
		other, key[:12] + other[12:], other[:12] + key[12:], "fbk_" + key[4:], strings.Repeat(key, 1000), key[:43] + "g", "Bearer " + key,
	} {
		wantDenied(t, a, bad)
	}
	if err := a.Revoke(t.Context(), shown.ID); err != nil {
		t.Fatal(err)
	}
	wantDenied(t, a, key)
}

func TestNoKeyOpensAnEmptyStorage(t *testing.T) {
	a := New(&memory{}, quiet())
	defer a.Close()
	key, _, _ := newKey()
	wantDenied(t, a, key)
	wantDenied(t, a, "")
}

func TestKeyWithoutTenantOpensNothing(t *testing.T) {
	m := &memory{}
	a, _, key, _ := withKey(t, m)
	m.set(func() { m.records.Tenants, m.records.Version = nil, 99 })
	a.changes.Add(1)
	wantDenied(t, a, key)
}

func TestKeysAreNotKept(t *testing.T) {
	m := &memory{}
	_, _, key, _ := withKey(t, m)
	if k := m.records.Keys[0]; strings.Contains(k.ID+k.Name+string(k.Hash[:]), key[12:]) || bytes.Contains(k.Hash[:], []byte(key[12:20])) {
		t.Errorf("%+v holds the key", k)
	}
}

func TestWhatThisProcessChangesIsSeenAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // in which no time goes by
		a, tenant, key, shown := withKey(t, &memory{})
		wantTenant(t, a, key, tenant)
		tenant.Limits.Sandboxes = 99
		if err := a.SetTenant(t.Context(), tenant); err != nil {
			t.Fatal(err)
		}
		wantTenant(t, a, key, tenant)
		second, _, err := a.Create(t.Context(), "acme", "")
		if err != nil {
			t.Fatal(err)
		}
		wantTenant(t, a, second, tenant)
		if err := a.Revoke(t.Context(), shown.ID); err != nil {
			t.Fatal(err)
		}
		wantDenied(t, a, key)
		wantTenant(t, a, second, tenant)
	})
}

func TestWhatAnotherProcessChangesIsSeenWithinStaleness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{}
		a, tenant, key, shown := withKey(t, m)
		b := New(m, quiet())
		defer b.Close()
		wantTenant(t, b, key, tenant)
		if err := a.Revoke(t.Context(), shown.ID); err != nil {
			t.Fatal(err)
		}
		time.Sleep(Staleness - 1)
		wantTenant(t, b, key, tenant) // or this tests nothing
		time.Sleep(time.Nanosecond)
		wantDenied(t, b, key)
		second, _, err := a.Create(t.Context(), "acme", "")
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(Staleness)
		wantTenant(t, b, second, tenant)
	})
}

func TestStorageIsAskedOncePerStaleness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{}
		a, tenant, key, _ := withKey(t, m)
		stranger, _, _ := newKey()
		for range 10 {
			var all sync.WaitGroup
			for range 100 {
				all.Go(func() { wantTenant(t, a, key, tenant) })
				all.Go(func() { wantDenied(t, a, stranger) })
			}
			all.Wait()
			time.Sleep(Staleness)
		}
		if m.loads != 10 {
			t.Errorf("the storage was asked %d times in 10 spans", m.loads)
		}
	})
}

func TestNobodyGetsInWhileTheStorageFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{}
		a, tenant, key, _ := withKey(t, m)
		wantTenant(t, a, key, tenant)
		m.set(func() { m.fail = &firebreak.Error{Kind: firebreak.KindUnavailable, Err: errors.New("locked")} })
		time.Sleep(Staleness)
		if _, err := a.Authenticate(t.Context(), key); firebreak.KindOf(err) != firebreak.KindUnavailable {
			t.Errorf("%v", err)
		}
		m.set(func() { m.fail = nil })
		wantTenant(t, a, key, tenant)
	})
}

func TestWaitingForTheStorageEndsWithTheContext(t *testing.T) {
	a, _, key, _ := withKey(t, &memory{})
	a.turn <- struct{}{} // somebody asks, and gets no answer
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.Authenticate(ctx, key); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestLastUseIsWrittenOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{}
		a, tenant, key, _ := withKey(t, m)
		began := time.Now()
		for range 10 * 60 { // ten minutes
			wantTenant(t, a, key, tenant)
			time.Sleep(time.Second)
		}
		synctest.Wait()
		keys, err := a.List(t.Context())
		if err != nil || len(keys) != 1 || m.touches != 10 || keys[0].Used.Sub(began) != 9*time.Minute {
			t.Errorf("%+v, %v, written %d times", keys, err, m.touches)
		}
		m.set(func() { m.full = errors.New("disk full") }) // a note that fails harms no request
		wantTenant(t, a, key, tenant)
		synctest.Wait()
		if m.touches != 11 {
			t.Errorf("written %d times", m.touches)
		}
	})
}

func TestListRevokeTenant(t *testing.T) {
	a, tenant, key, first := withKey(t, &memory{})
	_, second, err := a.Create(t.Context(), "acme", "")
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Revoke(t.Context(), first.ID); err != nil {
		t.Fatal(err)
	}
	keys, err := a.List(t.Context())
	if err != nil || len(keys) != 2 || keys[0].ID != first.ID || keys[0].Revoked.IsZero() || keys[1] != second {
		t.Errorf("%+v, %v", keys, err)
	}
	for ref, kind := range map[string]firebreak.Kind{"00000000": firebreak.KindNotFound, key: firebreak.KindInvalid, "": firebreak.KindInvalid} {
		if err := a.Revoke(t.Context(), ref); firebreak.KindOf(err) != kind || strings.Contains(err.Error(), key) {
			t.Errorf("revoke %q: %v, want kind %s and no key", ref, err, kind)
		}
	}
	if got, err := a.Tenant(t.Context(), "acme"); err != nil || got != tenant {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := a.Tenant(t.Context(), "nobody"); firebreak.KindOf(err) != firebreak.KindNotFound {
		t.Error(err)
	}
}

func TestNamesOfKeys(t *testing.T) {
	a, _, _, _ := withKey(t, &memory{})
	for name, ok := range map[string]bool{"": true, "CI, staging": true, "Größe": true, "a\nb": false, "\x1b[2J": false, "\xff": false,
		strings.Repeat("x", 100): true, strings.Repeat("x", 101): false} {
		if _, _, err := a.Create(t.Context(), "acme", name); (err == nil) != ok || (!ok && firebreak.KindOf(err) != firebreak.KindInvalid) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func BenchmarkAuthenticate(b *testing.B) {
	for name, pick := range map[string]func(key string) string{
		"good":    func(key string) string { return key },
		"unknown": func(string) string { key, _, _ := newKey(); return key },
	} {
		b.Run(name, func(b *testing.B) {
			a, _, key, _ := withKey(b, &memory{})
			key = pick(key)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := a.Authenticate(b.Context(), key); err != nil && name == "good" {
					b.Fatal(err)
				}
			}
		})
	}
}
