package dataplane

import (
	"encoding/json"
	"errors"
	"html/template"
	"net/http"
	"strings"

	"github.com/firebreak-dev/firebreak"
)

// refusal is an answer of ours instead of the sandbox's.
type refusal struct {
	status  int
	message string
}

func (r refusal) Error() string { return r.message }

// portRefusal tells the port too.
type portRefusal struct{ refusal }

func (r portRefusal) Unwrap() error { return r.refusal }

const notFound = "The sandbox was not found"

// refuse answers in the form that clients know; to browsers as a page.
func (p *Plane) refuse(w http.ResponseWriter, r *http.Request, to address, err error) {
	if r.Context().Err() != nil {
		return // nobody listens
	}
	said := p.explain(to, err)
	body := struct {
		SandboxID string `json:"sandboxId,omitempty"`
		Message   string `json:"message"`
		Port      uint16 `json:"port,omitempty"`
		Code      int    `json:"code"`
	}{to.id, said.message, 0, said.status}
	if errors.As(err, new(portRefusal)) {
		body.Port = to.port
	}
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	if said.status == http.StatusTooManyRequests {
		h.Set("Retry-After", "1")
	}
	if strings.Contains(r.Header.Get("Accept"), "text/html") {
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
		w.WriteHeader(said.status)
		_ = page().Execute(w, body) // the client may have gone
		return
	}
	h.Set("Content-Type", "application/json")
	w.WriteHeader(said.status)
	_ = json.NewEncoder(w).Encode(body) // the client may have gone
}

func (p *Plane) explain(to address, err error) refusal {
	var said refusal
	if errors.As(err, &said) {
		return said
	}
	switch firebreak.KindOf(err) {
	case firebreak.KindNotFound:
		return refusal{http.StatusBadGateway, notFound}
	case firebreak.KindState:
		return refusal{http.StatusConflict, "The sandbox is paused, or changes its state just now"}
	case firebreak.KindDenied:
		return refusal{http.StatusForbidden, "The sandbox may not be resumed"}
	case firebreak.KindExhausted:
		return refusal{http.StatusTooManyRequests, "There is no room to resume the sandbox"}
	}
	p.cfg.Log.Error("a sandbox cannot be reached", "sandbox", to.id, "port", to.port, "err", err)
	return refusal{http.StatusBadGateway, "The sandbox cannot be reached"}
}

func page() *template.Template {
	return template.Must(template.New("page").Parse(`<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{.Message}}</title>
<style>body{font:16px/1.5 system-ui,sans-serif;margin:20vh auto;max-width:36rem;padding:0 1rem}code{background:#8882;padding:0 .3em}</style>
<h1>{{.Message}}</h1>
<p>{{with .SandboxID}}Sandbox <code>{{.}}</code>{{end}}{{with .Port}}, port <code>{{.}}</code>{{end}}. Status {{.Code}}.</p>
</html>
`))
}
