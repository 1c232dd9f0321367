package e2b

import (
	"errors"
	"io/fs"
	"net/http"
	"regexp"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/store"
)

const (
	maxRefresh = 3600             // seconds
	minRefresh = 15 * time.Second // that a refresh gives at least
)

var idPattern = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[a-z0-9]{1,63}$`)
})

// living returns the sandbox that a request's path names, if it is the caller's and has not ended. People may write a
// name or the beginning of an ID elsewhere; here only an ID is one.
func (d *Door) living(r *http.Request) (store.Record, error) {
	id := r.PathValue("id")
	if !idPattern().MatchString(id) {
		return store.Record{}, notFound("sandbox", id)
	}
	rec, err := d.cfg.Sandboxes.Find(r.Context(), id)
	switch {
	case errors.Is(err, fs.ErrNotExist), firebreak.KindOf(err) == firebreak.KindInvalid, err == nil && string(rec.ID) != id:
		return rec, notFound("sandbox", id)
	case err != nil:
		return rec, err
	case rec.State != firebreak.StateRunning && rec.State != firebreak.StatePaused || rec.Pool != "":
		return rec, notFound("sandbox", id)
	}
	return rec, nil
}

// gone turns an error about a sandbox that was living just now into that it is not, if so.
func (d *Door) gone(r *http.Request, err error) error {
	if kind := firebreak.KindOf(err); kind == firebreak.KindNotFound || kind == firebreak.KindState {
		if _, lost := d.living(r); lost != nil {
			return lost
		}
	}
	return err
}

func (d *Door) serveGet(w http.ResponseWriter, r *http.Request, by auth.Caller) error {
	rec, err := d.living(r)
	if err != nil {
		return err
	}
	return answerJSON(w, http.StatusOK, d.detailView(by, rec))
}

func (d *Door) serveKill(w http.ResponseWriter, r *http.Request, _ auth.Caller) error {
	rec, err := d.living(r)
	if err != nil {
		return err
	}
	if _, err := d.cfg.Sandboxes.Delete(r.Context(), string(rec.ID)); err != nil {
		return d.gone(r, err)
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// serveConnect resumes a sandbox that is paused, and gives one that runs more time, never less.
func (d *Door) serveConnect(v version) handler {
	return func(w http.ResponseWriter, r *http.Request, by auth.Caller) error {
		rec, err := d.living(r)
		if err != nil {
			return err
		}
		var body struct {
			Timeout *int64 `json:"timeout"`
			Memory  *bool  `json:"memory"`
		}
		if err := readBody(w, r, maxBody, &body); err != nil {
			return err
		}
		if body.Timeout == nil && !v.connectTimeout {
			return badRequest("timeout is missing")
		}
		if body.Memory != nil && !*body.Memory {
			return notBuilt("to begin anew from a paused sandbox's disk is not built: a sandbox is resumed with its memory")
		}
		timeout, err := d.timeoutOf(body.Timeout, v.timeout)
		if err != nil {
			return err
		}
		rec, resumed, err := d.cfg.Lives.Resume(r.Context(), string(rec.ID), timeout)
		if err != nil {
			return d.gone(r, err)
		}
		status := http.StatusOK
		if resumed {
			status = http.StatusCreated
		}
		return answerJSON(w, status, d.sandboxView(by, rec))
	}
}

// serveResume is what connect was before.
func (d *Door) serveResume(w http.ResponseWriter, r *http.Request, by auth.Caller) error {
	rec, err := d.living(r)
	if err != nil {
		return err
	}
	var body struct {
		Timeout *int64 `json:"timeout"`
	}
	if err := readBody(w, r, maxBody, &body); err != nil {
		return err
	}
	timeout, err := d.timeoutOf(body.Timeout, versions()[0].timeout)
	if err != nil {
		return err
	}
	running := apiError{status: http.StatusConflict, message: "the sandbox " + string(rec.ID) + " runs already"}
	if rec.State == firebreak.StateRunning {
		return running
	}
	rec, resumed, err := d.cfg.Lives.Resume(r.Context(), string(rec.ID), timeout)
	if err != nil {
		return d.gone(r, err)
	}
	if !resumed {
		return running
	}
	return answerJSON(w, http.StatusCreated, d.sandboxView(by, rec))
}

func (d *Door) servePause(w http.ResponseWriter, r *http.Request, _ auth.Caller) error {
	rec, err := d.living(r)
	if err != nil {
		return err
	}
	var body struct {
		Memory *bool `json:"memory"`
	}
	if err := readBody(w, r, maxBody, &body); err != nil {
		return err
	}
	if body.Memory != nil && !*body.Memory {
		return noMemoryLess()
	}
	if _, err := d.cfg.Lives.Pause(r.Context(), string(rec.ID)); err != nil {
		return d.gone(r, err)
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// serveTimeout has a sandbox end after a time from now, be that more or less than it had.
func (d *Door) serveTimeout(w http.ResponseWriter, r *http.Request, _ auth.Caller) error {
	rec, err := d.living(r)
	if err != nil {
		return err
	}
	var body struct {
		Timeout *int64 `json:"timeout"`
	}
	if err := readBody(w, r, maxBody, &body); err != nil {
		return err
	}
	if body.Timeout == nil {
		return badRequest("timeout is missing")
	}
	if *body.Timeout == 0 {
		return d.timeUp(w, r, rec)
	}
	timeout, err := d.timeoutOf(body.Timeout, 0)
	if err != nil {
		return err
	}
	return d.giveTime(w, r, rec, timeout, false)
}

// timeUp does now what is to be done when a sandbox's time is up.
func (d *Door) timeUp(w http.ResponseWriter, r *http.Request, rec store.Record) (err error) {
	id := string(rec.ID)
	switch {
	case rec.State == firebreak.StatePaused || rec.OnTimeout == firebreak.TimeoutPause:
		_, err = d.cfg.Lives.Pause(r.Context(), id)
	default:
		_, err = d.cfg.Sandboxes.Delete(r.Context(), id)
	}
	if err != nil {
		return d.gone(r, err)
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// serveRefresh gives a sandbox more time, never less.
func (d *Door) serveRefresh(w http.ResponseWriter, r *http.Request, _ auth.Caller) error {
	rec, err := d.living(r)
	if err != nil {
		return err
	}
	var body struct {
		Duration int64 `json:"duration"`
	}
	if err := readBody(w, r, maxBody, &body); err != nil {
		return err
	}
	if body.Duration < 0 || body.Duration > maxRefresh {
		return badRequest("a duration of %d seconds is not between 0 and %d", body.Duration, maxRefresh)
	}
	more := max(minRefresh, time.Duration(body.Duration)*time.Second)
	return d.giveTime(w, r, rec, min(more, d.cfg.MaxTimeout), true)
}

func (d *Door) giveTime(w http.ResponseWriter, r *http.Request, rec store.Record, timeout time.Duration, extendOnly bool) error {
	if _, err := d.cfg.Lives.SetTimeout(r.Context(), string(rec.ID), timeout, extendOnly); err != nil {
		return d.gone(r, err)
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
