package e2b

import (
	"cmp"
	"encoding/base64"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/store"
)

const (
	maxPage   = 100
	maxCursor = 256  // bytes of a token for the next page
	maxFilter = 8192 // bytes of a metadata filter
)

// listing is what a list is asked for.
type listing struct {
	states   []firebreak.State
	metadata [][2]string // all pairs must be there
	template string      // as the caller calls it
	image    string      // what that is called in the store; empty: there is none
	after    time.Time   // started then or later
	asc      bool        // the oldest first
	limit    int         // 0: all
	from     cursor
}

// cursor is the sandbox after which a page begins.
type cursor struct {
	started time.Time
	id      string
}

// serveList lists the sandboxes that have not ended.
func (d *Door) serveList(v version) handler {
	return func(w http.ResponseWriter, r *http.Request, by auth.Caller) error {
		l, err := parseListing(r, v)
		if err != nil {
			return err
		}
		all, err := d.cfg.Sandboxes.List(r.Context())
		if err != nil {
			return err
		}
		all = slices.DeleteFunc(all, isBuildBox)
		if res, err := d.resolve(r.Context(), by, l.template); err == nil && res.note == "" {
			l.image = res.name
		} // else it may have been deleted, or be another one now
		running := 0
		for _, rec := range all {
			if rec.State == firebreak.StateRunning {
				running++
			}
		}
		page, next := l.page(by, all)
		views := make([]listedView, len(page)) // never null
		for i, rec := range page {
			views[i] = d.listedView(by, rec)
		}
		if v.states {
			w.Header().Set("X-Total-Running", strconv.Itoa(running))
			if next != "" {
				w.Header().Set("X-Next-Token", next)
			}
		}
		return answerJSON(w, http.StatusOK, views)
	}
}

func parseListing(r *http.Request, v version) (l listing, err error) {
	q := r.URL.Query()
	l.states = []firebreak.State{firebreak.StateRunning}
	if l.metadata, err = parseMetadata(q.Get("metadata")); err != nil || !v.states {
		return l, err
	}
	if l.states, err = parseStates(q["state"]); err != nil {
		return l, err
	}
	switch order := q.Get("order"); order {
	case "", "desc":
	case "asc":
		l.asc = true
	default:
		return l, badRequest("order=%.50s is neither asc nor desc", order)
	}
	if text := q.Get("startedAfter"); text != "" {
		if l.after, err = time.Parse(time.RFC3339, text); err != nil {
			return l, badRequest("startedAfter=%.50s is no time as in RFC 3339", text)
		}
	}
	l.template = q.Get("template")
	limit, err := queryInt(r, "limit", maxPage, 1, maxPage)
	if err != nil {
		return l, err
	}
	l.limit = int(limit)
	if text := q.Get("nextToken"); text != "" {
		l.from, err = parseCursor(text, l.asc)
	}
	return l, err
}

// parseStates reads states, which come in several fields or with commas between. None at all are both.
func parseStates(values []string) ([]firebreak.State, error) {
	var states []firebreak.State
	for value := range strings.SplitSeq(strings.Join(values, ","), ",") {
		switch s := firebreak.State(value); s {
		case firebreak.StateRunning, firebreak.StatePaused:
			states = append(states, s)
		case "":
		default:
			return nil, badRequest("state=%.50s is neither running nor paused", value)
		}
	}
	if len(states) == 0 {
		return []firebreak.State{firebreak.StateRunning, firebreak.StatePaused}, nil
	}
	return states, nil
}

// parseMetadata reads a filter. The value of the query, decoded once already, is a form whose keys and values clients
// encode, and which they encode once more as a whole. What cannot be decoded is taken as it is, for those who do not.
func parseMetadata(filter string) ([][2]string, error) {
	if filter == "" {
		return nil, nil
	}
	if len(filter) > maxFilter {
		return nil, badRequest("the metadata filter is longer than %d bytes", maxFilter)
	}
	var pairs [][2]string
	for part := range strings.SplitSeq(unescape(filter), "&") {
		if part == "" {
			continue
		}
		if len(pairs) == maxPairs {
			return nil, badRequest("the metadata filter has more than %d pairs", maxPairs)
		}
		key, value, _ := strings.Cut(part, "=")
		pairs = append(pairs, [2]string{unescape(key), unescape(value)})
	}
	return pairs, nil
}

func unescape(text string) string {
	if plain, err := url.QueryUnescape(text); err == nil {
		return plain
	}
	return text
}

func (c cursor) encode(asc bool) string {
	text := c.started.UTC().Format(time.RFC3339Nano) + "__" + c.id
	if asc {
		text += "__asc"
	}
	return base64.RawURLEncoding.EncodeToString([]byte(text))
}

// parseCursor reads what encode wrote, for the same order.
func parseCursor(token string, asc bool) (cursor, error) {
	wrong := badRequest("nextToken is none that this list gave")
	if len(token) > maxCursor {
		return cursor{}, wrong
	}
	text, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(token, "="))
	if err != nil {
		return cursor{}, wrong
	}
	parts := strings.Split(string(text), "__")
	if len(parts) != 2 && !(len(parts) == 3 && parts[2] == "asc") || (len(parts) == 3) != asc || parts[1] == "" {
		return cursor{}, wrong
	}
	at, err := time.Parse(time.RFC3339Nano, parts[0])
	if err != nil {
		return cursor{}, wrong
	}
	return cursor{at, parts[1]}, nil
}

// page returns the sandboxes of one page, and the token for the next; empty: there is none.
func (l listing) page(by auth.Caller, all []store.Record) ([]store.Record, string) {
	order := func(a, b cursor) int {
		n := cmp.Or(a.started.Compare(b.started), cmp.Compare(a.id, b.id))
		if l.asc {
			return n
		}
		return -n
	}
	at := func(r store.Record) cursor { return cursor{r.Created, string(r.ID)} }
	found := []store.Record{}
	for _, rec := range all {
		if l.passes(by, rec) && (l.from == cursor{} || order(at(rec), l.from) > 0) {
			found = append(found, rec)
		}
	}
	slices.SortFunc(found, func(a, b store.Record) int { return order(at(a), at(b)) })
	if l.limit == 0 || len(found) <= l.limit {
		return found, ""
	}
	found = found[:l.limit]
	return found, at(found[l.limit-1]).encode(l.asc)
}

// startsFrom reports whether a sandbox is of the template that is asked for. Without a tag that is any of its tags.
func (l listing) startsFrom(by auth.Caller, rec store.Record) bool {
	switch {
	case l.template == "", l.template == shown(by, rec.Template), l.template == rec.Annotations[noteTemplate]:
		return true
	case l.image == "":
		return false
	case strings.Contains(path.Base(l.template), ":"):
		return rec.Template == l.image
	}
	return untagged(rec.Template) == untagged(l.image)
}

func untagged(name string) string {
	base, _, _ := strings.Cut(path.Base(name), ":")
	return strings.TrimSuffix(name, path.Base(name)) + base
}

func (l listing) passes(by auth.Caller, rec store.Record) bool {
	if !slices.Contains(l.states, rec.State) || rec.Created.Before(l.after) || !l.startsFrom(by, rec) {
		return false
	}
	for _, pair := range l.metadata {
		if value, ok := rec.Metadata[pair[0]]; !ok || value != pair[1] {
			return false
		}
	}
	return true
}
