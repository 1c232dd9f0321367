package manager

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/event"
	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/image"
	"github.com/firebreak-dev/firebreak/internal/lifecycle"
	"github.com/firebreak-dev/firebreak/internal/metrics"
	"github.com/firebreak-dev/firebreak/internal/policy"
	"github.com/firebreak-dev/firebreak/internal/store"
)

// Timings say where the time of a create went.
type Timings struct {
	Image  time.Duration // to find the template's root
	Create time.Duration // for the driver to isolate something
	Agent  time.Duration // for the agent in it to answer
	Pool   string        // it was made ahead, in this pool; empty: it was not
}

// plan is all that is known of a sandbox before anything is made.
type plan struct {
	driver   driver.Driver
	template image.Template
	record   store.Record
	request  Request
	release  func() // gives back what its tenant's limits count
}

// Create makes a sandbox whose agent answers, or leaves nothing behind.
func (m *Manager) Create(ctx context.Context, req Request) (_ store.Record, t Timings, err error) {
	ctx, done, err := m.begin(ctx)
	if err != nil {
		return store.Record{}, t, err
	}
	defer done()
	ctx, cancel := context.WithTimeoutCause(ctx, createTimeout, fmt.Errorf("not done after %s", createTimeout))
	defer cancel()
	by, err := auth.CallerOf(ctx)
	if err == nil {
		err = req.mayAsk(by)
	}
	if err != nil {
		return store.Record{}, t, err
	}
	ctx, span := m.cfg.Tracer.Start(ctx, "create sandbox", "template", req.Template)
	start, p := time.Now(), plan{}
	defer func() {
		span.Set("driver", p.record.Driver, "pool", t.Pool)
		span.End(err)
		m.cfg.Metrics.Created(p.record.Driver, t.Pool != "", time.Since(start), metrics.Phases{Image: t.Image, Create: t.Create, Agent: t.Agent}, err)
	}()
	req.Workload = req.Workload.AtLeast(by.Tenant.Workload)
	if p, err = m.plan(ctx, req, &t); err != nil {
		return store.Record{}, t, err
	}
	rec, err := m.obtain(ctx, by, p, &t)
	return rec, t, err
}

// obtain claims a sandbox that was made ahead, or else makes one.
func (m *Manager) obtain(ctx context.Context, by auth.Caller, p plan, t *Timings) (rec store.Record, err error) {
	if p.release, err = m.admit(by, &p.record); err != nil {
		return store.Record{}, err
	}
	rec, claimed, err := m.claim(ctx, p, t)
	if err == nil && !claimed {
		rec, err = m.make(ctx, p, t)
	}
	if err != nil {
		p.release()
		return store.Record{}, createError(ctx, err)
	}
	return rec, nil
}

// admit makes the sandbox the caller's, within the limits of a tenant. What the operator makes is nobody's.
func (m *Manager) admit(by auth.Caller, rec *store.Record) (release func(), err error) {
	if by.Operator {
		return func() {}, nil
	}
	rec.Tenant, rec.Spec.Tenant = by.Tenant.ID, by.Tenant.ID
	release, after, err := m.limiter.Admit(by.Tenant, auth.Request{CPUs: rec.Spec.Limits.CPUs, Memory: rec.Spec.Limits.Memory})
	if err != nil && after > 0 {
		err = &auth.LimitError{RetryAfter: after, Err: err}
	}
	return release, err
}

func createError(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		err = fmt.Errorf("%w: %w", ctx.Err(), context.Cause(ctx))
	}
	if e := new(firebreak.Error); errors.As(err, &e) && (e.Kind != firebreak.KindExhausted || e.Mend != "") {
		return err
	}
	e := &firebreak.Error{Kind: firebreak.KindOf(err), Op: "create sandbox", Err: err}
	if noSpace(err) || e.Kind == firebreak.KindExhausted {
		e.Kind, e.Mend = firebreak.KindExhausted, "free space on the disk of the state directory, or use another one (--state-dir or FIREBREAK_STATE_DIR)"
	}
	return e
}

func noSpace(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) }

// plan checks the request against the driver and the template, and makes nothing.
func (m *Manager) plan(ctx context.Context, req Request, t *Timings) (plan, error) {
	p := plan{request: req}
	if err := req.check(); err != nil {
		return p, err
	}
	d, f, err := m.choose(ctx, req.question())
	if err != nil {
		return p, err
	}
	info, err := infoOf(f.infos, d.Driver)
	if err != nil {
		return p, err
	}
	if req.OnTimeout == firebreak.TimeoutPause && !info.Caps.Has(driver.CapPause) {
		return p, cannotPause("create sandbox", info.Name)
	}
	if req.Timeout == 0 && needsTimeLimit(d) {
		p.request.Timeout = dutyTimeLimit
	}
	if p.driver, err = m.cfg.Drivers.Maker(ctx, d.Driver); err != nil {
		return p, m.driverError(d.Driver, err)
	}
	spec, warnings, err := m.spec(ctx, &p, f, info, t)
	if err != nil {
		return p, err
	}
	p.record = m.record(p.request, info, p.template, spec)
	p.record.Warnings = slices.Concat(warningsOf(info), warnings, warningsOfDecision(d, len(req.Envs) > 0))
	if hosts := req.Options[optionFetch]; hosts != "" {
		p.record.Warnings = append(p.record.Warnings, "it may fetch from "+hosts)
	}
	p.record.Decision = &d
	m.logDecision(p.record.ID, d)
	return p, nil
}

// spec says what the driver is to make, but for the ID, and returns warnings too.
func (m *Manager) spec(ctx context.Context, p *plan, f fitting, info driver.Info, t *Timings) (driver.Spec, []string, error) {
	spec := driver.Spec{Network: driver.NetworkNone, Options: p.request.Options}
	var err error
	if spec.Root, err = m.root(ctx, p, f, info, t); err != nil {
		return spec, nil, err
	}
	if spec.Limits, err = limits(p.request.Limits, p.template.Limits, info); err != nil {
		return spec, nil, err
	}
	mounts, warnings, err := checkMounts(p.request.Mounts, m.cfg.StateDir)
	if err != nil {
		return spec, nil, err
	}
	spec.Mounts = mounts
	if missing := driver.Missing(info.Caps, spec.Needs()); missing != 0 {
		return spec, nil, &firebreak.Error{Kind: firebreak.KindUnsupported, Op: "create sandbox",
			Err: fmt.Errorf("%s has no %s on this host", info.Name, strings.Join(missing.Names(), ", "))}
	}
	return spec, warnings, nil
}

// choose decides which driver makes the sandbox. A refusal is an error.
func (m *Manager) choose(ctx context.Context, q Question) (_ policy.Decision, _ fitting, err error) {
	ctx, span := m.cfg.Tracer.Start(ctx, "decide")
	defer func() { span.End(err) }()
	d, f, err := m.decide(ctx, q)
	if err != nil {
		return d, f, err
	}
	if err := d.Err(); err != nil {
		m.cfg.Metrics.Refused(d.Refusal.Rules)
		m.logRefusal(q, d)
		m.tellRefusal(ctx, q, d)
		return d, f, err
	}
	return d, f, nil
}

func (m *Manager) root(ctx context.Context, p *plan, f fitting, info driver.Info, t *Timings) (_ driver.Root, err error) {
	ctx, span := m.cfg.Tracer.Start(ctx, "find image")
	start := time.Now()
	defer func() {
		t.Image = time.Since(start)
		span.End(err)
	}()
	if f.named != nil {
		p.template = *f.named
	} else if p.template, err = m.cfg.Images.Get(f.template(info)); err != nil {
		return driver.Root{}, err
	}
	return m.cfg.Images.RootOf(ctx, p.template, info.Forms)
}

func (m *Manager) record(req Request, info driver.Info, tpl image.Template, spec driver.Spec) store.Record {
	envs := map[string]string{}
	maps.Copy(envs, tpl.Envs)
	maps.Copy(envs, req.Envs)
	spec.ID = driver.ID(strings.ToLower("f" + rand.Text()[:15])) // 75 random bits, a letter first
	spec.Dir = m.dir(spec.ID)
	return store.Record{
		ID: spec.ID, Name: req.Name, Owner: m.owner.name, State: firebreak.StateCreating, Detached: req.Detached, Bound: !info.Caps.Has(driver.CapDetach),
		Driver: info.Name, Boundary: info.Boundary, Template: tpl.Name, Digest: tpl.Digest, Command: req.Command,
		Spec: spec, Token: auth.NewToken(), Created: time.Now().UTC(),
		Metadata: req.Metadata, Annotations: req.Annotations, TrafficToken: req.TrafficToken,
		OnTimeout: req.OnTimeout, AutoResume: req.AutoResume, Timeout: req.Timeout,
		Agent: store.Agent{Envs: envs, User: cmp.Or(req.User, tpl.User), Workdir: cmp.Or(req.Workdir, tpl.Workdir)},
	}
}

func warningsOf(info driver.Info) []string {
	var all []string
	if info.Boundary == firebreak.BoundaryNone && len(info.Warnings) == 0 {
		all = append(all, "nothing isolates this sandbox: its code can do all that you can do on this host")
	}
	for _, w := range info.Warnings {
		all = append(all, w.Text)
	}
	return all
}

// make is the crash order: save the record, make the directory, the sandbox, its agent's configuration, save the state.
// What is done is undone from the last to the first; where that fails, the record stays, and with it the next
// process's task.
func (m *Manager) make(ctx context.Context, p plan, t *Timings) (_ store.Record, err error) {
	var undo undoList
	defer func() {
		if err != nil {
			err = errors.Join(err, undo.run(ctx))
		}
	}()
	rec := p.record
	_, fleeting := p.driver.(driver.Fleeting)
	if !fleeting { // there is nothing that a record would have to tell of, until it runs
		if err := m.announce(ctx, rec, &undo); err != nil {
			return rec, err
		}
	}
	sb, err := m.isolate(ctx, p.driver, rec, t)
	if err != nil {
		return rec, m.diagnose(ctx, rec.Driver, err)
	}
	undo.add(func(ctx context.Context) error { return p.driver.Destroy(ctx, rec.Spec) })
	m.step("created")
	if p.request.Timeout > 0 {
		rec.Deadline = time.Now().Add(p.request.Timeout).UTC()
	}
	g := guest.To(sb, rec.Token)
	undo.add(func(context.Context) error { g.Close(); return nil })
	if err := m.greet(ctx, g, rec, t); err != nil {
		return rec, err
	}
	if err := m.startTemplate(ctx, g, p.template); err != nil {
		return rec, err
	}
	m.step("answered")
	running, err := m.saveRunning(ctx, rec, fleeting) // rec is for undo
	if err != nil {
		return rec, err
	}
	running.Decision = p.record.Decision
	m.step("running")
	m.keep(running, sb, g, p.release)
	return running, nil
}

// announce saves the record of what is about to be made, and makes its directory.
func (m *Manager) announce(ctx context.Context, rec store.Record, undo *undoList) error {
	if err := m.cfg.Store.Insert(ctx, rec); err != nil {
		return err
	}
	undo.add(func(ctx context.Context) error { return m.cfg.Store.Delete(ctx, rec.ID) })
	m.step("saved")
	if err := os.Mkdir(rec.Spec.Dir, 0o700); err != nil {
		return err
	}
	undo.add(func(context.Context) error { return removeDir(rec.Spec.Dir) })
	m.step("directory")
	return nil
}

// saveRunning saves that a sandbox runs; what was not announced gets its record with that.
func (m *Manager) saveRunning(ctx context.Context, rec store.Record, fleeting bool) (store.Record, error) {
	answered := func(r *store.Record) (err error) {
		r.Deadline = rec.Deadline
		r.State, err = lifecycle.Next(r.State, lifecycle.EventAnswered)
		return err
	}
	if !fleeting {
		return m.cfg.Store.Update(ctx, rec.ID, answered, store.Telling(event.TypeCreated))
	}
	if err := answered(&rec); err != nil {
		return rec, err
	}
	return rec, m.cfg.Store.Insert(ctx, rec, store.Telling(event.TypeCreated))
}

func (m *Manager) isolate(ctx context.Context, d driver.Driver, rec store.Record, t *Timings) (_ driver.Sandbox, err error) {
	ctx, span := m.cfg.Tracer.Start(ctx, "isolate", "driver", rec.Driver)
	start := time.Now()
	defer func() {
		t.Create = time.Since(start)
		span.End(err)
	}()
	return d.Create(ctx, rec.Spec)
}

// greet waits for a fresh agent to answer and configures it.
func (m *Manager) greet(ctx context.Context, g *guest.Guest, rec store.Record, t *Timings) (err error) {
	ctx, span := m.cfg.Tracer.Start(ctx, "configure agent")
	start := time.Now()
	defer func() {
		t.Agent = time.Since(start)
		span.End(err)
	}()
	return m.tell(ctx, g, rec)
}

// undoList holds what undoes the steps taken so far.
type undoList []func(context.Context) error

func (u *undoList) add(f func(context.Context) error) { *u = append(*u, f) }

// run undoes, the last first, until something cannot be undone. It goes on although ctx is done.
func (u undoList) run(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), destroyTimeout)
	defer cancel()
	for _, f := range slices.Backward(u) {
		if err := f(ctx); err != nil {
			return fmt.Errorf("clean up: %w", err)
		}
	}
	return nil
}

// removeDir removes a sandbox's directory, unless something is mounted in it: that would be removed with it.
func removeDir(dir string) error {
	if err := noMounts(dir); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the sandbox's directory: %w", err)
	}
	return nil
}
