package build

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/auth"
)

// DefaultTag is the tag of what is built or asked for without one.
const DefaultTag = "default"

const (
	maxNameBytes = 63
	maxTags      = 50 // of one template
)

var (
	namePattern = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`^[a-z0-9][a-z0-9_-]*$`)
	})
	tagPattern = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`^[a-z0-9_][a-z0-9_.-]*$`)
	})
)

// Ref is what a client calls a template: namespace/name:tag, of which only the name is needed.
type Ref struct {
	Namespace string // a tenant's ID; empty: not given
	Name      string // a template's name or ID
	Tag       string // empty: not given
}

func invalidName(format string, args ...any) error {
	return &firebreak.Error{Kind: firebreak.KindInvalid, Op: "read template name", Err: fmt.Errorf(format, args...),
		Mend: "use lower-case letters, digits, _ and -, as in my-template or my-template:v1"}
}

// ParseRef reads what a client calls a template. Letters may be upper-case, as clients may write them.
func ParseRef(text string) (Ref, error) {
	var r Ref
	rest, tag, hasTag := strings.Cut(strings.ToLower(strings.TrimSpace(text)), ":")
	namespace, name, below := strings.Cut(rest, "/")
	if !below {
		namespace, name = "", rest
	}
	switch {
	case len(name) > maxNameBytes || !namePattern().MatchString(name):
		return r, invalidName("%.100q is no name for a template", text)
	case hasTag && (len(tag) > maxNameBytes || !tagPattern().MatchString(tag)):
		return r, invalidName("%.100q is no tag", tag)
	case below && (auth.Tenant{ID: namespace}).Check() != nil:
		return r, invalidName("%.100q belongs to nobody who could be", text)
	}
	return Ref{Namespace: namespace, Name: name, Tag: tag}, nil
}

// checkTags returns tags that can be, each once and in order.
func checkTags(tags []string) ([]string, error) {
	var all []string
	for _, tag := range tags {
		tag = strings.ToLower(strings.TrimSpace(tag))
		if len(tag) > maxNameBytes || !tagPattern().MatchString(tag) {
			return nil, invalidName("%.100q is no tag", tag)
		}
		all = append(all, tag)
	}
	slices.Sort(all)
	all = slices.Compact(all)
	if len(all) > maxTags {
		return nil, invalidName("%d tags are more than %d", len(all), maxTags)
	}
	return all, nil
}

// ImageName is what the image under a tag of a tenant's template is called in the image store. What the operator builds is
// shared and has a plain name.
func ImageName(tenant, name, tag string) string {
	if tenant != "" {
		return tenant + "/" + name + ":" + tag
	}
	if tag == DefaultTag {
		return name
	}
	return name + ":" + tag
}
