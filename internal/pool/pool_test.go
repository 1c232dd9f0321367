package pool

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/firebreak-dev/firebreak"
)

// maker makes numbers and counts what becomes of them.
type maker struct {
	mu   sync.Mutex
	took time.Duration // guarded by mu; by Make
	fail error         // guarded by mu; of Make
	sick map[int]bool  // guarded by mu
	seen seen          // guarded by mu
}

type seen struct {
	next      int
	calls     []time.Time // of Make
	discarded map[int]int
	checked   map[int]int
	failures  []error
}

// look returns what was seen so far.
func (m *maker) look() seen {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.seen
	s.calls, s.failures = slices.Clone(s.calls), slices.Clone(s.failures)
	s.discarded, s.checked = maps.Clone(s.discarded), maps.Clone(s.checked)
	return s
}

func (m *maker) make(ctx context.Context) (int, error) {
	m.mu.Lock()
	m.seen.calls = append(m.seen.calls, time.Now())
	took := m.took
	m.mu.Unlock()
	select {
	case <-time.After(took):
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.seen.next++
	return m.seen.next, m.fail
}

func (m *maker) discard(_ context.Context, n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.seen.discarded[n]++
}

func (m *maker) check(_ context.Context, n int) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.seen.checked[n]++
	if m.sick[n] {
		return errors.New("sick")
	}
	return nil
}

func (m *maker) failed(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.seen.failures = append(m.seen.failures, err)
}

// set changes m while the pool is at work.
func (m *maker) set(change func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change()
}

// inBubble runs a test on a pool, with a clock of its own, on which Make takes a second. After the test the pool is
// closed, and the bubble itself then fails if a goroutine is left.
func inBubble(t *testing.T, cfg Config[int], test func(t *testing.T, p *Pool[int], m *maker)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		m := &maker{took: time.Second, sick: map[int]bool{}, seen: seen{discarded: map[int]int{}, checked: map[int]int{}}}
		cfg.Make, cfg.Check, cfg.Discard, cfg.Failed = m.make, m.check, m.discard, m.failed
		p, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		test(t, p, m)
		if err := p.Close(t.Context()); err != nil {
			t.Error(err)
		}
		s := p.Stats()
		if s.Ready+s.Making+s.Checking+s.Target != 0 || s.Made != s.Claims+s.Discarded {
			t.Errorf("after the end: %+v", s)
		}
		for n, times := range m.look().discarded {
			if times != 1 {
				t.Errorf("%d was discarded %d times", n, times)
			}
		}
	})
}

// after lets time go by, and all goroutines come to rest.
func after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func claim(t *testing.T, p *Pool[int], want int) {
	t.Helper()
	n, ok, err := p.Claim(t.Context())
	if err != nil || n != want || ok != (want != 0) {
		t.Errorf("claimed %d, %v, %v, want %d", n, ok, err, want)
	}
}

func wantReady(t *testing.T, p *Pool[int], ready, target int) {
	t.Helper()
	if s := p.Stats(); s.Ready != ready || s.Target != target {
		t.Errorf("%d are ready of %d, want %d of %d", s.Ready, s.Target, ready, target)
	}
}

func TestConfigContradictions(t *testing.T) {
	ok := func(context.Context) (int, error) { return 0, nil }
	for name, cfg := range map[string]Config[int]{
		"nothing to make": {},
		"max below min":   {Make: ok, Min: 2, Max: 1},
		"negative min":    {Make: ok, Min: -1},
		"negative making": {Make: ok, MaxMaking: -1},
		"negative time":   {Make: ok, Window: -1},
		"negative wait":   {Make: ok, RefillAfter: -1},
		"negative pause":  {Make: ok, Backoff: Backoff{First: -1}},
	} {
		if _, err := New(cfg); firebreak.KindOf(err) != firebreak.KindInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestFillsToMinWithinMaxMaking(t *testing.T) {
	inBubble(t, Config[int]{Min: 5, Max: 5, MaxMaking: 2}, func(t *testing.T, p *Pool[int], m *maker) {
		for _, want := range []Stats{{Making: 2}, {Ready: 2, Making: 2}, {Ready: 4, Making: 1}, {Ready: 5}, {Ready: 5}} {
			synctest.Wait()
			if s := p.Stats(); s.Ready != want.Ready || s.Making != want.Making {
				t.Errorf("%+v, want %+v", s, want)
			}
			after(time.Second)
		}
		claim(t, p, 5)
		synctest.Wait()
		if s := p.Stats(); s.Ready != 4 || s.Making != 1 {
			t.Errorf("no refill at once: %+v", s)
		}
		after(time.Second)
		claim(t, p, 6)
	})
}

func TestRefillWaitsAfterAClaim(t *testing.T) {
	const wait = 100 * time.Millisecond
	inBubble(t, Config[int]{Min: 3, Max: 3, MaxMaking: 3, RefillAfter: wait}, func(t *testing.T, p *Pool[int], m *maker) {
		making := func(want int) {
			t.Helper()
			synctest.Wait()
			if s := p.Stats(); s.Making != want {
				t.Errorf("%d are being made, want %d", s.Making, want)
			}
		}
		making(3) // nobody has claimed
		after(time.Second)
		claim(t, p, p.ready[2].value)
		making(0)
		after(wait / 2)
		claim(t, p, p.ready[1].value) // does not put it off
		making(0)
		after(wait / 2)
		making(2)
		after(time.Second)
		for range 3 {
			claim(t, p, p.ready[len(p.ready)-1].value)
		}
		making(3) // nothing is ready: who asks next would make one anyway
	})
}

func TestEmptyPoolOnlyCountsMisses(t *testing.T) {
	inBubble(t, Config[int]{}, func(t *testing.T, p *Pool[int], m *maker) {
		claim(t, p, 0)
		after(time.Minute)
		if s := p.Stats(); s.Misses != 1 || s.Claims != 0 || len(m.look().calls) != 0 {
			t.Errorf("%+v, made %d", s, len(m.look().calls))
		}
	})
}

func TestClaimOfAnEndedContext(t *testing.T) {
	inBubble(t, Config[int]{Min: 1, Max: 1}, func(t *testing.T, p *Pool[int], m *maker) {
		after(time.Second)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, ok, err := p.Claim(ctx); ok || !errors.Is(err, context.Canceled) {
			t.Errorf("%v, %v", ok, err)
		}
		claim(t, p, 1)
	})
}

func TestTargetFollowsDemand(t *testing.T) {
	inBubble(t, Config[int]{Min: 1, Max: 6, MaxMaking: 6, Window: 10 * time.Second}, func(t *testing.T, p *Pool[int], m *maker) {
		after(2 * time.Second)
		wantReady(t, p, 1, 1)
		claim(t, p, 1)
		for range 7 { // more than may be kept
			claim(t, p, 0)
		}
		after(2 * time.Second)
		wantReady(t, p, 6, 6) // asked for 8 times
		after(10 * time.Second)
		wantReady(t, p, 6, 6) // 8 were, in the window before
		after(10 * time.Second)
		wantReady(t, p, 6, 4) // beyond the target for one window
		after(10 * time.Second)
		wantReady(t, p, 4, 2)
		after(10 * time.Second)
		wantReady(t, p, 2, 1)
		after(10 * time.Second)
		wantReady(t, p, 1, 1)
		calls := len(m.look().calls)
		after(time.Hour)
		wantReady(t, p, 1, 1)
		if len(m.look().calls) != calls {
			t.Errorf("made %d without need", len(m.look().calls)-calls)
		}
	})
}

func TestFailingMakeBacksOffAndRecovers(t *testing.T) {
	cfg := Config[int]{Min: 4, Max: 4, MaxMaking: 4, Backoff: Backoff{First: time.Second, Max: 8 * time.Second}}
	inBubble(t, cfg, func(t *testing.T, p *Pool[int], m *maker) {
		m.set(func() { m.fail = errors.New("broken") })
		after(time.Hour)
		s := p.Stats()
		// At most 4 at once and then one per 4 to 8 s and one of making; at least one per 8 s and that.
		if calls := len(m.look().calls); calls > 4+3600/5+4 || calls < 3600/9 {
			t.Errorf("Make was called %d times in an hour", calls)
		}
		if s.Ready != 0 || s.Failures+uint64(s.Making) != uint64(len(m.look().calls)) || s.Failing == nil || len(m.look().failures) != int(s.Failures) {
			t.Errorf("%+v after %d calls", s, len(m.look().calls))
		}
		calls := m.look().calls
		for i := 6; i < len(calls); i++ {
			if gap := calls[i].Sub(calls[i-1]); gap < time.Second+time.Second/2 {
				t.Errorf("call %d came %s after the one before", i, gap)
			}
		}
		m.set(func() { m.fail = nil })
		after(20 * time.Second)
		wantReady(t, p, 4, 4)
		if s := p.Stats(); s.Failing != nil {
			t.Errorf("still failing: %v", s.Failing)
		}
	})
}

func TestHungMakeEnds(t *testing.T) {
	inBubble(t, Config[int]{Min: 1, Max: 1, MakeTimeout: 3 * time.Second}, func(t *testing.T, p *Pool[int], m *maker) {
		m.set(func() { m.took = time.Hour })
		after(3 * time.Second)
		if s := p.Stats(); s.Failures != 1 || !errors.Is(s.Failing, context.DeadlineExceeded) {
			t.Errorf("%+v", s)
		}
	})
}

func TestSickThingsAreReplaced(t *testing.T) {
	inBubble(t, Config[int]{Min: 3, Max: 3, MaxMaking: 3, CheckEvery: 30 * time.Second}, func(t *testing.T, p *Pool[int], m *maker) {
		after(10 * time.Second)
		m.set(func() { m.sick[2] = true })
		after(25 * time.Second)
		wantReady(t, p, 3, 3)
		if s := p.Stats(); s.Unhealthy != 1 || m.look().discarded[2] != 1 || m.look().checked[1] != 1 || m.look().checked[3] != 1 || len(m.look().failures) != 1 {
			t.Errorf("%+v, discarded %v, checked %v, failures %v", s, m.look().discarded, m.look().checked, m.look().failures)
		}
		after(time.Minute)
		if m.look().checked[1] != 3 || m.look().checked[2] != 1 {
			t.Errorf("checked %v", m.look().checked)
		}
	})
}

func TestIdleThingsAreRenewed(t *testing.T) {
	inBubble(t, Config[int]{Min: 2, Max: 2, IdleTTL: time.Minute}, func(t *testing.T, p *Pool[int], m *maker) {
		after(59 * time.Second)
		if len(m.look().discarded) != 0 {
			t.Errorf("too early: %v", m.look().discarded)
		}
		after(5 * time.Second)
		wantReady(t, p, 2, 2)
		if m.look().discarded[1] != 1 || m.look().discarded[2] != 1 || m.look().next != 4 {
			t.Errorf("discarded %v of %d", m.look().discarded, m.look().next)
		}
	})
}

func TestDrainReplacesAll(t *testing.T) {
	inBubble(t, Config[int]{Min: 4, Max: 4, MaxMaking: 2}, func(t *testing.T, p *Pool[int], m *maker) {
		after(time.Second + time.Second/2) // two are ready, two half made
		began := time.Now()
		if err := p.Drain(t.Context()); err != nil || time.Since(began) != 0 {
			t.Errorf("%v after %s", err, time.Since(began))
		}
		if m.look().discarded[1] != 1 || m.look().discarded[2] != 1 {
			t.Errorf("discarded %v", m.look().discarded)
		}
		claim(t, p, 0)
		after(2 * time.Second)
		wantReady(t, p, 4, 4)
		if s := p.Stats(); s.Failures != 0 || len(m.look().failures) != 0 {
			t.Errorf("what was told to end failed: %+v", s)
		}
	})
}

func TestDrainGoesOnAfterItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, err := New(Config[int]{Min: 1, Max: 1,
			Make:    func(context.Context) (int, error) { return 1, nil },
			Discard: func(context.Context, int) { time.Sleep(time.Minute) },
		})
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := p.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		after(time.Minute)
		if s := p.Stats(); s.Discarded != 1 || s.Ready != 1 {
			t.Errorf("%+v", s)
		}
		if err := p.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestCloseEndsWhatIsUnderWay(t *testing.T) {
	inBubble(t, Config[int]{Min: 3, Max: 3, MaxMaking: 1}, func(t *testing.T, p *Pool[int], m *maker) {
		after(time.Second + time.Second/2)
		began := time.Now()
		for range 2 {
			if err := p.Close(t.Context()); err != nil {
				t.Error(err)
			}
		}
		if took := time.Since(began); took != 0 || m.look().discarded[1] != 1 {
			t.Errorf("took %s, discarded %v", took, m.look().discarded)
		}
		if _, ok, err := p.Claim(t.Context()); ok || !errors.Is(err, fs.ErrClosed) || firebreak.KindOf(err) != firebreak.KindUnavailable {
			t.Errorf("claim of a closed pool: %v, %v", ok, err)
		}
		if err := p.Drain(t.Context()); !errors.Is(err, fs.ErrClosed) {
			t.Errorf("drain of a closed pool: %v", err)
		}
	})
}

func TestCloseHurriesDiscards(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, err := New(Config[int]{Min: 3, Max: 3,
			Make:    func(context.Context) (int, error) { return 1, nil },
			Discard: func(ctx context.Context, _ int) { <-ctx.Done() },
		})
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := p.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		if s := p.Stats(); s.Discarded != 3 {
			t.Errorf("%+v", s)
		}
	})
}
