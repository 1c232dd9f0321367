package server

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"

	"connectrpc.com/connect"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/api"
	"github.com/firebreak-dev/firebreak/internal/auth"
)

const (
	headerKey  = "X-Api-Key"
	headerAuth = "Authorization"
	keyPrefix  = "e2b_" // of what can be a key
)

// identify returns the request's context with its caller in it, if there is one. What goes into a sandbox needs none, and
// may carry credentials that are for what listens there: those are nobody's business here, wrong or not.
func (s *Server) identify(r *http.Request, d door) (context.Context, error) {
	ctx := r.Context()
	key, header := keyOf(r.Header)
	if key == "" {
		return s.keyless(r, d)
	}
	tenant, err := s.cfg.Authenticate(ctx, key)
	switch {
	case err == nil && d == doorData:
		r.Header.Del(header) // it must not reach the sandbox, whose code nobody has read
	case err == nil:
	case d == doorData:
		return ctx, nil
	case firebreak.KindOf(err) == firebreak.KindDenied && isPublicRPC(r.URL.Path):
		return ctx, nil
	default:
		return ctx, err
	}
	return withCaller(ctx, auth.Caller{Tenant: tenant}), nil
}

func withCaller(ctx context.Context, c auth.Caller) context.Context {
	noteCaller(ctx, c)
	return auth.WithCaller(ctx, c)
}

// keyless is a request without a key.
func (s *Server) keyless(r *http.Request, d door) (context.Context, error) {
	ctx := r.Context()
	switch {
	case peerOfContext(ctx).operator:
		return withCaller(ctx, auth.Caller{Operator: true}), nil
	case d == doorData, d == doorRPC && isPublicRPC(r.URL.Path), d == doorE2B && s.cfg.Public != nil && s.cfg.Public(r):
		return ctx, nil
	}
	return ctx, &firebreak.Error{Kind: firebreak.KindDenied, Err: errors.New("an API key is needed"),
		Mend: "send it as X-API-KEY, or set FIREBREAK_API_KEY for firebreak; firebreak key create makes one"}
}

// keyOf returns what may be an API key, and the header that it is in. Other credentials, such as the user of E2B's
// clients or a volume's token, are not keys.
func keyOf(h http.Header) (key, header string) {
	if key := h.Get(headerKey); key != "" {
		return key, headerKey
	}
	scheme, token, _ := strings.Cut(h.Get(headerAuth), " ")
	if token = strings.TrimSpace(token); strings.EqualFold(scheme, "Bearer") && strings.HasPrefix(token, keyPrefix) {
		return token, headerAuth
	}
	return "", ""
}

// refuse answers with an error in the words of the door.
func refuse(w http.ResponseWriter, r *http.Request, d door, err error) {
	if d == doorRPC {
		refuseRPC(w, r, err)
		return
	}
	if d == doorMCP && statusOf(err) == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Bearer realm="firebreak"`)
	}
	writeError(w, statusOf(err), err.Error())
}

// statusOf is an error's, in HTTP: who is denied here is unknown.
func statusOf(err error) int {
	kind := firebreak.KindOf(err)
	if kind == firebreak.KindDenied {
		return http.StatusUnauthorized
	}
	return kind.Edge().HTTP
}

// refuseRPC speaks Connect, gRPC or gRPC-Web, as the client does.
func refuseRPC(w http.ResponseWriter, r *http.Request, err error) {
	wire := api.ErrorToWire(err)
	if ce := new(connect.Error); firebreak.KindOf(err) == firebreak.KindDenied && errors.As(wire, &ce) {
		denied := connect.NewError(connect.CodeUnauthenticated, errors.New(ce.Message()))
		for name, values := range ce.Meta() {
			denied.Meta()[name] = values
		}
		wire = denied
	}
	if connect.NewErrorWriter().IsSupported(r) {
		_ = connect.NewErrorWriter().Write(w, r, wire) // the client may have gone
		return
	}
	writeError(w, statusOf(err), err.Error())
}

// writeError answers as E2B's API does: its clients read the code in the body.
func writeError(w http.ResponseWriter, status int, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(struct { // the client may have gone
		Code    int    `json:"code"`
		Message string `json:"message"`
	}{status, message})
}
