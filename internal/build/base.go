package build

import (
	"context"
	_ "embed" // of the program below
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/build/step"
	"github.com/firebreak-dev/firebreak/internal/image"
	"github.com/firebreak-dev/firebreak/internal/image/rootfs"
	"github.com/firebreak-dev/firebreak/internal/store"
)

// base is what a build begins with.
type base struct {
	image.Template
	key     string // of all that it is
	foreign bool   // an image that was not made for us: it may lack what clients count on
	start   string // what sandboxes of it run; the build's own do not
	ready   string
}

// standsFor maps what E2B's clients begin with by themselves to our recipes.
func standsFor(name string) string {
	switch strings.TrimSuffix(name, ":latest") {
	case "e2bdev/base", "base":
		return "base"
	case "e2bdev/code-interpreter", "code-interpreter", "code-interpreter-v1":
		return "code-interpreter"
	}
	return ""
}

// checkBase refuses early what can be known early.
func (e *Engine) checkBase(ctx context.Context, s Spec) error {
	name := s.FromTemplate
	if name == "" {
		return checkReference(s)
	}
	if name == image.HostName {
		return &firebreak.Error{Kind: firebreak.KindInvalid, Op: "begin with template host",
			Err:  errors.New("it is a view of this host's own programs, and a template must stand alone"),
			Mend: `begin with the template base, which "firebreak template build base" makes`}
	}
	_, err := e.named(ctx, name)
	if errors.Is(err, fs.ErrNotExist) && standsFor(name) != "" {
		return nil // it is made when it is needed
	}
	return err
}

func checkReference(s Spec) error {
	if image.CheckName(s.FromImage) != nil {
		return invalid("%.100q is no reference of an image", s.FromImage)
	}
	if len(s.Username) > maxLogin || len(s.Password) > maxCommand || !step.Plain(s.Username+s.Password) {
		return invalid("the login for the registry is too long, or no text")
	}
	return nil
}

// named finds a template that builds may begin with: the caller's own or a public one, then a shared one.
func (e *Engine) named(ctx context.Context, name string) (string, error) {
	found, err := e.Resolve(ctx, name)
	missing := errors.Is(err, fs.ErrNotExist) || firebreak.KindOf(err) == firebreak.KindInvalid
	if err != nil && !missing {
		return "", err
	}
	if err != nil {
		if image.CheckName(name) != nil || auth.OwnerOf(name) != "" {
			return "", notFound("template", name)
		}
		found = name
	}
	_, err = e.cfg.Images.Get(found)
	if errors.Is(err, fs.ErrNotExist) { // the store's own error may tell of names that the caller must not know
		err = notFound("template", name)
	}
	return found, err
}

// base gets what the build begins with, under a name of its own, which the caller releases.
func (j *job) base(ctx context.Context) (base, error) {
	b, err := j.begin(ctx)
	if err != nil {
		return b, err
	}
	if b.foreign { // as E2B has it, whatever the image's own user is
		b.User, b.Workdir = rootfs.UserName, rootfs.UserHome
	}
	if b.User == "" {
		b.User = rootfs.UserName
	}
	b.key = key("base", b.Digest, fmt.Sprint(b.foreign), b.User, b.Workdir, textOf(b.Envs))
	return b, nil
}

// textOf is the same for the same variables.
func textOf(envs map[string]string) string {
	var parts []string
	for k, v := range envs {
		parts = append(parts, key(k, v))
	}
	slices.Sort(parts)
	return strings.Join(parts, " ")
}

// link gives an image a name that only this build knows, so that it stays until the build has ended.
func (j *job) link(ctx context.Context, from string) (base, error) {
	var b base
	var err error
	b.Template, err = j.keepLayer(ctx, j.build.Tenant, "", func(name string) (image.Template, error) {
		return j.cfg.Images.Link(ctx, from, name, func(t *image.Template) {
			b.start, b.ready = t.Start, t.Ready
			t.Start, t.Ready = "", ""
		})
	})
	return b, err
}

func (j *job) begin(ctx context.Context) (base, error) {
	if j.spec.FromTemplate == "" {
		return j.fromImage(ctx)
	}
	name := j.spec.FromTemplate
	j.log.add(LevelInfo, "FROM template %s", name)
	found, err := j.named(ctx, name)
	if errors.Is(err, fs.ErrNotExist) && standsFor(name) != "" {
		found, err = j.recipe(ctx, standsFor(name))
	}
	if err != nil {
		return base{}, err
	}
	return j.link(ctx, found)
}

// recipe makes the template of one of our recipes, unless it is there.
func (j *job) recipe(ctx context.Context, name string) (string, error) {
	if _, err := j.cfg.Images.Get(name); !errors.Is(err, fs.ErrNotExist) {
		return name, err
	}
	j.log.add(LevelInfo, "The template %s is made first, once on this server: it takes a minute or more", name)
	_, err := j.cfg.Images.Make(ctx, image.Source{Recipe: name}, image.MakeOptions{Name: name, IfMissing: true, Progress: j.progress()})
	return name, err
}

// progress tells of the steps of making an image, each once.
func (j *job) progress() func(image.Progress) {
	last := ""
	return func(p image.Progress) {
		if p.Step != last {
			last = p.Step
			j.log.add(LevelDebug, "%s", tidy(p.Step))
		}
	}
}

func (j *job) fromImage(ctx context.Context) (base, error) {
	ref := j.spec.FromImage
	j.log.add(LevelInfo, "FROM %s", ref)
	if ours := standsFor(ref); ours != "" {
		found, err := j.recipe(ctx, ours)
		if err != nil {
			return base{}, err
		}
		return j.link(ctx, found)
	}
	if found := j.importedAs(ref); found != "" {
		j.log.add(LevelDebug, "this server has the template %s", found)
		b, err := j.link(ctx, found)
		b.foreign, b.start, b.ready = true, "", ""
		return b, err
	}
	t, err := j.pulled(ctx, ref)
	return base{Template: t, foreign: true}, err
}

// importedAs returns the template that the operator made of this image; empty if there is none.
func (j *job) importedAs(ref string) string {
	for _, name := range []string{ref, ref + ":latest", strings.TrimSuffix(ref, ":latest")} {
		if image.CheckName(name) != nil || auth.OwnerOf(name) != "" || name == image.HostName {
			continue
		}
		if _, err := j.cfg.Images.Get(name); err == nil {
			return name
		}
	}
	return ""
}

// pulled returns an image of a registry. One that anybody can get serves all tenants once it is here.
func (j *job) pulled(ctx context.Context, ref string) (image.Template, error) {
	tenant := ""
	if j.spec.Username != "" {
		tenant = j.build.Tenant
	}
	// What the operator got, perhaps with the host's own logins, is for no tenant.
	k := key("image", ref, j.spec.Username, strconv.FormatBool(j.by.Operator))
	if !j.spec.Force {
		if t, ok, err := j.layer(ctx, tenant, k); ok || err != nil {
			return t, err
		}
	}
	pull := image.Pull{Username: j.spec.Username, Password: j.spec.Password, Stranger: !j.by.Operator, Trusted: j.cfg.Registries}
	return j.keepLayer(ctx, tenant, k, func(name string) (image.Template, error) {
		return j.cfg.Images.Make(ctx, image.Source{Reference: ref}, image.MakeOptions{Name: name, Pull: pull,
			Limits: rootfs.Limits{Bytes: j.cfg.ImageBytes}, Progress: j.progress()})
	})
}

// release lets an image go that the build has used. What was made for it alone is forgotten.
func (j *job) release(ctx context.Context, name string) {
	j.unpin(name)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
	defer cancel()
	layers, err := j.cfg.Store.Layers(ctx)
	if err != nil {
		j.Engine.log.Warn("forget what a build used", "build", j.build.ID, "err", err)
		return
	}
	at := slices.IndexFunc(layers, func(l store.Layer) bool { return l.Image == name && l.Key == "" })
	if at >= 0 {
		j.dropLayer(ctx, layers[at])
	}
}

// ssProgram stands in for iproute2's ss.
//
//go:embed ss.sh
var ssProgram []byte

// prepareScript gives an image what clients count on, as far as that can be had without a network: sudo without a
// password for the usual user.
const prepareScript = `if command -v sudo >/dev/null && ! grep -qs '^user ' /etc/sudoers /etc/sudoers.d/*; then
	mkdir -p /etc/sudoers.d && printf 'user ALL=(ALL:ALL) NOPASSWD: ALL\n' >/etc/sudoers.d/user && chmod 0440 /etc/sudoers.d/user
fi
command -v ss >/dev/null || [ -x /usr/sbin/ss ] || echo no-ss`

// checkShell refuses an image in which nothing could be run.
func checkShell(ctx context.Context, b *box) error {
	there, err := exists(ctx, b.guest, shell)
	if err == nil && !there {
		err = &firebreak.Error{Kind: firebreak.KindInvalid, Err: fmt.Errorf("what the build begins with has no %s, which every step and every command of the SDKs needs", shell),
			Mend: "begin with an image that has bash, as python:3 and unlike python:3-alpine"}
	}
	return err
}

// prepare makes a foreign image one that clients can use.
func (j *job) prepare(ctx context.Context, b *box) error {
	out, err := collect(ctx, b.guest, prepareScript)
	if err != nil {
		return fmt.Errorf("prepare the image: %w", err)
	}
	b.changed = true
	if !strings.Contains(out, "no-ss") {
		return nil
	}
	return b.put(ctx, "/usr/local/bin/ss", ssProgram)
}

// stamp is the time of files that the engine makes, so that they are the same in all builds.
var stamp = time.Unix(946684800, 0)
