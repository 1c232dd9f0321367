package e2b

import (
	"encoding/json"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/firebreak-dev/firebreak/internal/auth"
)

// network is what a client says of a sandbox's way out and of the way in. What forbids is true of every sandbox, as none
// has a way out; what would open one opens nothing; and what would change traffic on its way is not built.
type network struct {
	AllowOut           []string `json:"allowOut,omitempty"`
	DenyOut            []string `json:"denyOut,omitempty"`
	AllowPublicTraffic *bool    `json:"allowPublicTraffic,omitempty"`
	MaskRequestHost    string   `json:"maskRequestHost,omitempty"`

	HTTPSPorts  []int           `json:"httpsPorts,omitempty"`
	EgressProxy json.RawMessage `json:"egressProxy,omitempty"`
	Rules       json.RawMessage `json:"rules,omitempty"`
}

const (
	maxRules = 256 // of one list
	maxHost  = 255 // characters
)

func (n *network) check() error {
	switch {
	case isSet(n.Rules):
		return notBuilt("network rules that change requests are not built: sandboxes of this version have no way out in which they could")
	case isSet(n.EgressProxy):
		return notBuilt("an egress proxy is not built: sandboxes of this version have no way out that could lead through it")
	case len(n.HTTPSPorts) > 0:
		return notBuilt("httpsPorts is not built: servers in sandboxes are reached without TLS")
	case len(n.AllowOut) > maxRules || len(n.DenyOut) > maxRules:
		return badRequest("more than %d entries in allowOut or denyOut", maxRules)
	case !isHostMask(n.MaskRequestHost):
		return badRequest("maskRequestHost %.100q is not a host, with or without a port", n.MaskRequestHost)
	}
	for _, entry := range n.DenyOut {
		if !isAddresses(entry) {
			return badRequest("denyOut %.100q is neither an IP address nor a range of them", entry)
		}
	}
	for _, entry := range n.AllowOut {
		if isAddresses(entry) {
			continue
		}
		if !isDomain(entry) {
			return badRequest("allowOut %.100q is neither an IP address, nor a range of them, nor a domain", entry)
		}
		if !slices.Contains(n.DenyOut, "0.0.0.0/0") {
			return badRequest("allowOut names the domain %.100q, so denyOut must have 0.0.0.0/0 (ALL_TRAFFIC)", entry)
		}
	}
	return nil
}

// isSet reports whether a field of JSON says anything.
func isSet(raw json.RawMessage) bool {
	switch strings.TrimSpace(string(raw)) {
	case "", "null", "{}", "[]":
		return false
	}
	return true
}

func isAddresses(text string) bool {
	if _, err := netip.ParsePrefix(text); err == nil {
		return true
	}
	_, err := netip.ParseAddr(text)
	return err == nil
}

var (
	hostPattern = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`^(\*|(\*\.)?([a-zA-Z0-9_]([a-zA-Z0-9_-]{0,61}[a-zA-Z0-9_])?\.)*[a-zA-Z0-9_]([a-zA-Z0-9_-]{0,61}[a-zA-Z0-9_])?)$`)
	})
	maskPattern = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`^([a-zA-Z0-9._-]|\[[0-9a-fA-F:.]+\]|:|\$\{PORT\})*$`)
	})
)

func isDomain(text string) bool {
	return len(text) <= maxHost && hostPattern().MatchString(text)
}

// isHostMask takes what can stand in a Host header.
func isHostMask(text string) bool {
	return len(text) <= maxHost && maskPattern().MatchString(text)
}

// note is what is kept of it; empty if it says nothing.
func (n *network) note() string {
	b, err := json.Marshal(n)
	if err != nil || string(b) == "{}" {
		return ""
	}
	return string(b)
}

// networkUpdate is the body of PUT /sandboxes/{id}/network. What it leaves out is taken back.
type networkUpdate struct {
	network
	AllowInternetAccess *bool `json:"allow_internet_access"`
}

// serveNetwork replaces what was said of the way out; what was said of the way in stays.
func (d *Door) serveNetwork(w http.ResponseWriter, r *http.Request, by auth.Caller) error {
	rec, err := d.living(r)
	if err != nil {
		return err
	}
	var u networkUpdate
	if err := readBody(w, r, maxBody, &u); err != nil {
		return err
	}
	u.AllowPublicTraffic, u.MaskRequestHost = nil, ""
	if old := networkOf(rec); old != nil {
		u.AllowPublicTraffic, u.MaskRequestHost = old.AllowPublicTraffic, old.MaskRequestHost
	}
	if err := u.check(); err != nil {
		return err
	}
	notes := map[string]string{noteNetwork: u.note(), noteInternet: boolNote(u.AllowInternetAccess)}
	if _, err := d.cfg.Lives.Annotate(r.Context(), string(rec.ID), notes); err != nil {
		return d.gone(r, err)
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func boolNote(b *bool) string {
	if b == nil {
		return ""
	}
	return strconv.FormatBool(*b)
}
