package firebreak_test

import (
	"encoding"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak"
)

func TestWorkloadSurvivesJSON(t *testing.T) {
	for _, c := range []struct {
		w    firebreak.Workload
		want string
	}{
		{firebreak.Workload{}, `{}`},
		{firebreak.Workload{
			Origin: firebreak.OriginUntrusted, Tenancy: firebreak.TenancyMulti, Data: firebreak.DataHealth, GPU: true, Plugin: true,
			Needs: firebreak.NeedLinux | firebreak.NeedCompute, StartWithin: firebreak.Duration(10 * time.Millisecond), Audit: true,
			Orchestrator: firebreak.OrchestratorKubernetes, Place: firebreak.PlaceBrowser,
		}, `{"origin":"untrusted","tenancy":"multi","data":"health","gpu":true,"plugin":true,"needs":["linux","compute"],` +
			`"start_within":"10ms","audit":true,"orchestrator":"kubernetes","place":"browser"}`},
	} {
		text, err := json.Marshal(c.w)
		if err != nil || string(text) != c.want {
			t.Errorf("%s, %v, want %s", text, err, c.want)
		}
		back, err := firebreak.ReadWorkload(text)
		if err != nil || back != c.w {
			t.Errorf("%s reads as %+v, %v", text, back, err)
		}
	}
}

func TestWorkloadRefusesWhatItDoesNotKnow(t *testing.T) {
	for text, want := range map[string]string{
		`{"origin":"llm"}`:                 `"llm" is none of none, trusted, model, untrusted`,
		`{"tenancy":"two"}`:                `"two" is none of single, multi`,
		`{"data":"secret"}`:                `"secret" is none of public, internal, regulated, finance, health, personal`,
		`{"orchestrator":"nomad"}`:         `"nomad" is none of none, kubernetes`,
		`{"place":"moon"}`:                 `"moon" is none of server, browser`,
		`{"needs":["linux","root"]}`:       `"root" is none of linux, network, file-io, syscalls, compute`,
		`{"needs":"linux"}`:                `is no list of words`,
		`{"start_within":"soon"}`:          `"soon" is no duration; to mend it: write it like 10ms`,
		`{"start_within":"-1s"}`:           `start_within is -1s`,
		`{"risk":3}`:                       `unknown field "risk"`,
		`{"gpu":"yes"}`:                    `cannot unmarshal string`,
		`{"origin":3}`:                     `cannot unmarshal number`,
		`{} {}`:                            `something follows`,
		``:                                 `EOF`,
		`{"origin":"unset"}`:               `"unset" is none of`,
		`{"origin":"model","origin":"no"}`: `"no" is none of`,
	} {
		w, err := firebreak.ReadWorkload([]byte(text))
		if firebreak.KindOf(err) != firebreak.KindInvalid || !strings.Contains(err.Error(), want) || w != (firebreak.Workload{}) {
			t.Errorf("%s: %+v, %v, want an error with %q", text, w, err, want)
		}
	}
}

func TestCheckRefusesNumbersWithoutWords(t *testing.T) {
	for _, w := range []firebreak.Workload{{Origin: 9}, {Tenancy: 9}, {Data: 9}, {Orchestrator: 9}, {Place: 9}, {Needs: 128}, {StartWithin: -1}} {
		if err := w.Check(); firebreak.KindOf(err) != firebreak.KindInvalid {
			t.Errorf("%+v: %v", w, err)
		}
	}
	for _, v := range []encoding.TextMarshaler{firebreak.Origin(9), firebreak.Tenancy(9), firebreak.Data(9), firebreak.Orchestrator(9), firebreak.Place(9)} {
		if text, err := v.MarshalText(); err == nil {
			t.Errorf("%v is written as %q", v, text)
		}
	}
	if got := firebreak.Origin(9).String() + " " + firebreak.OriginUnset.String(); got != "origin(9) unset" {
		t.Errorf("got %q", got)
	}
}

func TestRegulatedDataHasOneClass(t *testing.T) {
	for d, want := range map[firebreak.Data]firebreak.Data{
		firebreak.DataPublic: firebreak.DataPublic, firebreak.DataInternal: firebreak.DataInternal, firebreak.DataRegulated: firebreak.DataRegulated,
		firebreak.DataFinance: firebreak.DataRegulated, firebreak.DataHealth: firebreak.DataRegulated, firebreak.DataPersonal: firebreak.DataRegulated,
	} {
		if got := d.Class(); got != want {
			t.Errorf("%s is of class %s, want %s", d, got, want)
		}
	}
}
