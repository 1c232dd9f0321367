package rpc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"

	"connectrpc.com/connect"

	"github.com/firebreak-dev/firebreak"
	firebreakv1 "github.com/firebreak-dev/firebreak/internal/api/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/manager"
)

// Pools keeps sandboxes ready.
type Pools interface {
	Pools() []manager.PoolStatus
	SetPools(ctx context.Context, want []manager.Pool) error
	DrainPool(ctx context.Context, name string) error
}

type poolService struct {
	pools Pools

	changing sync.Mutex // held from a look at all pools until they are set
}

func (s *poolService) check(ctx context.Context, op string) error {
	if err := onlyOperator(ctx, op); err != nil {
		return err
	}
	if s.pools == nil {
		return &firebreak.Error{Kind: firebreak.KindUnsupported, Op: op, Err: errors.New("a command by itself has no pools"),
			Mend: "start firebreak serve, and name it with --server"}
	}
	return nil
}

func (s *poolService) ListPools(ctx context.Context, _ *connect.Request[firebreakv1.ListPoolsRequest]) (*connect.Response[firebreakv1.ListPoolsResponse], error) {
	if err := s.check(ctx, "list pools"); err != nil {
		return nil, err
	}
	resp := &firebreakv1.ListPoolsResponse{}
	for _, p := range s.pools.Pools() {
		resp.Pools = append(resp.Pools, poolMessage(p))
	}
	return connect.NewResponse(resp), nil
}

func (s *poolService) SetPool(ctx context.Context, req *connect.Request[firebreakv1.SetPoolRequest]) (*connect.Response[firebreakv1.SetPoolResponse], error) {
	if err := s.check(ctx, "set pool"); err != nil {
		return nil, err
	}
	p, err := poolOf(req.Msg.GetPool())
	if err != nil {
		return nil, err
	}
	p = p.Complete()
	same := named(p.Name)
	if err := s.change(ctx, func(all []manager.Pool) ([]manager.Pool, error) {
		return append(slices.DeleteFunc(all, same), p), nil
	}); err != nil {
		return nil, err
	}
	status, err := s.status(same)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&firebreakv1.SetPoolResponse{Pool: status}), nil
}

func (s *poolService) DeletePool(ctx context.Context, req *connect.Request[firebreakv1.DeletePoolRequest]) (*connect.Response[firebreakv1.DeletePoolResponse], error) {
	if err := s.check(ctx, "delete pool"); err != nil {
		return nil, err
	}
	err := s.change(ctx, func(all []manager.Pool) ([]manager.Pool, error) {
		rest := slices.DeleteFunc(slices.Clone(all), named(req.Msg.GetName()))
		if len(rest) == len(all) {
			return nil, noPool(req.Msg.GetName())
		}
		return rest, nil
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&firebreakv1.DeletePoolResponse{}), nil
}

func (s *poolService) DrainPool(ctx context.Context, req *connect.Request[firebreakv1.DrainPoolRequest]) (*connect.Response[firebreakv1.DrainPoolResponse], error) {
	if err := s.check(ctx, "drain pool"); err != nil {
		return nil, err
	}
	if err := s.pools.DrainPool(ctx, req.Msg.GetName()); err != nil {
		return nil, err
	}
	status, err := s.status(named(req.Msg.GetName()))
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&firebreakv1.DrainPoolResponse{Pool: status}), nil
}

// change sets the pools that to makes of those there are, with no other change between.
func (s *poolService) change(ctx context.Context, to func([]manager.Pool) ([]manager.Pool, error)) error {
	s.changing.Lock()
	defer s.changing.Unlock()
	var all []manager.Pool
	for _, p := range s.pools.Pools() {
		all = append(all, p.Pool)
	}
	all, err := to(all)
	if err != nil {
		return err
	}
	return s.pools.SetPools(ctx, all)
}

func (s *poolService) status(which func(manager.Pool) bool) (*firebreakv1.PoolStatus, error) {
	for _, p := range s.pools.Pools() {
		if which(p.Pool) {
			return poolMessage(p), nil
		}
	}
	return nil, noPool("") // somebody has removed it meanwhile
}

func named(name string) func(manager.Pool) bool {
	return func(p manager.Pool) bool { return p.Name == name }
}

func noPool(name string) error {
	return &firebreak.Error{Kind: firebreak.KindNotFound, Err: fmt.Errorf("there is no pool %q: %w", name, fs.ErrNotExist), Mend: "see firebreak pool ls"}
}

func poolOf(msg *firebreakv1.Pool) (manager.Pool, error) {
	l := msg.GetLimits()
	w, err := workloadOf(msg.GetWorkload())
	p := manager.Pool{Name: msg.GetName(), Template: msg.GetTemplate(), Driver: msg.GetDriver(), Workload: w, Warm: msg.GetWarm(),
		Min: int(msg.GetMin()), Max: int(msg.GetMax()),
		Limits: firebreak.Limits{CPUs: l.GetCpus(), Memory: l.GetMemoryBytes(), Disk: l.GetDiskBytes(), PIDs: l.GetPids()}}
	if err == nil && p.Max == 0 {
		err = &firebreak.Error{Kind: firebreak.KindInvalid, Op: "set pool", Err: errors.New("it has no max"), Mend: "firebreak pool rm ends a pool"}
	}
	return p, err
}

func poolMessage(p manager.PoolStatus) *firebreakv1.PoolStatus {
	l, st := p.Limits, p.Stats
	msg := &firebreakv1.PoolStatus{
		Pool: &firebreakv1.Pool{Name: p.Name, Template: p.Template, Driver: p.Driver, Workload: workloadMessage(p.Workload), Warm: p.Warm,
			Min: int32(p.Min), Max: int32(p.Max), Limits: &firebreakv1.Limits{Cpus: l.CPUs, MemoryBytes: l.Memory, DiskBytes: l.Disk, Pids: l.PIDs}},
		Ready: int32(st.Ready), Making: int32(st.Making), Target: int32(st.Target), Claims: st.Claims, Misses: st.Misses, Made: st.Made,
		Discarded: st.Discarded, Failures: st.Failures, Unhealthy: st.Unhealthy,
	}
	if st.Failing != nil {
		msg.Failing = st.Failing.Error()
	}
	return msg
}
