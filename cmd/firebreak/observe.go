package main

import (
	"context"
	"fmt"
	"net/http"
	"runtime/debug"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/client"
	"github.com/firebreak-dev/firebreak/internal/metrics"
	"github.com/firebreak-dev/firebreak/internal/trace"
)

// observe sets up what tells of the server: metrics and traces.
func (s *service) observe(ctx context.Context) (err error) {
	version, commit := buildOf()
	s.tracer, s.endTracer, err = trace.Setup(ctx, trace.Config{Endpoint: s.cfg.OTLP, Version: version, Log: s.log})
	if err == nil && s.cfg.Metrics {
		s.metrics = metrics.New(metrics.Config{Version: version, Commit: commit, Tenants: true, Sandboxes: s.sampleSandboxes, Pools: s.samplePools, Connections: s.connections})
	}
	return err
}

func buildOf() (version, commit string) {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown", ""
	}
	for _, setting := range info.Settings {
		if setting.Key == "vcs.revision" {
			commit = setting.Value
		}
	}
	return info.Main.Version, commit
}

// tracesTime bounds the wait for a collector to take the last spans.
const tracesTime = 5 * time.Second

func (s *service) endTraces() error {
	ctx, cancel := context.WithTimeout(context.Background(), tracesTime)
	defer cancel()
	if err := s.endTracer(ctx); err != nil {
		return fmt.Errorf("end traces: %w", err)
	}
	return nil
}

func (s *service) connections() int {
	if srv := s.server.Load(); srv != nil {
		return srv.Connections()
	}
	return 0
}

// sampleAtOnce is how many sandboxes are asked for their usage at the same time.
const sampleAtOnce = 8

func (s *service) sampleSandboxes(ctx context.Context) ([]metrics.Sandbox, error) {
	ctx = operator(ctx)
	all, err := s.parts.sandboxes.List(ctx)
	if err != nil {
		return nil, err
	}
	alive := living(all)
	samples, slots := make([]metrics.Sandbox, len(alive)), make(chan struct{}, sampleAtOnce)
	var asking sync.WaitGroup
	for i, rec := range alive {
		slots <- struct{}{}
		asking.Go(func() {
			defer func() { <-slots }()
			if now, err := s.parts.sandboxes.Get(ctx, string(rec.ID)); err == nil { // else what is known of it
				rec = now
			}
			samples[i] = metrics.Sandbox{Driver: rec.Driver, State: string(rec.State), Tenant: rec.Tenant, CPUs: rec.Spec.Limits.CPUs, Memory: rec.Spec.Limits.Memory,
				UsedCPU: rec.Usage.CPU, UsedMemory: rec.Usage.Memory}
		})
	}
	asking.Wait()
	return samples, ctx.Err()
}

func (s *service) samplePools() []metrics.Pool {
	var all []metrics.Pool
	for _, p := range s.parts.sandboxes.Pools() {
		all = append(all, metrics.Pool{Name: p.Name, Ready: p.Ready, Making: p.Making, Target: p.Target, Min: p.Min, Max: p.Max,
			Claims: p.Claims, Misses: p.Misses, Made: p.Made, Discarded: p.Discarded, Failures: p.Failures})
	}
	return all
}

// timed measures how long the start of a process in a sandbox takes.
func (s *service) timed(next http.Handler) http.Handler {
	if s.metrics == nil {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if id := r.Header.Get(client.HeaderSandbox); id != "" && r.URL.Path == "/process.Process/Start" {
			rec, err := s.parts.sandboxes.Find(operator(r.Context()), id)
			if err == nil && string(rec.ID) == id && rec.State == firebreak.StateRunning {
				w = s.metrics.TimeStart(w, r, rec.Driver)
			}
		}
		next.ServeHTTP(w, r)
	})
}
