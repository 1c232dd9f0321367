package e2b_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/e2b"
	"github.com/firebreak-dev/firebreak/internal/event"
	"github.com/firebreak-dev/firebreak/internal/webhook"
)

// withEvents makes a world whose door knows events and webhooks.
func withEvents(t *testing.T) (*world, *event.Log) {
	t.Helper()
	w := newWorld(t, nil)
	events := event.New(w.store)
	hooks, err := webhook.New(t.Context(), webhook.Config{Storage: w.store, Events: events, Log: slog.New(slog.DiscardHandler), AllowPrivate: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(hooks.Close)
	w.cfg.Events, w.cfg.Webhooks = events, hooks
	w.door = e2b.New(w.cfg)
	return w, events
}

// happen keeps events of a sandbox that is gone, one each second. at is when: in the recent past, as older events are not
// kept.
func happen(t *testing.T, log *event.Log, tenant, sandbox string) (at func(n int) time.Time) {
	t.Helper()
	begun := time.Now().UTC().Truncate(time.Hour).Add(-2 * time.Hour)
	at = func(n int) time.Time { return begun.Add(time.Duration(n) * time.Second) }
	for i, e := range []event.Event{
		{Type: event.TypeCreated, Template: "host", Driver: "fake"}, {Type: event.TypePaused}, {Type: event.TypeResumed},
		{Type: event.TypeRecovered}, {Type: event.TypeUpdated, Data: event.Data{Deadline: at(1000)}},
		{Type: event.TypeKilled, Data: event.Data{Reason: "out-of-memory", Detail: "at 1 MiB"}},
	} {
		e.Tenant, e.Sandbox, e.Time = tenant, sandbox, at(i)
		if err := log.Publish(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	return at
}

func TestLogs(t *testing.T) {
	w, events := withEvents(t)
	at := happen(t, events, "acme", "gone1")
	happen(t, events, "other", "gone2")
	var got struct {
		Logs []struct {
			Timestamp            time.Time
			Line, Level, Message string
			Fields               map[string]string
		}
		LogEntries []struct{ Level, Message string }
	}
	w.ask("acme", "GET", "/sandboxes/gone1/logs", nil).into(t, &got)
	if len(got.Logs) != 6 || len(got.LogEntries) != 6 || !got.Logs[0].Timestamp.Equal(at(0)) || got.LogEntries[5].Level != "error" {
		t.Fatalf("%+v", got)
	}
	for i, l := range got.Logs {
		var line map[string]string
		if err := json.Unmarshal([]byte(l.Line), &line); err != nil || line["level"] == "" || line["logger"] == "" || line["message"] != got.LogEntries[i].Message {
			t.Errorf("%s: %v", l.Line, err)
		}
	}
	millis := func(n int) string { return fmt.Sprint(at(n).UnixMilli()) }
	for query, want := range map[string]string{ // by what happened, in order
		"/sandboxes/gone1/logs?start=" + millis(4):                                             "updated killed",
		"/sandboxes/gone1/logs?limit=2":                                                        "created paused",
		"/v2/sandboxes/gone1/logs":                                                             "created paused resumed recovered updated killed",
		"/v2/sandboxes/gone1/logs?cursor=" + millis(3) + "&limit=2":                            "recovered updated",
		"/v2/sandboxes/gone1/logs?direction=backward&limit=2":                                  "killed updated",
		"/v2/sandboxes/gone1/logs?direction=backward&cursor=" + millis(1):                      "paused created",
		"/v2/sandboxes/gone1/logs?level=warn":                                                  "killed",
		"/v2/sandboxes/gone1/logs?search=" + url.QueryEscape("1 MiB"):                          "killed",
		"/v2/sandboxes/gone1/logs?cursor=" + millis(100):                                       "",
		"/v2/sandboxes/gone1/logs?direction=forward&cursor=" + millis(2) + "&search=d&limit=1": "resumed",
	} {
		res := w.ask("acme", "GET", query, nil)
		res.want(t, query, 200)
		got.Logs = nil
		res.into(t, &got)
		var types []string
		for _, l := range got.Logs {
			if l.Line != "" {
				if err := json.Unmarshal([]byte(l.Line), &l.Fields); err != nil {
					t.Error(err)
				}
			}
			types = append(types, l.Fields["type"])
		}
		if strings.Join(types, " ") != want {
			t.Errorf("%s: %v, want %s", query, types, want)
		}
	}
	for _, path := range []string{"/sandboxes/gone2/logs", "/v2/sandboxes/gone2/logs", "/sandboxes/never/logs", "/events/sandboxes/gone2"} {
		w.ask("acme", "GET", path, nil).want(t, path, 404)
	}
	alive := w.make("acme", nil).SandboxID
	w.ask("acme", "GET", "/sandboxes/"+alive+"/logs", nil).want(t, "of one that lives", 200)
	for _, query := range []string{"limit=0", "limit=1001", "cursor=-1", "cursor=x", "direction=up", "level=loud", "search=" + strings.Repeat("x", 1001)} {
		w.ask("acme", "GET", "/v2/sandboxes/gone1/logs?"+query, nil).want(t, query, 400)
	}
	w.ask("acme", "GET", "/sandboxes/gone1/logs?start=x", nil).want(t, "start", 400)
}

func TestEvents(t *testing.T) {
	w, log := withEvents(t)
	happen(t, log, "acme", "gone1")
	happen(t, log, "other", "gone2")
	for query, want := range map[string]string{ // what is not E2B's is left out
		"?orderAsc=true":                         "created paused resumed updated killed",
		"":                                       "killed updated resumed paused created",
		"/gone1?limit=2&offset=1":                "updated resumed",
		"/gone1?types=sandbox.lifecycle.created": "created",
		"?offset=100":                            "",
	} {
		var all []struct {
			Version, ID, Type, SandboxID, SandboxTeamID string
			Timestamp                                   time.Time
		}
		res := w.ask("acme", "GET", "/events/sandboxes"+query, nil)
		res.want(t, query, 200)
		res.into(t, &all)
		var types []string
		for _, e := range all {
			types = append(types, strings.TrimPrefix(e.Type, "sandbox.lifecycle."))
			if e.SandboxID != "gone1" || e.SandboxTeamID != "acme" || e.ID == "" || e.Timestamp.IsZero() {
				t.Errorf("%s: %+v", query, e)
			}
		}
		if strings.Join(types, " ") != want {
			t.Errorf("%q: %v, want %s", query, types, want)
		}
	}
	for _, query := range []string{"limit=0", "limit=101", "offset=-1", "orderAsc=x", "types=x"} {
		w.ask("acme", "GET", "/events/sandboxes?"+query, nil).want(t, query, 400)
	}
	bare := newWorld(t, nil)
	for _, path := range []string{"/events/sandboxes", "/events/webhooks", "/sandboxes/x/logs"} {
		bare.ask("acme", "GET", path, nil).want(t, "without events: "+path, 501)
	}
}

func TestWebhooks(t *testing.T) {
	w, _ := withEvents(t)
	good := object{"name": "n", "url": "https://127.0.0.1:1/x", "events": []string{"sandbox.lifecycle.created"}, "signatureSecret": "top secret"}
	res := w.ask("acme", "POST", "/events/webhooks", good)
	res.want(t, "create", 201, `"enabled":true`, `"events":["sandbox.lifecycle.created"]`, `"url":"https://127.0.0.1:1/x"`)
	var hook struct{ ID string }
	res.into(t, &hook)
	path := "/events/webhooks/" + hook.ID
	w.ask("acme", "GET", "/events/webhooks", nil).want(t, "list", 200, hook.ID)
	w.ask("acme", "GET", path, nil).want(t, "get", 200, `"name":"n"`)
	w.ask("acme", "PATCH", path, object{"enabled": false, "events": []string{"sandbox.lifecycle.killed"}, "signatureSecret": "other secret"}).
		want(t, "change", 200, `"enabled":false`, `["sandbox.lifecycle.killed"]`, `"name":"n"`)
	for _, e := range [][2]string{{"GET", path}, {"PATCH", path}, {"DELETE", path}, {"GET", "/events/webhooks/never"}} {
		w.ask("other", e[0], e[1], object{}).want(t, "another tenant: "+e[0], 404)
	}
	if res := w.ask("other", "GET", "/events/webhooks", nil); string(res.body) != "[]" {
		t.Errorf("another tenant sees %s", res.body)
	}
	for name, change := range map[string]object{
		"no url":        {"url": nil},
		"no secret":     {"signatureSecret": nil},
		"an empty one":  {"signatureSecret": ""},
		"a url of ours": {"url": "file:///etc/passwd"},
		"no events":     {"events": []string{}},
		"other events":  {"events": []string{"sandbox.lifecycle.fed"}},
		"a number":      {"name": 1},
	} {
		body := object{}
		for k, v := range good {
			body[k] = v
		}
		for k, v := range change {
			body[k] = v
		}
		w.ask("acme", "POST", "/events/webhooks", body).want(t, name, 400)
	}
	for _, path := range []string{"/events/webhooks", path} {
		if res := w.ask("acme", "GET", path, nil); strings.Contains(string(res.body), "secret") {
			t.Errorf("%s tells a secret: %s", path, res.body)
		}
	}
	w.ask("acme", "DELETE", path, nil).want(t, "delete", 200)
	w.ask("acme", "DELETE", path, nil).want(t, "delete again", 404)
}
