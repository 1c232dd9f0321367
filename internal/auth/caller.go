package auth

import (
	"context"
	"errors"

	"github.com/firebreak-dev/firebreak"
)

// Caller is on whose behalf something is done. The operator, who has the host anyway, sees the sandboxes of all tenants;
// what he makes is nobody else's.
type Caller struct {
	Tenant   Tenant
	Operator bool
}

type callerKey struct{}

// WithCaller returns a context in which everything is done on behalf of c.
func WithCaller(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// CallerOf returns on whose behalf ctx is. Where nobody said, that is an error of firebreak.KindDenied, so that a door
// which forgets to ask for a key lets nobody in.
func CallerOf(ctx context.Context) (Caller, error) {
	c, ok := ctx.Value(callerKey{}).(Caller)
	if !ok {
		return c, &firebreak.Error{Kind: firebreak.KindDenied, Err: errors.New("nobody says on whose behalf this is")}
	}
	return c, nil
}

// May reports whether c may see and reach what belongs to a tenant; "" is the operator's own.
func (c Caller) May(tenant string) bool {
	return c.Operator || tenant != "" && tenant == c.Tenant.ID
}
