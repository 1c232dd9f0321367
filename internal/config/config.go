// Package config is how `firebreak serve` is set up: the settings, and where they come from. Flags win over the
// environment, the environment over the file, the file over what is built in. What is not understood is an error.
package config

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/firebreak-dev/firebreak"
)

// Config is all settings. Of Default, which is complete, others are made.
type Config struct {
	Listen string // address of the plain port; empty: none
	Socket string // path of a unix socket; empty: none
	Domain string // under which sandboxes have host names, perhaps with a port; empty: none
	TLS    TLS

	StateDir string // empty: the system's place for it
	Policy   string // file of rules; empty: the built-in ones

	Log  Log
	OTLP string // address of a collector of traces; empty: none

	Aliases     map[string]string // names of templates that stand for others where there is no such template
	Pools       []Pool
	MaxTimeout  time.Duration // the longest that a tenant's sandbox may live without more time being asked for; 0: any
	EnvdVersion string        // that is told to E2B's clients, who then use more or less

	MaxConnections int           // open at the same time
	Grace          time.Duration // for requests under way when the server is to end
	KillOnExit     bool          // end all sandboxes with the server
	Metrics        bool          // serve /metrics
	WebhooksNear   bool          // events may be sent to addresses of this host and its networks
	CORSOrigins    []string      // pages of these origins may call the API; * is any

	sources map[string]string // of settings that are not built in: what gave them, for people
}

// TLS is the encrypted port. There is none unless Mode is set, or Cert and Key.
type TLS struct {
	Mode   string // "auto": certificates of a local authority; "files"; "off"
	Listen string // address
	Cert   string // path of a file: PEM, with the chain
	Key    string // path of a file: PEM
}

// The modes of TLS.
const (
	TLSOff   = "off"
	TLSAuto  = "auto"
	TLSFiles = "files"
)

// Log is how the server's log is written.
type Log struct {
	Level  slog.Level
	Format string // "text" or "json"
}

// Pool is sandboxes to be kept ready.
type Pool struct {
	Name     string // empty: the template's, with the driver's if there is one
	Template string // empty: host
	Driver   string // empty: the policy chooses by Workload
	Workload firebreak.Workload
	Limits   firebreak.Limits // of each
	Warm     []string         // languages whose code context is started too
	Min, Max int              // how many are kept ready, depending on demand
}

// Default returns what holds where nothing is said.
func Default() Config {
	return Config{
		Listen: "127.0.0.1:7070", TLS: TLS{Listen: "127.0.0.1:7443"}, Log: Log{Level: slog.LevelInfo, Format: "text"},
		Aliases:     map[string]string{"base": "host", "code-interpreter-v1": "code-interpreter", "code-interpreter": "base"},
		MaxTimeout:  24 * time.Hour,
		EnvdVersion: "0.6.7", MaxConnections: 16384, Grace: 10 * time.Second, Metrics: true,
	}
}

// defaultDomain is under which sandboxes have host names where TLS is on and no domain is given: browsers and many
// resolvers know that it is this machine.
const defaultDomain = "firebreak.localhost"

// check refuses what contradicts itself, and completes what follows from something else.
func (c *Config) check() error {
	t := &c.TLS
	switch {
	case (t.Cert == "") != (t.Key == ""):
		return errors.New("tls.cert and tls.key go together")
	case t.Mode == "" && t.Cert != "":
		t.Mode = TLSFiles
	case t.Mode == "":
		t.Mode = TLSOff
	case t.Mode == TLSFiles && t.Cert == "":
		return errors.New("tls.mode is files, and there is no tls.cert")
	case t.Mode != TLSFiles && t.Cert != "":
		return fmt.Errorf("tls.mode is %s, and tls.cert is given", t.Mode)
	}
	switch {
	case t.Mode != TLSOff && t.Listen == "":
		return errors.New("TLS is on, and tls.listen is empty")
	case c.Listen == "" && c.Socket == "" && t.Mode == TLSOff:
		return errors.New("there is nothing to listen on: listen and socket are empty, and TLS is off")
	case c.Socket != "" && !filepath.IsAbs(c.Socket):
		return fmt.Errorf("socket %q is no absolute path", c.Socket)
	case len(c.Socket) > maxSocketPath:
		return fmt.Errorf("socket: a path of %d bytes is longer than %d", len(c.Socket), maxSocketPath)
	}
	if t.Mode != TLSOff && c.Domain == "" {
		c.Domain = defaultDomain
	}
	return nil
}

// maxSocketPath is the kernel's.
const maxSocketPath = 107

// Announced returns the domain of host names as clients are told it, with the port unless that is 443; empty if there
// is none. tlsAddr is where TLS is served, if it is.
func (c Config) Announced(tlsAddr net.Addr) string {
	if c.Domain == "" || strings.Contains(c.Domain, ":") || tlsAddr == nil {
		return c.Domain
	}
	_, port, err := net.SplitHostPort(tlsAddr.String())
	if err != nil || port == "443" {
		return c.Domain
	}
	return net.JoinHostPort(c.Domain, port)
}

// Host returns the domain without a port.
func (c Config) Host() string {
	host, _, _ := strings.Cut(c.Domain, ":")
	return host
}

func checkAddress(text string) error {
	if text == "" {
		return nil
	}
	_, port, err := net.SplitHostPort(text)
	if err != nil {
		return fmt.Errorf("%q is no address: write it like 127.0.0.1:7070, or :7070 for all addresses of this host", text)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("%q has no port from 0 to 65535", text)
	}
	return nil // 0 is any that is free
}

// checkDomain takes names that certificates and host labels can have.
func checkDomain(text string) error {
	if text == "" {
		return nil
	}
	host, port, found := strings.Cut(text, ":")
	if found {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return fmt.Errorf("%q has no port from 1 to 65535", text)
		}
	}
	if len(host) > maxDomain || !domainPattern().MatchString(host) {
		return fmt.Errorf("%q is no domain of lower-case letters, digits and hyphens, as box.lan is", text)
	}
	if net.ParseIP(host) != nil {
		return fmt.Errorf("%q is an address: names of sandboxes go below a domain", text)
	}
	return nil
}

// maxDomain leaves room for the label of a sandbox.
const maxDomain = 190

func domainPattern() *regexp.Regexp {
	return regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$`)
}

func semver() *regexp.Regexp { return regexp.MustCompile(`^[0-9]{1,4}\.[0-9]{1,4}\.[0-9]{1,4}$`) }
