package e2b

import (
	"encoding/hex"
	"net/http"
	"runtime"
	"strings"
	"time"

	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/image"
)

// Where a request and a template say nothing, these are a sandbox's where they can be enforced.
const (
	templateMemoryMB = 1024
	templateDiskMB   = 2048
)

func (d *Door) templateRoutes() {
	for _, v := range versions() {
		d.handle("GET "+v.prefix+"/templates", d.serveTemplates)
		d.handle("PATCH "+v.prefix+"/templates/{id}", d.orBuilt("id", d.patchBuilt, d.servePatchTemplate))
	}
	d.handle("GET /templates/{id}", d.orBuilt("id", d.serveBuilt, d.serveTemplate))
	d.handle("DELETE /templates/{id}", d.orBuilt("id", d.deleteBuilt, d.serveDeleteTemplate))
	d.handle("GET /templates/aliases/{alias}", d.orBuilt("alias", d.serveBuiltAlias, d.serveAlias))
}

// templateView is a template as clients know it. There is one build of each: the one that is there.
type templateView struct {
	TemplateID    string     `json:"templateID"`
	Names         []string   `json:"names"`
	Aliases       []string   `json:"aliases"`
	BuildID       string     `json:"buildID"`
	BuildStatus   string     `json:"buildStatus"`
	BuildCount    int        `json:"buildCount"`
	Public        bool       `json:"public"`
	CPUCount      int        `json:"cpuCount"`
	MemoryMB      int64      `json:"memoryMB"`
	DiskSizeMB    int64      `json:"diskSizeMB"`
	EnvdVersion   string     `json:"envdVersion"`
	CreatedAt     time.Time  `json:"createdAt"`
	UpdatedAt     time.Time  `json:"updatedAt"`
	CreatedBy     *struct{}  `json:"createdBy"`     // nobody is known
	LastSpawnedAt *time.Time `json:"lastSpawnedAt"` // nor is this
	SpawnCount    int        `json:"spawnCount"`
}

func (d *Door) templateView(by auth.Caller, t image.Template) templateView {
	id := shown(by, t.Name)
	return templateView{
		TemplateID: id, Names: []string{id}, Aliases: []string{id}, BuildID: buildID(t.Digest), BuildStatus: "ready", BuildCount: 1,
		Public: isShared(t.Name), CPUCount: min(2, runtime.NumCPU()), MemoryMB: templateMemoryMB, DiskSizeMB: templateDiskMB,
		EnvdVersion: d.cfg.EnvdVersion, CreatedAt: t.Created, UpdatedAt: t.Created,
	}
}

// buildID is a UUID that stands for an image.
func buildID(digest string) string {
	b, err := hex.DecodeString(strings.TrimPrefix(digest, "sha256:"))
	if err != nil || len(b) < 16 {
		b = make([]byte, 16) // of a template without an image, as there are in tests
	}
	b[6], b[8] = b[6]&0x0f|0x80, b[8]&0x3f|0x80 // version 8: whatever its maker likes
	h := hex.EncodeToString(b[:16])
	return strings.Join([]string{h[:8], h[8:12], h[12:16], h[16:20], h[20:]}, "-")
}

func (d *Door) serveTemplates(w http.ResponseWriter, r *http.Request, by auth.Caller) error {
	all, err := d.cfg.Templates.List()
	if err != nil {
		return err
	}
	views, all, err := d.builtViews(r.Context(), all)
	if err != nil {
		return err
	}
	views = append([]templateView{}, views...) // never null
	for _, t := range all {
		if visible(by, t.Name) {
			views = append(views, d.templateView(by, t))
		}
	}
	return answerJSON(w, http.StatusOK, views)
}

// template returns the template that a request's path names, not the one that it would fall back to.
func (d *Door) template(r *http.Request, by auth.Caller, field string) (image.Template, error) {
	asked := r.PathValue(field)
	if image.CheckName(asked) != nil {
		return image.Template{}, notFound("template", asked)
	}
	name := d.lookUp(by, asked)
	if name == "" {
		return image.Template{}, notFound("template", asked)
	}
	return d.cfg.Templates.Get(name)
}

func (d *Door) serveTemplate(w http.ResponseWriter, r *http.Request, by auth.Caller) error {
	t, err := d.template(r, by, "id")
	if err != nil {
		return err
	}
	type build struct {
		BuildID     string    `json:"buildID"`
		Status      string    `json:"status"`
		CreatedAt   time.Time `json:"createdAt"`
		UpdatedAt   time.Time `json:"updatedAt"`
		FinishedAt  time.Time `json:"finishedAt"`
		CPUCount    int       `json:"cpuCount"`
		MemoryMB    int64     `json:"memoryMB"`
		DiskSizeMB  int64     `json:"diskSizeMB"`
		EnvdVersion string    `json:"envdVersion"`
	}
	v := d.templateView(by, t)
	return answerJSON(w, http.StatusOK, struct {
		templateView
		Builds []build `json:"builds"`
	}{v, []build{{v.BuildID, v.BuildStatus, t.Created, t.Created, t.Created, v.CPUCount, v.MemoryMB, v.DiskSizeMB, v.EnvdVersion}}})
}

// serveAlias tells whether there is a template of a name.
func (d *Door) serveAlias(w http.ResponseWriter, r *http.Request, by auth.Caller) error {
	t, err := d.template(r, by, "alias")
	if err != nil {
		return err
	}
	return answerJSON(w, http.StatusOK, struct {
		TemplateID string `json:"templateID"`
		Public     bool   `json:"public"`
	}{shown(by, t.Name), isShared(t.Name)})
}

// mine refuses to change what others have too.
func mine(by auth.Caller, name string) error {
	if by.Operator || isOwn(by, name) {
		return nil
	}
	return apiError{status: http.StatusForbidden, message: "the template " + name + " is shared: only the operator of this server changes it"}
}

func (d *Door) serveDeleteTemplate(w http.ResponseWriter, r *http.Request, by auth.Caller) error {
	t, err := d.template(r, by, "id")
	if err == nil {
		err = mine(by, t.Name)
	}
	if err == nil {
		err = d.cfg.Templates.Delete(t.Name)
	}
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (d *Door) servePatchTemplate(w http.ResponseWriter, r *http.Request, by auth.Caller) error {
	t, err := d.template(r, by, "id")
	if err == nil {
		err = mine(by, t.Name)
	}
	if err != nil {
		return err
	}
	var body struct {
		Public *bool `json:"public"`
	}
	if err := readBody(w, r, maxBody, &body); err != nil {
		return err
	}
	if body.Public != nil && *body.Public != isShared(t.Name) {
		return notBuilt("to share a template, or to take it back, is not built: the operator of this server makes shared ones")
	}
	return answerJSON(w, http.StatusOK, map[string][]string{"names": d.templateView(by, t).Names})
}
