package rpc

import (
	"context"

	"connectrpc.com/connect"

	"github.com/firebreak-dev/firebreak"
	firebreakv1 "github.com/firebreak-dev/firebreak/internal/api/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/auth"
)

// Keys knows API keys and tenants.
type Keys interface {
	Create(ctx context.Context, tenant, name string) (string, auth.Key, error)
	List(ctx context.Context) ([]auth.Key, error)
	Revoke(ctx context.Context, id string) error
	Tenants(ctx context.Context) ([]auth.Tenant, error)
	SetTenant(ctx context.Context, t auth.Tenant) error
}

// DefaultTenant is whose a key is where nobody says. It is made with the first such key.
const DefaultTenant = "default"

type keyService struct{ keys Keys }

func (s *keyService) CreateKey(ctx context.Context, req *connect.Request[firebreakv1.CreateKeyRequest]) (*connect.Response[firebreakv1.CreateKeyResponse], error) {
	if err := onlyOperator(ctx, "create API key"); err != nil {
		return nil, err
	}
	secret, key, err := CreateKey(ctx, s.keys, req.Msg.GetTenant(), req.Msg.GetName())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&firebreakv1.CreateKeyResponse{Key: keyMessage(key), Secret: secret}), nil
}

// CreateKey makes a key of a tenant; of the default one, and if need be that too, if none is given.
func CreateKey(ctx context.Context, keys Keys, tenant, name string) (string, auth.Key, error) {
	if tenant == "" {
		tenant = DefaultTenant
	}
	secret, key, err := keys.Create(ctx, tenant, name)
	if firebreak.KindOf(err) != firebreak.KindNotFound {
		return secret, key, err
	}
	if tenant != DefaultTenant {
		return "", key, &firebreak.Error{Kind: firebreak.KindNotFound, Op: "create API key", Err: err, Mend: "make the tenant first: firebreak tenant set " + tenant}
	}
	if err := keys.SetTenant(ctx, auth.Tenant{ID: DefaultTenant}); err != nil {
		return "", key, err
	}
	return keys.Create(ctx, tenant, name)
}

func (s *keyService) ListKeys(ctx context.Context, req *connect.Request[firebreakv1.ListKeysRequest]) (*connect.Response[firebreakv1.ListKeysResponse], error) {
	if err := onlyOperator(ctx, "list API keys"); err != nil {
		return nil, err
	}
	all, err := s.keys.List(ctx)
	if err != nil {
		return nil, err
	}
	resp := &firebreakv1.ListKeysResponse{}
	for _, k := range all {
		if tenant := req.Msg.GetTenant(); tenant == "" || tenant == k.Tenant {
			resp.Keys = append(resp.Keys, keyMessage(k))
		}
	}
	return connect.NewResponse(resp), nil
}

func (s *keyService) RevokeKey(ctx context.Context, req *connect.Request[firebreakv1.RevokeKeyRequest]) (*connect.Response[firebreakv1.RevokeKeyResponse], error) {
	if err := onlyOperator(ctx, "revoke API key"); err != nil {
		return nil, err
	}
	if err := s.keys.Revoke(ctx, req.Msg.GetId()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&firebreakv1.RevokeKeyResponse{}), nil
}

func keyMessage(k auth.Key) *firebreakv1.Key {
	return &firebreakv1.Key{Id: k.ID, Tenant: k.Tenant, Name: k.Name, CreatedAt: timestamp(k.Created), UsedAt: timestamp(k.Used), RevokedAt: timestamp(k.Revoked)}
}

type tenantService struct{ keys Keys }

func (s *tenantService) SetTenant(ctx context.Context, req *connect.Request[firebreakv1.SetTenantRequest]) (*connect.Response[firebreakv1.SetTenantResponse], error) {
	if err := onlyOperator(ctx, "set tenant"); err != nil {
		return nil, err
	}
	msg := req.Msg.GetTenant()
	w, err := workloadOf(msg.GetWorkload())
	if err != nil {
		return nil, err
	}
	l := msg.GetLimits()
	t := auth.Tenant{ID: msg.GetId(), Workload: w, Limits: auth.Limits{Sandboxes: int(l.GetSandboxes()), CPUs: l.GetCpus(),
		Memory: l.GetMemoryBytes(), CreatesPerSecond: l.GetCreatesPerSecond(), Burst: int(l.GetBurst())}}
	if err := s.keys.SetTenant(ctx, t); err != nil {
		return nil, err
	}
	return connect.NewResponse(&firebreakv1.SetTenantResponse{Tenant: tenantMessage(t)}), nil
}

func (s *tenantService) ListTenants(ctx context.Context, _ *connect.Request[firebreakv1.ListTenantsRequest]) (*connect.Response[firebreakv1.ListTenantsResponse], error) {
	if err := onlyOperator(ctx, "list tenants"); err != nil {
		return nil, err
	}
	all, err := s.keys.Tenants(ctx)
	if err != nil {
		return nil, err
	}
	resp := &firebreakv1.ListTenantsResponse{}
	for _, t := range all {
		resp.Tenants = append(resp.Tenants, tenantMessage(t))
	}
	return connect.NewResponse(resp), nil
}

func tenantMessage(t auth.Tenant) *firebreakv1.Tenant {
	l := t.Limits
	return &firebreakv1.Tenant{Id: t.ID, Workload: workloadMessage(t.Workload), Limits: &firebreakv1.Tenant_Limits{Sandboxes: int32(min(l.Sandboxes, 1<<31-1)),
		Cpus: l.CPUs, MemoryBytes: l.Memory, CreatesPerSecond: l.CreatesPerSecond, Burst: int32(min(l.Burst, 1<<31-1))}}
}
