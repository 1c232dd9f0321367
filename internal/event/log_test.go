package event_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/event"
	"github.com/firebreak-dev/firebreak/internal/store"
)

func open(t testing.TB, dir string) *event.Log {
	t.Helper()
	s, err := store.Open(t.Context(), dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return event.New(s)
}

func operator(t testing.TB) context.Context {
	return auth.WithCaller(t.Context(), auth.Caller{Operator: true})
}

func as(t testing.TB, tenant string) context.Context {
	return auth.WithCaller(t.Context(), auth.Caller{Tenant: auth.Tenant{ID: tenant}})
}

func publish(t testing.TB, l *event.Log, tenant, sandbox string, typ event.Type) {
	t.Helper()
	if err := l.Publish(t.Context(), event.Event{Type: typ, Tenant: tenant, Sandbox: sandbox}); err != nil {
		t.Error(err)
	}
}

// stop ends a watch from within.
var errStop = errors.New("stop")

// watched returns a watch's events, by sandbox, and its error.
func watched(ctx context.Context, l *event.Log, f event.Filter, n int) (string, error) {
	var got []string
	err := l.Watch(ctx, f, func(e event.Event) error {
		got = append(got, e.Sandbox)
		if len(got) == n {
			return errStop
		}
		return nil
	})
	return strings.Join(got, " "), err
}

func TestCallersSeeTheirOwn(t *testing.T) {
	l := open(t, t.TempDir())
	publish(t, l, "acme", "a1", event.TypeCreated)
	publish(t, l, "umbra", "u1", event.TypeCreated)
	publish(t, l, "", "o1", event.TypeCreated)
	all, err := l.List(operator(t), event.Filter{Asc: true})
	if err != nil || len(all) != 3 {
		t.Fatalf("%+v, %v", all, err)
	}
	for _, c := range []struct {
		ctx  context.Context
		f    event.Filter
		want int
		kind firebreak.Kind
	}{
		{as(t, "acme"), event.Filter{}, 1, 0}, {as(t, "acme"), event.Filter{Tenant: "acme"}, 1, 0},
		{as(t, "acme"), event.Filter{Sandbox: "u1"}, 0, 0}, {as(t, "acme"), event.Filter{Tenant: "umbra"}, 0, firebreak.KindDenied},
		{as(t, ""), event.Filter{}, 0, firebreak.KindDenied}, {t.Context(), event.Filter{}, 0, firebreak.KindDenied},
		{operator(t), event.Filter{Tenant: "umbra"}, 1, 0}, {operator(t), event.Filter{Limit: event.MaxLimit + 1}, 0, firebreak.KindInvalid},
		{operator(t), event.Filter{Offset: -1}, 0, firebreak.KindInvalid},
	} {
		got, err := l.List(c.ctx, c.f)
		if len(got) != c.want || (err != nil) != (c.kind != 0) || err != nil && firebreak.KindOf(err) != c.kind {
			t.Errorf("%+v: %+v, %v", c.f, got, err)
		}
		if c.kind == firebreak.KindDenied {
			if err := l.Watch(c.ctx, c.f, func(event.Event) error { return nil }); firebreak.KindOf(err) != c.kind {
				t.Errorf("watch %+v: %v", c.f, err)
			}
		}
	}
	// Another's event is no place to begin at, and its ID cannot be told from one that is not there.
	var errs []string
	for _, id := range []string{all[1].ID, event.IDOf(event.NewPrefix(), 1)} {
		err := l.Watch(as(t, "acme"), event.Filter{After: id}, func(event.Event) error { return nil })
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%v", err)
		}
		errs = append(errs, strings.ReplaceAll(err.Error(), id, ""))
	}
	if errs[0] != errs[1] {
		t.Errorf("%q tells that it is there, beside %q", errs[0], errs[1])
	}
}

func TestWatchBeginsWhereItIsTold(t *testing.T) {
	l := open(t, t.TempDir())
	for i := range 200 { // more than a page
		publish(t, l, "acme", fmt.Sprint(i), event.TypeCreated)
		publish(t, l, "umbra", "u", event.TypeCreated)
	}
	all, err := l.List(operator(t), event.Filter{Tenant: "acme", Asc: true})
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for i := 11; i < 200; i++ {
		want = append(want, fmt.Sprint(i))
	}
	for _, f := range []event.Filter{{After: all[10].ID}, {Seq: all[10].Seq}, {After: all[10].ID, Limit: 1, Offset: 5}} {
		if got, err := watched(as(t, "acme"), l, f, len(want)); got != strings.Join(want, " ") || !errors.Is(err, errStop) {
			t.Errorf("%+v: %v, %v", f, got, err)
		}
	}
	if got, err := watched(operator(t), l, event.Filter{Seq: all[10].Seq, Types: []event.Type{event.TypeCreated}, Sandbox: "150"}, 1); got != "150" {
		t.Errorf("%v, %v", got, err)
	}
}

// Each of many watches, begun at some time, sees each event once and in order while many publish.
func TestWatchesUnderLoad(t *testing.T) {
	l := open(t, t.TempDir())
	before := runtime.NumGoroutine()
	const publishers, each, watches = 8, 60, 20
	publish(t, l, "acme", "first", event.TypeCreated)
	first, err := l.List(operator(t), event.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for range watches {
		all.Go(func() {
			last, n := int64(0), 0
			err := l.Watch(as(t, "acme"), event.Filter{After: first[0].ID}, func(e event.Event) error {
				if e.Number != last+1 && last != 0 || e.Tenant != "acme" {
					t.Errorf("after %d comes %d of %s", last, e.Number, e.Tenant)
				}
				if last, n = e.Number, n+1; n == publishers*each {
					return errStop
				}
				return nil
			})
			if !errors.Is(err, errStop) {
				t.Errorf("%d events, %v", n, err)
			}
		})
	}
	for p := range publishers {
		all.Go(func() {
			for i := range each {
				publish(t, l, "acme", fmt.Sprintf("%d.%d", p, i), event.TypeCreated)
				publish(t, l, "umbra", "other", event.TypeCreated)
			}
		})
	}
	all.Wait()
	// Goroutines of the test itself may take a moment to be gone.
	for end := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before+1 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if n := runtime.NumGoroutine(); n > before+1 { // one is of the store's second connection
		t.Errorf("%d goroutines, %d before", n, before)
	}
}

// One process publishes, another watches.
func TestWatchSeesWhatAnotherProcessPublishes(t *testing.T) {
	dir := t.TempDir()
	here, there := open(t, dir), open(t, dir)
	seen := make(chan struct{})
	var publisher sync.WaitGroup
	publisher.Go(func() {
		for n := 0; ; n++ { // until the watch has seen two, for the first may come before it begins
			select {
			case <-seen:
				return
			default:
				publish(t, there, "acme", "a", event.TypeCreated)
			}
		}
	})
	got, err := watched(operator(t), here, event.Filter{}, 2)
	close(seen)
	publisher.Wait()
	if got != "a a" || !errors.Is(err, errStop) {
		t.Errorf("saw %q, %v", got, err)
	}
}

// A watch that takes nothing is cut off, and nobody waited for it.
func TestSlowWatchIsCut(t *testing.T) {
	l := open(t, t.TempDir())
	stuck, free := make(chan struct{}), make(chan struct{})
	var seen atomic.Int64
	end := make(chan error, 1)
	go func() {
		end <- l.Watch(operator(t), event.Filter{}, func(event.Event) error {
			if seen.Add(1) == 1 {
				close(stuck)
				<-free
			}
			return nil
		})
	}()
	for waiting := true; waiting; {
		publish(t, l, "acme", "a", event.TypeCreated)
		select {
		case <-stuck:
			waiting = false
		default:
		}
	}
	// A second watch has the log read on while the first one is stuck.
	quick := make(chan error, 1)
	ctx, cancel := context.WithCancel(operator(t))
	var last atomic.Int64
	go func() {
		quick <- l.Watch(ctx, event.Filter{}, func(e event.Event) error { last.Store(e.Seq); return nil })
	}()
	for range 3000 {
		publish(t, l, "acme", "a", event.TypeUpdated)
	}
	newest, err := l.Last(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); last.Load() < newest && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	close(free)
	if err := <-end; firebreak.KindOf(err) != firebreak.KindExhausted || !strings.Contains(err.Error(), "too slow") {
		t.Errorf("%v", err)
	}
	cancel()
	if err := <-quick; !errors.Is(err, context.Canceled) || last.Load() != newest {
		t.Errorf("the quick one saw up to %d of %d: %v", last.Load(), newest, err)
	}
}

func TestWatchEndsWithItsContext(t *testing.T) {
	for name, l := range map[string]*event.Log{"log": open(t, t.TempDir()), "nil": nil} {
		ctx, cancel := context.WithCancel(operator(t))
		end := make(chan error, 1)
		go func() { end <- l.Watch(ctx, event.Filter{}, func(event.Event) error { return nil }) }()
		cancel()
		if err := <-end; !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNilLog(t *testing.T) {
	var l *event.Log
	publish(t, l, "acme", "a", event.TypeCreated)
	if all, err := l.List(t.Context(), event.Filter{}); err != nil || all != nil {
		t.Errorf("%v, %v", all, err)
	}
}

func TestPublishFailsWithTheStorage(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	if err := l.Publish(t.Context(), event.Event{Type: "nonsense"}); firebreak.KindOf(err) != firebreak.KindInvalid {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Publish(ctx, event.Event{Type: event.TypeCreated}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if fi, err := os.Stat(filepath.Join(dir, store.File)); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", fi.Mode(), err)
	}
}
