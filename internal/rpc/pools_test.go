package rpc_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"testing"

	"connectrpc.com/connect"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/client"
	firebreakv1 "github.com/firebreak-dev/firebreak/internal/api/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/manager"
	"github.com/firebreak-dev/firebreak/internal/pool"
	"github.com/firebreak-dev/firebreak/internal/rpc"
)

// fakePools keeps nothing ready, but says what it was told, as the manager does.
type fakePools struct {
	mu      sync.Mutex
	all     []manager.Pool // guarded by mu
	drained []string       // guarded by mu
}

func (f *fakePools) Pools() []manager.PoolStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []manager.PoolStatus
	for _, p := range f.all {
		all = append(all, manager.PoolStatus{Pool: p, Stats: pool.Stats{Ready: p.Min, Claims: 5, Failing: errors.New("no memory")}})
	}
	return all
}

func (f *fakePools) SetPools(_ context.Context, want []manager.Pool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	want = slices.Clone(want)
	for i := range want {
		want[i] = want[i].Complete()
	}
	f.all = want
	return nil
}

func (f *fakePools) DrainPool(_ context.Context, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !slices.ContainsFunc(f.all, func(p manager.Pool) bool { return p.Name == name }) {
		return fmt.Errorf("pool %s: %w", name, fs.ErrNotExist)
	}
	f.drained = append(f.drained, name)
	return nil
}

func TestPools(t *testing.T) {
	ctx := t.Context()
	w := newTown(t)
	c := w.as("operator")
	set := func(p *firebreakv1.Pool) (*firebreakv1.PoolStatus, error) {
		resp, err := c.Pools.SetPool(ctx, connect.NewRequest(&firebreakv1.SetPoolRequest{Pool: p}))
		if err != nil {
			return nil, err
		}
		return resp.Msg.GetPool(), nil
	}
	names := func() string {
		list, err := c.Pools.ListPools(ctx, connect.NewRequest(&firebreakv1.ListPoolsRequest{}))
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, p := range list.Msg.GetPools() {
			all = append(all, fmt.Sprintf("%s:%d-%d", p.GetPool().GetName(), p.GetPool().GetMin(), p.GetPool().GetMax()))
		}
		return strings.Join(all, " ")
	}
	status, err := set(&firebreakv1.Pool{Min: 1, Max: 3, Warm: []string{"python"}, Limits: &firebreakv1.Limits{MemoryBytes: 1 << 29}, Workload: &firebreakv1.Workload{Origin: "untrusted"}})
	if err != nil || status.GetPool().GetName() != "host" || status.GetReady() != 1 || status.GetClaims() != 5 || status.GetFailing() != "no memory" {
		t.Errorf("set %v, %v", status, err)
	}
	if got := w.pools.all[0]; got.Workload.Origin != firebreak.OriginUntrusted || got.Limits.Memory != 1<<29 || !slices.Equal(got.Warm, []string{"python"}) {
		t.Errorf("the manager was told %+v", got)
	}
	for _, step := range []struct {
		pool *firebreakv1.Pool
		want string
	}{
		{&firebreakv1.Pool{Template: "base", Driver: "gvisor", Max: 2}, "host:1-3 base/gvisor:0-2"},
		{&firebreakv1.Pool{Template: "base", Driver: "gvisor", Max: 4}, "host:1-3 base/gvisor:0-4"},                             // without a name: that of both
		{&firebreakv1.Pool{Name: "big", Template: "base", Driver: "gvisor", Max: 1}, "host:1-3 base/gvisor:0-4 big:0-1"},        // with one: another
		{&firebreakv1.Pool{Template: "base", Driver: "gvisor", Max: 4}, "host:1-3 big:0-1 base/gvisor:0-4"},                     // which leaves that alone
		{&firebreakv1.Pool{Name: "big", Template: "other", Max: 7}, "host:1-3 base/gvisor:0-4 big:0-7"},                         // of that name
		{&firebreakv1.Pool{Name: "host", Template: "host", Min: 2, Max: 2, Warm: nil}, "base/gvisor:0-4 big:0-7 host:2-2"},      // moved behind
		{&firebreakv1.Pool{Template: "host", Driver: "gvisor", Max: 1}, "base/gvisor:0-4 big:0-7 host:2-2 host/gvisor:0-1"},     // another driver
		{&firebreakv1.Pool{Template: "", Driver: "gvisor", Max: 1, Min: 1}, "base/gvisor:0-4 big:0-7 host:2-2 host/gvisor:1-1"}, // host is host
	} {
		if _, err := set(step.pool); err != nil || names() != step.want {
			t.Errorf("after %v: %s, %v; want %s", step.pool, names(), err, step.want)
		}
	}
	if _, err := set(&firebreakv1.Pool{Template: "x"}); firebreak.KindOf(err) != firebreak.KindInvalid {
		t.Errorf("a pool without max: %v", err)
	}
	if _, err := set(&firebreakv1.Pool{Max: 1, Workload: &firebreakv1.Workload{Data: "gossip"}}); firebreak.KindOf(err) != firebreak.KindInvalid {
		t.Errorf("an unknown word: %v", err)
	}
	if err := call(c.Pools.DrainPool(ctx, connect.NewRequest(&firebreakv1.DrainPoolRequest{Name: "big"}))); err != nil || !slices.Equal(w.pools.drained, []string{"big"}) {
		t.Errorf("drained %v, %v", w.pools.drained, err)
	}
	if err := call(c.Pools.DeletePool(ctx, connect.NewRequest(&firebreakv1.DeletePoolRequest{Name: "big"}))); err != nil || strings.Contains(names(), "big") {
		t.Errorf("%s, %v", names(), err)
	}
	for name, err := range map[string]error{
		"drain":  call(c.Pools.DrainPool(ctx, connect.NewRequest(&firebreakv1.DrainPoolRequest{Name: "big"}))),
		"delete": call(c.Pools.DeletePool(ctx, connect.NewRequest(&firebreakv1.DeletePoolRequest{Name: "big"}))),
	} {
		if firebreak.KindOf(err) != firebreak.KindNotFound {
			t.Errorf("%s of none: %v", name, err)
		}
	}
}

func TestPoolsAreSetOneAfterTheOther(t *testing.T) {
	w := newTown(t)
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			p := &firebreakv1.Pool{Name: fmt.Sprint(i), Max: 1}
			if err := call(w.as("operator").Pools.SetPool(context.Background(), connect.NewRequest(&firebreakv1.SetPoolRequest{Pool: p}))); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if n := len(w.pools.Pools()); n != 20 {
		t.Errorf("%d of 20 pools are left", n)
	}
}

func TestACommandHasNoPools(t *testing.T) {
	both(t, func(t *testing.T, c *client.Client) {
		err := call(c.Pools.ListPools(t.Context(), connect.NewRequest(&firebreakv1.ListPoolsRequest{})))
		if firebreak.KindOf(err) != firebreak.KindUnsupported || !strings.Contains(err.Error(), "firebreak serve") {
			t.Errorf("%v", err)
		}
	})
}

var _ rpc.Pools = (*manager.Manager)(nil)
