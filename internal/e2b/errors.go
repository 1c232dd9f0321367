package e2b

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/auth"
)

// apiError is an error that has its answer already.
type apiError struct {
	status  int
	message string
	code    string        // for programs; may be empty
	retry   time.Duration // when another try is worth it; 0: never
}

func (e apiError) Error() string { return e.message }

func badRequest(format string, args ...any) error {
	return apiError{status: http.StatusBadRequest, message: fmt.Sprintf(format, args...)}
}

func notFound(what, name string) error {
	return apiError{status: http.StatusNotFound, message: fmt.Sprintf("%s %.100q was not found", what, name)}
}

// notBuilt says of what was asked for that this version does not have it.
func notBuilt(sentence string) error {
	return apiError{status: http.StatusNotImplemented, message: sentence, code: "not_implemented"}
}

// errorBody is the body of every error. Clients of JavaScript go by its code, those of Python by the status.
type errorBody struct {
	Code      int    `json:"code"`
	Message   string `json:"message"`
	ErrorCode string `json:"error_code,omitempty"`
}

// answerTo is the one place where errors become answers.
func answerTo(err error) apiError {
	var known apiError
	var limit *auth.LimitError
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &known):
		return known
	case errors.As(err, &large):
		return apiError{status: http.StatusRequestEntityTooLarge, message: fmt.Sprintf("the request is larger than %d bytes", large.Limit)}
	case errors.As(err, &limit):
		return apiError{status: http.StatusTooManyRequests, message: err.Error(), retry: limit.RetryAfter}
	}
	kind := firebreak.KindOf(err)
	a := apiError{status: kind.Edge().HTTP, message: err.Error()}
	switch kind {
	case firebreak.KindInternal: // it may tell of this host, and means nothing to clients
		a.message, a.code = "something went wrong in firebreak; its log says what", "internal_server_error"
	case firebreak.KindHost:
		a.code = "sandbox_no_compatible_node"
	case firebreak.KindUnavailable: // 502 says of a sandbox that it is gone
		a.status = http.StatusServiceUnavailable
	case firebreak.KindUnsupported:
		a.code = "not_implemented"
	}
	return a
}

func (a apiError) body() []byte {
	b, _ := json.Marshal(errorBody{a.status, a.message, a.code}) // numbers and texts
	return b
}

// fail answers with an error.
func (d *Door) fail(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil {
		return // nobody listens
	}
	a := answerTo(err)
	if a.status == http.StatusInternalServerError {
		d.cfg.Log.Error("request failed", "method", r.Method, "path", r.URL.Path, "err", err)
	}
	if a.retry > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(a.retry.Seconds()))))
	}
	answer(w, a.status, a.body())
}

// answerJSON answers with v.
func answerJSON(w http.ResponseWriter, status int, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write answer: %w", err)
	}
	answer(w, status, b)
	return nil
}

// answer sends a whole body: clients take an empty one in chunks for broken.
func answer(w http.ResponseWriter, status int, body []byte) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client may have gone
}
