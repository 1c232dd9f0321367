package code

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"time"
)

// execution is the body of POST /execute.
type execution struct {
	Code     *string           `json:"code"`
	Context  string            `json:"context_id"`
	Language string            `json:"language"`
	Env      map[string]string `json:"env_vars"`
}

// parseExecution is for foreign bytes.
func parseExecution(r io.Reader) (execution, error) {
	var e execution
	if err := parseBody(r, &e); err != nil {
		return e, err
	}
	switch {
	case e.Code == nil:
		return e, fail(http.StatusBadRequest, "code is missing")
	case len(*e.Code) > maxCode:
		return e, fail(http.StatusRequestEntityTooLarge, "code has %d bytes, more than %d: write it into a file and run that", len(*e.Code), maxCode)
	case e.Context != "" && e.Language != "":
		return e, fail(http.StatusBadRequest, "Only one of context_id or language can be provided")
	}
	for name, value := range e.Env {
		if name == "" || strings.ContainsAny(name, "=\x00") || strings.Contains(value, "\x00") {
			return e, fail(http.StatusBadRequest, "environment variable %q is not one", name)
		}
	}
	return e, nil
}

// parseBody reads one JSON object; fields that are not known are another version's.
func parseBody(r io.Reader, into any) error {
	d := json.NewDecoder(r)
	err := d.Decode(into)
	if err == nil {
		if _, more := d.Token(); more != io.EOF {
			err = errors.New("more than one value")
		}
	}
	if large := new(http.MaxBytesError); errors.As(err, &large) {
		return fail(http.StatusRequestEntityTooLarge, "the request has more than %d bytes", large.Limit)
	}
	if err != nil {
		return fail(http.StatusBadRequest, "read the request: %w", err)
	}
	return nil
}

// body is a request's, with limits of size and time.
func body(w http.ResponseWriter, r *http.Request) (io.Reader, func()) {
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Now().Add(30 * time.Second)) // unsupported in tests
	return http.MaxBytesReader(w, r.Body, maxBody), func() { _ = rc.SetReadDeadline(time.Time{}) }
}

func (s *Service) serveExecute(w http.ResponseWriter, r *http.Request) {
	from, done := body(w, r)
	e, err := parseExecution(from)
	done()
	if err != nil {
		refuse(w, err)
		return
	}
	c, err := s.pick(e)
	if err == nil {
		err = c.language.check(e)
	}
	if err != nil {
		refuse(w, err)
		return
	}
	out := newStream(w, r.Context())
	defer out.close()
	if err := c.Run(out, *e.Code, e.Env); err != nil {
		if out.opened() {
			out.Failed("KernelError", err.Error(), "")
			out.end()
			return
		}
		refuse(w, err)
	}
}

func (s *Service) pick(e execution) (*Context, error) {
	if e.Context != "" {
		return s.Find(e.Context)
	}
	return s.Default(e.Language)
}

// check refuses what a language cannot say.
func (l Language) check(e execution) error {
	if !l.Shell {
		return nil
	}
	if strings.Contains(*e.Code, "\x00") {
		return fail(http.StatusBadRequest, "code of a shell holds no zero byte")
	}
	for name := range e.Env {
		if !shellName(name) {
			return fail(http.StatusBadRequest, "environment variable %q is not one that a shell can set", name)
		}
	}
	return nil
}

// shellName reports whether a shell can have a variable of this name.
func shellName(name string) bool {
	return regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`).MatchString(name)
}

// view is a context as clients see it.
type view struct {
	ID       string `json:"id"`
	Language string `json:"language"`
	Dir      string `json:"cwd"`
}

func (s *Service) serveList(w http.ResponseWriter, _ *http.Request) {
	list := []view{}
	for _, c := range s.List() {
		list = append(list, view{c.ID, c.Language, c.Dir})
	}
	answer(w, list)
}

func (s *Service) serveCreate(w http.ResponseWriter, r *http.Request) {
	var req struct {
		Language string `json:"language"`
		Dir      string `json:"cwd"`
	}
	from, done := body(w, r)
	err := parseBody(from, &req)
	done()
	if err != nil {
		refuse(w, err)
		return
	}
	c, err := s.Create(req.Language, req.Dir)
	if err != nil {
		refuse(w, err)
		return
	}
	answer(w, view{c.ID, c.Language, c.Dir})
}

func (s *Service) serveDelete(w http.ResponseWriter, r *http.Request) {
	if err := s.Delete(r.PathValue("id")); err != nil {
		refuse(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (s *Service) serveRestart(w http.ResponseWriter, r *http.Request) {
	c, err := s.Find(r.PathValue("id"))
	if err != nil {
		refuse(w, err)
		return
	}
	c.Restart()
	w.WriteHeader(http.StatusNoContent)
}

func answer(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(value) // the client went away
}

// refuse answers with a sentence, as clients of this protocol expect.
func refuse(w http.ResponseWriter, err error) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(statusOf(err))
	text := err.Error()
	_, _ = fmt.Fprint(w, strings.ToValidUTF8(text[:min(len(text), maxText)], "")) // the client went away
}
