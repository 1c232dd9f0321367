// Package account knows the Linux users of a sandbox: who they are, what a request runs as, and how to do a piece of
// work with the permissions of one of them.
package account

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrUnknown is the error of a user that does not exist here, or that this agent cannot become.
var ErrUnknown = errors.New("unknown user")

// User is one line of /etc/passwd with the groups that name it.
type User struct {
	Name     string
	UID, GID uint32
	Groups   []uint32 // the supplementary ones, GID among them
	Home     string
}

// maxDatabase bounds what is read of /etc/passwd and /etc/group: the sandbox's code may have written them.
const maxDatabase = 1 << 20

// Database reads the accounts of the sandbox. The files may change at any time, so they are looked at on every call,
// and parsed anew only if they changed.
type Database struct {
	root string // where etc lies: "/", and elsewhere in tests

	self     User     // what the agent itself runs as
	groups0  []uint32 // the supplementary groups that it was started with
	switches bool     // whether it can become somebody else
	noGroups bool     // whether its user namespace forbids setgroups
	fixed    bool     // whether self is all there is, and root means nothing
	mapped   func(id uint32) bool

	mu     sync.Mutex
	passwd cached[[]User]
	groups cached[[]group]
}

type group struct {
	name    string
	gid     uint32
	members []string
}

// Open returns the accounts found under root, "/" but in tests.
func Open(root string) *Database {
	d := &Database{root: root, switches: canSwitch(), noGroups: setgroupsDenied(), mapped: mappedIDs("/proc/self/uid_map")}
	uid, gid := uint32(os.Geteuid()), uint32(os.Getegid())
	d.self = User{Name: strconv.Itoa(int(uid)), UID: uid, GID: gid, Home: "/"}
	if u, err := d.find(func(u User) bool { return u.UID == uid }); err == nil {
		d.self = u
	}
	d.self.GID = gid
	if home := os.Getenv("HOME"); home != "" && !d.switches {
		d.self.Home = home
	}
	if ids, err := os.Getgroups(); err == nil {
		for _, id := range ids {
			d.groups0 = append(d.groups0, uint32(id))
		}
	}
	return d
}

// Fixed returns the one account of an embedded agent: everything is done as u, who is the only one there is, and no file
// is looked at.
func Fixed(u User) *Database {
	u.Groups = []uint32{u.GID}
	return &Database{self: u, fixed: true}
}

// Self is the user that the agent itself runs as.
func (d *Database) Self() User { return d.self }

// Switches reports whether work can be done as other users than Self.
func (d *Database) Switches() bool { return d.switches }

// Lookup finds a user by name, or by number as image files name them ("1001", "1001:1001").
func (d *Database) Lookup(name string) (User, error) {
	if d.fixed && name != d.self.Name {
		return User{}, fmt.Errorf("%w: this sandbox has one user, '%s', and no '%s'", ErrUnknown, d.self.Name, name)
	}
	u, err := d.find(func(u User) bool { return u.Name == name })
	if errors.Is(err, ErrUnknown) {
		u, err = d.byNumber(name)
	}
	if err != nil {
		return User{}, err
	}
	return u, d.canBecome(u)
}

func (d *Database) canBecome(u User) error {
	switch {
	case u.UID == d.self.UID:
		return nil
	case !d.switches:
		return fmt.Errorf("%w: this sandbox runs everything as user '%s', not as '%s'", ErrUnknown, d.self.Name, u.Name)
	case !d.mapped(u.UID):
		return fmt.Errorf("%w: user '%s' (uid %d) has no place in this sandbox's user namespace", ErrUnknown, u.Name, u.UID)
	}
	return nil
}

func (d *Database) byNumber(name string) (User, error) {
	first, second, both := strings.Cut(name, ":")
	uid, err := strconv.ParseUint(first, 10, 31)
	if err != nil {
		return User{}, fmt.Errorf("%w: user '%s' does not exist", ErrUnknown, name)
	}
	u, err := d.find(func(u User) bool { return u.UID == uint32(uid) })
	if err != nil {
		u = User{Name: first, UID: uint32(uid), GID: uint32(uid), Home: "/"}
	}
	if both {
		gid, err := strconv.ParseUint(second, 10, 31)
		if err != nil {
			return User{}, fmt.Errorf("%w: group '%s' is no number", ErrUnknown, second)
		}
		u.GID, u.Groups = uint32(gid), []uint32{uint32(gid)}
	}
	return u, nil
}

func (d *Database) find(match func(User) bool) (User, error) {
	if d.fixed {
		if match(d.self) {
			return d.self, nil
		}
		return User{}, fmt.Errorf("%w: user does not exist", ErrUnknown)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	users, err := d.passwd.load(filepath.Join(d.root, "etc/passwd"), parsePasswd)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return User{}, fmt.Errorf("read users: %w", err)
	}
	i := slices.IndexFunc(users, match)
	if i < 0 {
		return User{}, fmt.Errorf("%w: user does not exist", ErrUnknown)
	}
	u := users[i]
	groups, err := d.groups.load(filepath.Join(d.root, "etc/group"), parseGroup)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return User{}, fmt.Errorf("read groups: %w", err)
	}
	u.Groups = []uint32{u.GID}
	for _, g := range groups {
		if g.gid != u.GID && slices.Contains(g.members, u.Name) && len(u.Groups) < 1024 {
			u.Groups = append(u.Groups, g.gid)
		}
	}
	return u, nil
}

// Names finds the names of a file's owners; a number stands for an unknown one.
func (d *Database) Names(uid, gid uint32) (owner, group string) {
	owner, group = strconv.Itoa(int(uid)), strconv.Itoa(int(gid))
	if u, err := d.find(func(u User) bool { return u.UID == uid }); err == nil {
		owner = u.Name
	}
	if d.fixed && gid == d.self.GID {
		return owner, d.self.Name
	}
	if d.fixed {
		return owner, group
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	names, err := d.groups.load(filepath.Join(d.root, "etc/group"), parseGroup)
	if err != nil {
		return owner, group
	}
	for _, g := range names {
		if g.gid == gid {
			return owner, g.name
		}
	}
	return owner, group
}

// Group finds a group by its name, or by its number.
func (d *Database) Group(name string) (uint32, error) {
	if d.fixed {
		if name == d.self.Name || name == strconv.Itoa(int(d.self.GID)) {
			return d.self.GID, nil
		}
		return 0, fmt.Errorf("%w: group '%s' does not exist", ErrUnknown, name)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	groups, err := d.groups.load(filepath.Join(d.root, "etc/group"), parseGroup)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("read groups: %w", err)
	}
	for _, g := range groups {
		if g.name == name {
			return g.gid, nil
		}
	}
	gid, err := strconv.ParseUint(name, 10, 31)
	if err != nil {
		return 0, fmt.Errorf("%w: group '%s' does not exist", ErrUnknown, name)
	}
	return uint32(gid), nil
}

// cached is a parsed file, as long as that file stays what it was.
type cached[T any] struct {
	stat  unix.Stat_t
	value T
}

func (c *cached[T]) load(path string, parse func(io.Reader) T) (T, error) {
	var now unix.Stat_t
	if err := unix.Stat(path, &now); err != nil {
		*c = cached[T]{}
		return c.value, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	if sameFile(&now, &c.stat) {
		return c.value, nil
	}
	if now.Mode&unix.S_IFMT != unix.S_IFREG { // a FIFO would hold us for ever
		return c.value, &fs.PathError{Op: "read", Path: path, Err: fs.ErrInvalid}
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return c.value, err
	}
	defer f.Close() //nolint:errcheck // opened for reading
	c.stat, c.value = now, parse(io.LimitReader(f, maxDatabase))
	return c.value, nil
}

func sameFile(a, b *unix.Stat_t) bool {
	return a.Ino == b.Ino && a.Dev == b.Dev && a.Size == b.Size && a.Mtim == b.Mtim && a.Ctim == b.Ctim
}

func parsePasswd(r io.Reader) []User {
	var users []User
	eachLine(r, 7, func(f []string) {
		uid, err1 := strconv.ParseUint(f[2], 10, 32)
		gid, err2 := strconv.ParseUint(f[3], 10, 32)
		if f[0] != "" && err1 == nil && err2 == nil {
			users = append(users, User{Name: f[0], UID: uint32(uid), GID: uint32(gid), Home: homeOf(f[5])})
		}
	})
	return users
}

func homeOf(field string) string {
	if !filepath.IsAbs(field) {
		return "/"
	}
	return filepath.Clean(field)
}

func parseGroup(r io.Reader) []group {
	var groups []group
	eachLine(r, 4, func(f []string) {
		gid, err := strconv.ParseUint(f[2], 10, 32)
		if f[0] != "" && err == nil {
			groups = append(groups, group{name: f[0], gid: uint32(gid), members: strings.Split(f[3], ",")})
		}
	})
	return groups
}

func eachLine(r io.Reader, fields int, use func([]string)) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 64<<10)
	for lines.Scan() {
		if f := strings.Split(lines.Text(), ":"); len(f) >= fields && !strings.HasPrefix(f[0], "#") {
			use(f)
		}
	}
}

// mappedIDs reads which ids exist in the agent's user namespace. Without the file there is no namespace: all of them.
func mappedIDs(path string) func(uint32) bool {
	text, err := os.ReadFile(path)
	if err != nil {
		return func(uint32) bool { return true }
	}
	type span struct{ from, count uint64 }
	var spans []span
	for line := range strings.Lines(string(text)) {
		var inside, outside, count uint64
		if n, _ := fmt.Sscan(line, &inside, &outside, &count); n == 3 {
			spans = append(spans, span{inside, count})
		}
	}
	return func(id uint32) bool {
		return slices.ContainsFunc(spans, func(s span) bool { return uint64(id) >= s.from && uint64(id)-s.from < s.count })
	}
}

// HeaderUser is the user that an Authorization header names, "" if it names none. The protocol sends no password.
func HeaderUser(h http.Header) string {
	name, _, _ := (&http.Request{Header: h}).BasicAuth()
	return name
}
