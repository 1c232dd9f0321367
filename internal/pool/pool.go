// Package pool keeps things made ahead, so that whoever needs one need not wait until it is made. It knows nothing of
// what they are. As many are kept ready as demand asks for (see demand), within bounds; they are looked at while they
// lie, and each is handed out once or discarded once.
package pool

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak"
)

// Config says how things are made and how many are kept. All but Make may be left zero.
//
// Make, Check and Discard are called from goroutines of the pool, several at once but for Check, and never two of them
// for the same thing. They must return soon after their context ends: Close waits for them. They may read Stats, and
// must not call Drain or Close.
type Config[T any] struct {
	Min, Max  int // how many are kept ready, depending on demand; Max is at least Min
	MaxMaking int // how many are made at once, and discarded at once; 0 is 2

	Make    func(context.Context) (T, error) // on an error nothing is left behind
	Check   func(context.Context, T) error   // whether it still works; nil: things do not fail
	Discard func(context.Context, T)         // of whatever is not handed out; nil: nothing is to be done

	RefillAfter  time.Duration // from a claim until what lacks is made, if others are ready, so that who claimed has the processor first; 0: at once
	CheckEvery   time.Duration // between two checks of a thing, the first of which is Make; 0 is 30 s
	IdleTTL      time.Duration // how long a thing may lie ready before a new one takes its place; 0 is for ever
	Window       time.Duration // over which demand is counted; 0 is 10 s
	MakeTimeout  time.Duration // after which the context of Make ends; 0 is 1 min
	CheckTimeout time.Duration // after which the context of Check ends; 0 is 5 s
	Backoff      Backoff       // the pause after Make has failed

	// Failed, if not nil, hears of each failure of Make and Check, in the goroutine where it happened and several at once.
	Failed func(error)
}

func (c *Config[T]) complete() error {
	switch {
	case c.Make == nil:
		return errors.New("there is nothing to make things with")
	case c.Min < 0 || c.Max < c.Min || c.MaxMaking < 0:
		return fmt.Errorf("min %d, max %d and %d made at once contradict each other", c.Min, c.Max, c.MaxMaking)
	case min(c.RefillAfter, c.CheckEvery, c.IdleTTL, c.Window, c.MakeTimeout, c.CheckTimeout, c.Backoff.First, c.Backoff.Max) < 0:
		return errors.New("a time is negative")
	}
	if c.MaxMaking == 0 {
		c.MaxMaking = 2
	}
	for _, d := range []struct {
		of     *time.Duration
		unsaid time.Duration
	}{
		{&c.CheckEvery, 30 * time.Second}, {&c.Window, 10 * time.Second},
		{&c.MakeTimeout, time.Minute}, {&c.CheckTimeout, 5 * time.Second},
		{&c.Backoff.First, 100 * time.Millisecond}, {&c.Backoff.Max, 30 * time.Second},
	} {
		if *d.of == 0 {
			*d.of = d.unsaid
		}
	}
	return nil
}

// Pool is a pool of things of type T. It may be used concurrently.
type Pool[T any] struct {
	cfg  Config[T]
	wake chan struct{} // holds one message for the keeper: something has changed
	work sync.WaitGroup
	done chan struct{} // closed when the keeper, the last goroutine, ends

	discards context.Context // of all calls of Discard
	hurry    context.CancelFunc

	mu         sync.Mutex
	closed     bool        // guarded by mu
	current    *generation // guarded by mu; that of things made from now on
	ready      []thing[T]  // guarded by mu; the one whose check is the longest ago comes first
	expiry     time.Time   // guarded by mu; none that is ready has lain too long before; zero: none ever will
	making     int         // guarded by mu; calls of Make, of all generations
	checking   *generation // guarded by mu; that of the thing which is with Check, or nil
	doomed     []thing[T]  // guarded by mu; wait to be discarded
	discarding int         // guarded by mu; calls of Discard
	alive      int         // guarded by mu; of all generations together
	refill     time.Time   // guarded by mu; nothing is made before, if something is ready
	demand     demand      // guarded by mu
	failing    failing     // guarded by mu
	counts     Stats       // guarded by mu; only what is counted
}

// thing is one T with what the pool knows of it.
type thing[T any] struct {
	value   T
	of      *generation
	made    time.Time
	checked time.Time
}

// generation is all that was begun between two drains.
type generation struct {
	ctx    context.Context // of Make and Check
	retire context.CancelFunc
	making int           // guarded by Pool.mu; calls of Make
	alive  int           // guarded by Pool.mu; begun, and neither handed out nor discarded
	gone   chan struct{} // closed when it is retired and nothing of it is alive
}

func newGeneration() *generation {
	ctx, cancel := context.WithCancel(context.Background())
	return &generation{ctx: ctx, retire: cancel, gone: make(chan struct{})}
}

// Stats is what a pool has and did.
type Stats struct {
	Ready    int `json:"ready"`    // can be claimed now
	Making   int `json:"making"`   // being made
	Checking int `json:"checking"` // with Check, 0 or 1
	Target   int `json:"target"`   // as many are to be ready

	// Counted since New.
	Claims    uint64 `json:"claims"`    // handed out
	Misses    uint64 `json:"misses"`    // asked for when none was ready
	Made      uint64 `json:"made"`      // handed out, discarded or still here
	Discarded uint64 `json:"discarded"` // for whatever reason
	Failures  uint64 `json:"failures"`  // calls of Make that failed
	Unhealthy uint64 `json:"unhealthy"` // things that failed their check

	Failing error `json:"-"` // why the last Make failed; nil once one has succeeded
}

// New starts a pool, which fills at once up to its Min. A contradiction in cfg is an error of firebreak.KindInvalid.
// Close ends it.
func New[T any](cfg Config[T]) (*Pool[T], error) {
	if err := cfg.complete(); err != nil {
		return nil, &firebreak.Error{Kind: firebreak.KindInvalid, Op: "make pool", Err: err}
	}
	p := &Pool[T]{cfg: cfg, wake: make(chan struct{}, 1), done: make(chan struct{}), current: newGeneration()}
	p.discards, p.hurry = context.WithCancel(context.Background())
	p.demand.start(time.Now(), cfg.Window)
	go p.keep()
	return p, nil
}

// Claim hands out the thing that was checked last, or says at once that none is ready: then the caller makes its own.
// From then on the thing is the caller's alone. Whether it still works is not tried now: that was so when it was made
// or checked, at most about CheckEvery ago. The error is that of ctx, or fs.ErrClosed with firebreak.KindUnavailable.
func (p *Pool[T]) Claim(ctx context.Context) (T, bool, error) {
	var none T
	if err := ctx.Err(); err != nil {
		return none, false, err
	}
	now := time.Now()
	defer p.poke()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return none, false, closed("claim from pool")
	}
	p.demand.ask(now)
	last := len(p.ready) - 1
	for last >= 0 && p.stale(p.ready[last], now) {
		last--
	}
	if last < 0 {
		p.counts.Misses++
		return none, false, nil
	}
	got := p.ready[last]
	p.ready = slices.Delete(p.ready, last, last+1)
	p.leaveLocked(got.of)
	p.counts.Claims++
	if !now.Before(p.refill) { // else claims that follow each other closely would put it off for ever
		p.refill = now.Add(p.cfg.RefillAfter)
	}
	return got.value, true, nil
}

func closed(op string) error {
	return &firebreak.Error{Kind: firebreak.KindUnavailable, Op: op, Err: fmt.Errorf("pool: %w", fs.ErrClosed)}
}

// Drain has all that was begun before it discarded, and fills the pool anew: once it is called, nothing older is handed
// out. So after a change of what Make makes: change it, then drain. It returns when the old things are gone, or with
// the error of ctx, and then they go in the background. fs.ErrClosed after Close.
func (p *Pool[T]) Drain(ctx context.Context) error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return closed("drain pool")
	}
	old := p.current
	p.current = newGeneration()
	p.retireLocked(old)
	p.mu.Unlock()
	p.poke()
	select {
	case <-old.gone:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("drain pool: %w", ctx.Err())
	}
}

// Close discards all and returns when every goroutine of the pool has ended. When ctx ends before, so do the contexts
// of what is still being discarded, and its error is returned. It may be called again.
func (p *Pool[T]) Close(ctx context.Context) error {
	p.mu.Lock()
	if !p.closed {
		p.closed = true
		p.retireLocked(p.current)
	}
	p.mu.Unlock()
	p.poke()
	stop := context.AfterFunc(ctx, p.hurry)
	<-p.done
	if !stop() {
		return fmt.Errorf("close pool: %w", ctx.Err())
	}
	return nil
}

// Stats returns what the pool has and did, at one moment.
func (p *Pool[T]) Stats() Stats {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.counts
	s.Ready, s.Making = len(p.ready), p.making
	if p.checking != nil {
		s.Checking = 1
	}
	if !p.closed {
		s.Target = p.targetLocked(now)
	}
	s.Failing = p.failing.err
	return s
}

// poke has the keeper look again.
func (p *Pool[T]) poke() {
	select {
	case p.wake <- struct{}{}:
	default: // it is about to anyway
	}
}
