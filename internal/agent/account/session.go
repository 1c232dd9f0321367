package account

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// Defaults are what the manager sets for the whole sandbox.
type Defaults struct {
	User    string            // whom a request that names nobody runs as; "" means user
	Workdir string            // where relative paths begin; "" means the user's home
	Envs    map[string]string // of every process
}

// Session joins the accounts of a sandbox with the defaults that the manager gave it. It is safe for concurrent use.
type Session struct {
	*Database
	plain bool

	mu       sync.Mutex
	defaults Defaults
}

// NewSession returns a session without defaults. In a plain one the agent is an ordinary process of the host, whose
// accounts are no template's: whoever names nobody is the agent's own user, at home in the directory that HOME named when
// the agent was started, and not in the real home of the one who started it. In a sandbox of its own that would give root
// to whoever misspells a name.
func NewSession(db *Database, plain bool) *Session {
	if home := os.Getenv("HOME"); plain && !db.fixed && filepath.IsAbs(home) {
		db.self.Home = home
	}
	return &Session{Database: db, plain: plain || !db.switches}
}

// Plain reports whether the agent is no more than a user of its machine, or the machine is not a sandbox's own.
func (s *Session) Plain() bool { return s.plain }

// SetDefaults replaces the defaults.
func (s *Session) SetDefaults(d Defaults) {
	d.Envs = maps.Clone(d.Envs)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.defaults = d
}

// Defaults returns the present defaults; the map must not be changed.
func (s *Session) Defaults() Defaults {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.defaults
}

// User is the user that a request runs as: the one it names, or the default one.
func (s *Session) User(name string) (User, error) {
	if name != "" {
		return s.Lookup(name)
	}
	if s.plain {
		return s.self, nil
	}
	if name = s.Defaults().User; name == "" {
		name = "user"
	}
	return s.Lookup(name)
}

// Path makes path absolute as u means it: "~" is the home, and relative paths begin in the default directory.
func (s *Session) Path(u User, path string) string {
	switch rest, tilde := strings.CutPrefix(path, "~"); {
	case tilde && (rest == "" || rest[0] == '/'):
		return filepath.Join(u.Home, rest)
	case filepath.IsAbs(path):
		return filepath.Clean(path)
	}
	base := s.Defaults().Workdir
	switch {
	case base == "":
		base = u.Home
	case !filepath.IsAbs(base):
		base = filepath.Join(u.Home, strings.TrimPrefix(base, "~"))
	}
	return filepath.Join(base, path)
}
