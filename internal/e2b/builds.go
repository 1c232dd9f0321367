package e2b

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/build"
	"github.com/firebreak-dev/firebreak/internal/store"
)

// Builder builds templates, on behalf of the caller in the context.
type Builder interface {
	Request(ctx context.Context, req build.Request) (store.Template, store.Build, error)
	Upload(ctx context.Context, template, hash string) (build.Upload, error)
	Receive(ctx context.Context, token, template, hash string, r io.Reader) error
	Start(ctx context.Context, template, id string, spec build.Spec) error
	Status(ctx context.Context, template, id string) (store.Build, []build.LogEntry, error)
}

const (
	maxBuild     = 4 << 20 // bytes of a request that says what to build
	maxTemplate  = 1 << 20 // of memory and of disk in MB, and of processors
	stallTime    = 2 * time.Minute
	uploadPrefix = "/upload/"
)

// IsUpload reports whether a request carries files of a build. It has no key: its address, which was given to somebody
// who had one, is known to nobody else. Its size and time are bounded here.
func IsUpload(r *http.Request) bool {
	return r.Method == http.MethodPut && strings.HasPrefix(r.URL.Path, uploadPrefix)
}

func (d *Door) buildRoutes() {
	b := d.builder
	d.handle("POST /v3/templates", b(d.serveRequestBuild))
	d.handle("GET /templates/{id}/files/{hash}", b(d.serveUploadLink))
	d.handle("POST /v2/templates/{id}/builds/{build}", b(d.serveStartBuild))
	d.handle("GET /templates/{id}/builds/{build}/status", b(d.serveBuildStatus))
	d.handle("GET /templates/{id}/builds/{build}/logs", b(d.serveBuildLogs))
	d.mux.HandleFunc("PUT "+uploadPrefix+"{template}/{hash}/{token}", func(w http.ResponseWriter, r *http.Request) {
		if err := d.serveUpload(w, r); err != nil {
			d.fail(w, r, err)
		}
	})
	for _, pattern := range []string{"POST /templates", "POST /templates/{id}", "POST /v2/templates"} {
		d.handle(pattern, func(http.ResponseWriter, *http.Request, auth.Caller) error {
			return notBuilt("builds of a Dockerfile are not built: describe the template in steps, as the SDKs' Template does")
		})
	}
}

// builder is for what needs one.
func (d *Door) builder(h handler) handler {
	if d.cfg.Builder != nil {
		return h
	}
	return func(http.ResponseWriter, *http.Request, auth.Caller) error {
		return notBuilt("this server builds no templates: its operator makes them")
	}
}

func (d *Door) serveRequestBuild(w http.ResponseWriter, r *http.Request, _ auth.Caller) error {
	var body struct {
		Name          string   `json:"name"`
		Alias         string   `json:"alias"` // as older clients call it
		Tags          []string `json:"tags"`
		CPUCount      int64    `json:"cpuCount"`
		MemoryMB      int64    `json:"memoryMB"`
		MinFreeDiskMB int64    `json:"minFreeDiskMb"`
	}
	if err := readBody(w, r, maxBody, &body); err != nil {
		return err
	}
	if body.Name == "" {
		body.Name = body.Alias
	}
	if body.Name == "" {
		return badRequest("name is missing")
	}
	for name, n := range map[string]int64{"cpuCount": body.CPUCount, "memoryMB": body.MemoryMB, "minFreeDiskMb": body.MinFreeDiskMB} {
		if n < 0 || n > maxTemplate || name == "memoryMB" && n > 0 && n < minMemoryMB {
			return badRequest("%s: %d is not a number from 1 to %d", name, n, maxTemplate)
		}
	}
	limits := firebreak.Limits{CPUs: float64(body.CPUCount), Memory: body.MemoryMB << 20, Disk: body.MinFreeDiskMB << 20}
	t, b, err := d.cfg.Builder.Request(r.Context(), build.Request{Name: body.Name, Tags: body.Tags, Limits: limits})
	if err != nil {
		return err
	}
	return answerJSON(w, http.StatusAccepted, map[string]any{"templateID": t.ID, "buildID": b.ID, "public": t.Public,
		"names": []string{t.Name}, "aliases": []string{t.Name}, "tags": b.Tags})
}

// minMemoryMB is what a sandbox needs at least.
const minMemoryMB = 64

func (d *Door) serveUploadLink(w http.ResponseWriter, r *http.Request, _ auth.Caller) error {
	u, err := d.cfg.Builder.Upload(r.Context(), r.PathValue("id"), r.PathValue("hash"))
	if err != nil {
		return err
	}
	address, err := d.publicURL(r)
	if err != nil {
		return err
	}
	return answerJSON(w, http.StatusCreated, map[string]any{"present": u.Present,
		"url": address + uploadPrefix + u.Template + "/" + u.Hash + "/" + u.Token})
}

// publicURL is where clients reach this server: as its configuration says, or as this one has just reached it.
func (d *Door) publicURL(r *http.Request) (string, error) {
	if d.cfg.PublicURL != "" {
		return strings.TrimSuffix(d.cfg.PublicURL, "/"), nil
	}
	u := url.URL{Scheme: "http", Host: r.Host}
	if r.TLS != nil {
		u.Scheme = "https"
	}
	if r.Host == "" || strings.ContainsAny(r.Host, "/@?# ") {
		return "", badRequest("the request has no host to come back to")
	}
	return u.String(), nil
}

// serveUpload takes files. Clients look at the status only.
func (d *Door) serveUpload(w http.ResponseWriter, r *http.Request) error {
	if d.cfg.Builder == nil {
		return notFound("upload", r.PathValue("token"))
	}
	body := &stalling{r: r.Body, control: http.NewResponseController(w)}
	err := d.cfg.Builder.Receive(r.Context(), r.PathValue("token"), r.PathValue("template"), r.PathValue("hash"), body)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return apiError{status: http.StatusRequestTimeout, message: "the upload stalled"}
	}
	if firebreak.KindOf(err) == firebreak.KindExhausted && !errors.As(err, new(*auth.LimitError)) {
		return apiError{status: http.StatusRequestEntityTooLarge, message: err.Error()}
	}
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// stalling is a body that ends with an error if nothing comes for too long.
type stalling struct {
	r       io.Reader
	control *http.ResponseController
}

func (s *stalling) Read(p []byte) (int, error) {
	_ = s.control.SetReadDeadline(time.Now().Add(stallTime)) // a connection that cannot has no need
	n, err := s.r.Read(p)
	if err != nil {
		_ = s.control.SetReadDeadline(time.Time{})
	}
	return n, err
}

// buildStart is the body that says what to build.
type buildStart struct {
	FromImage         string `json:"fromImage"`
	FromTemplate      string `json:"fromTemplate"`
	FromImageRegistry *struct {
		Type               string `json:"type"`
		Username           string `json:"username"`
		Password           string `json:"password"`
		ServiceAccountJSON string `json:"serviceAccountJson"`
	} `json:"fromImageRegistry"`
	Force    bool   `json:"force"`
	StartCmd string `json:"startCmd"`
	ReadyCmd string `json:"readyCmd"`
	Steps    []struct {
		Type      string   `json:"type"`
		Args      []string `json:"args"`
		FilesHash string   `json:"filesHash"`
		Force     bool     `json:"force"`
	} `json:"steps"`
}

func (d *Door) serveStartBuild(w http.ResponseWriter, r *http.Request, _ auth.Caller) error {
	var body buildStart
	if err := readBody(w, r, maxBuild, &body); err != nil {
		return err
	}
	spec, err := body.spec()
	if err != nil {
		return err
	}
	if err := d.cfg.Builder.Start(r.Context(), r.PathValue("id"), r.PathValue("build"), spec); err != nil {
		return err
	}
	w.Header().Set("Content-Length", "0") // an empty body in chunks is broken to clients
	w.WriteHeader(http.StatusAccepted)
	return nil
}

func (b buildStart) spec() (build.Spec, error) {
	s := build.Spec{FromImage: b.FromImage, FromTemplate: b.FromTemplate, Force: b.Force, Start: b.StartCmd, Ready: b.ReadyCmd}
	for _, step := range b.Steps {
		s.Steps = append(s.Steps, build.Step{Type: step.Type, Args: step.Args, FilesHash: step.FilesHash, Force: step.Force})
	}
	login := b.FromImageRegistry
	if login == nil {
		return s, nil
	}
	switch login.Type {
	case "registry":
		s.Username, s.Password = login.Username, login.Password
	case "gcp": // as Google's registries take a service account's key
		s.Username, s.Password = "_json_key", login.ServiceAccountJSON
	case "aws":
		return s, notBuilt("logins of AWS are not built: give fromImage the name AWS and the password that `aws ecr get-login-password` prints")
	default:
		return s, badRequest("fromImageRegistry.type is none of registry, aws and gcp")
	}
	if s.Username == "" || s.Password == "" {
		return s, badRequest("fromImageRegistry lacks a name or a password")
	}
	return s, nil
}

// buildStatus is the word that clients have for where a build stands.
func buildStatus(s store.BuildState) string {
	switch s {
	case store.BuildReady:
		return "ready"
	case store.BuildFailed:
		return "error"
	case store.BuildRunning:
		return "building"
	}
	return "waiting"
}

// buildLine is a line of a build's log.
type buildLine struct {
	Timestamp time.Time `json:"timestamp"`
	Level     string    `json:"level"`
	Message   string    `json:"message"`
	Step      string    `json:"step,omitempty"`
}

func buildLineOf(e build.LogEntry) buildLine {
	return buildLine{e.Time, levels()[min(max(e.Level, 0), build.LevelError)], e.Text, e.Step}
}

// levelOf reads the least level that a request asks for.
func levelOf(r *http.Request) (build.Level, error) {
	asked := r.URL.Query().Get("level")
	for i, name := range levels() {
		if asked == name {
			return build.Level(i), nil
		}
	}
	if asked != "" {
		return 0, badRequest("level=%.50s is none of %v", asked, levels())
	}
	return build.LevelDebug, nil
}

// matching returns the lines of a level or above.
func matching(all []build.LogEntry, least build.Level) []build.LogEntry {
	var some []build.LogEntry
	for _, e := range all {
		if e.Level >= least {
			some = append(some, e)
		}
	}
	return some
}

const maxLogPage = 100

// serveBuildStatus answers with the lines from an offset on. Clients ask until none come.
func (d *Door) serveBuildStatus(w http.ResponseWriter, r *http.Request, _ auth.Caller) error {
	offset, err := queryInt(r, "logsOffset", 0, 0, 1<<31)
	if err != nil {
		return err
	}
	limit, err := queryInt(r, "limit", maxLogPage, 0, 1<<31)
	if err != nil {
		return err
	}
	level, err := levelOf(r)
	if err != nil {
		return err
	}
	b, all, err := d.cfg.Builder.Status(r.Context(), r.PathValue("id"), r.PathValue("build"))
	if err != nil {
		return err
	}
	lines := matching(all, level)
	lines = lines[min(int(offset), len(lines)):]
	lines = lines[:min(int(limit), maxLogPage, len(lines))]
	views := make([]buildLine, len(lines))
	for i, e := range lines {
		views[i] = buildLineOf(e)
	}
	answer := map[string]any{"templateID": r.PathValue("id"), "buildID": b.ID, "status": buildStatus(b.State), "logs": []string{}, "logEntries": views}
	if b.State == store.BuildFailed {
		answer["reason"] = reasonView(b, all)
	}
	return answerJSON(w, http.StatusOK, answer)
}

// reasonView says why a build failed, with what was complained of in that step.
func reasonView(b store.Build, all []build.LogEntry) map[string]any {
	lines := []buildLine{}
	for _, e := range all {
		if e.Step == b.Step && e.Level >= build.LevelWarn {
			lines = append(lines, buildLineOf(e))
		}
	}
	lines = lines[max(0, len(lines)-maxLogPage):]
	view := map[string]any{"message": b.Reason, "logEntries": lines}
	if b.Step != "" {
		view["step"] = b.Step
	}
	return view
}

// serveBuildLogs answers with the lines after, or before, a time.
func (d *Door) serveBuildLogs(w http.ResponseWriter, r *http.Request, _ auth.Caller) error {
	limit, err := queryInt(r, "limit", maxLogPage, 0, 1<<31)
	if err != nil {
		return err
	}
	backward := false
	switch direction := r.URL.Query().Get("direction"); direction {
	case "", "forward":
	case "backward":
		backward = true
	default:
		return badRequest("direction=%.50s is neither forward nor backward", direction)
	}
	cursor, err := queryInt(r, "cursor", -1, 0, 1<<53)
	if err != nil {
		return err
	}
	level, err := levelOf(r)
	if err != nil {
		return err
	}
	_, all, err := d.cfg.Builder.Status(r.Context(), r.PathValue("id"), r.PathValue("build"))
	if err != nil {
		return err
	}
	views := logPage(matching(all, level), cursor, backward, int(min(limit, maxLogPage)))
	return answerJSON(w, http.StatusOK, map[string]any{"logs": views})
}

// logPage returns the lines from a time in milliseconds on, or back from it; a negative one is the beginning, or the end.
func logPage(lines []build.LogEntry, cursor int64, backward bool, limit int) []buildLine {
	views := []buildLine{}
	for i := range lines {
		if backward {
			i = len(lines) - 1 - i
		}
		at := lines[i].Time.UnixMilli()
		if cursor >= 0 && (!backward && at < cursor || backward && at > cursor) {
			continue
		}
		if len(views) == limit {
			break
		}
		views = append(views, buildLineOf(lines[i]))
	}
	return views
}

// isBuildBox reports whether a sandbox belongs to a build, and is nobody's to see.
func isBuildBox(rec store.Record) bool { return rec.Annotations[build.Annotation] != "" }
