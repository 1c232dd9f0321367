package manager

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/event"
	"github.com/firebreak-dev/firebreak/internal/host"
	"github.com/firebreak-dev/firebreak/internal/lifecycle"
	"github.com/firebreak-dev/firebreak/internal/pool"
	"github.com/firebreak-dev/firebreak/internal/store"
)

// Pool asks for sandboxes that are made ahead. A request that would be given the same gets one of them.
type Pool struct {
	Name     string             // empty: the template's, with the driver's if one is named
	Template string             // empty: host
	Driver   string             // empty: the policy chooses by Workload
	Workload firebreak.Workload // of those who will claim them
	Limits   firebreak.Limits   // zero fields as in Request
	Warm     []string           // languages whose default code context is started too
	Min, Max int                // how many are kept ready, depending on demand
}

// Complete returns p with the template and the name that it has where they are empty.
func (p Pool) Complete() Pool {
	p.Template = cmp.Or(p.Template, "host")
	p.Name = cmp.Or(p.Name, strings.TrimSuffix(p.Template+"/"+p.Driver, "/"))
	return p
}

// PoolStatus is what a pool asks for, and what it has and did.
type PoolStatus struct {
	Pool
	pool.Stats
}

const (
	poolIdle    = time.Hour             // after which what lies ready is replaced
	refillAfter = 30 * time.Millisecond // longer than a claim takes
	yieldAtMost = 50 * time.Millisecond

	// The programs of a sandbox give back a second after their start what only the start needed. What a claim needs is then
	// brought back in advance.
	rehearseAfter   = 1500 * time.Millisecond
	rehearseTimeout = 5 * time.Second
	poolMemory      = 256 << 20 // of the host, in bytes, that are not used for what nobody asked for yet
)

// shape is what of a sandbox is decided when it is made. Requests of the same shape can have each other's.
type shape struct {
	template, digest, driver string
	limits                   firebreak.Limits
	network                  driver.Network
	options                  string
}

func shapeOf(r store.Record) shape {
	s := shape{template: r.Template, digest: r.Digest, driver: r.Driver, limits: r.Spec.Limits, network: r.Spec.Network}
	if len(r.Spec.Options) > 0 {
		s.options = fmt.Sprintf("%q", r.Spec.Options) // sorted by key
	}
	return s
}

// ahead is a pool at work.
type ahead struct {
	ask  Pool
	pool *pool.Pool[*box]

	mu   sync.Mutex
	last shape // guarded by mu: of what was made last
}

func (a *ahead) makes(s shape) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.last == s
}

// pools are the pools of a manager.
type pools struct {
	slots    chan struct{} // taken while one is made, for all pools together
	claiming atomic.Int64  // claims under way
	set      sync.Mutex    // held while pools are changed

	mu  sync.Mutex
	all []*ahead // guarded by mu
}

func newPools() *pools { return &pools{slots: make(chan struct{}, max(1, runtime.NumCPU()/2))} }

// yield waits while somebody claims: a client waits for that, and nobody for what refills the pool. It does not wait for
// long, as there may always be somebody.
func (p *pools) yield() {
	for end := time.Now().Add(yieldAtMost); p.claiming.Load() > 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
}

func (p *pools) list() []*ahead {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.all)
}

// SetPools makes the pools of this manager these. Those that stay as they are keep what they have. KindInvalid if they
// contradict each other or themselves; then nothing has changed.
func (m *Manager) SetPools(ctx context.Context, want []Pool) error {
	ctx, done, err := m.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	m.pools.set.Lock()
	defer m.pools.set.Unlock()
	want = slices.Clone(want)
	if err := completePools(want); err != nil {
		return err
	}
	have := m.pools.list()
	var keep, fresh, old []*ahead
	for _, ask := range want {
		if i := slices.IndexFunc(have, func(a *ahead) bool { return reflect.DeepEqual(a.ask, ask) }); i >= 0 {
			keep = append(keep, have[i])
			continue
		}
		a, err := m.newAhead(ask)
		if err != nil {
			return errors.Join(err, closeAll(ctx, fresh))
		}
		fresh = append(fresh, a)
	}
	for _, a := range have {
		if !slices.Contains(keep, a) {
			old = append(old, a)
		}
	}
	m.pools.mu.Lock()
	m.pools.all = append(keep, fresh...)
	m.pools.mu.Unlock()
	return closeAll(ctx, old)
}

func completePools(all []Pool) error {
	names := map[string]bool{}
	for i := range all {
		all[i] = all[i].Complete()
		p := all[i]
		if names[p.Name] {
			return &firebreak.Error{Kind: firebreak.KindInvalid, Op: "set pools", Err: fmt.Errorf("two pools are called %q", p.Name), Mend: "give them names"}
		}
		names[p.Name] = true
	}
	return nil
}

func closeAll(ctx context.Context, all []*ahead) error {
	var errs []error
	for _, a := range all {
		errs = append(errs, a.pool.Close(ctx))
	}
	return errors.Join(errs...)
}

func (m *Manager) newAhead(ask Pool) (*ahead, error) {
	a := &ahead{ask: ask}
	log := m.log.With("pool", ask.Name)
	var err error
	a.pool, err = pool.New(pool.Config[*box]{
		Min: ask.Min, Max: ask.Max, MaxMaking: max(1, runtime.NumCPU()/2), IdleTTL: poolIdle, MakeTimeout: createTimeout, RefillAfter: refillAfter,
		Make:    func(ctx context.Context) (*box, error) { return m.makeAhead(ctx, a) },
		Check:   m.checkAhead,
		Discard: m.discard,
		Failed:  func(err error) { log.Warn("make sandboxes ahead", "err", err) },
	})
	if err != nil {
		return nil, fmt.Errorf("pool %s: %w", ask.Name, err)
	}
	return a, nil
}

// makeAhead makes a sandbox that is nobody's yet. It is not detached: if this process dies, it goes.
func (m *Manager) makeAhead(ctx context.Context, a *ahead) (*box, error) {
	ctx, done, err := m.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	select {
	case m.pools.slots <- struct{}{}:
		defer func() { <-m.pools.slots }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	m.pools.yield()
	p, err := m.planAhead(ctx, a.ask)
	if err != nil {
		return nil, err
	}
	rec, err := m.make(ctx, p, &Timings{})
	if err != nil {
		return nil, createError(ctx, err)
	}
	b := m.box(rec.ID)
	if b == nil {
		return nil, fmt.Errorf("sandbox %s ended at once", rec.ID)
	}
	for _, language := range a.ask.Warm {
		if err := b.guest.Warm(ctx, language); err != nil {
			m.discard(context.WithoutCancel(ctx), b)
			return nil, fmt.Errorf("start %s in a sandbox of template %s: %w", language, rec.Template, err)
		}
	}
	m.work.Go(func() { m.rehearse(b) })
	a.mu.Lock()
	defer a.mu.Unlock()
	a.last = shapeOf(rec)
	return b, nil
}

// rehearse has what lies in a pool do once more what a claim, and the first command after it, will ask of it.
func (m *Manager) rehearse(b *box) {
	select {
	case <-time.After(rehearseAfter):
	case <-b.done:
		return
	case <-m.ctx.Done():
		return
	}
	ctx, cancel := context.WithTimeout(m.ctx, rehearseTimeout)
	defer cancel()
	if b.take(ctx) != nil {
		return
	}
	defer b.leave()
	if rec := b.record(); rec.Pool != "" { // a check finds out if this fails
		_ = m.tell(ctx, b.guest, rec)
		_, _ = shell(ctx, b.guest, "true", "")
	}
}

func (m *Manager) planAhead(ctx context.Context, ask Pool) (plan, error) {
	req := Request{Template: ask.Template, Driver: ask.Driver, Workload: ask.Workload, Limits: ask.Limits}
	p, err := m.plan(ctx, req, &Timings{})
	if err != nil {
		return p, err
	}
	// Its time begins when it is somebody's.
	p.request.Timeout, p.record.Timeout, p.record.Pool = 0, 0, ask.Name
	p.release = func() {}
	if free, err := host.FreeMemory(); err != nil || free < poolMemory+p.record.Spec.Limits.Memory/4 {
		return p, &firebreak.Error{Kind: firebreak.KindExhausted, Op: "make a sandbox ahead", Err: errors.Join(fmt.Errorf("the host has only %d MiB of memory left", free>>20), err),
			Mend: "free memory, or make the pool smaller"}
	}
	return p, nil
}

// checkAhead is an error unless b still is what a request would be given.
func (m *Manager) checkAhead(ctx context.Context, b *box) error {
	rec := b.record()
	if m.box(rec.ID) != b {
		return fmt.Errorf("sandbox %s: %w", rec.ID, fs.ErrNotExist)
	}
	tpl, err := m.cfg.Images.Get(rec.Template)
	if err != nil {
		return err
	}
	if tpl.Digest != rec.Digest {
		return fmt.Errorf("template %s was made anew", rec.Template)
	}
	return b.guest.Health(ctx)
}

func (m *Manager) discard(ctx context.Context, b *box) {
	rec := b.record()
	if _, err := m.end(ctx, rec, lifecycle.EventDeleted, driver.Exit{Reason: firebreak.EndDestroyed, Code: -1}, nil); err != nil {
		m.log.Warn("discard a sandbox of a pool", "sandbox", rec.ID, "err", err)
	}
}

// claim hands out a sandbox that was made ahead, if one of the plan's shape is ready.
func (m *Manager) claim(ctx context.Context, p plan, t *Timings) (store.Record, bool, error) {
	m.pools.claiming.Add(1)
	defer m.pools.claiming.Add(-1)
	for _, a := range m.pools.list() {
		if len(p.record.Spec.Mounts) > 0 || !a.makes(shapeOf(p.record)) {
			continue
		}
		b, ok, err := a.pool.Claim(ctx)
		if err != nil || !ok {
			continue // the pool is being closed, or empty
		}
		start := time.Now()
		rec, err := m.handOver(ctx, b, p)
		if err == nil {
			t.Agent, t.Pool = time.Since(start), a.ask.Name
			return rec, true, nil
		}
		m.discard(context.WithoutCancel(ctx), b)
		if firebreak.KindOf(err) == firebreak.KindExists || ctx.Err() != nil {
			return rec, false, err
		}
		m.log.Warn("hand out a sandbox of a pool", "sandbox", rec.ID, "err", err)
	}
	return store.Record{}, false, nil
}

// handOver makes a sandbox of a pool somebody's. The record comes first: from then on it is kept if this process dies.
func (m *Manager) handOver(ctx context.Context, b *box, p plan) (store.Record, error) {
	if err := b.take(ctx); err != nil {
		return b.record(), err
	}
	defer b.leave()
	var was store.Record
	rec, err := m.cfg.Store.Update(ctx, b.record().ID, func(r *store.Record) error {
		if r.State != firebreak.StateRunning || r.Pool == "" || shapeOf(*r) != shapeOf(p.record) {
			return stateError(*r)
		}
		was = *r
		*r = p.record
		r.ID, r.Owner, r.State, r.Spec, r.Token, r.Boundary = was.ID, was.Owner, was.State, was.Spec, was.Token, was.Boundary
		r.Created = time.Now().UTC()
		if p.request.Timeout > 0 {
			r.Deadline = r.Created.Add(p.request.Timeout)
		}
		return nil
	}, store.Telling(event.TypeCreated))
	if err != nil {
		return b.record(), err
	}
	b.note(rec)
	if !maps.Equal(rec.Agent.Envs, was.Agent.Envs) || rec.Agent.User != was.Agent.User || rec.Agent.Workdir != was.Agent.Workdir {
		err = m.tell(ctx, b.guest, rec)
	} else if !rec.Deadline.IsZero() {
		m.work.Go(func() { m.tellDeadline(b) })
	}
	if err != nil {
		return rec, err
	}
	m.charge(b, p.release)
	return rec, nil
}

// tellDeadline has the agent know when to end its sandbox, should this process not live to do it. Nobody waits for that:
// one that is not told is told by the process after this one.
func (m *Manager) tellDeadline(b *box) {
	if b.take(m.ctx) != nil {
		return
	}
	defer b.leave()
	if rec := b.record(); rec.State == firebreak.StateRunning {
		if err := m.tell(m.ctx, b.guest, rec); err != nil {
			m.log.Warn("tell a sandbox its deadline", "sandbox", rec.ID, "err", err)
		}
	}
}

// Pools returns what there is of pools.
func (m *Manager) Pools() []PoolStatus {
	all := []PoolStatus{}
	for _, a := range m.pools.list() {
		all = append(all, PoolStatus{a.ask, a.pool.Stats()})
	}
	return all
}

// DrainPool has what lies in a pool replaced. KindNotFound if there is none of this name.
func (m *Manager) DrainPool(ctx context.Context, name string) error {
	for _, a := range m.pools.list() {
		if a.ask.Name == name {
			return a.pool.Drain(ctx)
		}
	}
	return &firebreak.Error{Kind: firebreak.KindNotFound, Op: "drain pool", Err: fmt.Errorf("there is no pool %q: %w", name, fs.ErrNotExist), Mend: "see firebreak pool ls"}
}
