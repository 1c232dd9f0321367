package image

import (
	"cmp"
	"crypto/rand"
	"fmt"
	"io/fs"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/firebreak-dev/firebreak"
)

// namePattern is that of image references: host[:port]/path:tag@digest, of which only a first word is needed.
var namePattern = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*(:[0-9]+/[a-z0-9][a-z0-9._-]*)?(/[a-z0-9][a-z0-9._-]*)*` +
		`(:[A-Za-z0-9_][A-Za-z0-9_.-]*)?(@sha256:[0-9a-f]{64})?$`)
})

const maxName = 200

// CheckName returns an error of firebreak.KindInvalid unless name can name a template.
func CheckName(name string) error {
	if len(name) > maxName || len(url.PathEscape(name)) > maxName+40 || !namePattern().MatchString(name) {
		return &firebreak.Error{Kind: firebreak.KindInvalid, Op: "read template name",
			Err:  fmt.Errorf("%.80q is no name for a template", name),
			Mend: "use letters, digits and ._- as in my-template:v1, or an image reference as in ghcr.io/owner/image:tag"}
	}
	return nil
}

// layerPrefix begins the names that LayerName makes.
const layerPrefix = "~"

// LayerName returns a new name for an image that is to be found by its maker only: it is unguessable, no list shows it,
// and nobody can ask for such a name who was not given it.
func LayerName() string { return layerPrefix + strings.ToLower(rand.Text()) }

// IsLayerName reports whether LayerName could have made name.
func IsLayerName(name string) bool { return layerPattern().MatchString(name) }

var layerPattern = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^~[a-z2-7]{26}$`)
})

// checkAny is CheckName for those who may have been given a layer's name.
func checkAny(name string) error {
	if IsLayerName(name) {
		return nil
	}
	return CheckName(name)
}

func fileName(name string) string { return url.PathEscape(name) }

// missing is the error for a name that no template has.
func missing(name string, known []string) error {
	mend := "firebreak template ls shows those there are, firebreak template build makes more"
	if near := nearest(name, known); len(near) > 0 {
		mend = "did you mean " + strings.Join(near, " or ") + "? " + mend
	}
	return &firebreak.Error{Kind: firebreak.KindNotFound, Op: "find template",
		Err: fmt.Errorf("there is no template %q: %w", name, fs.ErrNotExist), Mend: mend}
}

// nearest returns up to three names that name may be a slip of, the likeliest first. They begin as name does where that has
// several parts: what lies below another first part may be nothing that who asks may know of.
func nearest(name string, known []string) []string {
	type candidate struct {
		name string
		far  int
	}
	var near []candidate
	for _, k := range known {
		if owner(k) != owner(name) {
			continue
		}
		far := distance(strings.ToLower(name), strings.ToLower(k))
		if strings.HasPrefix(k, name+":") || len(name) > 2 && strings.Contains(k, name) {
			far = 1
		}
		if far <= max(1, len(name)/3) {
			near = append(near, candidate{k, far})
		}
	}
	slices.SortStableFunc(near, func(a, b candidate) int { return cmp.Compare(a.far, b.far) })
	var names []string
	for _, c := range near[:min(len(near), 3)] {
		names = append(names, c.name)
	}
	return names
}

// owner is the part of a name before the first slash; empty if there is none.
func owner(name string) string {
	first, _, below := strings.Cut(name, "/")
	if !below {
		return ""
	}
	return first
}

// distance counts the letters to insert, delete or replace between a and b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			next := min(row[j], row[j+1]) + 1
			if a[i] == b[j] {
				next = min(next, diagonal)
			} else {
				next = min(next, diagonal+1)
			}
			diagonal, row[j+1] = row[j+1], next
		}
	}
	return row[len(b)]
}
