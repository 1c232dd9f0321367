package build

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/build/step"
	"github.com/firebreak-dev/firebreak/internal/store"
)

// job is a build that is queued or runs in this process.
type job struct {
	*Engine
	by       auth.Caller
	build    store.Build
	template store.Template
	spec     Spec
	steps    []step.Step
	log      *buildLog
	running  bool                    // guarded by Engine.mu
	cancel   context.CancelCauseFunc // ends ctx
	ctx      context.Context
}

// stepError is an error with the step at which it came.
type stepError struct {
	step string
	err  error
}

func (e stepError) Error() string { return e.err.Error() }

func (e stepError) Unwrap() error { return e.err }

// saidError is an error whose text is for the client: it tells of the build and of nothing else.
type saidError struct{ text string }

func (e saidError) Error() string { return e.text }

// Why builds end that did not fail by themselves.
const (
	stoppedText    = "the server was stopped while this was being built; build it again"
	supersededText = "a newer build of this template was started"
	deletedText    = "the template was deleted"
)

// Start begins a build that was asked for, at once or when its turn comes. Other builds that would give the same tags to
// the same template end.
func (e *Engine) Start(ctx context.Context, template, id string, spec Spec) error {
	by, err := auth.CallerOf(ctx)
	if err != nil {
		return err
	}
	b, err := e.ownBuild(ctx, template, id)
	if err != nil {
		return err
	}
	if b.State != store.BuildRequested {
		return notWaiting(b)
	}
	steps, err := spec.check()
	if err != nil {
		return err
	}
	if err := e.checkBase(ctx, spec); err != nil {
		return err
	}
	t, err := e.cfg.Store.Template(ctx, b.Template)
	if err != nil {
		return err
	}
	e.places.Lock()
	defer e.places.Unlock()
	if err := e.mayQueue(b.Tenant); err != nil {
		return err
	}
	l, ok, err := openLog(e.cfg.Dir, id)
	if err == nil && !ok {
		err = notWaiting(b)
	}
	if err != nil {
		return err
	}
	b, err = e.cfg.Store.UpdateBuild(ctx, id, func(b *store.Build) error {
		if b.State != store.BuildRequested {
			return notWaiting(*b)
		}
		b.State = store.BuildQueued
		return nil
	})
	if err != nil {
		return errors.Join(err, l.close())
	}
	e.supersede(t.ID, b.Tags, saidError{supersededText})
	e.enqueue(&job{Engine: e, by: by, build: b, template: t, spec: spec, steps: steps, log: l})
	return nil
}

func notWaiting(b store.Build) error {
	return &firebreak.Error{Kind: firebreak.KindState, Op: "start build", Err: fmt.Errorf("the build %s is %s already", b.ID, b.State),
		Mend: "ask for another build"}
}

func (e *Engine) mayQueue(tenant string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	waiting := 0
	for _, j := range e.queue {
		if j.build.Tenant == tenant {
			waiting++
		}
	}
	if waiting >= e.cfg.Queue {
		return tooMany("%d builds wait for their turn", waiting)
	}
	return nil
}

// supersede ends the builds of a template that would give it one of the tags; all of them if tags is nil.
func (e *Engine) supersede(template string, tags []string, why error) {
	same := func(j *job) bool {
		return j.build.Template == template && (tags == nil || slices.ContainsFunc(j.build.Tags, func(t string) bool { return slices.Contains(tags, t) }))
	}
	e.mu.Lock()
	var waiting []*job
	e.queue = slices.DeleteFunc(e.queue, func(j *job) bool {
		if same(j) {
			waiting = append(waiting, j)
			return true
		}
		return false
	})
	for _, j := range e.jobs {
		if j.running && same(j) {
			j.cancel(why)
		}
	}
	e.mu.Unlock()
	for _, j := range waiting {
		e.finish(j, why)
	}
}

func (e *Engine) enqueue(j *job) {
	j.ctx, j.cancel = context.WithCancelCause(auth.WithCaller(e.ctx, j.by))
	e.mu.Lock()
	closed := e.closed
	e.jobs[j.build.ID] = j
	if !closed {
		e.queue = append(e.queue, j)
		e.pump()
	}
	queued := !closed && !j.running
	e.mu.Unlock()
	if closed {
		e.finish(j, saidError{stoppedText})
	}
	if queued {
		j.log.add(LevelInfo, "Waiting: other builds run")
	}
}

// pump starts the builds whose turn it is: of those that wait, the first ones of tenants that run few. The caller holds mu.
func (e *Engine) pump() {
	total, of := 0, map[string]int{}
	for _, j := range e.jobs {
		if j.running {
			total++
			of[j.build.Tenant]++
		}
	}
	e.queue = slices.DeleteFunc(e.queue, func(j *job) bool {
		if total >= e.cfg.Parallel || of[j.build.Tenant] >= e.cfg.PerTenant {
			return false
		}
		total++
		of[j.build.Tenant]++
		j.running = true
		e.work.Go(j.work)
		return true
	})
}

// work is a build from its turn to its end.
func (j *job) work() {
	ctx, cancel := context.WithTimeoutCause(j.ctx, j.cfg.Timeout, saidError{fmt.Sprintf("it took longer than %s", j.cfg.Timeout)})
	defer cancel()
	_, err := j.cfg.Store.UpdateBuild(ctx, j.build.ID, func(b *store.Build) error {
		b.State, b.Started = store.BuildRunning, time.Now().UTC()
		return nil
	})
	if err == nil {
		err = j.make(ctx)
	}
	if err != nil && ctx.Err() != nil {
		var at stepError
		errors.As(err, &at)
		err = stepError{at.step, context.Cause(ctx)}
	}
	j.finish(j, err)
	j.prune(j.build.Template)
	j.tidyUp()
}

// finish writes down how a build has ended, and lets others have their turn.
func (e *Engine) finish(j *job, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(e.ctx), cleanTimeout)
	defer cancel()
	j.cancel(nil)
	if err != nil {
		err = e.failed(ctx, j, err)
	} else {
		_, err = e.cfg.Store.UpdateBuild(ctx, j.build.ID, func(b *store.Build) error {
			b.State, b.Finished = store.BuildReady, time.Now().UTC()
			return nil
		})
	}
	if err != nil {
		e.log.Warn("write down how a build ended", "build", j.build.ID, "err", err)
	}
	e.mu.Lock()
	delete(e.jobs, j.build.ID)
	if !e.closed {
		e.pump()
	}
	e.mu.Unlock()
	if err := j.log.close(); err != nil {
		e.log.Warn("close the log of a build", "build", j.build.ID, "err", err)
	}
}

// failed writes down why a build has failed.
func (e *Engine) failed(ctx context.Context, j *job, why error) error {
	var at stepError
	errors.As(why, &at)
	text := e.reason(why)
	if firebreak.KindOf(why) == firebreak.KindInternal && !errors.As(why, new(saidError)) {
		e.log.Error("build failed", "build", j.build.ID, "step", at.step, "err", why)
	}
	j.log.begin(at.step)
	j.log.add(LevelError, "Build failed: %s", tidy(text))
	return e.fail(ctx, j.build.ID, at.step, text)
}

// reason is what a client is told of an error: nothing of this host.
func (e *Engine) reason(err error) string {
	var said saidError
	switch {
	case errors.As(err, &said):
		return said.text
	case firebreak.KindOf(err) == firebreak.KindInternal:
		return "something went wrong in firebreak; its log says what"
	}
	text := layerMake().ReplaceAllString(err.Error(), "")
	return strings.ReplaceAll(text, filepath.Dir(e.cfg.Dir), "the state directory")
}

// layerMake is what errors of the image store begin with, and nobody needs to read.
var layerMake = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`(make|name) template ~[a-z2-7]+: `)
})
