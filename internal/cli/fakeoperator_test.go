package cli

import (
	"context"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/firebreak-dev/firebreak"
	firebreakv1 "github.com/firebreak-dev/firebreak/internal/api/firebreak/v1"
)

// fakeOperator is what a server has for its operator.
type fakeOperator struct {
	operatorMu sync.Mutex // guards what follows
	keys       []*firebreakv1.Key
	tenants    []*firebreakv1.Tenant
	pools      []*firebreakv1.PoolStatus
	drained    []string
}

func (f *fakeOperator) CreateKey(_ context.Context, req *connect.Request[firebreakv1.CreateKeyRequest]) (*connect.Response[firebreakv1.CreateKeyResponse], error) {
	f.operatorMu.Lock()
	defer f.operatorMu.Unlock()
	k := &firebreakv1.Key{Id: "0011223" + string(rune('0'+len(f.keys))), Tenant: req.Msg.Tenant, Name: req.Msg.Name, CreatedAt: timestamppb.New(time.Now().Add(-3 * time.Hour))}
	f.keys = append(f.keys, k)
	return connect.NewResponse(&firebreakv1.CreateKeyResponse{Key: k, Secret: "e2b_" + k.Id + strings.Repeat("f", 32)}), nil
}

func (f *fakeOperator) ListKeys(_ context.Context, req *connect.Request[firebreakv1.ListKeysRequest]) (*connect.Response[firebreakv1.ListKeysResponse], error) {
	f.operatorMu.Lock()
	defer f.operatorMu.Unlock()
	resp := &firebreakv1.ListKeysResponse{}
	for _, k := range f.keys {
		if req.Msg.Tenant == "" || k.Tenant == req.Msg.Tenant {
			resp.Keys = append(resp.Keys, k)
		}
	}
	return connect.NewResponse(resp), nil
}

func (f *fakeOperator) RevokeKey(_ context.Context, req *connect.Request[firebreakv1.RevokeKeyRequest]) (*connect.Response[firebreakv1.RevokeKeyResponse], error) {
	f.operatorMu.Lock()
	defer f.operatorMu.Unlock()
	for _, k := range f.keys {
		if k.Id == req.Msg.Id {
			k.RevokedAt = timestamppb.Now()
			return connect.NewResponse(&firebreakv1.RevokeKeyResponse{}), nil
		}
	}
	return nil, wire(firebreak.KindNotFound, "there is no key "+req.Msg.Id, "")
}

func (f *fakeOperator) SetTenant(_ context.Context, req *connect.Request[firebreakv1.SetTenantRequest]) (*connect.Response[firebreakv1.SetTenantResponse], error) {
	f.operatorMu.Lock()
	defer f.operatorMu.Unlock()
	for i, t := range f.tenants {
		if t.Id == req.Msg.Tenant.Id {
			f.tenants[i] = req.Msg.Tenant
			return connect.NewResponse(&firebreakv1.SetTenantResponse{Tenant: req.Msg.Tenant}), nil
		}
	}
	f.tenants = append(f.tenants, req.Msg.Tenant)
	return connect.NewResponse(&firebreakv1.SetTenantResponse{Tenant: req.Msg.Tenant}), nil
}

func (f *fakeOperator) ListTenants(context.Context, *connect.Request[firebreakv1.ListTenantsRequest]) (*connect.Response[firebreakv1.ListTenantsResponse], error) {
	f.operatorMu.Lock()
	defer f.operatorMu.Unlock()
	return connect.NewResponse(&firebreakv1.ListTenantsResponse{Tenants: f.tenants}), nil
}

func (f *fakeOperator) ListPools(context.Context, *connect.Request[firebreakv1.ListPoolsRequest]) (*connect.Response[firebreakv1.ListPoolsResponse], error) {
	f.operatorMu.Lock()
	defer f.operatorMu.Unlock()
	return connect.NewResponse(&firebreakv1.ListPoolsResponse{Pools: f.pools}), nil
}

func (f *fakeOperator) SetPool(_ context.Context, req *connect.Request[firebreakv1.SetPoolRequest]) (*connect.Response[firebreakv1.SetPoolResponse], error) {
	f.operatorMu.Lock()
	defer f.operatorMu.Unlock()
	p := req.Msg.Pool
	if p.Name == "" {
		p.Name = p.Template
	}
	status := &firebreakv1.PoolStatus{Pool: p, Ready: p.Min, Claims: 7, Misses: 2}
	f.pools = append(f.pools, status)
	return connect.NewResponse(&firebreakv1.SetPoolResponse{Pool: status}), nil
}

func (f *fakeOperator) DeletePool(_ context.Context, req *connect.Request[firebreakv1.DeletePoolRequest]) (*connect.Response[firebreakv1.DeletePoolResponse], error) {
	f.operatorMu.Lock()
	defer f.operatorMu.Unlock()
	for i, p := range f.pools {
		if p.Pool.Name == req.Msg.Name {
			f.pools = append(f.pools[:i], f.pools[i+1:]...)
			return connect.NewResponse(&firebreakv1.DeletePoolResponse{}), nil
		}
	}
	return nil, wire(firebreak.KindNotFound, "there is no pool "+req.Msg.Name, "see firebreak pool ls")
}

func (f *fakeOperator) DrainPool(_ context.Context, req *connect.Request[firebreakv1.DrainPoolRequest]) (*connect.Response[firebreakv1.DrainPoolResponse], error) {
	f.operatorMu.Lock()
	defer f.operatorMu.Unlock()
	f.drained = append(f.drained, req.Msg.Name)
	return connect.NewResponse(&firebreakv1.DrainPoolResponse{}), nil
}

func (s *server) PauseSandbox(_ context.Context, req *connect.Request[firebreakv1.PauseSandboxRequest]) (*connect.Response[firebreakv1.PauseSandboxResponse], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sb, err := s.find(req.Msg.Id)
	if err != nil {
		return nil, err
	}
	if sb.State == "paused" {
		return nil, wire(firebreak.KindState, "sandbox "+sb.Id+" is paused", "")
	}
	sb.State = "paused"
	return connect.NewResponse(&firebreakv1.PauseSandboxResponse{Sandbox: sb}), nil
}

func (s *server) ResumeSandbox(_ context.Context, req *connect.Request[firebreakv1.ResumeSandboxRequest]) (*connect.Response[firebreakv1.ResumeSandboxResponse], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sb, err := s.find(req.Msg.Id)
	if err != nil {
		return nil, err
	}
	s.give(sb, req.Msg.Timeout != nil, req.Msg.Timeout.AsDuration())
	sb.State = "running"
	return connect.NewResponse(&firebreakv1.ResumeSandboxResponse{Sandbox: sb, Resumed: true}), nil
}

func (s *server) SetSandboxTimeout(_ context.Context, req *connect.Request[firebreakv1.SetSandboxTimeoutRequest]) (*connect.Response[firebreakv1.SetSandboxTimeoutResponse], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sb, err := s.find(req.Msg.Id)
	if err != nil {
		return nil, err
	}
	s.give(sb, true, req.Msg.Timeout.AsDuration())
	sb.AutoResume = req.Msg.ExtendOnly // to be seen by a test
	return connect.NewResponse(&firebreakv1.SetSandboxTimeoutResponse{Sandbox: sb}), nil
}

// give notes the time that a sandbox was given, as seconds since 1970.
func (s *server) give(sb *firebreakv1.Sandbox, given bool, d time.Duration) {
	if given {
		sb.Deadline = timestamppb.New(time.Unix(int64(d.Seconds()), 0))
	}
}
