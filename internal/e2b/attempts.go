package e2b

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/store"
)

const (
	maxKey = 255 // characters of an idempotency key

	// attemptTime is after which a create is over, in whatever process: the manager takes no longer.
	attemptTime = 3 * time.Minute
	// keepTime is for writing an answer down although the client has gone.
	keepTime = 10 * time.Second
)

// attempt is a request with a key: what it asks for is done once, and every other time its answer is given again.
type attempt struct {
	key   string
	asked []byte
	do    func(ctx context.Context, key string) (store.Record, error)
}

// fingerprint stands for what a request means, however it was written.
func fingerprint(v version, c creation) []byte {
	text, err := json.Marshal(c)
	if err != nil {
		text = nil // what came as JSON can be written as such
	}
	sum := sha256.Sum256(append([]byte(v.prefix+"\n"), text...))
	return sum[:]
}

func isKey(key string) bool {
	return key != "" && len(key) <= maxKey && strings.Trim(key, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

// once answers a request with a key.
func (d *Door) once(w http.ResponseWriter, r *http.Request, by auth.Caller, a attempt) error {
	if !isKey(a.key) {
		return badRequest("an Idempotency-Key has 1 to %d of the characters a-z, 0-9 and -", maxKey)
	}
	mine := store.Attempt{Tenant: by.Tenant.ID, Key: a.key, Asked: a.asked, By: d.process, Began: time.Now()}
	saved, first, err := d.cfg.Attempts.BeginAttempt(r.Context(), mine)
	if err != nil {
		return fmt.Errorf("begin attempt: %w", err)
	}
	if !first {
		saved, err = d.again(r, by, a, saved)
	} else {
		saved, err = d.try(r, by, a, mine)
	}
	if err != nil {
		return err
	}
	answer(w, saved.Status, saved.Answer)
	return nil
}

// try does what is asked for, and keeps the answer if it is one for good.
func (d *Door) try(r *http.Request, by auth.Caller, a attempt, mine store.Attempt) (_ store.Attempt, err error) {
	settled := false
	keep, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), keepTime)
	defer cancel()
	defer func() {
		if settled {
			return
		}
		if lost := d.cfg.Attempts.DropAttempt(keep, mine); lost != nil {
			d.cfg.Log.Warn("an idempotency key cannot be freed", "err", lost)
		}
	}()
	rec, err := a.do(r.Context(), a.key)
	if err != nil {
		said := answerTo(err)
		switch {
		case said.status >= http.StatusInternalServerError || r.Context().Err() != nil,
			said.status == http.StatusTooManyRequests, said.status == http.StatusConflict:
			return mine, err // it may be another one soon
		}
		mine.Status, mine.Answer = said.status, said.body()
	} else if mine, err = d.made(by, rec, mine); err != nil {
		return mine, err
	}
	settled = true
	if err := d.cfg.Attempts.FinishAttempt(keep, mine); err != nil {
		d.cfg.Log.Warn("an answer cannot be kept for its idempotency key", "err", err)
	}
	return mine, nil
}

// made completes an attempt with the answer that its sandbox is there.
func (d *Door) made(by auth.Caller, rec store.Record, a store.Attempt) (store.Attempt, error) {
	body, err := json.Marshal(d.sandboxView(by, rec))
	if err != nil {
		return a, fmt.Errorf("write answer: %w", err)
	}
	a.Status, a.Answer = http.StatusCreated, body
	return a, nil
}

// again answers a key that was used before.
func (d *Door) again(r *http.Request, by auth.Caller, a attempt, saved store.Attempt) (store.Attempt, error) {
	conflict := func(status int, code, message string) error {
		return apiError{status: status, code: code, message: message}
	}
	switch {
	case subtle.ConstantTimeCompare(saved.Asked, a.asked) != 1:
		return saved, conflict(http.StatusConflict, "idempotency_request_mismatch", "the Idempotency-Key was used for another request")
	case saved.Status != 0:
		return saved, nil
	case saved.By != d.process: // which may have died after it was made, and before that was written down
		if rec, ok := d.madeBy(r, a.key); ok {
			saved, err := d.made(by, rec, saved)
			if err == nil {
				err = d.cfg.Attempts.FinishAttempt(r.Context(), saved)
			}
			return saved, err
		}
		if time.Since(saved.Began) > attemptTime {
			return saved, conflict(http.StatusUnprocessableEntity, "idempotency_outcome_unknown", "what became of the first request with this Idempotency-Key is not known")
		}
	}
	return saved, conflict(http.StatusConflict, "idempotency_in_progress", "the first request with this Idempotency-Key is still under way")
}

// madeBy returns the living sandbox that the request with this key made.
func (d *Door) madeBy(r *http.Request, key string) (store.Record, bool) {
	all, err := d.cfg.Sandboxes.List(r.Context())
	if err != nil {
		return store.Record{}, false // it stays unknown
	}
	for i := len(all) - 1; i >= 0; i-- { // the newest: keys may come again after a day
		alive := all[i].State == firebreak.StateRunning || all[i].State == firebreak.StatePaused
		if alive && all[i].Annotations[noteAttempt] == key {
			return all[i], true
		}
	}
	return store.Record{}, false
}
