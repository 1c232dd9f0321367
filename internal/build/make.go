package build

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strconv"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/build/step"
	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/image"
	"github.com/firebreak-dev/firebreak/internal/image/rootfs"
	"github.com/firebreak-dev/firebreak/internal/manager"
)

const (
	// worthKeeping is how long work must have taken for a layer of its own in the middle of a build: to keep one takes
	// about as long.
	worthKeeping = 2 * time.Second

	// spare is how much longer the sandbox lives than its build may: it is for the case that nobody is left to end it.
	spare = 5 * time.Minute

	// maxFiles bounds what a template may hold, and so what the host needs of memory to make it.
	maxFiles = 500_000
)

// make is the whole build.
func (j *job) make(ctx context.Context) error {
	j.log.begin(StepBase)
	b, err := j.base(ctx)
	if b.Name != "" {
		defer func() { j.release(ctx, b.Name) }()
	}
	if err != nil {
		return stepError{StepBase, err}
	}
	made, at, err := j.assemble(ctx, b)
	if made.Name != "" {
		defer func() { j.release(ctx, made.Name) }()
	}
	if err != nil {
		return err
	}
	j.log.begin(StepFinalize)
	made.Start, made.Ready = b.start, b.ready
	if j.spec.Start != "" || j.spec.Ready != "" {
		made.Start, made.Ready = j.spec.Start, j.spec.Ready
		if err := j.verify(ctx, made, at); err != nil {
			return stepError{StepFinalize, err}
		}
	}
	if err := j.publish(ctx, made, b); err != nil {
		return stepError{StepFinalize, err}
	}
	j.log.add(LevelInfo, "Build finished")
	return nil
}

// publish gives what was made its names.
func (j *job) publish(ctx context.Context, made image.Template, b base) error {
	for _, tag := range j.build.Tags {
		_, err := j.cfg.Images.Link(ctx, made.Name, ImageName(j.template.Tenant, j.template.Name, tag), func(t *image.Template) {
			t.Start, t.Ready, t.Limits = made.Start, made.Ready, j.template.Limits
			t.Entrypoint, t.Command = nil, nil
			t.Source = "built from " + b.Source
		})
		if err != nil {
			return err
		}
	}
	err := j.setTags(ctx, j.template.ID, j.build.Tags, j.build.ID)
	if errors.Is(err, fs.ErrNotExist) { // it was deleted, and with it the names that there were then
		for _, tag := range j.build.Tags {
			err = errors.Join(err, j.deleteImage(ImageName(j.template.Tenant, j.template.Name, tag)))
		}
	}
	return err
}

// progress of a chain of steps: how many of them an image has.
type chain struct {
	keys []string // of what is there after that many steps
}

// chainOf returns the keys after no step, after one, and so on.
func (j *job) chainOf(b base) chain {
	c := chain{keys: []string{key("steps", b.key)}}
	for _, s := range j.steps {
		c.keys = append(c.keys, key(c.keys[len(c.keys)-1], string(s.Identity())))
	}
	return c
}

// kept finds the image of the longest beginning that was kept, pinned, and how many steps that is.
func (j *job) kept(ctx context.Context, c chain) (image.Template, int, error) {
	last := len(j.steps)
	for i, s := range j.steps {
		if s.Force {
			last = min(last, i)
		}
	}
	if j.spec.Force {
		return image.Template{}, 0, nil
	}
	for n := last; n >= 0; n-- {
		t, ok, err := j.layer(ctx, j.build.Tenant, c.keys[n])
		if ok || err != nil {
			return t, n, err
		}
	}
	return image.Template{}, 0, nil
}

// assemble runs what is not kept of the steps. It returns the image of all of them, pinned, and its key.
func (j *job) assemble(ctx context.Context, b base) (image.Template, string, error) {
	c := j.chainOf(b)
	from, done, err := j.kept(ctx, c)
	if err != nil {
		return image.Template{}, "", stepError{StepBase, err}
	}
	for _, s := range j.steps[:done] {
		j.log.begin(strconv.Itoa(s.Number))
		j.log.add(LevelInfo, "CACHED [%d/%d] %s", s.Number, len(j.steps), s.Text())
	}
	last := c.keys[len(j.steps)]
	if from.Name != "" && done == len(j.steps) {
		return from, last, nil
	}
	box := &box{job: j, from: b.Template, foreign: b.foreign, place: place{envs: b.Envs, user: b.User, dir: b.Workdir}}
	if from.Name != "" {
		defer j.unpin(from.Name)
		box.from, box.foreign, box.place = from, false, place{envs: from.Envs, user: from.User, dir: from.Workdir}
	}
	defer box.close(ctx)
	made, err := j.runSteps(ctx, box, c, done)
	return made, last, err
}

// runSteps runs all steps but the first done ones, and keeps what is worth it.
func (j *job) runSteps(ctx context.Context, b *box, c chain, done int) (image.Template, error) {
	if b.foreign {
		if err := b.open(ctx); err != nil {
			return image.Template{}, stepError{StepBase, err}
		}
	}
	since := time.Duration(0)
	for _, s := range j.steps[done:] {
		number := strconv.Itoa(s.Number)
		j.log.begin(number)
		j.log.add(LevelInfo, "[%d/%d] %s", s.Number, len(j.steps), s.Text())
		start := time.Now()
		if err := b.do(ctx, s); err != nil {
			return image.Template{}, stepError{number, err}
		}
		if since += time.Since(start); since < j.worth || !j.changesLater(s.Number) {
			continue
		}
		kept, err := b.keep(ctx, c.keys[s.Number])
		if err != nil {
			return image.Template{}, stepError{number, err}
		}
		j.unpin(kept.Name)
		since = 0
	}
	j.log.begin(StepFinalize)
	made, err := b.keep(ctx, c.keys[len(j.steps)])
	if err != nil {
		err = stepError{StepFinalize, err}
	}
	return made, err
}

// changesLater reports whether a step after number changes files: if not, the image after all steps holds no more.
func (j *job) changesLater(number int) bool {
	for _, s := range j.steps[number:] {
		if s.Kind == step.KindRun || s.Kind == step.KindCopy {
			return true
		}
	}
	return false
}

// place is what steps leave beside files.
type place struct {
	envs map[string]string
	user string
	dir  string // empty: the user's home
}

// box is the sandbox in which steps run. It is made for the first step that needs one.
type box struct {
	job     *job
	from    image.Template
	foreign bool // to be prepared first
	place   place

	id       string
	guest    *guest.Guest
	boundary firebreak.Boundary
	changed  bool // since from
}

// open makes the sandbox.
func (b *box) open(ctx context.Context) error {
	if b.guest != nil {
		return nil
	}
	if err := b.create(ctx); err != nil {
		return err
	}
	if err := checkShell(ctx, b); err != nil {
		return err
	}
	if b.foreign {
		return b.job.prepare(ctx, b)
	}
	return nil
}

func (b *box) create(ctx context.Context) error {
	j := b.job
	req := manager.Request{
		Template: b.from.Name, Limits: j.build.Limits, Timeout: j.cfg.Timeout + spare,
		Annotations: map[string]string{Annotation: j.build.ID}, Command: "build of template " + j.template.Name,
	}
	req.Limits.Disk = max(req.Limits.Disk, j.cfg.Disk)
	rec, _, err := j.cfg.Sandboxes.Create(ctx, req)
	if kind := firebreak.KindOf(err); err != nil && (kind == firebreak.KindUnsupported || kind == firebreak.KindHost) {
		req.Limits.Disk = 0 // this host may not be able to limit it
		rec, _, err = j.cfg.Sandboxes.Create(ctx, req)
	}
	if err != nil {
		return err
	}
	b.id, b.boundary = string(rec.ID), rec.Boundary
	if rec.Boundary == firebreak.BoundaryNone {
		return &firebreak.Error{Kind: firebreak.KindUnsupported, Op: "build template",
			Err:  fmt.Errorf("%s has no root file system of its own, so nothing can be built in it", rec.Driver),
			Mend: "use gvisor or container"}
	}
	b.guest, err = j.cfg.Sandboxes.Guest(ctx, b.id)
	return err
}

// Annotation is the note by which the sandboxes of builds are known: it holds the build's ID.
const Annotation = "build"

// close ends the sandbox.
func (b *box) close(ctx context.Context) {
	if b.id == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
	defer cancel()
	if _, err := b.job.cfg.Sandboxes.Delete(ctx, b.id); err != nil {
		b.job.Engine.log.Warn("end the sandbox of a build", "sandbox", b.id, "err", err)
	}
}

// keep makes an image of what the sandbox holds now, pinned and kept under key.
func (b *box) keep(ctx context.Context, key string) (image.Template, error) {
	j := b.job
	edit := func(t *image.Template) {
		t.Envs, t.User, t.Workdir = b.place.envs, b.place.user, b.place.dir
		t.Source = b.from.Source
	}
	return j.keepLayer(ctx, j.build.Tenant, key, func(name string) (image.Template, error) {
		if !b.changed {
			return j.cfg.Images.Link(ctx, b.from.Name, name, edit)
		}
		j.log.add(LevelDebug, "keep the file system")
		t, err := b.export(ctx, name, true, edit)
		if firebreak.KindOf(err) == firebreak.KindState { // it left something out that only it has
			t, err = b.export(ctx, name, false, edit)
		}
		return t, err
	})
}

func (b *box) export(ctx context.Context, name string, changes bool, edit func(*image.Template)) (image.Template, error) {
	archive, err := b.guest.Export(ctx, changes)
	if err != nil {
		return image.Template{}, err
	}
	defer archive.Close()
	src := image.Export{Archive: archive}
	if changes {
		src.Base = b.from.Name
	}
	return b.job.cfg.Images.Make(ctx, image.Source{Export: src}, image.MakeOptions{Name: name, Edit: edit,
		Limits: rootfs.Limits{Bytes: b.job.cfg.ImageBytes, FileBytes: b.job.cfg.ImageBytes, Entries: maxFiles}})
}

// put writes a program into the sandbox.
func (b *box) put(ctx context.Context, name string, text []byte) error {
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	err := w.WriteHeader(&tar.Header{Name: path.Base(name), Mode: 0o755, Size: int64(len(text)), ModTime: stamp})
	if err == nil {
		_, err = w.Write(text)
	}
	if err = errors.Join(err, w.Close()); err != nil {
		return err
	}
	return b.guest.Import(ctx, guest.Import{Path: name, User: "root", Single: path.Base(name)}, &archive)
}

// makeDirs makes a directory and its parents, as far as they are missing, for the user of the steps.
func (b *box) makeDirs(ctx context.Context, dir string) error {
	var archive bytes.Buffer
	if err := tar.NewWriter(&archive).Close(); err != nil {
		return err
	}
	b.changed = true
	return b.guest.Import(ctx, guest.Import{Path: dir + "/", User: b.place.user}, &archive)
}

// copyIn sends the files of an upload into the sandbox.
func (b *box) copyIn(ctx context.Context, c step.Copy, dest string, files io.Reader) error {
	u, err := step.OpenUpload(files, c.Source, b.job.cfg.ImageBytes)
	if err != nil {
		return err
	}
	r, w := io.Pipe()
	wrote := make(chan error, 1)
	go func() {
		err := u.Pass(w)
		wrote <- errors.Join(err, w.CloseWithError(err))
	}()
	to := guest.Import{Path: dest, Cwd: b.place.dir, User: b.place.user, Owner: c.Owner, Mode: c.Mode, Single: u.Single()}
	err = b.guest.Import(ctx, to, r)
	_ = r.CloseWithError(errors.New("the sandbox takes no more")) // so that the other end does not wait for ever
	if uploadErr := <-wrote; firebreak.KindOf(uploadErr) == firebreak.KindInvalid || firebreak.KindOf(uploadErr) == firebreak.KindExhausted {
		return uploadErr // the sandbox could only tell that it broke off
	}
	return err
}
