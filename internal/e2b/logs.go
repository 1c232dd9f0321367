package e2b

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/event"
)

const (
	maxLogs   = 1000  // entries of one answer
	maxEvents = 20000 // that are looked at for one: more are kept of no tenant
	maxSearch = 1000  // bytes
)

// logView is one entry of a sandbox's log: something that happened to it.
type logView struct {
	Timestamp time.Time         `json:"timestamp"`
	Level     string            `json:"level"`
	Message   string            `json:"message"`
	Fields    map[string]string `json:"fields"`
}

// line is the entry as one line, which clients read as JSON.
func (v logView) line() string {
	all := map[string]string{"timestamp": v.Timestamp.Format(time.RFC3339Nano), "level": v.Level, "logger": "firebreak", "message": v.Message}
	maps.Copy(all, v.Fields)
	b, _ := json.Marshal(all) // texts
	return string(b)
}

// levels are those of lines in the logs of sandboxes and builds, in the order of build.Level.
func levels() []string { return []string{"debug", "info", "warn", "error"} }

func viewLog(e event.Event) logView {
	v := logView{Timestamp: e.Time, Level: "info", Fields: map[string]string{"type": string(e.Type)}}
	for name, value := range map[string]string{"template": e.Template, "driver": e.Driver, "reason": e.Data.Reason, "detail": e.Data.Detail} {
		if value != "" {
			v.Fields[name] = value
		}
	}
	if !e.Data.Deadline.IsZero() {
		v.Fields["deadline"] = e.Data.Deadline.Format(time.RFC3339)
	}
	switch e.Type {
	case event.TypeCreated:
		v.Message = fmt.Sprintf("sandbox created from template %s by %s", e.Template, e.Driver)
	case event.TypeUpdated:
		v.Message = "sandbox updated"
	case event.TypeKilled:
		v.Message = "sandbox ended: " + e.Data.Reason
		if e.Data.Detail != "" {
			v.Message += " (" + e.Data.Detail + ")"
		}
		switch firebreak.EndReason(e.Data.Reason) {
		case firebreak.EndOutOfMemory, firebreak.EndLost:
			v.Level = "error"
		case firebreak.EndDeadline:
			v.Level = "warn"
		}
	default:
		v.Message = "sandbox " + string(e.Type)
	}
	return v
}

// logQuery says which entries.
type logQuery struct {
	from, to time.Time // zero: all
	newest   bool      // first
	limit    int
	level    int // of levels, at least
	search   string
}

func (q logQuery) passes(v logView) bool {
	return (q.to.IsZero() || !v.Timestamp.After(q.to)) && slices.Index(levels(), v.Level) >= q.level &&
		(q.search == "" || strings.Contains(v.line(), q.search))
}

// logs returns the entries of a sandbox, be it alive or not, as long as its events are kept. One that the caller has not
// is an error of 404.
func (d *Door) logs(r *http.Request, q logQuery) ([]logView, error) {
	id, found, seen := r.PathValue("id"), []logView{}, 0
	for ; seen < maxEvents; seen += event.MaxLimit {
		page, err := d.eventsOf(r.Context(), event.Filter{Sandbox: id, Since: q.from, Asc: !q.newest, Offset: seen})
		if err != nil {
			return nil, err
		}
		if seen == 0 && len(page) == 0 {
			if err := d.known(r, id); err != nil {
				return nil, err
			}
		}
		for _, e := range page {
			if v := viewLog(e); q.passes(v) {
				found = append(found, v)
			}
			if len(found) == q.limit {
				return found, nil
			}
		}
		if len(page) < event.MaxLimit {
			break
		}
	}
	return found, nil
}

func (d *Door) eventsOf(ctx context.Context, f event.Filter) ([]event.Event, error) {
	if d.cfg.Events == nil {
		return nil, notBuilt("this server keeps no events, so logs are not built from them")
	}
	return d.cfg.Events.List(ctx, f)
}

// known returns nil if the caller has, or had, a sandbox of this ID.
func (d *Door) known(r *http.Request, id string) error {
	_, lost := d.living(r)
	if lost == nil {
		return nil
	}
	if kept, err := d.eventsOf(r.Context(), event.Filter{Sandbox: id, Limit: 1}); err == nil && len(kept) > 0 {
		return nil
	}
	return lost
}

// serveLogsV1 lists the entries from a time on, twice: as lines, and in parts.
func (d *Door) serveLogsV1(w http.ResponseWriter, r *http.Request, _ auth.Caller) error {
	start, err := queryInt(r, "start", 0, 0, maxMillis)
	if err != nil {
		return err
	}
	limit, err := queryInt(r, "limit", maxLogs, 1, maxLogs)
	if err != nil {
		return err
	}
	q := logQuery{limit: int(limit)}
	if start > 0 {
		q.from = time.UnixMilli(start)
	}
	entries, err := d.logs(r, q)
	if err != nil {
		return err
	}
	type line struct {
		Timestamp time.Time `json:"timestamp"`
		Line      string    `json:"line"`
	}
	lines := make([]line, len(entries))
	for i, v := range entries {
		lines[i] = line{v.Timestamp, v.line()}
	}
	return answerJSON(w, http.StatusOK, map[string]any{"logs": lines, "logEntries": entries})
}

// maxMillis is a time in milliseconds that is beyond any clock.
const maxMillis = 1 << 50

// serveLogsV2 lists the entries after a time, or with direction=backward those before it, the newest first.
func (d *Door) serveLogsV2(w http.ResponseWriter, r *http.Request, _ auth.Caller) error {
	q := logQuery{search: r.URL.Query().Get("search")}
	cursor, err := queryInt(r, "cursor", 0, 0, maxMillis)
	if err != nil {
		return err
	}
	limit, err := queryInt(r, "limit", maxLogs, 1, maxLogs)
	if err != nil {
		return err
	}
	q.limit = int(limit)
	switch direction := r.URL.Query().Get("direction"); direction {
	case "", "forward":
		if cursor > 0 {
			q.from = time.UnixMilli(cursor)
		}
	case "backward":
		if q.newest = true; cursor > 0 {
			q.to = time.UnixMilli(cursor)
		}
	default:
		return badRequest("direction=%.50s is neither forward nor backward", direction)
	}
	if level := r.URL.Query().Get("level"); level != "" {
		if q.level = slices.Index(levels(), level); q.level < 0 {
			return badRequest("level=%.50s is none of %v", level, levels())
		}
	}
	if len(q.search) > maxSearch {
		return badRequest("search is longer than %d bytes", maxSearch)
	}
	entries, err := d.logs(r, q)
	if err != nil {
		return err
	}
	return answerJSON(w, http.StatusOK, map[string]any{"logs": entries})
}
