package e2b

import (
	"cmp"
	"encoding/json"
	"math"
	"runtime"
	"slices"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/store"
)

// What this door notes of a sandbox.
const (
	noteTemplate = "e2b/template" // what was asked for, if that is not what it came from
	noteNetwork  = "e2b/network"  // JSON of network: what was said of it
	noteInternet = "e2b/internet" // "true" or "false", if it was said
	noteAttempt  = "e2b/attempt"  // the key of the request that made it
)

// sandboxView is what who makes or connects to a sandbox is told.
type sandboxView struct {
	SandboxID          string   `json:"sandboxID"`
	TemplateID         string   `json:"templateID"`
	ClientID           string   `json:"clientID"`
	Alias              string   `json:"alias,omitempty"`
	EnvdVersion        string   `json:"envdVersion"`
	EnvdAccessToken    string   `json:"envdAccessToken"`
	TrafficAccessToken *string  `json:"trafficAccessToken"`
	Domain             *string  `json:"domain"`
	Warnings           []string `json:"warnings,omitempty"` // ours: what is not as it was asked for, or as one may think
}

func (d *Door) sandboxView(by auth.Caller, rec store.Record) sandboxView {
	return sandboxView{
		SandboxID: string(rec.ID), TemplateID: shown(by, rec.Template), ClientID: clientID, Alias: aliasOf(by, rec),
		EnvdVersion: d.cfg.EnvdVersion, EnvdAccessToken: rec.Token, TrafficAccessToken: orNull(rec.TrafficToken),
		Domain: orNull(d.cfg.Domain), Warnings: warnings(by, rec),
	}
}

// aliasOf is what a sandbox's template was called by who asked for it, or else is: clients show it as the sandbox's name.
func aliasOf(by auth.Caller, rec store.Record) string {
	return cmp.Or(rec.Annotations[noteTemplate], shown(by, rec.Template))
}

func orNull(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// listedView is a sandbox in a list.
type listedView struct {
	SandboxID    string            `json:"sandboxID"`
	TemplateID   string            `json:"templateID"`
	ClientID     string            `json:"clientID"`
	Alias        string            `json:"alias,omitempty"`
	StartedAt    time.Time         `json:"startedAt"`
	EndAt        time.Time         `json:"endAt"`
	EnvdVersion  string            `json:"envdVersion"`
	CPUCount     int               `json:"cpuCount"`
	MemoryMB     int64             `json:"memoryMB"`
	DiskSizeMB   int64             `json:"diskSizeMB"`
	Metadata     map[string]string `json:"metadata"`
	State        firebreak.State   `json:"state"`
	VolumeMounts []struct{}        `json:"volumeMounts"` // there are none
}

// never is when a sandbox ends that has no deadline: clients need a time.
func never() time.Time { return time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC) }

func (d *Door) listedView(by auth.Caller, rec store.Record) listedView {
	v := listedView{
		SandboxID: string(rec.ID), TemplateID: shown(by, rec.Template), ClientID: clientID, Alias: aliasOf(by, rec),
		StartedAt: rec.Created, EndAt: rec.Deadline, EnvdVersion: d.cfg.EnvdVersion,
		CPUCount: cpusOf(rec), MemoryMB: rec.Spec.Limits.Memory >> 20, DiskSizeMB: rec.Spec.Limits.Disk >> 20,
		Metadata: rec.Metadata, State: rec.State, VolumeMounts: []struct{}{},
	}
	if v.EndAt.IsZero() {
		v.EndAt = never()
	}
	if v.Metadata == nil {
		v.Metadata = map[string]string{}
	}
	return v
}

// cpusOf returns the processors of a sandbox in whole numbers, as clients have them; those of the host if it has no limit.
func cpusOf(rec store.Record) int {
	if rec.Spec.Limits.CPUs == 0 {
		return runtime.NumCPU()
	}
	return max(1, int(math.Ceil(rec.Spec.Limits.CPUs)))
}

type lifecycleView struct {
	AutoResume bool                    `json:"autoResume"`
	OnTimeout  firebreak.TimeoutAction `json:"onTimeout"`
}

// detailView is all that is told of one sandbox.
type detailView struct {
	listedView
	EnvdAccessToken     string        `json:"envdAccessToken"`
	AllowInternetAccess bool          `json:"allowInternetAccess"`
	Domain              *string       `json:"domain"`
	Network             *network      `json:"network,omitempty"`
	Lifecycle           lifecycleView `json:"lifecycle"`
	Warnings            []string      `json:"warnings,omitempty"`
}

func (d *Door) detailView(by auth.Caller, rec store.Record) detailView {
	v := detailView{listedView: d.listedView(by, rec), EnvdAccessToken: rec.Token, Domain: orNull(d.cfg.Domain),
		Network: networkOf(rec), Lifecycle: lifecycleView{rec.AutoResume, rec.OnTimeout}, Warnings: warnings(by, rec)}
	if v.Lifecycle.OnTimeout == "" {
		v.Lifecycle.OnTimeout = firebreak.TimeoutKill
	}
	return v
}

func networkOf(rec store.Record) *network {
	n := &network{}
	if rec.Annotations[noteNetwork] == "" || json.Unmarshal([]byte(rec.Annotations[noteNetwork]), n) != nil {
		return nil // nothing was said
	}
	return n
}

// warnings say what is not as it was asked for. Of what opens a way out nothing does, and it is not refused because
// clients before version 2.51 ask for all of the Internet whether or not their callers did.
func warnings(by auth.Caller, rec store.Record) []string {
	all := slices.Clone(rec.Warnings)
	if alias := rec.Annotations[noteTemplate]; alias != "" {
		all = append(all, "there is no template "+alias+" here: it starts from "+shown(by, rec.Template))
	}
	n := networkOf(rec)
	if rec.Annotations[noteInternet] == "true" || n != nil && len(n.AllowOut) > 0 {
		all = append(all, "it has no way to any network: this version of firebreak opens none")
	}
	return all
}
