package webhook

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/event"
)

// pace says how often something is tried, and for how long.
type pace struct {
	timeout  time.Duration                    // of one attempt
	pause    func(failures int) time.Duration // before the next one
	refusals int                              // how often an endpoint may say no to an event
	patience time.Duration                    // how old an event is tried again that no endpoint takes
}

const maxPause = 5 * time.Minute

func usualPace() pace {
	return pace{timeout: 10 * time.Second, refusals: 5, patience: 24 * time.Hour, pause: func(failures int) time.Duration {
		d := min(time.Second<<min(failures-1, 20), maxPause)
		return d/2 + rand.N(d) // so that hooks to the same place do not come together
	}}
}

// maxAnswer is how many bytes of an answer, and of its headers, are read.
const maxAnswer = 64 << 10

// The outcomes of an attempt.
const (
	sent    = "sent"
	failed  = "failed"
	dropped = "dropped"
)

// deliverer sends the events of one webhook, one after the other.
type deliverer struct {
	of       *Webhooks
	hook     *hook
	log      *slog.Logger
	failures int // attempts in a row that failed
}

// serve sends from the hook's cursor on, until ctx is done. The log of events is its queue: what is not sent yet is in
// there, bounded as that is, and outlives this process.
func (w *Webhooks) serve(ctx context.Context, h *hook) {
	d := deliverer{of: w, hook: h, log: w.cfg.Log.With("webhook", h.record.ID)}
	for ctx.Err() == nil {
		f := event.Filter{Tenant: h.record.Tenant, Types: h.record.Events, Seq: h.cursor.Load()}
		if f.Seq == 0 {
			f.Seq = -1 // from the first event that ever was
		}
		err := w.cfg.Events.Watch(ctx, f, func(e event.Event) error { return d.deliver(ctx, e) })
		if firebreak.KindOf(err) == firebreak.KindExhausted || ctx.Err() != nil {
			continue // it took so long that it is behind: it goes on with what is stored
		}
		d.log.Warn("read events for a webhook", "err", err)
		wait(ctx, time.Second)
	}
}

// deliver sends one event, or gives it up, and moves the cursor. The error is that of ctx.
func (d *deliverer) deliver(ctx context.Context, e event.Event) error {
	body, signature, err := render(e, d.hook.record.Secret)
	for refused := 0; err == nil; {
		if d.failures > 0 && time.Since(e.Time) > d.of.pace.patience {
			err = errors.New("nobody has taken it for too long")
			break
		}
		no, after, failure := d.post(ctx, body, signature)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case failure == nil:
			d.failures = 0
			d.of.cfg.Sent(sent)
			return d.move(ctx, e)
		case no:
			refused++
		}
		if d.failures++; refused >= d.of.pace.refusals {
			err, d.failures = failure, 0 // the endpoint is there, and may take the next one
			break
		}
		d.of.cfg.Sent(failed)
		d.log.Debug("webhook failed", "event", e.ID, "failures", d.failures, "err", failure)
		if err := wait(ctx, max(d.of.pace.pause(d.failures), after)); err != nil {
			return err
		}
	}
	d.of.cfg.Sent(dropped)
	d.log.Warn("webhook dropped an event", "event", e.ID, "type", e.Type, "err", err)
	return d.move(ctx, e)
}

func (d *deliverer) move(ctx context.Context, e event.Event) error {
	d.hook.cursor.Store(e.Seq)
	if err := d.of.cfg.Storage.MoveWebhook(context.WithoutCancel(ctx), d.hook.record.ID, e.Seq); err != nil {
		d.log.Warn("save how far a webhook is", "err", err) // after a restart it is sent again
	}
	return ctx.Err()
}

func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// post makes one attempt. no says that whoever was asked declined, rather than failed; after, how long it wants to be left
// alone.
func (d *deliverer) post(ctx context.Context, body []byte, signature string) (no bool, after time.Duration, _ error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, d.hook.record.URL, bytes.NewReader(body))
	if err != nil {
		return true, 0, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "firebreak-webhook")
	req.Header.Set("E2b-Webhook-Id", d.hook.record.ID)
	req.Header.Set("E2b-Delivery-Id", event.NewID())
	req.Header.Set("E2b-Signature-Version", "v1")
	req.Header.Set("E2b-Signature", signature)
	resp, err := d.of.client.Do(req)
	if err != nil {
		return errors.As(err, new(errAddress)), 0, err
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, maxAnswer) // so that the connection may serve again; what it says is of no use
	if resp.StatusCode >= 200 && resp.StatusCode < 300 {
		return false, 0, nil
	}
	seconds, err := strconv.Atoi(resp.Header.Get("Retry-After"))
	if err != nil || seconds < 0 {
		seconds = 0
	}
	seconds = min(seconds, int(maxPause/time.Second))
	switch resp.StatusCode {
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests:
	default:
		no = resp.StatusCode < 500
	}
	return no, time.Duration(seconds) * time.Second, fmt.Errorf("answered %d", resp.StatusCode)
}

// maxBlanks is how many ends of a body are tried for one whose signature reads the same in both alphabets: a quarter of
// all do.
const maxBlanks = 100

// render returns what is sent of an event, and its signature: the SHA-256 of secret and body in base64 without padding.
// E2B's documents have had base64 in its usual alphabet and in the one for URLs. So blanks are put after the JSON until the
// signature has none of the characters in which these differ, and whoever checks it by either finds it right.
func render(e event.Event, secret Secret) (body []byte, signature string, err error) {
	if body, err = json.Marshal(e.ToE2B()); err != nil {
		return nil, "", err
	}
	for range maxBlanks {
		h := sha256.New()
		h.Write([]byte(secret))
		h.Write(body)
		signature = base64.RawStdEncoding.EncodeToString(h.Sum(nil))
		if !strings.ContainsAny(signature, "+/") {
			break
		}
		body = append(body, '\n')
	}
	return body, signature, nil
}
