package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/rpc"
)

// keyFile keeps the key that a server made by itself, for the next start to print it again. Whoever can read the state
// directory has all that the key opens anyway.
const keyFile = "default.key"

// admission makes sure that somebody has a key. It returns the one that the server made by itself; "" if it made none.
func (s *service) admission(ctx context.Context) (string, error) {
	all, err := s.parts.keys.List(ctx)
	if err != nil {
		return "", err
	}
	if s.listeners.Far() {
		if !anyValid(all) {
			return "", &firebreak.Error{Kind: firebreak.KindInvalid, Err: errors.New("other hosts can reach this server, and there is no API key yet"),
				Mend: "make one with firebreak key create (and the same --state-dir), or listen on 127.0.0.1"}
		}
		return "", nil
	}
	if s.listeners.Plain == nil && s.listeners.TLS == nil {
		return "", nil
	}
	path := filepath.Join(s.parts.dir, keyFile)
	if key := readKey(path); key != "" {
		if _, err := s.parts.keys.Authenticate(ctx, key); err == nil {
			return key, nil
		}
	}
	if anyValid(all) {
		return "", nil
	}
	key, made, err := rpc.CreateKey(ctx, s.parts.keys, "", "made by firebreak serve")
	if err != nil {
		return "", err
	}
	if err := writeKey(path, key); err != nil {
		// A key that nobody knows would keep the next start from making one.
		return "", errors.Join(err, s.parts.keys.Revoke(ctx, made.ID))
	}
	return key, nil
}

func anyValid(keys []auth.Key) bool {
	for _, k := range keys {
		if k.Revoked.IsZero() {
			return true
		}
	}
	return false
}

// readKey returns what may be a key; "" if there is none.
func readKey(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	text, _ := io.ReadAll(io.LimitReader(f, 100)) // half a key opens nothing
	return strings.TrimSpace(string(text))
}

func writeKey(path, key string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("keep API key: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("keep API key: %w", err)
	}
	_, err = f.WriteString(key + "\n")
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("keep API key: %w", err)
	}
	return nil
}

// announce prints where the server is: for a shell to out, for people besides.
func (s *service) announce(key string) error {
	l := s.listeners
	var where []string
	if l.Plain != nil {
		where = append(where, "http://"+l.Plain.String())
	}
	if l.TLS != nil {
		where = append(where, "https://"+l.TLS.String())
	}
	if l.Socket != "" {
		where = append(where, "unix://"+l.Socket)
	}
	s.say("listening on %s", strings.Join(where, ", "))
	if domain := s.cfg.Announced(l.TLS); domain != "" {
		s.say("sandboxes are at <port>-<id>.%s, and the API at api.%s", domain, domain)
	}
	if s.ca != nil {
		s.say("certificates are of the authority %s: trust it with NODE_EXTRA_CA_CERTS (Node.js) or SSL_CERT_FILE (Python, Go, curl)", s.ca.Path())
	}
	if len(s.cfg.Aliases) > 0 {
		var pairs []string
		for _, name := range slices.Sorted(maps.Keys(s.cfg.Aliases)) {
			pairs = append(pairs, name+" is "+s.cfg.Aliases[name])
		}
		s.say("where there is no such template: %s", strings.Join(pairs, ", "))
	}
	if l.Plain == nil && l.TLS == nil {
		return nil
	}
	lines := ""
	if key != "" {
		lines = "export E2B_API_KEY=" + key + "\n"
	}
	url := s.url()
	if _, err := fmt.Fprintf(s.out, "%sexport E2B_API_URL=%s\nexport E2B_SANDBOX_URL=%s\n", lines, url, url); err != nil {
		return fmt.Errorf("print the server's address: %w", err)
	}
	return nil
}

// url is the address for clients on this host.
func (s *service) url() string {
	if tcp, ok := s.listeners.Plain.(*net.TCPAddr); ok && tcp.IP.IsUnspecified() {
		return "http://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(tcp.Port))
	}
	if s.listeners.Plain != nil {
		return "http://" + s.listeners.Plain.String()
	}
	_, port, err := net.SplitHostPort(s.listeners.TLS.String())
	if err != nil { // which an address that is listened on cannot cause
		return "https://" + s.listeners.TLS.String()
	}
	return "https://" + net.JoinHostPort("localhost", port)
}

func (s *service) say(format string, args ...any) {
	s.telling.Lock()
	defer s.telling.Unlock()
	_, _ = fmt.Fprintf(s.told, "firebreak: "+format+"\n", args...) // nobody may read it
}
