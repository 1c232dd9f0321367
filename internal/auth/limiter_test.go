package auth

import (
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/firebreak-dev/firebreak"
)

func TestTenantCheck(t *testing.T) {
	for name, c := range map[string]struct {
		tenant Tenant
		ok     bool
	}{
		"least":           {Tenant{ID: "a"}, true},
		"longest":         {Tenant{ID: strings.Repeat("a", 63)}, true},
		"all":             {Tenant{ID: "0-a", Limits: Limits{Sandboxes: 1, CPUs: 0.5, Memory: 1, CreatesPerSecond: 0.1, Burst: 9}}, true},
		"no ID":           {Tenant{}, false},
		"too long":        {Tenant{ID: strings.Repeat("a", 64)}, false},
		"a path":          {Tenant{ID: "../a"}, false},
		"upper case":      {Tenant{ID: "A"}, false},
		"hyphen first":    {Tenant{ID: "-a"}, false},
		"negative":        {Tenant{ID: "a", Limits: Limits{Sandboxes: -1}}, false},
		"no number":       {Tenant{ID: "a", Limits: Limits{CPUs: math.NaN()}}, false},
		"endless":         {Tenant{ID: "a", Limits: Limits{CreatesPerSecond: math.Inf(1)}}, false},
		"hardly a CPU":    {Tenant{ID: "a", Limits: Limits{CPUs: 1e-9}}, false},
		"burst of what":   {Tenant{ID: "a", Limits: Limits{Burst: 3}}, false},
		"no such origin":  {Tenant{ID: "a", Workload: firebreak.Workload{Origin: 99}}, false},
		"negative memory": {Tenant{ID: "a", Limits: Limits{Memory: -1}}, false},
	} {
		if err := c.tenant.Check(); (err == nil) != c.ok || (!c.ok && firebreak.KindOf(err) != firebreak.KindInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func wantExhausted(t *testing.T, l *Limiter, tenant Tenant, r Request, retry time.Duration, part string) {
	t.Helper()
	before := l.Usage(tenant.ID)
	release, after, err := l.Admit(tenant, r)
	if release != nil || after != retry || firebreak.KindOf(err) != firebreak.KindExhausted || !strings.Contains(err.Error(), part) {
		t.Errorf("admitted, again after %s, %v; want %s and %q", after, err, retry, part)
	}
	if l.Usage(tenant.ID) != before {
		t.Errorf("a refusal is counted: %+v, before %+v", l.Usage(tenant.ID), before)
	}
}

func admit(t *testing.T, l *Limiter, tenant Tenant, r Request) (release func()) {
	t.Helper()
	release, after, err := l.Admit(tenant, r)
	if err != nil || after != 0 {
		t.Fatalf("not admitted: %s, %v", after, err)
	}
	return release
}

func TestLimitsOfWhatIsThereAtOnce(t *testing.T) {
	const gib = 1 << 30
	tenant := Tenant{ID: "a", Limits: Limits{Sandboxes: 3, CPUs: 2, Memory: 4 * gib}}
	var l Limiter
	first := admit(t, &l, tenant, Request{CPUs: 0.7, Memory: gib})
	wantExhausted(t, &l, tenant, Request{CPUs: 1.31}, crowded, "limit is 2 CPUs, and 0.7 are taken")
	wantExhausted(t, &l, tenant, Request{CPUs: 2.1}, 0, "limit is 2 CPUs")
	wantExhausted(t, &l, tenant, Request{Memory: 3*gib + 1}, crowded, "limit is 4096 MiB of memory, and 1024 are taken")
	wantExhausted(t, &l, tenant, Request{Memory: math.MaxInt64}, 0, "limit is 4096 MiB")
	second := admit(t, &l, tenant, Request{CPUs: 1.3, Memory: 3 * gib})
	third := admit(t, &l, tenant, Request{})
	wantExhausted(t, &l, tenant, Request{}, crowded, "limit is 3 sandboxes at once, and 3 are taken")
	if got := l.Usage("a"); got != (Usage{Sandboxes: 3, CPUs: 2, Memory: 4 * gib}) {
		t.Errorf("%+v", got)
	}
	other := Tenant{ID: "b", Limits: tenant.Limits}
	admit(t, &l, other, Request{CPUs: 2})() // another tenant's are not counted
	first()
	first() // does nothing
	held := l.Hold("a", Request{CPUs: 5})
	wantExhausted(t, &l, tenant, Request{}, crowded, "sandboxes at once")
	tenant.Limits = Limits{}
	for range 100 { // limits are those of the moment
		defer admit(t, &l, tenant, Request{CPUs: 100, Memory: 1 << 50})()
	}
	for _, release := range []func(){held, second, third} {
		release()
	}
	if got := l.Usage("a"); got.Sandboxes != 100 || got.CPUs != 10000 {
		t.Errorf("%+v", got)
	}
}

func TestRequestsThatAreNoAmounts(t *testing.T) {
	var l Limiter
	for _, r := range []Request{{CPUs: -1}, {CPUs: math.NaN()}, {CPUs: math.Inf(1)}, {Memory: -1}} {
		if _, _, err := l.Admit(Tenant{ID: "a"}, r); firebreak.KindOf(err) != firebreak.KindInvalid {
			t.Errorf("%+v: %v", r, err)
		}
	}
	if l.Usage("a") != (Usage{}) {
		t.Errorf("%+v", l.Usage("a"))
	}
}

func TestCreatesPerSecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tenant := Tenant{ID: "a", Limits: Limits{Sandboxes: 4, CreatesPerSecond: 2, Burst: 3}}
		var l Limiter
		for range 3 {
			admit(t, &l, tenant, Request{})()
		}
		wantExhausted(t, &l, tenant, Request{}, time.Second/2, "2 creates per second, 3 at a time")
		wantExhausted(t, &l, tenant, Request{}, time.Second/2, "2 creates per second") // a refusal puts nobody off
		time.Sleep(time.Second / 2)
		admit(t, &l, tenant, Request{})()
		wantExhausted(t, &l, tenant, Request{}, time.Second/2, "2 creates per second")
		tenant.Limits.CreatesPerSecond, tenant.Limits.Burst = 0, 0
		admit(t, &l, tenant, Request{})()
		tenant.Limits.CreatesPerSecond = 0.5 // a burst of 1
		release := admit(t, &l, tenant, Request{})
		wantExhausted(t, &l, tenant, Request{}, 2*time.Second, "0.5 creates per second, 1 at a time")
		time.Sleep(2 * time.Second)
		tenant.Limits.Sandboxes = 1
		wantExhausted(t, &l, tenant, Request{}, crowded, "1 sandboxes at once") // and uses up no create
		release()
		admit(t, &l, tenant, Request{})()
	})
}

func TestLimiterUnderLoad(t *testing.T) {
	tenant := Tenant{ID: "a", Limits: Limits{Sandboxes: 5, CPUs: 1}}
	var l Limiter
	var now, most, admitted atomic.Int64
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			for range 500 {
				release, _, err := l.Admit(tenant, Request{CPUs: 0.1})
				if err != nil {
					continue
				}
				admitted.Add(1)
				if n := now.Add(1); n > most.Load() {
					most.Store(n)
				}
				now.Add(-1)
				release()
			}
		})
	}
	all.Wait()
	if most.Load() > 5 || admitted.Load() == 0 || l.Usage("a") != (Usage{}) {
		t.Errorf("%d at once, %d admitted, %+v left", most.Load(), admitted.Load(), l.Usage("a"))
	}
}

func BenchmarkAdmit(b *testing.B) {
	tenant := Tenant{ID: "a", Limits: Limits{Sandboxes: 5, CPUs: 8, Memory: 1 << 40, CreatesPerSecond: 1e9}}
	var l Limiter
	b.ReportAllocs()
	for b.Loop() {
		release, _, err := l.Admit(tenant, Request{CPUs: 1, Memory: 1 << 30})
		if err != nil {
			b.Fatal(err)
		}
		release()
	}
}

func TestOwnerOf(t *testing.T) {
	for name, want := range map[string]string{
		"base": "", "python:3": "", "ghcr.io/a/b": "", "localhost:5000/a": "", "A/b": "", "/a": "", "-a/b": "", "": "",
		"acme/app": "acme", "acme/app:v1": "acme", "acme/a/b": "acme", "a-1/b": "a-1",
	} {
		if got := OwnerOf(name); got != want {
			t.Errorf("%s is of %q, want %q", name, got, want)
		}
	}
}
