package e2b

import (
	"context"
	"fmt"
	"path"
	"strings"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/build"
	"github.com/firebreak-dev/firebreak/internal/image"
)

// Shared templates have plain names; those of a tenant lie below his ID. So a name whose first part could be a tenant's
// ID is that tenant's, and to others there is no such template: nobody learns what it is called, or that it exists.

const (
	latestTag  = "latest" // of what registries have
	maxAliases = 8        // that are followed from one to the next
)

// resolution is what a name of a template came to.
type resolution struct {
	name string // in the store
	note string // for the caller, if it is not what he may think
}

// resolve finds the template that a caller means: his own before a shared one, by a name with or without a tag, or with
// his own ID before it. A name that there is no template of may stand for another one.
func (d *Door) resolve(ctx context.Context, by auth.Caller, asked string) (resolution, error) {
	if asked == "" {
		return resolution{}, badRequest("templateID is missing")
	}
	if image.CheckName(asked) != nil {
		return resolution{}, badRequest("%.100q cannot be a template", asked)
	}
	for name, followed := asked, 0; followed <= maxAliases; followed++ {
		found, err := d.built(ctx, name)
		if err != nil {
			return resolution{}, err
		}
		if found == "" {
			found = d.lookUp(by, name)
		}
		if found != "" {
			res := resolution{name: found}
			if name != asked {
				res.note = fmt.Sprintf("there is no template %q here, so this sandbox starts from %q", asked, shown(by, found))
			}
			return res, nil
		}
		next, ok := d.cfg.Aliases[name]
		if !ok {
			break
		}
		name = next
	}
	return resolution{}, notFound("template", asked)
}

// built returns what a template that was built by clients, perhaps named by an ID, is called in the store; empty if there
// is none.
func (d *Door) built(ctx context.Context, name string) (string, error) {
	if d.cfg.Builds == nil {
		return "", nil
	}
	found, err := d.cfg.Builds.Resolve(ctx, name)
	if kind := firebreak.KindOf(err); kind == firebreak.KindNotFound || kind == firebreak.KindInvalid {
		return "", nil // shared ones have other names too
	}
	return found, err
}

// lookUp returns what the template that a caller calls name is called in the store; empty if there is none.
func (d *Door) lookUp(by auth.Caller, name string) string {
	var candidates []string
	if own := by.Tenant.ID; own != "" {
		candidates = tagged(path.Join(own, strings.TrimPrefix(name, own+"/")))
	}
	if isShared(name) || by.Operator {
		candidates = append(candidates, tagged(name)...)
	}
	for _, c := range candidates {
		if d.cfg.Templates.Has(c) {
			return c
		}
	}
	return ""
}

// tagged returns a name, and what it may mean beside: without a tag the usual ones, and with the usual one none.
func tagged(name string) []string {
	base, tag, has := strings.Cut(path.Base(name), ":")
	switch dir := strings.TrimSuffix(name, path.Base(name)); {
	case !has:
		return []string{name, name + ":" + build.DefaultTag, name + ":" + latestTag}
	case tag == build.DefaultTag:
		return []string{name, dir + base}
	}
	return []string{name}
}

// isShared reports whether a template of this name belongs to no tenant.
func isShared(name string) bool { return auth.OwnerOf(name) == "" }

// visible reports whether a caller may know of the template called name in the store.
func visible(by auth.Caller, name string) bool {
	return by.Operator || isShared(name) || isOwn(by, name)
}

func isOwn(by auth.Caller, name string) bool {
	return by.Tenant.ID != "" && strings.HasPrefix(name, by.Tenant.ID+"/")
}

// shown is how a caller is told the name of a template that he may know: his own without his ID.
func shown(by auth.Caller, name string) string {
	if isOwn(by, name) {
		name = strings.TrimPrefix(name, by.Tenant.ID+"/")
		return strings.TrimSuffix(name, ":"+build.DefaultTag)
	}
	return name
}
