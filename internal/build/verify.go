package build

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/firebreak-dev/firebreak/internal/image"
)

const (
	readyPause   = 200 * time.Millisecond // between two tries of the ready command
	readyDefault = 20 * time.Second       // that a start command without one must go on, or have ended well
)

// verify starts a sandbox from what was made, as every later one will be, and holds the start and the ready command to
// what they are for. What was verified once, at this key, is not again.
func (j *job) verify(ctx context.Context, made image.Template, at string) error {
	k := key("verified", at, made.Start, made.Ready)
	if !j.spec.Force {
		t, ok, err := j.layer(ctx, j.build.Tenant, k)
		if ok {
			j.unpin(t.Name)
			j.log.add(LevelInfo, "CACHED start command: %s", tidy(made.Start))
		}
		if ok || err != nil {
			return err
		}
	}
	b := &box{job: j, from: made, place: place{envs: made.Envs, user: made.User, dir: made.Workdir}}
	defer b.close(ctx)
	if err := b.open(ctx); err != nil {
		return err
	}
	if err := b.tryStart(ctx, made.Start, made.Ready); err != nil {
		return err
	}
	t, err := j.keepLayer(ctx, j.build.Tenant, k, func(name string) (image.Template, error) {
		return j.cfg.Images.Link(ctx, made.Name, name, nil)
	})
	if err == nil {
		j.unpin(t.Name)
	}
	return err
}

// tryStart runs the start command until the ready command succeeds.
func (b *box) tryStart(ctx context.Context, start, ready string) error {
	ctx, cancel := context.WithCancelCause(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if start == "" {
			return
		}
		b.job.log.add(LevelInfo, "Start command: %s", tidy(start))
		err := run(ctx, b.guest, command{text: start, user: b.place.user, dir: b.place.dir, envs: b.place.envs, line: b.job.log.output})
		if err != nil { // what it left in the background, if it ended well, may yet become ready
			cancel(b.startFailed(start, err))
		}
	}()
	err := b.awaitReady(ctx, ended, ready)
	cancel(nil)
	<-ended
	if err == nil {
		b.job.log.add(LevelInfo, "The template is ready")
	}
	return err
}

// awaitReady waits for the ready command to succeed. Without one, what was started is to go on for a while, or to have ended.
func (b *box) awaitReady(ctx context.Context, ended <-chan struct{}, ready string) error {
	if ready == "" {
		select {
		case <-ended:
		case <-time.After(readyDefault):
		case <-ctx.Done():
		}
		return context.Cause(ctx)
	}
	log, limit := b.job.log, b.job.readyTimeout
	ctx, cancel := context.WithTimeoutCause(ctx, limit,
		saidError{fmt.Sprintf("the ready command did not succeed within %s: %s", limit, tidy(ready))})
	defer cancel()
	for {
		err := run(ctx, b.guest, command{text: ready, user: b.place.user, dir: b.place.dir, envs: b.place.envs,
			line: func(_ Level, line string) { log.add(LevelDebug, "ready: %s", tidy(line)) }})
		if err == nil || ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if failed := new(exitError); !errors.As(err, failed) {
			return fmt.Errorf("ready command: %w", err)
		}
		select {
		case <-time.After(b.job.readyPause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (b *box) startFailed(start string, err error) error {
	failed := new(exitError)
	if !errors.As(err, failed) {
		return fmt.Errorf("start command: %w", err)
	}
	text := fmt.Sprintf("the start command failed: %s: %s", tidy(start), failed.status)
	if tail := b.job.log.tail(); len(tail) > 0 {
		text += "\n" + tail[len(tail)-1]
	}
	return saidError{text}
}
