package auth

import (
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/firebreak-dev/firebreak"
)

// Tenant is somebody whose sandboxes nobody else may see or reach. Tenants are comparable.
type Tenant struct {
	ID       string             `json:"id"` // lower-case letters, digits and hyphens, up to 63
	Limits   Limits             `json:"limits,omitzero"`
	Workload firebreak.Workload `json:"workload,omitzero"` // what holds for its code where a request does not say
}

// Limits bound what all sandboxes of a tenant take together. Zero is no limit.
type Limits struct {
	Sandboxes        int     `json:"sandboxes,omitempty"`          // at once
	CPUs             float64 `json:"cpus,omitempty"`               // of all at once
	Memory           int64   `json:"memory,omitempty"`             // bytes, of all at once
	CreatesPerSecond float64 `json:"creates_per_second,omitempty"` // in the long run
	Burst            int     `json:"burst,omitempty"`              // creates at one moment; 0: those of a second, at least 1
}

// Check returns an error of firebreak.KindInvalid unless t is what a tenant can be.
func (t Tenant) Check() error {
	err := t.check()
	if err != nil {
		err = &firebreak.Error{Kind: firebreak.KindInvalid, Op: "check tenant", Err: err}
	}
	return err
}

func (t Tenant) check() error {
	if !isTenantID(t.ID) {
		return fmt.Errorf("%.100q is not 1 to 63 lower-case letters, digits and hyphens, the first no hyphen", t.ID)
	}
	l := t.Limits
	if l.Sandboxes < 0 || l.Memory < 0 || l.Burst < 0 || !amount(l.CPUs) || !amount(l.CreatesPerSecond) {
		return errors.New("a limit is not a number from 0 on")
	}
	if l.CPUs > 0 && l.CPUs < 0.001 {
		return errors.New("a thousandth of a CPU is the least")
	}
	if l.Burst > 0 && l.CreatesPerSecond == 0 {
		return errors.New("a burst bounds nothing without creates per second")
	}
	return t.Workload.Check()
}

// OwnerOf returns the tenant whose template this name is in the image store: what lies below a tenant's ID is his. Empty
// for one that all share, as those are whose first part only a registry can be called.
func OwnerOf(template string) string {
	first, _, below := strings.Cut(template, "/")
	if !below || !isTenantID(first) {
		return ""
	}
	return first
}

func isTenantID(id string) bool {
	if id == "" || len(id) > 63 || id[0] == '-' {
		return false
	}
	for _, c := range []byte(id) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// amount reports whether n can be counted in thousandths.
func amount(n float64) bool { return n >= 0 && n <= math.MaxInt64/2000 }
