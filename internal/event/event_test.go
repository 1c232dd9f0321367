package event

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/firebreak-dev/firebreak"
)

func TestTypesHaveTheirNames(t *testing.T) {
	e2b := 0
	for _, typ := range Types() {
		name := typ.E2B()
		back, ok := TypeOfE2B(name)
		if ok != (name != "") || ok && back != typ {
			t.Errorf("%s is E2B's %q, which is %q, %v", typ, name, back, ok)
		}
		if ok {
			e2b++
		}
	}
	if got := len(E2BTypes()); got != e2b || got != 6 {
		t.Errorf("E2B has %d types, %d of ours have a name there", got, e2b)
	}
	if Type("x").E2B() != "" {
		t.Error("E2B has a name for what is no type")
	}
}

func TestPrepare(t *testing.T) {
	now := time.Date(2026, 11, 24, 10, 0, 0, 123456789, time.FixedZone("x", 3600))
	e := Event{Type: TypeRefused, Data: Data{Metadata: map[string]string{"k": strings.Repeat("v", maxMetadata)},
		Reason: strings.Repeat("ä", maxText), Rules: make([]string, 100)}}
	if err := e.Prepare(now); err != nil {
		t.Fatal(err)
	}
	d := e.Data
	if !d.Cut || d.Metadata != nil || len(d.Reason) > maxText || !utf8.ValidString(d.Reason) || len(d.Rules) != maxRules {
		t.Errorf("%d bytes of reason, %d rules, %v", len(d.Reason), len(d.Rules), d.Cut)
	}
	if got := e.Time.Format(time.RFC3339Nano); got != "2026-11-24T09:00:00.123Z" {
		t.Errorf("its time is %s", got)
	}
	small := Event{Type: TypeCreated, Data: Data{Metadata: map[string]string{"k": "v"}, Reason: "r"}}
	if err := small.Prepare(now); err != nil || small.Data.Cut || small.Data.Metadata["k"] != "v" {
		t.Errorf("%+v, %v", small, err)
	}
	if err := new(Event).Prepare(now); firebreak.KindOf(err) != firebreak.KindInvalid {
		t.Errorf("an event without a type: %v", err)
	}
}

func FuzzParseID(f *testing.F) {
	f.Add(IDOf(NewPrefix(), 1))
	f.Add(NewID())
	f.Add("00000000-0000-8000-8000--00000000001")
	f.Add("00000000-0000-8000-8000-00000000000A")
	f.Add("")
	f.Fuzz(func(t *testing.T, id string) {
		prefix, number, ok := ParseID(id)
		if ok && (IDOf(prefix, number) != id || number < 0) {
			t.Errorf("%q: %q, %d", id, prefix, number)
		}
	})
}

func TestIDs(t *testing.T) {
	seen := map[string]bool{}
	for n := range int64(1000) {
		id := IDOf(NewPrefix(), n)
		if len(id) != 36 || id[14] != '8' || !strings.ContainsAny(id[19:20], "89ab") || seen[id] || strings.Count(id, "-") != 4 {
			t.Fatalf("%q is no fresh UUID", id)
		}
		seen[id] = true
		if _, number, ok := ParseID(id); !ok || number != n {
			t.Errorf("%q: %d, %v", id, number, ok)
		}
	}
}

func TestAsE2BTellsIt(t *testing.T) {
	at := time.Date(2026, 11, 24, 10, 0, 0, 5e6, time.UTC)
	base := Event{ID: "i", Time: at, Tenant: "acme", Sandbox: "s", Template: "t", Digest: "d"}
	const names = `"sandboxId":"s","sandboxExecutionId":"s","sandboxTemplateId":"t","sandboxBuildId":"d","sandboxTeamId":"acme",`
	const names2 = `"sandbox_id":"s","sandbox_execution_id":"s","sandbox_template_id":"t","sandbox_build_id":"d","sandbox_team_id":"acme"}`
	for _, c := range []struct {
		typ   Type
		data  Data
		e2b   string
		again string
	}{
		{TypeResumed, Data{Deadline: at}, `null`, ``},
		{TypeCreated, Data{Metadata: map[string]string{"a": "b"}, Deadline: at}, `{"sandbox_metadata":{"a":"b"}}`, `"event_data":{"sandbox_metadata":{"a":"b"}},`},
		{TypeUpdated, Data{Deadline: at}, `{"set_timeout":"2026-11-24T10:00:00.005Z"}`, `"event_data":{"set_timeout":"2026-11-24T10:00:00.005Z"},`},
		{TypeKilled, Data{Started: at.Add(-time.Second), CPUs: 1.5, Memory: 512 << 20, Reason: "deadline", Detail: "of ours"},
			`{"execution":{"started_at":"2026-11-24T09:59:59.005Z","vcpu_count":2,"memory_mb":512,"execution_time":1000}}`,
			`"event_data":{"execution":{"started_at":"2026-11-24T09:59:59.005Z","vcpu_count":2,"memory_mb":512,"execution_time":1000}},`},
	} {
		e := base
		e.Type, e.Data = c.typ, c.data
		got, err := json.Marshal(e.ToE2B())
		label := map[Type]string{TypeResumed: "resume", TypeCreated: "create", TypeUpdated: "update", TypeKilled: "kill"}[c.typ]
		want := `{"version":"v2","id":"i","type":"sandbox.lifecycle.` + string(c.typ) + `","timestamp":"2026-11-24T10:00:00.005Z","eventCategory":"lifecycle","eventLabel":"` +
			label + `","eventData":` + c.e2b + `,` + names + `"event_category":"lifecycle","event_label":"` + label + `",` + c.again + names2
		if err != nil || string(got) != want {
			t.Errorf("got  %s, %v\nwant %s", got, err, want)
		}
	}
}
