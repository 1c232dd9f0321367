package event

import (
	"math"
	"time"
)

// E2BEvent is an event as E2B's own look, in its list of events and in what its webhooks send. Both spellings of the names
// are there because E2B has used both.
type E2BEvent struct {
	Version  string `json:"version"`
	ID       string `json:"id"`
	Type     string `json:"type"`
	Time     string `json:"timestamp"`
	Category string `json:"eventCategory"`
	Label    string `json:"eventLabel"`

	Data      *E2BData `json:"eventData"`
	Sandbox   string   `json:"sandboxId"`
	Execution string   `json:"sandboxExecutionId"`
	Template  string   `json:"sandboxTemplateId"`
	Build     string   `json:"sandboxBuildId"`
	Team      string   `json:"sandboxTeamId"`

	Category2  string   `json:"event_category"`
	Label2     string   `json:"event_label"`
	Data2      *E2BData `json:"event_data,omitempty"`
	Sandbox2   string   `json:"sandbox_id"`
	Execution2 string   `json:"sandbox_execution_id"`
	Template2  string   `json:"sandbox_template_id"`
	Build2     string   `json:"sandbox_build_id"`
	Team2      string   `json:"sandbox_team_id"`
}

// E2BData is what E2B says besides.
type E2BData struct {
	Metadata  map[string]string `json:"sandbox_metadata,omitempty"`
	Timeout   string            `json:"set_timeout,omitempty"` // the deadline that was set
	Execution *E2BExecution     `json:"execution,omitempty"`   // killed, paused
}

// E2BExecution is what a sandbox had until it was killed or paused.
type E2BExecution struct {
	Started string `json:"started_at"`
	CPUs    int    `json:"vcpu_count"`
	Memory  int64  `json:"memory_mb"`
	Time    int64  `json:"execution_time"` // milliseconds
}

// ToE2B returns e as E2B would tell it. Its sandboxes have executions, one after each resume; ours are one and the same
// for as long as they live.
func (e Event) ToE2B() E2BEvent {
	name, label, data := e.Type.E2B(), e.Type.row().label, e.e2bData()
	return E2BEvent{
		Version: "v2", ID: e.ID, Type: name, Time: stamp(e.Time), Category: "lifecycle", Label: label, Data: data,
		Sandbox: e.Sandbox, Execution: e.Sandbox, Template: e.Template, Build: e.Digest, Team: e.Tenant,
		Category2: "lifecycle", Label2: label, Data2: data,
		Sandbox2: e.Sandbox, Execution2: e.Sandbox, Template2: e.Template, Build2: e.Digest, Team2: e.Tenant,
	}
}

func (e Event) e2bData() *E2BData {
	d := E2BData{Metadata: e.Data.Metadata}
	if e.Type == TypeUpdated && !e.Data.Deadline.IsZero() {
		d.Timeout = stamp(e.Data.Deadline)
	}
	if (e.Type == TypeKilled || e.Type == TypePaused) && !e.Data.Started.IsZero() {
		d.Execution = &E2BExecution{Started: stamp(e.Data.Started), CPUs: max(1, int(math.Ceil(e.Data.CPUs))), Memory: e.Data.Memory >> 20,
			Time: max(0, e.Time.Sub(e.Data.Started).Milliseconds())}
	}
	if len(d.Metadata) == 0 && d.Timeout == "" && d.Execution == nil {
		return nil
	}
	return &d
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z07:00") }
