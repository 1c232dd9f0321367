package e2b_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/dataplane"
	"github.com/firebreak-dev/firebreak/internal/e2b"
	"github.com/firebreak-dev/firebreak/internal/manager"
)

func TestCreate(t *testing.T) {
	w := newWorld(t, nil)
	for _, c := range []struct {
		path    string
		timeout time.Duration
	}{{"/sandboxes", 15 * time.Second}, {"/v2/sandboxes", 300 * time.Second}} {
		res := w.ask("acme", "POST", c.path, `{"templateID":"host","unknown":{"field":[1,null]},"mcp":{"x":{}},"metadata":{"a":"b"},"envVars":{"A":"b"}}`)
		res.want(t, c.path, 201)
		var sb sandbox
		res.into(t, &sb)
		rec := w.record(sb.SandboxID)
		if !regexp.MustCompile(`^[a-z0-9]+$`).MatchString(sb.SandboxID) || sb.TemplateID != "host" || sb.ClientID == "" || sb.Alias != "host" ||
			!regexp.MustCompile(`^\d+\.\d+\.\d+$`).MatchString(sb.EnvdVersion) || sb.EnvdAccessToken != rec.Token || sb.EnvdAccessToken == "" ||
			sb.TrafficAccessToken != rec.TrafficToken || len(sb.TrafficAccessToken) < 20 || sb.TrafficAccessToken == sb.EnvdAccessToken || sb.Domain != "box.test:7443" {
			t.Errorf("%s: %s", c.path, res.body)
		}
		if left := time.Until(rec.Deadline); left > c.timeout || left < c.timeout-10*time.Second {
			t.Errorf("%s: %s left", c.path, left)
		}
		if rec.Tenant != "acme" || !rec.Detached || rec.Metadata["a"] != "b" || rec.Agent.Envs["A"] != "b" || rec.OnTimeout == firebreak.TimeoutPause || rec.AutoResume {
			t.Errorf("%s: %+v", c.path, rec)
		}
	}
	if res := newWorld(t, func(c *e2b.Config) { c.Domain = "" }).ask("acme", "POST", "/v2/sandboxes", object{"templateID": "host"}); !strings.Contains(string(res.body), `"domain":null`) {
		t.Errorf("without a domain: %s", res.body)
	}
}

func TestCreateAsOldClientsDo(t *testing.T) {
	w := newWorld(t, nil)
	sb := w.make("acme", object{"templateID": "base", "timeout": 60, "secure": true, "allow_internet_access": true})
	if sb.TemplateID != "host" || sb.Alias != "base" {
		t.Errorf("%+v", sb)
	}
	said := strings.Join(sb.Warnings, "\n")
	if !strings.Contains(said, "no template base") || !strings.Contains(said, "no way to any network") {
		t.Errorf("said %q", said)
	}
	w.ask("acme", "GET", "/sandboxes/"+sb.SandboxID, nil).want(t, "it has no network", 200, `"allowInternetAccess":false`)
}

func TestCreateSaysHowItLives(t *testing.T) {
	w := newWorld(t, nil)
	sb := w.make("acme", object{"autoPause": true, "autoPauseMemory": true, "autoResume": object{"enabled": true},
		"network": object{"denyOut": []string{"0.0.0.0/0"}, "allowOut": []string{"*.example.com", "10.0.0.0/8", "::1"}, "allowPublicTraffic": false, "maskRequestHost": "localhost:${PORT}"}})
	rec := w.record(sb.SandboxID)
	if rec.OnTimeout != firebreak.TimeoutPause || !rec.AutoResume || rec.Annotations[dataplane.AnnotationPrivate] != "true" ||
		rec.Annotations[dataplane.AnnotationMaskHost] != "localhost:${PORT}" || !strings.Contains(strings.Join(sb.Warnings, "\n"), "no way to any network") {
		t.Errorf("%+v %+v", rec, sb)
	}
	w.ask("acme", "GET", "/sandboxes/"+sb.SandboxID, nil).want(t, "details", 200, `"lifecycle":{"autoResume":true,"onTimeout":"pause"}`, `"allowPublicTraffic":false`)
	if sb := w.make("acme", object{"network": object{"denyOut": []string{"1.2.3.4"}}, "allow_internet_access": false}); strings.Contains(strings.Join(sb.Warnings, "\n"), "network") {
		t.Errorf("what is true anyway is no reason to warn: %v", sb.Warnings)
	}
}

func TestCreateRefuses(t *testing.T) {
	w := newWorld(t, nil)
	many := object{}
	for i := range 300 {
		many[fmt.Sprint(i)] = "x"
	}
	for name, c := range map[string]struct {
		body   any
		status int
		part   string
	}{
		"nothing":                     {``, 400, "templateID"},
		"no template":                 {object{"templateID": ""}, 400, "templateID"},
		"an unknown template":         {object{"templateID": "nowhere"}, 404, "nowhere"},
		"another tenant's template":   {object{"templateID": "other/secret"}, 404, "other/secret"},
		"an impossible name":          {object{"templateID": "../x"}, 400, "template"},
		"a long name":                 {object{"templateID": strings.Repeat("x", 300)}, 400, "templateID"},
		"no JSON":                     {`{"templateID":`, 400, "JSON"},
		"more than JSON":              {`{"templateID":"host"} {}`, 400, "JSON"},
		"another kind of JSON":        {`["host"]`, 400, "JSON"},
		"a timeout of text":           {object{"templateID": "host", "timeout": "60"}, 400, "timeout"},
		"a timeout of a fraction":     {object{"templateID": "host", "timeout": 1.5}, 400, "timeout"},
		"a timeout of 0":              {object{"templateID": "host", "timeout": 0}, 400, "0"},
		"a timeout below 0":           {object{"templateID": "host", "timeout": -1}, 400, "-1"},
		"a timeout of two days":       {object{"templateID": "host", "timeout": 172800}, 400, "86400"},
		"a timeout beyond all":        {`{"templateID":"host","timeout":99999999999999999999}`, 400, "timeout"},
		"metadata of numbers":         {object{"templateID": "host", "metadata": object{"a": 1}}, 400, "metadata"},
		"much metadata":               {object{"templateID": "host", "metadata": object{"a": strings.Repeat("x", 40<<10)}}, 400, "metadata"},
		"many metadata":               {object{"templateID": "host", "metadata": many}, 400, "metadata"},
		"a bad variable":              {object{"templateID": "host", "envVars": object{"A=B": "c"}}, 400, "environment"},
		"a large request":             {object{"templateID": "host", "x": strings.Repeat("x", 3<<20)}, 413, "larger"},
		"a deep request":              {`{"templateID":"host","x":` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `}`, 400, "deep"},
		"no memory, no pause":         {object{"templateID": "host", "autoPauseMemory": false}, 400, "autoPause"},
		"no memory, but resume":       {object{"templateID": "host", "autoPause": true, "autoPauseMemory": false, "autoResume": object{"enabled": true}}, 400, "autoResume"},
		"no memory":                   {object{"templateID": "host", "autoPause": true, "autoPauseMemory": false}, 501, "memory"},
		"volumes":                     {object{"templateID": "host", "volumeMounts": []object{{"name": "v", "path": "/v"}}}, 501, "volumes"},
		"identities":                  {object{"templateID": "host", "iam": object{"tokens": object{"a": object{}}}}, 501, "identity"},
		"a proxy":                     {object{"templateID": "host", "network": object{"egressProxy": object{"address": "a:1"}}}, 501, "proxy"},
		"rules":                       {object{"templateID": "host", "network": object{"rules": object{"a.com": []object{}}}}, 501, "rules"},
		"TLS ports":                   {object{"templateID": "host", "network": object{"httpsPorts": []int{443}}}, 501, "httpsPorts"},
		"a name that is denied":       {object{"templateID": "host", "network": object{"denyOut": []string{"a.com"}}}, 400, "denyOut"},
		"a name without denial":       {object{"templateID": "host", "network": object{"allowOut": []string{"a.com"}}}, 400, "denyOut"},
		"something that is allowed":   {object{"templateID": "host", "network": object{"allowOut": []string{"http://a"}, "denyOut": []string{"0.0.0.0/0"}}}, 400, "allowOut"},
		"a mask with a line break":    {object{"templateID": "host", "network": object{"maskRequestHost": "a\r\nb: c"}}, 400, "maskRequestHost"},
		"private and not secure":      {object{"templateID": "host", "secure": false, "network": object{"allowPublicTraffic": false}}, 400, "secure"},
		"another's, by his own name":  {object{"templateID": "other/secret:default"}, 404, "other/secret"},
		"a layer of somebody's build": {object{"templateID": "~" + strings.Repeat("a", 26)}, 400, "template"},
	} {
		w.ask("acme", "POST", "/v2/sandboxes", c.body).want(t, name, c.status, c.part)
	}
	if all, err := w.sandboxes.List(as(t.Context(), "operator")); err != nil || len(all) != 0 {
		t.Errorf("%d sandboxes were made, %v", len(all), err)
	}
	w.ask("acme", "POST", "/v2/sandboxes", object{"templateID": "host", "network": object{"egressProxy": nil, "rules": object{}}}).want(t, "what says nothing", 201)
}

func TestErrorsOfTheManager(t *testing.T) {
	w := newWorld(t, nil)
	for name, c := range map[string]struct {
		err    error
		status int
		code   string
		retry  string
	}{
		"limit":       {&auth.LimitError{RetryAfter: 1500 * time.Millisecond, Err: &firebreak.Error{Kind: firebreak.KindExhausted, Err: errors.New("2 at once")}}, 429, "", "2"},
		"never":       {&firebreak.Error{Kind: firebreak.KindExhausted, Err: errors.New("too large")}, 507, "", ""},
		"policy":      {&firebreak.Error{Kind: firebreak.KindDenied, Err: errors.New("rule x")}, 403, "", ""},
		"host":        {&firebreak.Error{Kind: firebreak.KindHost, Err: errors.New("no gvisor")}, 503, "sandbox_no_compatible_node", ""},
		"unavailable": {&firebreak.Error{Kind: firebreak.KindUnavailable, Err: errors.New("shutting down")}, 503, "", ""},
		"deadline":    {&firebreak.Error{Kind: firebreak.KindDeadline, Err: errors.New("hung")}, 504, "", ""},
		"unsupported": {&firebreak.Error{Kind: firebreak.KindUnsupported, Err: errors.New("cannot")}, 501, "not_implemented", ""},
		"ours":        {errors.New("/var/lib/firebreak: secret"), 500, "internal_server_error", ""},
	} {
		w.sandboxes.onCreate(func(manager.Request) error { return c.err })
		res := w.ask("acme", "POST", "/v2/sandboxes", object{"templateID": "host"})
		res.want(t, name, c.status)
		if res.Header.Get("Retry-After") != c.retry || c.code != "" && !strings.Contains(string(res.body), `"error_code":"`+c.code+`"`) || strings.Contains(string(res.body), "/var/lib") {
			t.Errorf("%s: %v %s", name, res.Header, res.body)
		}
	}
}

func TestTemplateNames(t *testing.T) {
	w := newWorld(t, func(c *e2b.Config) {
		c.Aliases = map[string]string{"base": "nowhere", "nowhere": "host", "round": "about", "about": "round"}
	})
	w.templates.names = []string{"host", "python:3.13", "node:default", "ghcr.io/o/i:v1", "acme/own:default", "acme/python:3.13", "acme/tagged:v2", "other/own:default", "nvidia/cuda:12"}
	for _, c := range []struct{ tenant, asked, got, alias string }{
		{"acme", "host", "host", "host"},
		{"acme", "own", "acme/own:default", "own"},
		{"acme", "own:default", "acme/own:default", "own"},
		{"acme", "acme/own", "acme/own:default", "own"},
		{"acme", "python:3.13", "acme/python:3.13", "python:3.13"},
		{"other", "python:3.13", "python:3.13", "python:3.13"},
		{"other", "own", "other/own:default", "own"},
		{"third", "own", "", ""},
		{"third", "acme/own", "", ""},
		{"third", "acme/own:default", "", ""},
		{"third", "nvidia/cuda:12", "", ""},
		{"operator", "acme/own", "acme/own:default", "acme/own:default"},
		{"operator", "nvidia/cuda:12", "nvidia/cuda:12", "nvidia/cuda:12"},
		{"acme", "tagged", "", ""},
		{"acme", "tagged:v2", "acme/tagged:v2", "tagged:v2"},
		{"acme", "node", "node:default", "node:default"},
		{"acme", "ghcr.io/o/i:v1", "ghcr.io/o/i:v1", "ghcr.io/o/i:v1"},
		{"acme", "base", "host", "base"},
		{"acme", "round", "", ""},
	} {
		res := w.ask(c.tenant, "POST", "/v2/sandboxes", object{"templateID": c.asked})
		if c.got == "" {
			res.want(t, c.tenant+" "+c.asked, 404, c.asked)
			continue
		}
		res.want(t, c.tenant+" "+c.asked, 201)
		var sb sandbox
		res.into(t, &sb)
		if rec := w.record(sb.SandboxID); rec.Template != c.got || sb.Alias != c.alias || strings.HasPrefix(sb.TemplateID, "acme/") && c.tenant == "acme" {
			t.Errorf("%s %s: %s, %+v", c.tenant, c.asked, rec.Template, sb)
		}
	}
}

// builds knows templates by their IDs.
type builds map[string]string

func (b builds) Resolve(_ context.Context, ref string) (string, error) {
	switch {
	case strings.Contains(ref, "."):
		return "", &firebreak.Error{Kind: firebreak.KindInvalid, Err: errors.New("no name of a build")}
	case b[ref] == "broken":
		return "", errors.New("the database is gone")
	case b[ref] == "":
		return "", fs.ErrNotExist
	}
	return b[ref], nil
}

func TestBuiltTemplates(t *testing.T) {
	w := newWorld(t, func(c *e2b.Config) {
		c.Builds = builds{"id1": "acme/own:default", "base": "acme/own:default", "broken": "broken"}
	})
	w.templates.names = append(w.templates.names, "ghcr.io/o/i:v1")
	for asked, want := range map[string][2]string{"id1": {"acme/own:default", "own"}, "base": {"acme/own:default", "own"}, "host": {"host", "host"}, "ghcr.io/o/i:v1": {"ghcr.io/o/i:v1", "ghcr.io/o/i:v1"}} {
		sb := w.make("acme", object{"templateID": asked})
		w.ask("acme", "GET", "/sandboxes/"+sb.SandboxID, nil).want(t, asked, 200, `"alias":"`+want[1]+`"`)
		if w.record(sb.SandboxID).Template != want[0] || sb.Alias != want[1] {
			t.Errorf("%s: %+v", asked, sb)
		}
	}
	for filter, want := range map[string]int{"id1": 2, "own": 2, "own:default": 2, "host": 1, "id2": 0} {
		if got, _, _ := w.list("acme", "/v2/sandboxes?template="+filter); len(got) != want {
			t.Errorf("%d sandboxes of %s, want %d", len(got), filter, want)
		}
	}
	w.ask("acme", "POST", "/v2/sandboxes", object{"templateID": "id2"}).want(t, "another id", 404)
	w.ask("acme", "POST", "/v2/sandboxes", object{"templateID": "broken"}).want(t, "broken", 500)
}
