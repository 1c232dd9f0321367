package build

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/store"
)

// Request asks for a build. It makes nothing yet: files may be uploaded, then Start begins it.
type Request struct {
	Name   string           // name, or name:tag
	Tags   []string         // further ones; with none at all it is DefaultTag
	Limits firebreak.Limits // of the template's sandboxes; zero: the server's
}

const (
	maxRequests = 50              // builds of a tenant that were lately asked for and not started
	lately      = time.Hour       // as long as an upload may take to begin
	keptBuilds  = 20              // finished ones of a template that are told of, beside those that tags lead to
	busyWait    = 5 * time.Second // until another try is worth it
)

// Request prepares a build of a template, which is new if the caller has none of that name.
func (e *Engine) Request(ctx context.Context, req Request) (store.Template, store.Build, error) {
	var b store.Build
	by, err := auth.CallerOf(ctx)
	if err != nil {
		return store.Template{}, b, err
	}
	ref, err := ParseRef(req.Name)
	if err != nil {
		return store.Template{}, b, err
	}
	if ref.Namespace != "" && ref.Namespace != by.Tenant.ID {
		return store.Template{}, b, invalidName("%.100q would be another tenant's template", req.Name)
	}
	tags := req.Tags
	if ref.Tag != "" {
		tags = append(slices.Clone(tags), ref.Tag)
	}
	if tags, err = checkTags(tags); err != nil {
		return store.Template{}, b, err
	}
	if len(tags) == 0 {
		tags = []string{DefaultTag}
	}
	if err := e.mayRequest(ctx, by.Tenant.ID); err != nil {
		return store.Template{}, b, err
	}
	now := time.Now().UTC()
	t, err := e.templateFor(ctx, by.Tenant.ID, ref.Name, req.Limits, now)
	if err != nil {
		return t, b, err
	}
	b = store.Build{ID: newBuildID(), Template: t.ID, Tenant: t.Tenant, State: store.BuildRequested, Tags: tags, Limits: req.Limits, Created: now}
	return t, b, e.cfg.Store.InsertBuild(ctx, b)
}

// mayRequest refuses a tenant that asks for builds without starting them.
func (e *Engine) mayRequest(ctx context.Context, tenant string) error {
	unfinished, err := e.cfg.Store.UnfinishedBuilds(ctx)
	if err != nil {
		return err
	}
	open := 0
	for _, b := range unfinished {
		if b.Tenant == tenant && (b.State != store.BuildRequested || time.Since(b.Created) < lately) {
			open++
		}
	}
	if open >= maxRequests+e.cfg.Queue+e.cfg.PerTenant {
		return tooMany("%d builds were asked for and not finished", open)
	}
	return nil
}

func tooMany(format string, args ...any) error {
	return &auth.LimitError{RetryAfter: busyWait, Err: &firebreak.Error{Kind: firebreak.KindExhausted, Op: "build template",
		Err: fmt.Errorf(format, args...), Mend: "wait until some are done"}}
}

// templateFor returns the tenant's template of that name, and makes it if need be.
func (e *Engine) templateFor(ctx context.Context, tenant, name string, limits firebreak.Limits, now time.Time) (store.Template, error) {
	if tenant == "" && name == "host" {
		return store.Template{}, invalidName("%q is the host's own template", name)
	}
	t, err := e.cfg.Store.TemplateNamed(ctx, tenant, name)
	if errors.Is(err, fs.ErrNotExist) {
		if t, err = e.newTemplate(ctx, tenant, name, now); errors.Is(err, fs.ErrExist) { // another request was first
			t, err = e.cfg.Store.TemplateNamed(ctx, tenant, name)
		}
	}
	if err != nil {
		return t, err
	}
	return e.cfg.Store.UpdateTemplate(ctx, t.ID, func(t *store.Template) error {
		t.Builds++
		t.Updated = now
		if limits != (firebreak.Limits{}) {
			t.Limits = limits
		}
		return nil
	})
}

func (e *Engine) newTemplate(ctx context.Context, tenant, name string, now time.Time) (store.Template, error) {
	all, err := e.cfg.Store.Templates(ctx, tenant)
	if err != nil {
		return store.Template{}, err
	}
	if len(all) >= e.cfg.Templates {
		return store.Template{}, &firebreak.Error{Kind: firebreak.KindExhausted, Op: "build template",
			Err: fmt.Errorf("there are %d templates already", len(all)), Mend: "delete some"}
	}
	t := store.Template{ID: newID(), Tenant: tenant, Name: name, Created: now, Updated: now}
	return t, e.cfg.Store.InsertTemplate(ctx, t)
}

// Find returns the template that a caller calls ref, by name or ID: his own, or a public one. fs.ErrNotExist if there is
// none, or it is not his business.
func (e *Engine) Find(ctx context.Context, ref string) (store.Template, Ref, error) {
	by, err := auth.CallerOf(ctx)
	if err != nil {
		return store.Template{}, Ref{}, err
	}
	r, err := ParseRef(ref)
	if err != nil {
		return store.Template{}, r, err
	}
	namespace, id := r.Namespace, ""
	if namespace == "" {
		namespace, id = by.Tenant.ID, r.Name
	}
	t, err := e.cfg.Store.FindTemplate(ctx, namespace, r.Name, id)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !t.Public && t.Tenant != "" && !by.May(t.Tenant) {
		return store.Template{}, r, notFound("template", ref)
	}
	return t, r, err
}

// own is Find for what only a template's owner may do.
func (e *Engine) own(ctx context.Context, ref string) (store.Template, Ref, error) {
	t, r, err := e.Find(ctx, ref)
	if err != nil {
		return t, r, err
	}
	by, err := auth.CallerOf(ctx)
	if err != nil {
		return t, r, err
	}
	if !by.May(t.Tenant) {
		return t, r, &firebreak.Error{Kind: firebreak.KindDenied, Err: fmt.Errorf("the template %.100q is somebody else's", ref)}
	}
	return t, r, nil
}

// Resolve returns the name in the image store of what a caller calls ref. Without a tag it is the default one, and that
// which was given last if there is no default one. fs.ErrNotExist if there is no such template, or nothing was built
// under that tag.
func (e *Engine) Resolve(ctx context.Context, ref string) (string, error) {
	t, r, err := e.Find(ctx, ref)
	if err != nil {
		return "", err
	}
	tag := tagOf(t, r)
	if _, ok := t.Tags[tag]; !ok {
		return "", notFound("template", ref)
	}
	return ImageName(t.Tenant, t.Name, tag), nil
}

// tagOf returns the tag that a name means.
func tagOf(t store.Template, r Ref) string {
	if r.Tag != "" {
		return r.Tag
	}
	tag := DefaultTag
	if _, ok := t.Tags[tag]; ok {
		return tag
	}
	var last time.Time
	for name, to := range t.Tags {
		if to.Created.After(last) || to.Created.Equal(last) && name < tag {
			tag, last = name, to.Created
		}
	}
	return tag
}

// List returns the caller's templates, by name.
func (e *Engine) List(ctx context.Context) ([]store.Template, error) {
	by, err := auth.CallerOf(ctx)
	if err != nil {
		return nil, err
	}
	return e.cfg.Store.Templates(ctx, by.Tenant.ID)
}

// Delete removes a template, its builds and its images; sandboxes that run from them are not disturbed. The builds at work
// on it end.
func (e *Engine) Delete(ctx context.Context, ref string) error {
	t, _, err := e.own(ctx, ref)
	if err != nil {
		return err
	}
	e.supersede(t.ID, nil, saidError{deletedText})
	builds, err := e.cfg.Store.Builds(ctx, t.ID)
	if err != nil {
		return err
	}
	if err := e.cfg.Store.DeleteTemplate(ctx, t.ID); err != nil {
		return err
	}
	var errs []error
	for tag := range t.Tags {
		errs = append(errs, e.deleteImage(ImageName(t.Tenant, t.Name, tag)))
	}
	for _, b := range builds {
		errs = append(errs, removeLog(e.cfg.Dir, b.ID))
	}
	errs = append(errs, e.collect(ctx))
	return errors.Join(errs...)
}

// deleteImage takes a name away, if it is there.
func (e *Engine) deleteImage(name string) error {
	err := e.cfg.Images.Delete(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// SetPublic says whether other tenants may begin sandboxes and builds with a template.
func (e *Engine) SetPublic(ctx context.Context, ref string, public bool) (store.Template, error) {
	t, _, err := e.own(ctx, ref)
	if err != nil {
		return t, err
	}
	return e.cfg.Store.UpdateTemplate(ctx, t.ID, func(t *store.Template) error { t.Public = public; return nil })
}

// Tag gives what one tag of a template leads to further ones. It returns the build that made it.
func (e *Engine) Tag(ctx context.Context, target string, tags []string) (build string, all []string, err error) {
	if all, err = checkTags(tags); err != nil || len(all) == 0 {
		return "", nil, errors.Join(err, invalidName("no tag is given"))
	}
	from, err := e.Resolve(ctx, target)
	if err != nil {
		return "", nil, err
	}
	t, r, err := e.own(ctx, target)
	if err != nil {
		return "", nil, err
	}
	r.Tag = tagOf(t, r)
	build = t.Tags[r.Tag].Build
	for _, tag := range all {
		if tag != r.Tag {
			err = e.tag(ctx, t, from, tag, build)
		}
		if err != nil {
			return "", nil, err
		}
	}
	return build, all, nil
}

// tag makes a tag lead to the image from, which a build made.
func (e *Engine) tag(ctx context.Context, t store.Template, from, tag, build string) error {
	if _, err := e.cfg.Images.Link(ctx, from, ImageName(t.Tenant, t.Name, tag), nil); err != nil {
		return err
	}
	return e.setTags(ctx, t.ID, []string{tag}, build)
}

func (e *Engine) setTags(ctx context.Context, template string, tags []string, build string) error {
	now := time.Now().UTC()
	_, err := e.cfg.Store.UpdateTemplate(ctx, template, func(t *store.Template) error {
		if t.Tags == nil {
			t.Tags = map[string]store.Tag{}
		}
		for _, tag := range tags {
			t.Tags[tag] = store.Tag{Build: build, Created: now}
		}
		if len(t.Tags) > maxTags {
			return invalidName("%d tags are more than %d", len(t.Tags), maxTags)
		}
		t.Updated = now
		return nil
	})
	return err
}

// Untag takes tags away; those that are not there are no error. The default one stays.
func (e *Engine) Untag(ctx context.Context, name string, tags []string) error {
	all, err := checkTags(tags)
	switch {
	case err != nil:
		return err
	case len(all) == 0:
		return invalidName("no tag is given")
	case slices.Contains(all, DefaultTag):
		return invalidName("the tag %q cannot be taken away", DefaultTag)
	}
	t, r, err := e.own(ctx, name)
	if err != nil {
		return err
	}
	if r.Tag != "" {
		return invalidName("%.100q has a tag of its own", name)
	}
	_, err = e.cfg.Store.UpdateTemplate(ctx, t.ID, func(t *store.Template) error {
		for _, tag := range all {
			delete(t.Tags, tag)
		}
		return nil
	})
	for _, tag := range all {
		err = errors.Join(err, e.deleteImage(ImageName(t.Tenant, t.Name, tag)))
	}
	return err
}

// Builds returns the latest builds of a template, the latest first.
func (e *Engine) Builds(ctx context.Context, ref string) ([]store.Build, error) {
	t, _, err := e.own(ctx, ref)
	if err != nil {
		return nil, err
	}
	return e.cfg.Store.Builds(ctx, t.ID)
}

// Status returns a build and its log so far.
func (e *Engine) Status(ctx context.Context, template, id string) (store.Build, []LogEntry, error) {
	b, err := e.ownBuild(ctx, template, id)
	if err != nil {
		return b, nil, err
	}
	// Only now: of a build that has ended, the log must be whole.
	e.mu.Lock()
	j := e.jobs[id]
	e.mu.Unlock()
	if j != nil {
		return b, j.log.snapshot(), nil
	}
	lines, err := readLog(e.cfg.Dir, id)
	return b, lines, err
}

// ownBuild returns a build of one of the caller's templates.
func (e *Engine) ownBuild(ctx context.Context, template, id string) (store.Build, error) {
	t, _, err := e.own(ctx, template)
	if err != nil {
		return store.Build{}, err
	}
	b, err := e.cfg.Store.Build(ctx, id)
	if errors.Is(err, fs.ErrNotExist) || err == nil && b.Template != t.ID {
		return store.Build{}, notFound("build", id)
	}
	return b, err
}
