package pool

import (
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// ball counts what becomes of one thing.
type ball struct {
	claimed, discarded atomic.Int32
	inUse              atomic.Bool // by Check or Discard
}

// bag makes balls that fail at random and remembers all.
type bag struct {
	t  *testing.T
	mu sync.Mutex
	of []*ball // guarded by mu
}

// dawdle takes a moment of random length, or less if ctx ends.
func dawdle(ctx context.Context) {
	if n := rand.IntN(4); n > 0 {
		select {
		case <-time.After(time.Duration(rand.IntN(100*n)) * time.Microsecond):
		case <-ctx.Done():
		}
	}
}

func (b *bag) make(ctx context.Context) (*ball, error) {
	dawdle(ctx)
	if rand.IntN(5) == 0 {
		return nil, errors.New("unlucky")
	}
	made := &ball{}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.of = append(b.of, made)
	return made, nil
}

// use holds a ball alone: that of a claim is never with Check, and none is with two.
func (b *bag) use(ctx context.Context, one *ball) {
	if !one.inUse.CompareAndSwap(false, true) || one.claimed.Load() != 0 {
		b.t.Error("two hold the same thing")
	}
	dawdle(ctx)
	one.inUse.Store(false)
}

func (b *bag) check(ctx context.Context, one *ball) error {
	b.use(ctx, one)
	if rand.IntN(5) == 0 {
		return errors.New("sick")
	}
	return nil
}

func (b *bag) discard(ctx context.Context, one *ball) {
	b.use(ctx, one)
	one.discarded.Add(1)
}

// No thing is handed out twice, and each is handed out or discarded, once, whatever happens at the same time.
func TestHammer(t *testing.T) {
	before := runtime.NumGoroutine()
	rounds := 40
	if testing.Short() {
		rounds = 8
	}
	claims := 0
	for range rounds {
		claims += hammer(t)
	}
	if claims == 0 {
		t.Error("nothing was ever claimed: this tests nothing")
	}
	for range 1000 { // a goroutine that has told of its end needs a moment to be gone
		if runtime.NumGoroutine() <= before {
			return
		}
		runtime.Gosched()
		time.Sleep(time.Millisecond)
	}
	t.Errorf("%d goroutines, %d before", runtime.NumGoroutine(), before)
}

func hammer(t *testing.T) (claims int) {
	bag := &bag{t: t}
	p, err := New(Config[*ball]{Min: rand.IntN(4), Max: 4 + rand.IntN(12), MaxMaking: 1 + rand.IntN(6),
		Make: bag.make, Check: bag.check, Discard: bag.discard, Failed: func(error) {},
		CheckEvery: time.Duration(1 + rand.IntN(300_000)), IdleTTL: time.Duration(rand.IntN(3) * 1_000_000), Window: time.Millisecond,
		Backoff: Backoff{First: 10 * time.Microsecond, Max: 100 * time.Microsecond}})
	if err != nil {
		t.Fatal(err)
	}
	const clients, each = 8, 150
	closing := rand.IntN(clients * each * 2) // or never before the end
	var tries atomic.Int64
	var all sync.WaitGroup
	for range clients {
		all.Go(func() {
			for i := range each {
				if i%50 == 49 { // all cease to ask for a while
					time.Sleep(5 * time.Millisecond)
				}
				one, ok, err := p.Claim(t.Context())
				switch {
				case err != nil && !errors.Is(err, fs.ErrClosed):
					t.Error(err)
				case ok:
					one.claimed.Add(1)
				default:
					dawdle(t.Context())
				}
				n := int(tries.Add(1))
				if n == closing {
					all.Go(func() { _ = p.Close(hasty()) })
				}
				if n%400 == 0 {
					all.Go(func() { _ = p.Drain(hasty()) })
				}
				_ = p.Stats()
			}
		})
	}
	all.Wait()
	if err := p.Close(t.Context()); err != nil {
		t.Error(err)
	}
	return account(t, p.Stats(), bag)
}

// hasty returns a context that may end early.
func hasty() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(time.Duration(rand.IntN(1_000_000)), cancel)
	return ctx
}

func account(t *testing.T, s Stats, b *bag) (claims int) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, one := range b.of {
		claimed, discarded := one.claimed.Load(), one.discarded.Load()
		if claimed+discarded != 1 {
			t.Errorf("a thing was claimed %d times and discarded %d times", claimed, discarded)
		}
		claims += int(claimed)
	}
	if s.Made != uint64(len(b.of)) || s.Claims != uint64(claims) || s.Made != s.Claims+s.Discarded || s.Ready+s.Making+s.Checking != 0 {
		t.Errorf("%+v, but %d were made and %d claimed", s, len(b.of), claims)
	}
	return claims
}

// BenchmarkClaim measures claims that find something ready, while the pool refills at once.
func BenchmarkClaim(b *testing.B) {
	p, err := New(Config[int]{Min: 4096, Max: 4096, MaxMaking: 2, IdleTTL: time.Hour, Check: func(context.Context, int) error { return nil },
		Make: func(context.Context) (int, error) { return 1, nil }})
	if err != nil {
		b.Fatal(err)
	}
	for i := 0; b.Loop(); i++ {
		if i%2048 == 0 {
			b.StopTimer()
			for p.Stats().Ready < 4096 {
				time.Sleep(time.Millisecond)
			}
			b.StartTimer()
		}
		if _, ok, err := p.Claim(b.Context()); err != nil || !ok {
			b.Fatal(ok, err)
		}
	}
	b.StopTimer()
	if err := p.Close(context.Background()); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkMiss measures what is added to the making of a thing when none is ready.
func BenchmarkMiss(b *testing.B) {
	p, err := New(Config[int]{Make: func(context.Context) (int, error) { return 1, nil }})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, ok, err := p.Claim(b.Context()); err != nil || ok {
			b.Fatal(ok, err)
		}
	}
	if err := p.Close(context.Background()); err != nil {
		b.Fatal(err)
	}
}
