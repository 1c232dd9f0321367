package auth

import (
	"context"
	"crypto/subtle"
	"maps"
	"sync/atomic"
	"time"
)

// view is all keys at one moment. All are held, and not only those in use, so that a key that nobody knows costs no
// more than a good one and asks the storage nothing: strangers can send as many as they like.
type view struct {
	version int64
	asOf    time.Time // before it was read
	changes int64     // of Auth, before it was read
	keys    map[string]*entry
}

type entry struct {
	KeyRecord
	tenant Tenant
	used   *atomic.Int64 // milliseconds since 1970; outlives the view
}

// current returns a view that is not stale. Nearly always that is the one at hand. Else one caller looks whether it
// still holds, which is one read of one row, and the others wait.
func (a *Auth) current(ctx context.Context) (*view, error) {
	if v := a.view.Load(); a.fresh(v) {
		return v, nil
	}
	select {
	case a.turn <- struct{}{}:
		defer func() { <-a.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	old := a.view.Load()
	if a.fresh(old) {
		return old, nil
	}
	if old == nil {
		old = &view{}
	}
	v := &view{version: old.version, asOf: time.Now(), changes: a.changes.Load(), keys: old.keys}
	r, err := a.storage.LoadAuth(ctx, old.version)
	if err != nil {
		return nil, err
	}
	if r.Version != old.version {
		v.version, v.keys = r.Version, index(r, old.keys)
	}
	a.view.Store(v)
	return v, nil
}

func (a *Auth) fresh(v *view) bool {
	return v != nil && v.changes == a.changes.Load() && time.Since(v.asOf) < Staleness
}

func index(r Records, old map[string]*entry) map[string]*entry {
	tenants := make(map[string]Tenant, len(r.Tenants))
	for _, t := range r.Tenants {
		tenants[t.ID] = t
	}
	keys := make(map[string]*entry, len(r.Keys))
	for _, k := range r.Keys {
		tenant, there := tenants[k.Tenant]
		if !there {
			continue // it belongs to nobody, so it opens nothing
		}
		e := &entry{KeyRecord: k, tenant: tenant}
		if before := old[k.ID]; before != nil {
			e.used = before.used // newer than what is written
		} else {
			e.used = &atomic.Int64{}
			e.used.Store(k.Used.UnixMilli())
		}
		keys[k.ID] = e
	}
	return keys
}

// find returns the entry of a key that is not revoked. What has the form of a key is hashed and compared whether or not
// its ID is known.
func (v *view) find(key string) (*entry, bool) {
	id, ok := parseKey(key)
	if !ok {
		return nil, false
	}
	var want [hashSize]byte // which no key has
	e, known := v.keys[id]
	if known {
		want = e.Hash
	}
	hash := hashOf(key)
	same := subtle.ConstantTimeCompare(hash[:], want[:]) == 1
	return e, same && known && e.Revoked.IsZero()
}

// touch notes that a key is used, and has that written if it was not within UsedEvery. The caller does not wait for it:
// no request fails or takes longer because of a note.
func (a *Auth) touch(e *entry) {
	now := time.Now()
	last := e.used.Load()
	if now.UnixMilli()-last < UsedEvery.Milliseconds() || !e.used.CompareAndSwap(last, now.UnixMilli()) {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return
	}
	a.used[e.ID] = now
	if !a.writing {
		a.writing = true
		a.writes.Go(a.writeUses)
	}
}

// writeUses writes until there is nothing to write.
func (a *Auth) writeUses() {
	for {
		a.mu.Lock()
		used := maps.Clone(a.used)
		clear(a.used)
		a.writing = len(used) > 0
		a.mu.Unlock()
		if len(used) == 0 {
			return
		}
		// No context: the storage bounds how long it waits, and Close waits for that.
		if err := a.storage.TouchKeys(context.Background(), used); err != nil {
			a.log.Warn("the last use of API keys could not be written", "keys", len(used), "err", err)
		}
	}
}
