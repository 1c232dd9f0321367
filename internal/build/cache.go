package build

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"time"

	"github.com/firebreak-dev/firebreak/internal/image"
	"github.com/firebreak-dev/firebreak/internal/store"
)

// cacheVersion is part of all keys: it changes when a step comes to mean something else.
const cacheVersion = "1"

const cleanTimeout = 30 * time.Second

// key is of all that leads to a layer.
func key(parts ...string) string {
	b, _ := json.Marshal(append([]string{cacheVersion}, parts...)) // texts
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// layer returns the image that was kept under a key, pinned; ok is false if there is none.
func (e *Engine) layer(ctx context.Context, tenant, key string) (image.Template, bool, error) {
	all, err := e.cfg.Store.LayersOf(ctx, tenant, key)
	if err != nil {
		return image.Template{}, false, err
	}
	for _, l := range all {
		if !l.Ready {
			continue // somebody is making it
		}
		e.pin(l.Image)
		t, err := e.cfg.Images.Get(l.Image)
		if err == nil {
			l.Used = time.Now().UTC()
			return t, true, e.cfg.Store.PutLayer(ctx, l)
		}
		e.unpin(l.Image)
		if !errors.Is(err, fs.ErrNotExist) {
			return t, false, err
		}
		e.dropLayer(ctx, l)
	}
	return image.Template{}, false, nil
}

// keepLayer has make make an image of the name that it is given, and keeps it under key, pinned. An empty key is for what
// only its build uses. Its record is there before it, so that nothing is left of what a killed process was making.
func (j *job) keepLayer(ctx context.Context, tenant, key string, make func(name string) (image.Template, error)) (image.Template, error) {
	l := store.Layer{Image: image.LayerName(), Tenant: tenant, Key: key, Build: j.build.ID, Used: time.Now().UTC()}
	j.pin(l.Image)
	if err := j.cfg.Store.PutLayer(ctx, l); err != nil {
		j.unpin(l.Image)
		return image.Template{}, err
	}
	t, err := make(l.Image)
	if err == nil && key != "" {
		l.Digest, l.Size, l.Ready = t.Digest, t.Size, true
		err = j.cfg.Store.PutLayer(ctx, l)
	}
	if err != nil {
		j.unpin(l.Image)
		j.dropLayer(ctx, l)
		return image.Template{}, err
	}
	return t, nil
}

// dropLayer forgets an image, the name first: then what is left, if this process dies, is a record that leads nowhere.
func (e *Engine) dropLayer(ctx context.Context, l store.Layer) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
	defer cancel()
	err := e.deleteImage(l.Image)
	if err == nil {
		err = e.cfg.Store.DeleteLayer(ctx, l.Image)
	}
	if err != nil {
		e.log.Warn("forget a layer", "image", l.Image, "err", err)
	}
}

func (e *Engine) pin(image string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.pinned[image]++
}

func (e *Engine) unpin(image string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.pinned[image]--; e.pinned[image] <= 0 {
		delete(e.pinned, image)
	}
}

func (e *Engine) isPinned(image string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.pinned[image] > 0
}

// tidyUp throws away what is kept beyond the limits. One at a time: another call has nothing to add.
func (e *Engine) tidyUp() {
	if !e.tidy.TryLock() {
		return
	}
	defer e.tidy.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(e.ctx), cleanTimeout)
	defer cancel()
	dropped, err := e.clearLayers(ctx)
	if err == nil && dropped {
		err = e.collect(ctx)
	}
	if err := errors.Join(err, e.clearUploads()); err != nil {
		e.log.Warn("tidy up after builds", "err", err)
	}
}

// fresh is how long a layer is spared that was just used: another process may be building with it.
const fresh = 10 * time.Minute

// clearLayers forgets layers until the others are no more than the limit, those first that were not used for longest, and
// those that a later one has replaced.
func (e *Engine) clearLayers(ctx context.Context) (dropped bool, err error) {
	all, err := e.cfg.Store.Layers(ctx)
	if err != nil {
		return false, err
	}
	type place struct{ tenant, key string }
	latest := map[place]string{}
	holders, sum := map[string]int{}, int64(0) // an image may be several layers
	for _, l := range all {
		if !l.Ready {
			continue
		}
		latest[place{l.Tenant, l.Key}] = l.Image
		if holders[l.Digest]++; holders[l.Digest] == 1 {
			sum += l.Size
		}
	}
	for _, l := range all {
		replaced, spared := latest[place{l.Tenant, l.Key}] != l.Image, time.Since(l.Used) < fresh
		enough := sum <= e.cfg.Cache || spared && sum <= 2*e.cfg.Cache
		if !l.Ready || e.isPinned(l.Image) || enough && (!replaced || spared) {
			continue
		}
		e.dropLayer(ctx, l)
		dropped = true
		if holders[l.Digest]--; holders[l.Digest] == 0 {
			sum -= l.Size
		}
	}
	return dropped, nil
}

// collect frees the images that nobody names or uses any more.
func (e *Engine) collect(ctx context.Context) error {
	used, err := e.cfg.Sandboxes.Digests(operator(ctx))
	if err != nil {
		return err
	}
	_, _, err = e.cfg.Images.Collect(ctx, func(digest string) bool { return used[digest] })
	return err
}

// prune forgets the oldest builds of a template, and those that nobody started.
func (e *Engine) prune(template string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(e.ctx), cleanTimeout)
	defer cancel()
	if err := e.pruneBuilds(ctx, template); err != nil {
		e.log.Warn("forget old builds", "template", template, "err", err)
	}
}

func (e *Engine) pruneBuilds(ctx context.Context, template string) error {
	t, err := e.cfg.Store.Template(ctx, template)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	all, err := e.cfg.Store.Builds(ctx, template)
	if err != nil {
		return err
	}
	used := map[string]bool{}
	for _, tag := range t.Tags {
		used[tag.Build] = true
	}
	finished := 0
	for _, b := range all {
		forgotten := b.State == store.BuildRequested && time.Since(b.Created) > maxRequested
		if !b.Finished.IsZero() {
			finished++
		}
		if used[b.ID] || !forgotten && finished <= keptBuilds || b.Finished.IsZero() && !forgotten {
			continue
		}
		if err := errors.Join(removeLog(e.cfg.Dir, b.ID), e.cfg.Store.DeleteBuild(ctx, b.ID)); err != nil {
			return err
		}
	}
	return nil
}
