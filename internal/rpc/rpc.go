// Package rpc is Firebreak's own door: the control API of firebreak.v1, by Connect, gRPC and gRPC-Web. It translates, and
// decides nothing but what only the operator may ask for.
package rpc

import (
	"context"
	"errors"
	"math"
	"net/http"
	"strconv"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/api"
	"github.com/firebreak-dev/firebreak/internal/api/firebreak/v1/firebreakv1connect"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/image"
	"github.com/firebreak-dev/firebreak/internal/manager"
	"github.com/firebreak-dev/firebreak/internal/metrics"
	"github.com/firebreak-dev/firebreak/internal/store"
)

// Sandboxes makes, finds and ends sandboxes.
type Sandboxes interface {
	Create(ctx context.Context, req manager.Request) (store.Record, manager.Timings, error)
	Get(ctx context.Context, ref string) (store.Record, error)
	List(ctx context.Context) ([]store.Record, error)
	Wait(ctx context.Context, ref string) (store.Record, error)
	Delete(ctx context.Context, ref string) (store.Record, error)
}

// Lives says how long sandboxes live, and whether they go on.
type Lives interface {
	Pause(ctx context.Context, ref string) (store.Record, error)
	Resume(ctx context.Context, ref string, d time.Duration) (rec store.Record, resumed bool, err error)
	SetTimeout(ctx context.Context, ref string, d time.Duration, extendOnly bool) (store.Record, error)
}

// Guests reaches into them.
type Guests interface {
	Digests(ctx context.Context) (map[string]bool, error)
}

// Templates makes and keeps what sandboxes start from.
type Templates interface {
	Make(ctx context.Context, src image.Source, opts image.MakeOptions) (image.Template, error)
	Get(name string) (image.Template, error)
	List() ([]image.Template, error)
	Delete(name string) error
	Collect(ctx context.Context, inUse func(digest string) bool) (freed int64, removed int, err error)
}

// Config is what the door is made of. What may be nil answers that it is not there.
type Config struct {
	Sandboxes Sandboxes
	Lives     Lives
	Guests    Guests
	Templates Templates
	Advisor   Advisor
	Keys      Keys
	Events    Events // may be nil
	Pools     Pools  // may be nil

	// Detach has all sandboxes live on when this process ends, as those of a server do.
	Detach bool
	// MaxTimeout is the longest that a tenant may ask for, and what he gets who asks for none; 0: no bound.
	MaxTimeout time.Duration
}

// maxMessage bounds a request of the control API: the largest part of one is the environment of a sandbox.
const maxMessage = 4 << 20

// New returns the door's handler. Who calls is in the requests' contexts (package auth).
func New(cfg Config) http.Handler {
	options := []connect.HandlerOption{connect.WithReadMaxBytes(maxMessage), connect.WithInterceptors(wireErrors{}),
		connect.WithCompressMinBytes(16 << 10)}
	mux := http.NewServeMux()
	for name, service := range map[string]func() (string, http.Handler){
		firebreakv1connect.SandboxServiceName: func() (string, http.Handler) {
			return firebreakv1connect.NewSandboxServiceHandler(&sandboxService{cfg}, options...)
		},
		firebreakv1connect.TemplateServiceName: func() (string, http.Handler) {
			return firebreakv1connect.NewTemplateServiceHandler(&templateService{cfg.Templates, cfg.Guests}, options...)
		},
		firebreakv1connect.PolicyServiceName: func() (string, http.Handler) {
			return firebreakv1connect.NewPolicyServiceHandler(&policyService{cfg.Advisor}, options...)
		},
		firebreakv1connect.HostServiceName: func() (string, http.Handler) {
			return firebreakv1connect.NewHostServiceHandler(&hostService{cfg.Advisor}, options...)
		},
		firebreakv1connect.KeyServiceName: func() (string, http.Handler) {
			return firebreakv1connect.NewKeyServiceHandler(&keyService{cfg.Keys}, options...)
		},
		firebreakv1connect.TenantServiceName: func() (string, http.Handler) {
			return firebreakv1connect.NewTenantServiceHandler(&tenantService{cfg.Keys}, options...)
		},
		firebreakv1connect.PoolServiceName: func() (string, http.Handler) {
			return firebreakv1connect.NewPoolServiceHandler(&poolService{pools: cfg.Pools}, options...)
		},
	} {
		mux.Handle("/"+name+"/", onDemand(service))
	}
	return mux
}

// onDemand makes a handler with its first request: a command that starts this in its own process uses one or two, and
// making all takes half a millisecond.
func onDemand(service func() (string, http.Handler)) http.Handler {
	made := sync.OnceValue(func() http.Handler {
		_, h := service()
		return h
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { made().ServeHTTP(w, r) })
}

// onlyOperator refuses to tenants what concerns all of them, or the host.
func onlyOperator(ctx context.Context, op string) error {
	c, err := auth.CallerOf(ctx)
	if err == nil && !c.Operator {
		err = &firebreak.Error{Kind: firebreak.KindDenied, Op: op, Err: errors.New("that is for the operator"),
			Mend: "use the server's unix socket (--server unix://PATH), or its state directory without a server"}
	}
	return err
}

// wireErrors gives every error of a handler the form in which it crosses the wire, and names the method to who measures.
type wireErrors struct{}

func (wireErrors) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		metrics.SetRoute(ctx, req.Spec().Procedure)
		resp, err := next(ctx, req)
		return resp, toWire(err)
	}
}

func (wireErrors) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (wireErrors) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		metrics.SetRoute(ctx, conn.Spec().Procedure)
		return toWire(next(ctx, conn))
	}
}

// toWire makes the Connect error. One of a limit that frees up says when to ask again.
func toWire(err error) error {
	wire := api.ErrorToWire(err)
	var limit *auth.LimitError
	var ce *connect.Error
	if errors.As(err, &limit) && limit.RetryAfter > 0 && errors.As(wire, &ce) {
		ce.Meta().Set("Retry-After", strconv.FormatInt(int64(math.Ceil(limit.RetryAfter.Seconds())), 10))
	}
	return wire
}
