package main

import (
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/firebreak-dev/firebreak/internal/build"
	"github.com/firebreak-dev/firebreak/internal/config"
	"github.com/firebreak-dev/firebreak/internal/dataplane"
	"github.com/firebreak-dev/firebreak/internal/e2b"
	"github.com/firebreak-dev/firebreak/internal/manager"
	"github.com/firebreak-dev/firebreak/internal/mcp"
	"github.com/firebreak-dev/firebreak/internal/rpc"
	"github.com/firebreak-dev/firebreak/internal/server"
	"github.com/firebreak-dev/firebreak/internal/webhook"
)

// forEver is more than a sandbox can be given.
const forEver = 366 * 24 * time.Hour

// doors are the ways in, each measured.
func (s *service) doors(hooks *webhook.Webhooks, builds *build.Engine, models *mcp.Door) (server.Config, *e2b.Door) {
	p := s.parts
	own := p.door()
	own.Pools, own.Detach, own.MaxTimeout = p.sandboxes, true, s.cfg.MaxTimeout
	most := s.cfg.MaxTimeout
	if most == 0 {
		most = forEver
	}
	clients := e2b.New(e2b.Config{Sandboxes: p.sandboxes, Lives: p.sandboxes, Guests: p.sandboxes, Templates: p.images, Attempts: p.records, Log: s.log,
		Builds: builds, Builder: builds, Built: builds, Tags: builds, Events: p.events, Webhooks: hooks, Domain: s.cfg.Announced(s.listeners.TLS), EnvdVersion: s.cfg.EnvdVersion, MaxTimeout: most, Aliases: s.cfg.Aliases})
	plane := p.plane(dataplane.Config{Log: s.log, Domain: s.cfg.Host(), Origins: s.cfg.CORSOrigins})
	cfg := server.Config{
		DataPlane:    dataDoor{Handler: s.measured("data", s.timed(plane)), plane: plane},
		RPC:          s.measured("rpc", withTools(rpc.New(own), rpc.Introspect(s.ready))),
		E2B:          s.measured("e2b", clients),
		MCP:          s.measured("mcp", models),
		Authenticate: p.keys.Authenticate, Ready: s.ready, Public: e2b.Public, Upload: e2b.IsUpload, Origins: s.cfg.CORSOrigins,
		MaxConnections: s.cfg.MaxConnections, Grace: s.cfg.Grace, Log: s.log,
	}
	if s.metrics != nil {
		cfg.Metrics = s.metrics.Handler()
	}
	if s.ca != nil {
		cfg.CA = s.ca.PEM()
	}
	return cfg, clients
}

// mcpDoor is the way in for MCP clients. Sandboxes are reached by their names below our domain, or below localhost.
func (s *service) mcpDoor() *mcp.Door {
	p := s.parts
	version, _ := buildOf()
	return mcp.New(mcp.Config{Sandboxes: p.sandboxes, Guests: p.sandboxes, Advisor: p.sandboxes, Log: s.log, Version: version,
		PortURL: s.portURL, Hosts: []string{s.cfg.Host()}, Origins: s.cfg.CORSOrigins})
}

// portURL is where a browser finds a port of a sandbox.
func (s *service) portURL(id string, port uint16) string {
	label := fmt.Sprintf("%d-%s.", port, id)
	if domain := s.cfg.Announced(s.listeners.TLS); domain != "" {
		if s.listeners.TLS != nil {
			return "https://" + label + domain
		}
		return "http://" + label + domain
	}
	base, err := url.Parse(s.url())
	if err != nil { // which our own address cannot cause
		return ""
	}
	return base.Scheme + "://" + label + net.JoinHostPort("localhost", base.Port())
}

// measured counts a door's requests, and traces them.
func (s *service) measured(door string, h http.Handler) http.Handler {
	return s.metrics.Door(door, s.tracer.Door(door, h))
}

// dataDoor is the data plane as the server sees it: what is for it, it says itself, whoever measures it.
type dataDoor struct {
	http.Handler
	plane *dataplane.Plane
}

// Addressed implements server.DataPlane.
func (d dataDoor) Addressed(r *http.Request) bool { return d.plane.Addressed(r) }

// withTools sends what is for gRPC's own services there.
func withTools(own, tools http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/grpc.") {
			tools.ServeHTTP(w, r)
			return
		}
		own.ServeHTTP(w, r)
	})
}

func poolsOf(all []config.Pool) []manager.Pool {
	pools := make([]manager.Pool, len(all))
	for i, p := range all {
		pools[i] = manager.Pool{Name: p.Name, Template: p.Template, Driver: p.Driver, Workload: p.Workload, Limits: p.Limits, Warm: p.Warm, Min: p.Min, Max: p.Max}
	}
	return pools
}
