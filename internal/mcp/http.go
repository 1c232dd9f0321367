package mcp

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	sdkauth "github.com/modelcontextprotocol/go-sdk/auth"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/firebreak-dev/firebreak/internal/auth"
)

const headerSession = "Mcp-Session-Id"

// newHTTP is the way of a request: what pages of strangers send is refused, and a session answers only to who began it.
func (d *Door) newHTTP() http.Handler {
	streams := sdk.NewStreamableHTTPHandler(func(*http.Request) *sdk.Server { return d.server }, &sdk.StreamableHTTPOptions{
		Logger:                     slog.New(slog.DiscardHandler),
		EventStore:                 newEvents(),
		MaxRequestBodyBytes:        maxMessage,
		DisableLocalhostProtection: true, // checkHost knows the names that are ours
	})
	// The SDK binds a session to the user of a token. Who calls has been found out already; the token says so to it.
	bound := sdkauth.RequireBearerToken(callerOfToken, &sdkauth.RequireBearerTokenOptions{AllowMissingExpiration: true})(streams)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		by, err := auth.CallerOf(r.Context())
		if err != nil {
			refuse(w, http.StatusUnauthorized, "an API key is needed: send it as Authorization: Bearer, or as X-API-Key")
			return
		}
		if status, err := d.checkSender(r); err != nil {
			refuse(w, status, err.Error())
			return
		}
		r = r.Clone(r.Context())
		r.Header.Del("X-Api-Key")
		r.Header.Set("Authorization", "Bearer firebreak")
		defer d.touch(r, by)()
		bound.ServeHTTP(w, r)
	})
}

// callerOfToken is a token verifier of the SDK's, for what has been verified.
func callerOfToken(ctx context.Context, _ string, _ *http.Request) (*sdkauth.TokenInfo, error) {
	by, err := auth.CallerOf(ctx)
	if err != nil {
		return nil, sdkauth.ErrInvalidToken
	}
	user := "tenant " + by.Tenant.ID
	if by.Operator {
		user = "operator"
	}
	return &sdkauth.TokenInfo{UserID: user, Extra: map[string]any{callerField: by}}, nil
}

// touch keeps the session of a request from ending while that is under way; and ends what goes on in one that is to end,
// which the SDK would wait for.
func (d *Door) touch(r *http.Request, by auth.Caller) func() {
	id := r.Header.Get(headerSession)
	if id == "" {
		return func() {}
	}
	d.mu.Lock()
	var s *session
	for ss, one := range d.sessions {
		if ss.ID() == id && one.caller.Operator == by.Operator && one.caller.Tenant.ID == by.Tenant.ID {
			s = one
		}
	}
	d.mu.Unlock()
	switch {
	case s == nil || s.idle == nil:
	case r.Method == http.MethodDelete:
		d.end(s.ss)
	case r.Method == http.MethodPost:
		s.idle.enter()
		return s.idle.leave
	}
	return func() {}
}

// checkSender refuses requests of web pages that nobody has let in. A browser says whose page it is (Origin), unless the
// page made it believe that we are the page's own server, which the name tells that it calls us by.
func (d *Door) checkSender(r *http.Request) (status int, err error) {
	if local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok && isLoopback(local.String()) && !isLoopback(r.Host) && !d.ours(r.Host) {
		return http.StatusForbidden, fmt.Errorf("the host %.100q is none of this server's names: --domain says them", r.Host)
	}
	origins := r.Header.Values("Origin")
	if len(origins) == 0 || slices.Contains(d.cfg.Origins, "*") {
		return 0, nil
	}
	u, err := url.Parse(origins[0])
	if err == nil && len(origins) == 1 && (u.Host == r.Host && u.Host != "" || slices.Contains(d.cfg.Origins, origins[0])) {
		return 0, nil
	}
	return http.StatusForbidden, fmt.Errorf("pages of %.100q may not call this server: --cors-origins says which may", origins[0])
}

// ours reports whether a host is one of our names, or below one.
func (d *Door) ours(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	return slices.ContainsFunc(d.cfg.Hosts, func(name string) bool { return name != "" && (host == name || strings.HasSuffix(host, "."+name)) })
}

func isLoopback(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.Trim(host, "[]")
	if strings.EqualFold(host, "localhost") {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.IsLoopback()
}

// refuse answers as JSON-RPC does to what is no request yet.
func refuse(w http.ResponseWriter, status int, message string) {
	if status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Bearer realm="firebreak"`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"jsonrpc": "2.0", "id": nil, // the client may have gone
		"error": map[string]any{"code": -32001, "message": message}})
}
