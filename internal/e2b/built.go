package e2b

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/build"
	"github.com/firebreak-dev/firebreak/internal/image"
	"github.com/firebreak-dev/firebreak/internal/store"
)

// Built keeps the templates that clients have built.
type Built interface {
	Find(ctx context.Context, ref string) (store.Template, build.Ref, error)
	List(ctx context.Context) ([]store.Template, error)
	Builds(ctx context.Context, ref string) ([]store.Build, error)
	Delete(ctx context.Context, ref string) error
	SetPublic(ctx context.Context, ref string, public bool) (store.Template, error)
}

// Tagger gives and takes tags of built templates.
type Tagger interface {
	Tag(ctx context.Context, target string, tags []string) (build string, all []string, err error)
	Untag(ctx context.Context, name string, tags []string) error
}

// builtHandler answers about a template that clients have built.
type builtHandler func(w http.ResponseWriter, r *http.Request, t store.Template, ref build.Ref) error

// orBuilt asks for a template that was built by the name or ID in a request's path; of another one, others answers.
func (d *Door) orBuilt(field string, built builtHandler, others handler) handler {
	return func(w http.ResponseWriter, r *http.Request, by auth.Caller) error {
		if d.cfg.Built == nil {
			return others(w, r, by)
		}
		t, ref, err := d.cfg.Built.Find(r.Context(), r.PathValue(field))
		switch kind := firebreak.KindOf(err); {
		case err != nil && (kind == firebreak.KindNotFound || kind == firebreak.KindInvalid):
			return others(w, r, by)
		case err != nil:
			return err
		}
		return built(w, r, t, ref)
	}
}

// builtView is a template as clients know it.
func (d *Door) builtView(ctx context.Context, t store.Template) (templateView, []store.Build, error) {
	cpus, memory, disk := min(2, runtime.NumCPU()), int64(templateMemoryMB), int64(templateDiskMB)
	if t.Limits.CPUs > 0 {
		cpus = int(t.Limits.CPUs)
	}
	if t.Limits.Memory > 0 {
		memory = t.Limits.Memory >> 20
	}
	if t.Limits.Disk > 0 {
		disk = t.Limits.Disk >> 20
	}
	v := templateView{
		TemplateID: t.ID, Names: []string{nameFor(t)}, Aliases: []string{t.Name}, BuildID: t.Tags[build.DefaultTag].Build, BuildStatus: "waiting",
		BuildCount: t.Builds, Public: t.Public || t.Tenant == "", CPUCount: cpus, MemoryMB: memory, DiskSizeMB: disk,
		EnvdVersion: d.cfg.EnvdVersion, CreatedAt: t.Created, UpdatedAt: t.Updated,
	}
	builds, err := d.cfg.Built.Builds(ctx, t.ID)
	if err != nil && firebreak.KindOf(err) != firebreak.KindDenied { // of somebody else's that is public
		return v, nil, err
	}
	if len(builds) > 0 {
		v.BuildStatus = buildStatus(builds[0].State)
		if v.BuildID == "" {
			v.BuildID = builds[0].ID
		}
	}
	return v, builds, nil
}

// builtViews lists the caller's built templates. It returns the others of all, which were made by the operator.
func (d *Door) builtViews(ctx context.Context, all []image.Template) ([]templateView, []image.Template, error) {
	if d.cfg.Built == nil {
		return nil, all, nil
	}
	list, err := d.cfg.Built.List(ctx)
	if err != nil {
		return nil, nil, err
	}
	var views []templateView
	for _, t := range list {
		v, _, err := d.builtView(ctx, t)
		if err != nil {
			return nil, nil, err
		}
		views = append(views, v)
		all = slices.DeleteFunc(all, func(i image.Template) bool { return isTagOf(i.Name, t) })
	}
	return views, all, nil
}

// isTagOf reports whether a name in the store is a tag of a built template.
func isTagOf(name string, t store.Template) bool {
	for tag := range t.Tags {
		if name == build.ImageName(t.Tenant, t.Name, tag) {
			return true
		}
	}
	return false
}

func (d *Door) serveBuilt(w http.ResponseWriter, r *http.Request, t store.Template, _ build.Ref) error {
	v, builds, err := d.builtView(r.Context(), t)
	if err != nil {
		return err
	}
	type view struct {
		BuildID     string     `json:"buildID"`
		Status      string     `json:"status"`
		CreatedAt   time.Time  `json:"createdAt"`
		UpdatedAt   time.Time  `json:"updatedAt"`
		FinishedAt  *time.Time `json:"finishedAt,omitempty"`
		CPUCount    int        `json:"cpuCount"`
		MemoryMB    int64      `json:"memoryMB"`
		DiskSizeMB  int64      `json:"diskSizeMB"`
		EnvdVersion string     `json:"envdVersion"`
	}
	views := []view{}
	for _, b := range builds {
		one := view{b.ID, buildStatus(b.State), b.Created, b.Created, nil, v.CPUCount, v.MemoryMB, v.DiskSizeMB, v.EnvdVersion}
		if !b.Started.IsZero() {
			one.UpdatedAt = b.Started
		}
		if !b.Finished.IsZero() {
			one.FinishedAt, one.UpdatedAt = &b.Finished, b.Finished
		}
		views = append(views, one)
	}
	return answerJSON(w, http.StatusOK, struct {
		templateView
		Builds []view `json:"builds"`
	}{v, views})
}

// serveBuiltAlias tells whether there is a template of a name, which there is once it was built.
func (d *Door) serveBuiltAlias(w http.ResponseWriter, r *http.Request, t store.Template, ref build.Ref) error {
	if _, ok := t.Tags[ref.Tag]; len(t.Tags) == 0 || ref.Tag != "" && !ok {
		return notFound("template", r.PathValue("alias"))
	}
	return answerJSON(w, http.StatusOK, map[string]any{"templateID": t.ID, "public": t.Public || t.Tenant == ""})
}

// deleteBuilt deletes a template, or one tag of it.
func (d *Door) deleteBuilt(w http.ResponseWriter, r *http.Request, t store.Template, ref build.Ref) error {
	var err error
	if d.cfg.Tags != nil && ref.Tag != "" && ref.Tag != build.DefaultTag {
		err = d.cfg.Tags.Untag(r.Context(), t.ID, []string{ref.Tag})
	} else {
		err = d.cfg.Built.Delete(r.Context(), t.ID)
	}
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (d *Door) patchBuilt(w http.ResponseWriter, r *http.Request, t store.Template, _ build.Ref) error {
	var body struct {
		Public *bool `json:"public"`
	}
	if err := readBody(w, r, maxBody, &body); err != nil {
		return err
	}
	if body.Public != nil {
		var err error
		if t, err = d.cfg.Built.SetPublic(r.Context(), t.ID, *body.Public); err != nil {
			return err
		}
	}
	return answerJSON(w, http.StatusOK, map[string][]string{"names": {nameFor(t)}})
}

// nameFor is what those call a template who may use it: others than its owner put his ID before it.
func nameFor(t store.Template) string {
	if t.Public && t.Tenant != "" {
		return t.Tenant + "/" + t.Name
	}
	return t.Name
}

func noTags() error {
	return notBuilt("tags are not built here: this server builds no templates")
}

func (d *Door) tagRoutes() {
	d.handle("POST /templates/tags", d.serveTag)
	d.handle("DELETE /templates/tags", d.serveUntag)
}

func (d *Door) serveTag(w http.ResponseWriter, r *http.Request, _ auth.Caller) error {
	if d.cfg.Tags == nil {
		return noTags()
	}
	var body struct {
		Target string   `json:"target"`
		Tags   []string `json:"tags"`
	}
	if err := readBody(w, r, maxBody, &body); err != nil {
		return err
	}
	id, tags, err := d.cfg.Tags.Tag(r.Context(), body.Target, body.Tags)
	if err != nil {
		return err
	}
	return answerJSON(w, http.StatusCreated, map[string]any{"buildID": id, "tags": tags})
}

func (d *Door) serveUntag(w http.ResponseWriter, r *http.Request, _ auth.Caller) error {
	if d.cfg.Tags == nil {
		return noTags()
	}
	var body struct {
		Name string   `json:"name"`
		Tags []string `json:"tags"`
	}
	if err := readBody(w, r, maxBody, &body); err != nil {
		return err
	}
	if err := d.cfg.Tags.Untag(r.Context(), body.Name, body.Tags); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// serveTags lists the tags of a template, by name.
func (d *Door) serveTags(w http.ResponseWriter, r *http.Request) error {
	if d.cfg.Built == nil {
		return noTags()
	}
	t, _, err := d.cfg.Built.Find(r.Context(), r.PathValue("id"))
	if errors.Is(err, fs.ErrNotExist) {
		return notFound("template", r.PathValue("id"))
	}
	if err != nil {
		return err
	}
	type view struct {
		Tag       string    `json:"tag"`
		BuildID   string    `json:"buildID"`
		CreatedAt time.Time `json:"createdAt"`
	}
	views := []view{}
	for tag, to := range t.Tags {
		views = append(views, view{tag, to.Build, to.Created})
	}
	slices.SortFunc(views, func(a, b view) int { return strings.Compare(a.Tag, b.Tag) })
	return answerJSON(w, http.StatusOK, views)
}
