package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/build"
	"github.com/firebreak-dev/firebreak/internal/config"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/localca"
	"github.com/firebreak-dev/firebreak/internal/metrics"
	"github.com/firebreak-dev/firebreak/internal/server"
	"github.com/firebreak-dev/firebreak/internal/store"
	"github.com/firebreak-dev/firebreak/internal/trace"
	"github.com/firebreak-dev/firebreak/internal/webhook"
)

// serve is firebreak as a server, until ctx is done: listen, open what there is, say so, serve, and close in reverse.
// What clients need goes to out, what people need to told.
func serve(ctx context.Context, cfg config.Config, out, told io.Writer) (err error) {
	if needsNamespace() { // the guess was wrong
		status, err := runInNamespace()
		if err != nil {
			return err
		}
		os.Exit(status)
	}
	s := &service{cfg: cfg, log: newLog(cfg.Log, told), out: out, told: told, supervisor: server.FindManager()}
	tlsAddress := cfg.TLS.Listen
	if cfg.TLS.Mode == config.TLSOff {
		tlsAddress = ""
	}
	s.listeners, err = server.Listen(ctx, server.Addresses{Plain: cfg.Listen, TLS: tlsAddress, Socket: cfg.Socket})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.listeners.Close()) }()
	if err := s.observe(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.endTraces()) }()
	if s.parts, err = openParts(ctx, base{stateDir: cfg.StateDir, policy: cfg.Policy, adopt: true, metrics: s.metrics, tracer: s.tracer, log: s.log}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.parts.Close()) }()
	if err := s.certify(); err != nil {
		return err
	}
	key, err := s.admission(ctx)
	if err != nil {
		return err
	}
	if err := s.announce(key); err != nil {
		return err
	}
	return s.run(ctx)
}

// service is one server at work.
type service struct {
	cfg        config.Config
	log        *slog.Logger
	out, told  io.Writer
	supervisor server.Manager
	listeners  *server.Listeners
	parts      *parts

	certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	ca          *localca.CA // nil: none
	recovered   atomic.Bool // what an earlier server left is looked after
	server      atomic.Pointer[server.Server]
	metrics     *metrics.Metrics // nil: none
	tracer      *trace.Tracer    // nil: none
	endTracer   func(context.Context) error
	telling     sync.Mutex
}

func newLog(c config.Log, w io.Writer) *slog.Logger {
	opts := &slog.HandlerOptions{Level: c.Level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

// operator is a context of this process itself.
func operator(ctx context.Context) context.Context {
	return auth.WithCaller(ctx, auth.Caller{Operator: true})
}

// certify finds the certificate of encrypted ports.
func (s *service) certify() error {
	switch s.cfg.TLS.Mode {
	case config.TLSAuto:
		ca, err := localca.Open(filepath.Join(s.parts.dir, "tls"), s.cfg.Host())
		if err != nil {
			return err
		}
		s.ca, s.certificate = ca, ca.Certificate
	case config.TLSFiles:
		files, err := server.OpenCertificate(s.cfg.TLS.Cert, s.cfg.TLS.Key, s.log)
		if err != nil {
			return &firebreak.Error{Kind: firebreak.KindInvalid, Err: err, Mend: "name readable PEM files that belong together with --tls-cert and --tls-key"}
		}
		s.certificate = files.Certificate
	default:
		if s.listeners.TLS != nil {
			return &firebreak.Error{Kind: firebreak.KindInvalid, Err: errors.New("systemd passed on a socket for TLS, and there is no certificate"),
				Mend: "say --tls auto, or --tls-cert and --tls-key"}
		}
	}
	return nil
}

// run serves until ctx is done. Requests are answered at once; whether all is in order shows as soon as it is known.
func (s *service) run(ctx context.Context) (err error) {
	if err := s.parts.sandboxes.SetPools(operator(ctx), poolsOf(s.cfg.Pools)); err != nil {
		return err
	}
	hooks, err := webhook.New(ctx, webhook.Config{Storage: s.parts.records, Events: s.parts.events, Log: s.log, AllowPrivate: s.cfg.WebhooksNear, Sent: s.metrics.Webhook})
	if err != nil {
		return err
	}
	defer hooks.Close()
	builds, err := build.New(build.Config{Dir: filepath.Join(s.parts.dir, "builds"), Sandboxes: s.parts.sandboxes, Images: s.parts.images, Store: s.parts.records, Log: s.log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, builds.Close()) }()
	models := s.mcpDoor()
	defer func() { err = errors.Join(err, models.Close()) }()
	doors, clients := s.doors(hooks, builds, models)
	srv := server.New(doors)
	s.server.Store(srv)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var beside sync.WaitGroup
	beside.Go(func() { clients.Run(ctx) })
	beside.Go(func() { s.recover(ctx) })
	beside.Go(func() { s.tellDrivers(ctx) })
	stop := context.AfterFunc(ctx, func() {
		if err := s.supervisor.Stopping(context.WithoutCancel(ctx)); err != nil {
			s.log.Warn(err.Error())
		}
	})
	defer stop()
	err = srv.Serve(ctx, s.certificate, s.listeners.All...)
	cancel()
	beside.Wait()
	if s.cfg.KillOnExit {
		err = errors.Join(err, s.killAll())
	}
	return err
}

func (s *service) ready(context.Context) error {
	if !s.recovered.Load() {
		return errors.New("the sandboxes of earlier servers are being looked after")
	}
	return nil
}

// recover waits until what an earlier server left is looked after, and says so.
func (s *service) recover(ctx context.Context) {
	all, err := s.parts.sandboxes.List(operator(ctx))
	for err != nil {
		if ctx.Err() != nil {
			return
		}
		s.log.Error("the sandboxes of earlier servers cannot be listed; it is tried again", "err", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(listAgain):
		}
		all, err = s.parts.sandboxes.List(operator(ctx))
	}
	s.recovered.Store(true)
	s.say("sandboxes taken over: %d", len(living(all)))
	if err := s.supervisor.Ready(ctx); err != nil {
		s.log.Warn(err.Error())
	}
}

// listAgain is the pause before a list that failed is asked for again.
const listAgain = 5 * time.Second

func living(all []store.Record) []store.Record {
	var alive []store.Record
	for _, r := range all {
		if r.State == firebreak.StateRunning || r.State == firebreak.StatePaused {
			alive = append(alive, r)
		}
	}
	return alive
}

// tellDrivers says in one line what sandboxes can be made with.
func (s *service) tellDrivers(ctx context.Context) {
	report, err := s.parts.sandboxes.Doctor(operator(ctx), false, func(string) {})
	if err != nil {
		if ctx.Err() == nil {
			s.log.Warn("the drivers could not be tried", "err", err)
		}
		return
	}
	var words []string
	for _, d := range report.Drivers {
		word := d.Info.Name + " healthy"
		if !d.Info.Healthy() {
			word = d.Info.Name + " not usable (" + firstProblem(d.Info) + ")"
		}
		words = append(words, word)
	}
	s.say("drivers: %s; firebreak doctor says more", strings.Join(words, ", "))
}

func firstProblem(info driver.Info) string {
	if len(info.Problems) == 0 {
		return "unknown"
	}
	return info.Problems[0].Text
}

const (
	killTimeout = time.Minute
	killAtOnce  = 8
)

// killAll ends all sandboxes that would live on. Those of a command that runs elsewhere are that command's.
func (s *service) killAll() error {
	ctx, cancel := context.WithTimeout(operator(context.Background()), killTimeout)
	defer cancel()
	all, err := s.parts.sandboxes.List(ctx)
	if err != nil {
		return fmt.Errorf("end all sandboxes: %w", err)
	}
	slots, errs := make(chan struct{}, killAtOnce), make(chan error, len(all))
	var killing sync.WaitGroup
	for _, r := range living(all) {
		if !r.Detached {
			continue
		}
		killing.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			if _, err := s.parts.sandboxes.Delete(ctx, string(r.ID)); err != nil && firebreak.KindOf(err) != firebreak.KindNotFound {
				errs <- fmt.Errorf("end sandbox %s: %w", r.ID, err)
			}
		})
	}
	killing.Wait()
	close(errs)
	for one := range errs {
		err = errors.Join(err, one)
	}
	return err
}
