package e2b_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/e2b"
	"github.com/firebreak-dev/firebreak/internal/manager"
)

// endpoints is one request for each thing that can be done to a sandbox.
func endpoints(id string) [][3]string {
	return [][3]string{
		{"GET", "/sandboxes/" + id, ""},
		{"POST", "/sandboxes/" + id + "/connect", `{"timeout":60}`},
		{"POST", "/v2/sandboxes/" + id + "/connect", `{}`},
		{"POST", "/sandboxes/" + id + "/resume", `{}`},
		{"POST", "/sandboxes/" + id + "/pause", `{}`},
		{"POST", "/sandboxes/" + id + "/timeout", `{"timeout":60}`},
		{"POST", "/sandboxes/" + id + "/refreshes", `{"duration":60}`},
		{"PUT", "/sandboxes/" + id + "/network", `{}`},
		{"GET", "/sandboxes/" + id + "/metrics", ""},
		{"DELETE", "/sandboxes/" + id, ""},
	}
}

// TestSandboxesThatAreNotThere holds that one that never was, one that has ended and one of another tenant are the same.
func TestSandboxesThatAreNotThere(t *testing.T) {
	w := newWorld(t, nil)
	others := w.make("other", object{"metadata": object{"secret": "word"}}).SandboxID
	ended := w.make("acme", nil).SandboxID
	// Its agent may be gone before it can be told.
	_, _ = w.sandboxes.SetTimeout(as(t.Context(), "operator"), ended, time.Millisecond, false)
	if rec, err := w.sandboxes.Wait(as(t.Context(), "operator"), ended); err != nil || rec.State != firebreak.StateEnded {
		t.Fatalf("%+v, %v", rec, err)
	}
	never := "f" + strings.Repeat("a", 15)
	for _, id := range []string{others, ended, never, "A", "..%2f" + others, others[:8], others + "x", strings.Repeat("a", 64)} {
		for _, e := range endpoints(id) {
			res := w.ask("acme", e[0], e[1], e[2])
			res.want(t, e[0]+" "+e[1], 404)
			if id == others {
				if got := strings.ReplaceAll(string(res.body), others, never); got != string(w.ask("acme", e[0], strings.ReplaceAll(e[1], others, never), e[2]).body) {
					t.Errorf("%s %s: another's is told from none: %s", e[0], e[1], got)
				}
			}
		}
	}
	for _, path := range []string{"/sandboxes", "/v2/sandboxes", "/v2/sandboxes?metadata=secret%3Dword", "/sandboxes/metrics?sandbox_ids=" + others} {
		if res := w.ask("acme", "GET", path, nil); strings.Contains(string(res.body), others) {
			t.Errorf("%s tells of another's: %s", path, res.body)
		}
	}
	if rec := w.record(others); rec.State != firebreak.StateRunning {
		t.Errorf("another's is %s", rec.State)
	}
}

func TestNobodyIsLetIn(t *testing.T) {
	w := newWorld(t, nil)
	id := w.make("acme", nil).SandboxID
	all := append(endpoints(id), [][3]string{
		{"POST", "/sandboxes", `{"templateID":"host"}`}, {"POST", "/v2/sandboxes", `{"templateID":"host"}`},
		{"GET", "/sandboxes", ""}, {"GET", "/v2/sandboxes", ""}, {"GET", "/sandboxes/metrics?sandbox_ids=" + id, ""},
		{"GET", "/templates", ""}, {"GET", "/v2/templates", ""}, {"GET", "/templates/host", ""}, {"GET", "/templates/aliases/host", ""},
		{"DELETE", "/templates/host", ""}, {"PATCH", "/v2/templates/host", "{}"}, {"GET", "/volumes", ""}, {"GET", "/teams", ""}, {"GET", "/nowhere", ""},
	}...)
	for _, e := range all {
		w.ask("nobody", e[0], e[1], e[2]).want(t, e[0]+" "+e[1], 401)
	}
	w.ask("nobody", "GET", "/health", nil).want(t, "health", 204)
	health, list := &http.Request{Method: "GET", URL: mustParse(t, "/health")}, &http.Request{Method: "GET", URL: mustParse(t, "/sandboxes")}
	if !e2b.Public(health) || e2b.Public(list) {
		t.Error("what is public is not /health alone")
	}
}

func TestConnect(t *testing.T) {
	w := newWorld(t, nil)
	made := w.make("acme", object{"timeout": 600})
	id := made.SandboxID
	same := func(what string, res response) {
		t.Helper()
		var sb sandbox
		res.into(t, &sb)
		if !slices.Equal(sb.Warnings, made.Warnings) || sb.SandboxID != id || sb.EnvdAccessToken != made.EnvdAccessToken || sb.TrafficAccessToken != made.TrafficAccessToken || sb.Domain != made.Domain || sb.EnvdVersion != made.EnvdVersion {
			t.Errorf("%s: %+v, was %+v", what, sb, made)
		}
	}
	for _, path := range []string{"/sandboxes/" + id + "/connect", "/v2/sandboxes/" + id + "/connect"} {
		w.ask("acme", "POST", "/sandboxes/"+id+"/timeout", object{"timeout": 600}).want(t, "timeout", 204)
		res := w.ask("acme", "POST", path, object{"timeout": 10})
		res.want(t, path, 200)
		same(path, res)
		if left := time.Until(w.record(id).Deadline); left < 9*time.Minute {
			t.Errorf("%s took time away: %s left", path, left)
		}
		w.ask("acme", "POST", path, object{"timeout": 1200}).want(t, path, 200)
		if left := time.Until(w.record(id).Deadline); left < 19*time.Minute {
			t.Errorf("%s gave no time: %s left", path, left)
		}
		w.ask("acme", "POST", "/sandboxes/"+id+"/pause", nil).want(t, "pause", 204)
		w.ask("acme", "POST", "/sandboxes/"+id+"/pause", object{}).want(t, "pause again", 409)
		w.ask("acme", "GET", "/sandboxes/"+id, nil).want(t, "get", 200, `"state":"paused"`)
		w.ask("acme", "POST", "/sandboxes/"+id+"/timeout", object{"timeout": 60}).want(t, "timeout of a paused one", 409)
		res = w.ask("acme", "POST", path, object{"timeout": 60})
		res.want(t, path+" of a paused one", 201)
		same(path, res)
		if left := time.Until(w.record(id).Deadline); left > time.Minute {
			t.Errorf("%s: %s left of a minute", path, left)
		}
		w.ask("acme", "POST", path, object{"timeout": 60, "memory": false}).want(t, path+" without memory", 501)
		w.ask("acme", "POST", path, object{"timeout": -1}).want(t, path+" for no time", 400)
		w.ask("acme", "POST", path, object{"timeout": 1 << 40}).want(t, path+" for ever", 400)
	}
	w.ask("acme", "POST", "/sandboxes/"+id+"/connect", object{}).want(t, "v1 without time", 400, "timeout")
	w.ask("acme", "POST", "/v2/sandboxes/"+id+"/connect", nil).want(t, "v2 without time", 200)
	w.ask("acme", "POST", "/sandboxes/"+id+"/resume", object{"timeout": 60}).want(t, "resume one that runs", 409)
	w.ask("acme", "POST", "/sandboxes/"+id+"/pause", object{"memory": false}).want(t, "pause without memory", 501)
	w.ask("acme", "POST", "/sandboxes/"+id+"/pause", object{"memory": true}).want(t, "pause with memory", 204)
	res := w.ask("acme", "POST", "/sandboxes/"+id+"/resume", object{"timeout": 60, "autoPause": false})
	res.want(t, "resume", 201)
	same("resume", res)
}

func TestTime(t *testing.T) {
	w := newWorld(t, nil)
	id := w.make("acme", object{"timeout": 600}).SandboxID
	for _, c := range []struct {
		path      string
		body      any
		status    int
		least     time.Duration
		most      time.Duration
		complaint string
	}{
		{"timeout", object{"timeout": 60}, 204, 50 * time.Second, time.Minute, ""},
		{"timeout", object{"timeout": 1200}, 204, 19 * time.Minute, 20 * time.Minute, ""},
		{"refreshes", object{"duration": 60}, 204, 19 * time.Minute, 20 * time.Minute, ""},
		{"refreshes", object{"duration": 3600}, 204, 59 * time.Minute, time.Hour, ""},
		{"refreshes", object{}, 204, 59 * time.Minute, time.Hour, ""},
		{"timeout", object{"timeout": 5}, 204, 0, 5 * time.Second, ""}, // and it must live until the next
		{"refreshes", object{"duration": 0}, 204, 10 * time.Second, 15 * time.Second, ""},
		{"refreshes", object{"duration": 3601}, 400, 0, 15 * time.Second, "3600"},
		{"refreshes", object{"duration": -1}, 400, 0, 15 * time.Second, "-1"},
		{"timeout", object{}, 400, 0, 15 * time.Second, "timeout"},
		{"timeout", object{"timeout": -1}, 400, 0, 15 * time.Second, "-1"},
		{"timeout", object{"timeout": 86401}, 400, 0, 15 * time.Second, "86400"},
		{"timeout", `{"timeout":`, 400, 0, 15 * time.Second, "JSON"},
	} {
		w.ask("acme", "POST", "/sandboxes/"+id+"/"+c.path, c.body).want(t, c.path, c.status, c.complaint)
		if left := time.Until(w.record(id).Deadline); left < c.least || left > c.most {
			t.Errorf("%s %v: %s left, want %s to %s", c.path, c.body, left, c.least, c.most)
		}
	}
	w.ask("acme", "POST", "/sandboxes/"+id+"/timeout", object{"timeout": 0}).want(t, "no time at all", 204)
	w.ask("acme", "GET", "/sandboxes/"+id, nil).want(t, "its time is up", 404)
	id = w.make("acme", object{"autoPause": true}).SandboxID
	w.ask("acme", "POST", "/sandboxes/"+id+"/timeout", object{"timeout": 0}).want(t, "no time, to be paused", 204)
	w.ask("acme", "GET", "/sandboxes/"+id, nil).want(t, "it is paused", 200, `"state":"paused"`)
	w.ask("acme", "POST", "/sandboxes/"+id+"/timeout", object{"timeout": 0}).want(t, "no time once more", 409)
}

func TestKill(t *testing.T) {
	w := newWorld(t, nil)
	running, paused := w.make("acme", nil).SandboxID, w.make("acme", nil).SandboxID
	w.ask("acme", "POST", "/sandboxes/"+paused+"/pause", nil).want(t, "pause", 204)
	for _, id := range []string{running, paused} {
		w.ask("acme", "DELETE", "/sandboxes/"+id, nil).want(t, "kill", 204)
		w.ask("acme", "DELETE", "/sandboxes/"+id, nil).want(t, "kill again", 404)
	}
	w.ask("operator", "DELETE", "/sandboxes/"+w.make("acme", nil).SandboxID, nil).want(t, "the operator", 204)
}

func TestDetails(t *testing.T) {
	w := newWorld(t, nil)
	sb := w.make("acme", object{"metadata": object{"a": "b"}})
	var got struct {
		SandboxID, TemplateID, ClientID, EnvdVersion, EnvdAccessToken, State, Domain string
		StartedAt, EndAt                                                             time.Time
		CPUCount                                                                     int
		Metadata                                                                     map[string]string
		Lifecycle                                                                    struct {
			AutoResume bool
			OnTimeout  string
		}
		VolumeMounts []any
	}
	w.ask("acme", "GET", "/sandboxes/"+sb.SandboxID, nil).into(t, &got)
	rec := w.record(sb.SandboxID)
	if got.SandboxID != sb.SandboxID || got.TemplateID != "host" || got.ClientID == "" || got.EnvdVersion == "" || got.EnvdAccessToken != sb.EnvdAccessToken || got.State != "running" ||
		!got.StartedAt.Equal(rec.Created) || !got.EndAt.Equal(rec.Deadline) || got.CPUCount < 1 || got.Metadata["a"] != "b" || got.Lifecycle.OnTimeout != "kill" || got.VolumeMounts == nil || got.Domain == "" {
		t.Errorf("%+v of %+v", got, rec)
	}
	ever, _, err := w.sandboxes.Create(as(t.Context(), "operator"), manager.Request{})
	if err != nil {
		t.Fatal(err)
	}
	w.ask("operator", "GET", "/sandboxes/"+string(ever.ID), nil).want(t, "one without a deadline", 200, `"endAt":"9999-12-31T23:59:59Z"`, `"metadata":{}`)
}

func TestNetwork(t *testing.T) {
	w := newWorld(t, nil)
	id := w.make("acme", object{"network": object{"allowPublicTraffic": false, "maskRequestHost": "x", "denyOut": []string{"1.1.1.1"}}}).SandboxID
	path := "/sandboxes/" + id + "/network"
	w.ask("acme", "PUT", path, object{"denyOut": []string{"0.0.0.0/0"}, "allowOut": []string{"a.com"}, "allow_internet_access": true}).want(t, "replace", 204)
	res := w.ask("acme", "GET", "/sandboxes/"+id, nil)
	res.want(t, "get", 200, `"allowOut":["a.com"]`, `"allowPublicTraffic":false`, `"maskRequestHost":"x"`, "no way to any network", `"allowInternetAccess":false`)
	w.ask("acme", "PUT", path, object{}).want(t, "clear", 204)
	res = w.ask("acme", "GET", "/sandboxes/"+id, nil)
	res.want(t, "get", 200, `"network":{"allowPublicTraffic":false,"maskRequestHost":"x"}`)
	if strings.Contains(string(res.body), "no way to any network") {
		t.Errorf("what was taken back: %s", res.body)
	}
	if rec := w.record(id); rec.Annotations["dataplane/private"] != "true" || rec.Annotations["dataplane/mask-host"] != "x" {
		t.Errorf("the way in has changed: %v", rec.Annotations)
	}
	for name, body := range map[string]any{"a rule": object{"rules": object{"a.com": []object{{"transform": object{}}}}}, "a proxy": object{"egressProxy": object{"address": "a:1"}}} {
		w.ask("acme", "PUT", path, body).want(t, name, 501)
	}
	w.ask("acme", "PUT", path, object{"denyOut": []string{"a.com"}}).want(t, "a name", 400)
	w.ask("acme", "PUT", path, object{"denyOut": "a.com"}).want(t, "a text", 400)
}
