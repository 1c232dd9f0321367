package e2b

import (
	"net/http"

	"github.com/firebreak-dev/firebreak/internal/auth"
)

// missingRoutes answers for what E2B has and this version has not, and for what there is nowhere.
func (d *Door) missingRoutes() {
	for sentence, patterns := range map[string][]string{
		"snapshots are not built: a paused sandbox keeps its state, but no other can start from it": {
			"POST /sandboxes/{id}/snapshots", "GET /snapshots"},
		"forks are not built: a sandbox cannot be copied while it runs": {"POST /sandboxes/{id}/fork"},
		"volumes are not built: what is to outlive a sandbox has to be read out of it": {
			"/volumes", "/volumes/{id}", "/volumecontent/{rest...}"},
		"secrets are not built: there is no way out of a sandbox on which they could be put in": {
			"/secrets", "/secrets/{id}"},
		"teams are not built: there are tenants, which the operator of this server keeps": {
			"/teams", "/teams/{rest...}"},
	} {
		for _, p := range patterns {
			d.handle(p, func(http.ResponseWriter, *http.Request, auth.Caller) error { return notBuilt(sentence) })
		}
	}
	nowhere := func(_ http.ResponseWriter, r *http.Request, _ auth.Caller) error {
		return notFound("what", r.Method+" "+r.URL.Path+" asks for")
	}
	d.handle("GET /templates/{id}/{what}", func(w http.ResponseWriter, r *http.Request, by auth.Caller) error {
		if r.PathValue("what") == "tags" { // as a pattern it would not go with that of aliases
			return d.serveTags(w, r)
		}
		return nowhere(w, r, by)
	})
	d.handle("/", nowhere)
}
