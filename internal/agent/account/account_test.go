package account

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const passwd = `root:x:0:0:root:/root:/bin/sh
# a comment:x:1:1:::
broken line
bad:x:notanumber:1::/:/bin/sh
user:x:1000:1000:,,,:/home/user:/bin/bash
relative:x:1001:1001::home:/bin/sh
`

const groups = `root:x:0:
user:x:1000:
sudo:x:27:user,other
video:x:44:other
docker:x:999:user
`

func database(t *testing.T) *Database {
	t.Helper()
	root := t.TempDir()
	write(t, root, "passwd", passwd)
	write(t, root, "group", groups)
	d := Open(root)
	d.switches, d.mapped = true, func(id uint32) bool { return id < 65536 }
	return d
}

func write(t *testing.T, root, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "etc", name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestLookup(t *testing.T) {
	d := database(t)
	for name, want := range map[string]User{
		"user":     {Name: "user", UID: 1000, GID: 1000, Groups: []uint32{1000, 27, 999}, Home: "/home/user"},
		"1000":     {Name: "user", UID: 1000, GID: 1000, Groups: []uint32{1000, 27, 999}, Home: "/home/user"},
		"1000:7":   {Name: "user", UID: 1000, GID: 7, Groups: []uint32{7}, Home: "/home/user"},
		"4711":     {Name: "4711", UID: 4711, GID: 4711, Home: "/"},
		"relative": {Name: "relative", UID: 1001, GID: 1001, Groups: []uint32{1001}, Home: "/"},
	} {
		got, err := d.Lookup(name)
		if err != nil || got.Name != want.Name || got.UID != want.UID || got.GID != want.GID || got.Home != want.Home || !slices.Equal(got.Groups, want.Groups) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	for _, name := range []string{"nobody-here", "bad", "# a comment", "-1", "1000:x", "99999999999", "70000", "user "} {
		if u, err := d.Lookup(name); !errors.Is(err, ErrUnknown) {
			t.Errorf("%q: %+v, %v", name, u, err)
		}
	}
	d.switches, d.self.UID = false, 1000
	if _, err := d.Lookup("user"); err != nil {
		t.Errorf("the own user: %v", err)
	}
	if _, err := d.Lookup("root"); !errors.Is(err, ErrUnknown) {
		t.Errorf("root without root: %v", err)
	}
}

func TestChangesAreSeen(t *testing.T) {
	d := database(t)
	if _, err := d.Lookup("user"); err != nil {
		t.Fatal(err)
	}
	write(t, d.root, "passwd", passwd+"late:x:1002:1002::/home/late:/bin/sh\n")
	if u, err := d.Lookup("late"); err != nil || u.UID != 1002 {
		t.Errorf("%+v, %v", u, err)
	}
	if owner, group := d.Names(1002, 27); owner != "late" || group != "sudo" {
		t.Errorf("names %s %s", owner, group)
	}
	if owner, group := d.Names(5, 6); owner != "5" || group != "6" {
		t.Errorf("names of numbers: %s %s", owner, group)
	}
	if err := os.Remove(filepath.Join(d.root, "etc/passwd")); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Lookup("user"); !errors.Is(err, ErrUnknown) {
		t.Errorf("without the file: %v", err)
	}
}

func TestHostileDatabase(t *testing.T) {
	d := database(t)
	write(t, d.root, "passwd", strings.Repeat("x", 3<<20)+"\nuser:x:1:1::/:/\n")
	if _, err := d.Lookup("user"); !errors.Is(err, ErrUnknown) {
		t.Errorf("beyond the limit: %v", err)
	}
	if err := os.Remove(filepath.Join(d.root, "etc/passwd")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(d.root, "etc/passwd"), 0o755); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if _, err := d.Lookup("user"); err == nil {
			t.Error("a directory is a database")
		}
	}()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Fatal("it hangs")
	}
}

func TestSession(t *testing.T) {
	d := database(t)
	s := NewSession(d, false)
	if u, err := s.User(""); err != nil || u.Name != "user" {
		t.Errorf("the default of defaults: %+v, %v", u, err)
	}
	s.SetDefaults(Defaults{User: "nobody-here", Workdir: "/work"})
	if _, err := s.User(""); !errors.Is(err, ErrUnknown) {
		t.Errorf("a default that is unknown: %v", err)
	}
	if u, err := NewSession(d, true).User("nobody-here"); !errors.Is(err, ErrUnknown) {
		t.Errorf("a plain session took a name: %+v, %v", u, err)
	}
	t.Setenv("HOME", "/somewhere")
	plain := NewSession(database(t), true) // it has the account user, and does not become it
	if u, err := plain.User(""); err != nil || u.UID != d.self.UID || u.Home != "/somewhere" {
		t.Errorf("a plain default: %+v, %v", u, err)
	}
	user, err := s.User("user")
	if err != nil {
		t.Fatal(err)
	}
	for workdir, paths := range map[string]map[string]string{
		"":      {"": "/home/user", "a/../b": "/home/user/b", "~": "/home/user", "~/x": "/home/user/x", "~x": "/home/user/~x", "/a//b/": "/a/b"},
		"/work": {"": "/work", "a": "/work/a", "~": "/home/user"},
		"rel":   {"a": "/home/user/rel/a"},
		"~/w":   {"a": "/home/user/w/a"},
	} {
		s.SetDefaults(Defaults{Workdir: workdir})
		for path, want := range paths {
			if got := s.Path(user, path); got != want {
				t.Errorf("%q in %q is %q, want %q", path, workdir, got, want)
			}
		}
	}
}

func TestMappedIDs(t *testing.T) {
	file := filepath.Join(t.TempDir(), "uid_map")
	if err := os.WriteFile(file, []byte("         0       1000          1\n      1000     100000      65536\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	mapped := mappedIDs(file)
	for id, want := range map[uint32]bool{0: true, 1: false, 999: false, 1000: true, 66535: true, 66536: false} {
		if mapped(id) != want {
			t.Errorf("%d: %v", id, mapped(id))
		}
	}
	if !mappedIDs(file + "-missing")(12345) {
		t.Error("without a map all are there")
	}
}

func FuzzPasswd(f *testing.F) {
	f.Add(passwd, groups)
	f.Fuzz(func(t *testing.T, passwd, groups string) {
		for _, u := range parsePasswd(strings.NewReader(passwd)) {
			if u.Name == "" || !filepath.IsAbs(u.Home) {
				t.Errorf("user %+v", u)
			}
		}
		for _, g := range parseGroup(strings.NewReader(groups)) {
			if g.name == "" {
				t.Errorf("group %+v", g)
			}
		}
	})
}
