package e2b_test

import (
	"net/url"
	"slices"
	"strings"
	"testing"
)

func TestTemplates(t *testing.T) {
	w := newWorld(t, nil)
	w.templates.names = []string{"host", "python:3.13", "acme/own:default", "acme/own:v2", "other/secret:default", "ghcr.io/o/i:v1", "localhost:5000/i"}
	for tenant, want := range map[string][]string{
		"acme":     {"host", "python:3.13", "own", "own:v2", "ghcr.io/o/i:v1", "localhost:5000/i"},
		"third":    {"host", "python:3.13", "ghcr.io/o/i:v1", "localhost:5000/i"},
		"operator": {"host", "python:3.13", "acme/own:default", "acme/own:v2", "other/secret:default", "ghcr.io/o/i:v1", "localhost:5000/i"},
	} {
		for _, path := range []string{"/templates?teamID=x", "/v2/templates"} {
			var all []struct {
				TemplateID, BuildID, BuildStatus, EnvdVersion string
				Names, Aliases                                []string
				Public                                        bool
			}
			w.ask(tenant, "GET", path, nil).into(t, &all)
			var got []string
			for _, one := range all {
				got = append(got, one.TemplateID)
				if one.BuildStatus != "ready" || !slices.Equal(one.Names, []string{one.TemplateID}) || !slices.Equal(one.Aliases, one.Names) || len(one.BuildID) != 36 || one.EnvdVersion == "" {
					t.Errorf("%s: %+v", tenant, one)
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s %s: %v, want %v", tenant, path, got, want)
			}
		}
		for _, id := range want { // each is found by what it is called
			w.ask(tenant, "GET", "/templates/"+url.PathEscape(id), nil).want(t, tenant+" "+id, 200, `"templateID":"`+id+`"`, `"builds":[{`)
			w.ask(tenant, "GET", "/templates/aliases/"+url.PathEscape(id), nil).want(t, tenant+" "+id, 200, `"templateID":"`+id+`"`)
		}
	}
	if res := w.ask("acme", "GET", "/templates/own", nil); !strings.Contains(string(res.body), `"public":false`) {
		t.Errorf("%s", res.body)
	}
	for _, id := range []string{"nowhere", "other/secret", "other/secret:default", "../x", "base"} {
		for _, e := range [][2]string{{"GET", "/templates/"}, {"GET", "/templates/aliases/"}, {"DELETE", "/templates/"}, {"PATCH", "/v2/templates/"}} {
			w.ask("acme", e[0], e[1]+url.PathEscape(id), object{"public": true}).want(t, e[0]+" "+e[1]+id, 404)
		}
	}
	w.ask("acme", "DELETE", "/templates/host", nil).want(t, "delete a shared one", 403)
	w.ask("acme", "PATCH", "/v2/templates/host", object{"public": false}).want(t, "change a shared one", 403)
	w.ask("acme", "PATCH", "/templates/own", object{"public": false}).want(t, "leave it as it is", 200, `"names":["own"]`)
	w.ask("acme", "PATCH", "/v2/templates/own", object{"public": true}).want(t, "share it", 501)
	w.ask("acme", "DELETE", "/templates/own%3Av2", nil).want(t, "delete", 204)
	w.ask("operator", "DELETE", "/templates/other%2Fsecret%3Adefault", nil).want(t, "delete another's, as the operator", 204)
	if want := []string{"host", "python:3.13", "acme/own:default", "ghcr.io/o/i:v1", "localhost:5000/i"}; !slices.Equal(w.templates.names, want) {
		t.Errorf("left are %v", w.templates.names)
	}
}

func TestWhatIsNotBuilt(t *testing.T) {
	w := newWorld(t, nil)
	for _, e := range [][2]string{
		{"POST", "/sandboxes/x/snapshots"}, {"GET", "/snapshots"}, {"POST", "/sandboxes/x/fork"}, {"GET", "/volumes"}, {"POST", "/volumes"},
		{"DELETE", "/volumes/x"}, {"GET", "/volumecontent/x/path"}, {"GET", "/secrets"}, {"POST", "/secrets/x"}, {"POST", "/templates/tags"},
		{"DELETE", "/templates/tags"}, {"GET", "/templates/x/tags"}, {"GET", "/teams"}, {"GET", "/teams/x/metrics/max"},
	} {
		res := w.ask("acme", e[0], e[1], nil)
		res.want(t, e[0]+" "+e[1], 501, `"error_code":"not_implemented"`, "not built")
	}
	for _, e := range [][2]string{{"GET", "/"}, {"GET", "/nowhere"}, {"PUT", "/sandboxes"}, {"POST", "/sandboxes/x/nowhere"}, {"GET", "/templates/x/nowhere"}, {"DELETE", "/v2/sandboxes"}} {
		w.ask("acme", e[0], e[1], nil).want(t, e[0]+" "+e[1], 404)
	}
}
