package dataplane

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"

	"github.com/firebreak-dev/firebreak/internal/api/filesystem/filesystemconnect"
	"github.com/firebreak-dev/firebreak/internal/api/process/processconnect"
	"github.com/firebreak-dev/firebreak/internal/guest"
)

// The headers that address a request and open what it is for.
const (
	headerSandbox = "E2b-Sandbox-Id"
	headerPort    = "E2b-Sandbox-Port"
	headerToken   = "X-Access-Token"
	headerTraffic = "E2b-Traffic-Access-Token"
)

// way is how a request says which sandbox it is for.
type way uint8

const (
	wayNone      way = iota // it is for none
	wayHost                 // by the first label of its host
	wayHeader               // by headers
	wayToken                // by the token that one sandbox has
	waySignature            // by a signature that the owner of one token made
	wayPreflight            // a browser asks whether it may send one of the above, and does not say where
)

// address is where a request goes. ID is empty where way does not tell it.
type address struct {
	way  way
	id   string
	port uint16
}

const maxID = 63 // characters, as in a label of a host name

// route finds out where a request is for. An error is the client's: it means a sandbox and cannot.
//
// Headers count only where the host names no sandbox: else a page that one sandbox serves could reach another by them.
func (p *Plane) route(r *http.Request) (address, error) {
	if label, ok := p.label(r.Host); ok {
		return parseLabel(label)
	}
	if ids, ok := r.Header[headerSandbox]; ok {
		to := address{way: wayHeader, id: ids[0], port: guest.AgentPort}
		if !isID(to.id) {
			return to, fmt.Errorf("%s: %.80q is no id of a sandbox", headerSandbox, to.id)
		}
		if text := r.Header.Get(headerPort); text != "" {
			var ok bool
			if to.port, ok = parsePort(text); !ok {
				return to, fmt.Errorf("%s: %.80q is no port", headerPort, text)
			}
		}
		return to, nil
	}
	switch {
	case r.Header.Get(headerToken) != "" && ofAgent(r.URL.Path):
		return address{way: wayToken, port: guest.AgentPort}, nil
	case r.URL.Path == "/files" && r.URL.Query().Has("signature"):
		return address{way: waySignature, port: guest.AgentPort}, nil
	case isPreflight(r):
		return address{way: wayPreflight, port: guest.AgentPort}, nil
	}
	return address{}, nil
}

// label returns the first label of a host below our domain, if it looks like one that names a sandbox. Below localhost
// it always may: browsers resolve that by themselves.
func (p *Plane) label(host string) (string, bool) {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	label, domain, ok := strings.Cut(host, ".")
	if !ok || domain == "" || p.domain != "" && domain != p.domain && domain != "localhost" {
		return "", false
	}
	port, _, ok := strings.Cut(label, "-")
	return label, ok && port != "" && strings.Trim(port, "0123456789") == ""
}

func parseLabel(label string) (address, error) {
	text, id, _ := strings.Cut(label, "-")
	port, ok := parsePort(text)
	if !ok || !isID(id) {
		return address{}, fmt.Errorf("the host's label %.80q is not <port>-<sandbox id>", label)
	}
	return address{way: wayHost, id: id, port: port}, nil
}

func parsePort(text string) (uint16, bool) {
	port, err := strconv.ParseUint(text, 10, 16)
	return uint16(port), err == nil && port != 0
}

func isID(id string) bool {
	if id == "" || len(id) > maxID {
		return false
	}
	for _, c := range []byte(id) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}

// ofAgent reports whether the agent knows the path: a token on others is not for it.
func ofAgent(path string) bool {
	switch path {
	case "/health", "/metrics", "/envs", "/files", "/files/compose":
		return true
	}
	return strings.HasPrefix(path, "/"+processconnect.ProcessName+"/") || strings.HasPrefix(path, "/"+filesystemconnect.FilesystemName+"/")
}

// isPreflight reports whether a browser asks about a request to a sandbox: it lists the headers, without their values.
func isPreflight(r *http.Request) bool {
	if r.Method != http.MethodOptions || r.Header.Get("Access-Control-Request-Method") == "" {
		return false
	}
	for _, line := range r.Header["Access-Control-Request-Headers"] {
		for name := range strings.SplitSeq(line, ",") {
			if name = strings.TrimSpace(name); strings.EqualFold(name, headerSandbox) || strings.EqualFold(name, headerToken) {
				return true
			}
		}
	}
	return false
}

var errNoSandbox = errors.New("the request names no sandbox")
