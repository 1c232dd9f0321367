// Package auth knows who calls and what each may take: API keys, the tenants that they belong to, and the tenants'
// limits. Keys and tenants lie in a Storage that several processes use at once; what is taken is counted in memory.
package auth

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/firebreak-dev/firebreak"
)

// Staleness bounds for how long a key may still be taken after another process has revoked it, and for how long a
// changed tenant may still be seen as it was. What the same process changes is seen at once.
const Staleness = 500 * time.Millisecond

// UsedEvery is how often, at the most, the last use of one key is written, by all processes together.
const UsedEvery = time.Minute

// Storage keeps keys and tenants. Its methods may be called concurrently, and by several processes.
type Storage interface {
	// LoadAuth returns all, or only since itself as the version if that still is the version of what is stored. Each
	// change of a key or tenant, but for the last use, makes a new version; 0 is none.
	LoadAuth(ctx context.Context, since int64) (Records, error)
	// InsertKey saves a new key. fs.ErrExist if its ID is taken, fs.ErrNotExist if there is no such tenant.
	InsertKey(ctx context.Context, key KeyRecord) error
	// RevokeKey notes when a key was revoked, if it is not yet. fs.ErrNotExist if there is none.
	RevokeKey(ctx context.Context, id string, at time.Time) error
	// TouchKeys notes when the keys of these IDs were used, unless they were within UsedEvery before.
	TouchKeys(ctx context.Context, used map[string]time.Time) error
	// PutTenant saves a tenant, new or not.
	PutTenant(ctx context.Context, tenant Tenant) error
}

// Records is what a Storage keeps.
type Records struct {
	Version int64
	Keys    []KeyRecord // the oldest first
	Tenants []Tenant
}

// KeyRecord is what is stored of a key: all but the key.
type KeyRecord struct {
	Key
	Hash [hashSize]byte
}

// Key is what may be shown of a key.
type Key struct {
	ID      string    `json:"id"` // its first digits, which are no secret
	Tenant  string    `json:"tenant"`
	Name    string    `json:"name,omitempty"` // for people; need not be unique
	Created time.Time `json:"created"`
	Used    time.Time `json:"used,omitzero"`    // last, to a minute; zero: never
	Revoked time.Time `json:"revoked,omitzero"` // zero: it is not
}

// Auth knows keys and tenants. It holds all of them in memory, which is meant for thousands. It may be used concurrently.
type Auth struct {
	storage Storage
	log     *slog.Logger

	view    atomic.Pointer[view]
	changes atomic.Int64  // by this process: a view from before the last one is stale
	turn    chan struct{} // held by who looks whether the view is stale, lest all do at once

	writes  sync.WaitGroup // the one that writes the last uses
	mu      sync.Mutex
	closed  bool                 // guarded by mu
	writing bool                 // guarded by mu; one of writes is under way
	used    map[string]time.Time // guarded by mu; still to be written
}

// New returns an Auth on what storage keeps. Close it before the storage. What it cannot say to a caller it logs.
func New(storage Storage, log *slog.Logger) *Auth {
	return &Auth{storage: storage, log: log, turn: make(chan struct{}, 1), used: map[string]time.Time{}}
}

// Close returns when the last uses are written. Nothing may be authenticated after.
func (a *Auth) Close() {
	a.mu.Lock()
	a.closed = true
	a.mu.Unlock()
	a.writes.Wait()
}

// Authenticate returns the tenant of a key. What is no key, not known or revoked is one and the same error of
// firebreak.KindDenied, and takes the same time but for the form of the text. If the storage cannot be asked, that is an
// error of its own kind: nobody gets in then.
func (a *Auth) Authenticate(ctx context.Context, key string) (Tenant, error) {
	v, err := a.current(ctx)
	if err != nil {
		return Tenant{}, fmt.Errorf("check API key: %w", err)
	}
	e, ok := v.find(key)
	if !ok {
		return Tenant{}, denied()
	}
	a.touch(e)
	return e.tenant, nil
}

func denied() error {
	return &firebreak.Error{Kind: firebreak.KindDenied, Op: "check API key", Err: errors.New("it is not valid"),
		Mend: "firebreak key create makes one"}
}

// Create makes a key for a tenant and returns it: it is not kept and cannot be shown again. The name is for people, up
// to 100 bytes. firebreak.KindNotFound if there is no such tenant, KindInvalid for a name that cannot be shown.
func (a *Auth) Create(ctx context.Context, tenant, name string) (string, Key, error) {
	if err := checkName(name); err != nil {
		return "", Key{}, err
	}
	for {
		key, id, hash := newKey()
		r := KeyRecord{Key: Key{ID: id, Tenant: tenant, Name: name, Created: time.Now().UTC().Truncate(time.Millisecond)}, Hash: hash}
		err := a.storage.InsertKey(ctx, r)
		if errors.Is(err, fs.ErrExist) { // one in 2³², for each key that there is
			continue
		}
		if err != nil {
			return "", Key{}, fmt.Errorf("create API key: %w", err)
		}
		a.changes.Add(1)
		return key, r.Key, nil
	}
}

func checkName(name string) error {
	bad := !utf8.ValidString(name) || len(name) > 100
	for _, r := range name {
		bad = bad || !unicode.IsPrint(r) // it is shown on terminals
	}
	if bad {
		return &firebreak.Error{Kind: firebreak.KindInvalid, Op: "create API key", Err: fmt.Errorf("its name %.100q is longer than 100 bytes, or cannot be shown", name)}
	}
	return nil
}

// List returns all keys, revoked ones too, the oldest first.
func (a *Auth) List(ctx context.Context) ([]Key, error) {
	r, err := a.storage.LoadAuth(ctx, 0)
	if err != nil {
		return nil, fmt.Errorf("list API keys: %w", err)
	}
	keys := make([]Key, len(r.Keys))
	for i := range r.Keys {
		keys[i] = r.Keys[i].Key
	}
	return keys, nil
}

// Revoke has a key denied from now on, in other processes within Staleness. firebreak.KindNotFound if there is none of
// this ID; nil if it was revoked before.
func (a *Auth) Revoke(ctx context.Context, id string) error {
	if !isID(id) { // perhaps the key itself, which is not to be repeated
		return &firebreak.Error{Kind: firebreak.KindInvalid, Op: "revoke API key", Err: errors.New("that is not the ID of a key"),
			Mend: "firebreak key ls shows the IDs"}
	}
	if err := a.storage.RevokeKey(ctx, id, time.Now()); err != nil {
		return fmt.Errorf("revoke API key: %w", err)
	}
	a.changes.Add(1)
	return nil
}

// Tenant returns the tenant of an ID. firebreak.KindNotFound if there is none.
func (a *Auth) Tenant(ctx context.Context, id string) (Tenant, error) {
	r, err := a.storage.LoadAuth(ctx, 0)
	if err != nil {
		return Tenant{}, fmt.Errorf("find tenant: %w", err)
	}
	for _, t := range r.Tenants {
		if t.ID == id {
			return t, nil
		}
	}
	return Tenant{}, &firebreak.Error{Kind: firebreak.KindNotFound, Op: "find tenant", Err: fmt.Errorf("there is no tenant %q: %w", id, fs.ErrNotExist)}
}

// Tenants returns all tenants, by their IDs.
func (a *Auth) Tenants(ctx context.Context) ([]Tenant, error) {
	r, err := a.storage.LoadAuth(ctx, 0)
	if err != nil {
		return nil, fmt.Errorf("list tenants: %w", err)
	}
	slices.SortFunc(r.Tenants, func(a, b Tenant) int { return strings.Compare(a.ID, b.ID) })
	return r.Tenants, nil
}

// SetTenant saves a tenant, new or changed. firebreak.KindInvalid for what a tenant cannot be.
func (a *Auth) SetTenant(ctx context.Context, t Tenant) error {
	if err := t.Check(); err != nil {
		return err
	}
	if err := a.storage.PutTenant(ctx, t); err != nil {
		return fmt.Errorf("set tenant: %w", err)
	}
	a.changes.Add(1)
	return nil
}
