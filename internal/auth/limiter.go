package auth

import (
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/firebreak-dev/firebreak"
)

// crowded is when to try again after a limit that frees up as sandboxes end, which nobody knows ahead.
const crowded = time.Second

// Request is what a new sandbox will take. Zero counts as nothing, so say what it gets and not what was asked for.
type Request struct {
	CPUs   float64
	Memory int64 // bytes
}

// Usage is what a tenant's sandboxes take now.
type Usage struct {
	Sandboxes int     `json:"sandboxes"`
	CPUs      float64 `json:"cpus"`
	Memory    int64   `json:"memory"` // bytes
}

// Limiter counts what each tenant takes and holds it to its limits. It counts in memory: what one process makes. The
// zero value is ready. It may be used concurrently.
type Limiter struct {
	mu      sync.Mutex
	tenants map[string]*account // guarded by mu; by ID
}

type account struct {
	sandboxes int
	milliCPUs int64 // whole numbers: what is given back leaves nothing of rounding
	memory    int64
	creates   *rate.Limiter // nil: not limited so far
}

// Admit counts a new sandbox of a tenant, whose limits are those it has at this moment. Call release when the sandbox
// is gone, or was not made; more calls do nothing.
//
// Over a limit it counts nothing, release is nil and the error is of firebreak.KindExhausted. Then retryAfter says how
// long to wait before it is worth another try, at least; 0: it never is, as the request is more than all the tenant has.
// A request that is no amount is an error of KindInvalid.
func (l *Limiter) Admit(t Tenant, r Request) (release func(), retryAfter time.Duration, err error) {
	if !amount(r.CPUs) || r.Memory < 0 {
		return nil, 0, &firebreak.Error{Kind: firebreak.KindInvalid, Op: "admit sandbox", Err: fmt.Errorf("%v CPUs and %d bytes are no amounts", r.CPUs, r.Memory)}
	}
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.accountLocked(t.ID)
	if retryAfter, err = a.fits(t.Limits, r); err == nil { // a sandbox that there is no room for uses up no create
		retryAfter, err = a.take(t.Limits, now)
	}
	if err != nil {
		return nil, retryAfter, &firebreak.Error{Kind: firebreak.KindExhausted, Op: "admit sandbox", Err: fmt.Errorf("tenant %s: %w", t.ID, err),
			Mend: "end sandboxes, wait, or have the tenant's limits raised"}
	}
	return l.holdLocked(a, r), 0, nil
}

// Hold counts a sandbox that is there anyway, such as one from before a restart, over whatever limit.
func (l *Limiter) Hold(tenant string, r Request) (release func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.holdLocked(l.accountLocked(tenant), r)
}

// Usage returns what a tenant takes now.
func (l *Limiter) Usage(tenant string) Usage {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.accountLocked(tenant)
	return Usage{Sandboxes: a.sandboxes, CPUs: float64(a.milliCPUs) / 1000, Memory: a.memory}
}

func (l *Limiter) accountLocked(tenant string) *account {
	a := l.tenants[tenant]
	if a == nil {
		if l.tenants == nil {
			l.tenants = map[string]*account{}
		}
		a = &account{}
		l.tenants[tenant] = a
	}
	return a
}

func (l *Limiter) holdLocked(a *account, r Request) (release func()) {
	cpus := milli(r.CPUs)
	a.sandboxes, a.milliCPUs, a.memory = a.sandboxes+1, a.milliCPUs+cpus, a.memory+r.Memory
	var once sync.Once
	return func() {
		once.Do(func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			a.sandboxes, a.milliCPUs, a.memory = a.sandboxes-1, a.milliCPUs-cpus, a.memory-r.Memory
		})
	}
}

func milli(cpus float64) int64 { return int64(math.Round(cpus * 1000)) }

// fits returns an error, and when to try again, unless one more sandbox stays within the limits.
func (a *account) fits(l Limits, r Request) (time.Duration, error) {
	for _, part := range []struct {
		what              string
		limit, used, more int64
		unit              float64 // of the limit, in what is shown
	}{
		{"sandboxes at once", int64(l.Sandboxes), int64(a.sandboxes), 1, 1},
		{"CPUs", milli(l.CPUs), a.milliCPUs, milli(r.CPUs), 1000},
		{"MiB of memory", l.Memory, a.memory, r.Memory, 1 << 20},
	} {
		limit, limited := part.limit, part.limit > 0
		if !limited {
			limit = math.MaxInt64 // nothing is counted beyond
		}
		switch {
		case part.more > limit:
			return 0, fmt.Errorf("its limit is %g %s", float64(limit)/part.unit, part.what)
		case part.more > limit-part.used:
			return crowded, fmt.Errorf("its limit is %g %s, and %g are taken", float64(limit)/part.unit, part.what, float64(part.used)/part.unit)
		}
	}
	return 0, nil
}

// take uses up one create, or returns when there is one again.
func (a *account) take(l Limits, now time.Time) (time.Duration, error) {
	if l.CreatesPerSecond == 0 {
		a.creates = nil
		return 0, nil
	}
	burst := l.Burst
	if burst == 0 {
		burst = int(min(max(math.Ceil(l.CreatesPerSecond), 1), 1<<30))
	}
	limit := rate.Limit(l.CreatesPerSecond)
	switch {
	case a.creates == nil:
		a.creates = rate.NewLimiter(limit, burst)
	case a.creates.Limit() != limit || a.creates.Burst() != burst:
		a.creates.SetLimitAt(now, limit)
		a.creates.SetBurstAt(now, burst)
	}
	r := a.creates.ReserveN(now, 1)
	if !r.OK() { // cannot be: the burst is at least 1
		return 0, errors.New("its burst is no create")
	}
	wait := r.DelayFrom(now)
	if wait <= 0 {
		return 0, nil
	}
	r.CancelAt(now)
	return wait, fmt.Errorf("its limit is %g creates per second, %d at a time", l.CreatesPerSecond, burst)
}

// LimitError is a limit of the tenant's that is reached for now. It is in the chain of errors of firebreak.KindExhausted.
type LimitError struct {
	RetryAfter time.Duration // at least how long to wait before it is worth another try
	Err        error
}

func (e *LimitError) Error() string { return e.Err.Error() }

func (e *LimitError) Unwrap() error { return e.Err }
