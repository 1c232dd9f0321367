package main

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"

	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/dataplane"
	"github.com/firebreak-dev/firebreak/internal/driver/all"
	"github.com/firebreak-dev/firebreak/internal/event"
	"github.com/firebreak-dev/firebreak/internal/image"
	"github.com/firebreak-dev/firebreak/internal/manager"
	"github.com/firebreak-dev/firebreak/internal/metrics"
	"github.com/firebreak-dev/firebreak/internal/rpc"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/internal/trace"
)

// base is where a server's parts come from, and what they tell besides.
type base struct {
	stateDir string           // empty: the system's place for it
	policy   string           // file; empty: the built-in one
	adopt    bool             // take over what earlier servers left
	metrics  *metrics.Metrics // nil: none
	tracer   *trace.Tracer    // nil: none
	log      *slog.Logger
}

// parts is what a server is made of, below its doors, from the state directory up.
type parts struct {
	dir       string
	records   *store.Store
	images    *image.Store
	keys      *auth.Auth
	events    *event.Log
	sandboxes *manager.Manager

	closers []func() error
}

// openParts opens them in order. Close closes them in reverse.
func openParts(ctx context.Context, b base) (_ *parts, err error) {
	p := &parts{}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	if p.dir, err = stateDir(b.stateDir); err != nil {
		return nil, err
	}
	if p.records, err = store.Open(ctx, p.dir, b.log); err != nil {
		return nil, err
	}
	p.onClose(p.records.Close)
	p.keys = auth.New(p.records, b.log)
	p.onClose(func() error { p.keys.Close(); return nil })
	if p.images, err = image.Open(filepath.Join(p.dir, "images"), b.log); err != nil {
		return nil, err
	}
	p.events = event.New(p.records)
	p.sandboxes, err = manager.New(manager.Config{StateDir: p.dir, Store: p.records, Events: p.events, Images: p.images, Drivers: all.New(p.dir, b.log),
		Policy: b.policy, Adopt: b.adopt, Metrics: b.metrics, Tracer: b.tracer, Log: b.log})
	if err != nil {
		return nil, err
	}
	p.onClose(p.sandboxes.Close)
	return p, nil
}

func (p *parts) onClose(f func() error) { p.closers = append(p.closers, f) }

// Close closes what was opened, the last first. The sandboxes that are not detached end.
func (p *parts) Close() error {
	var errs []error
	for i := len(p.closers) - 1; i >= 0; i-- {
		errs = append(errs, p.closers[i]())
	}
	p.closers = nil
	return errors.Join(errs...)
}

// door is what Firebreak's own door is made of.
func (p *parts) door() rpc.Config {
	return rpc.Config{Sandboxes: p.sandboxes, Lives: p.sandboxes, Guests: p.sandboxes, Templates: p.images, Advisor: p.sandboxes, Keys: p.keys,
		Events: p.events}
}

// plane is the way into sandboxes.
func (p *parts) plane(cfg dataplane.Config) *dataplane.Plane {
	cfg.Sandboxes = p.sandboxes
	return dataplane.New(cfg)
}
