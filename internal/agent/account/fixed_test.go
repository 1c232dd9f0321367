package account

import (
	"errors"
	"testing"
)

// TestFixed: the only user, whoever is asked for, and nothing of the machine that the test runs on.
func TestFixed(t *testing.T) {
	t.Setenv("HOME", "/somewhere/else")
	user := User{Name: "user", UID: 1000, GID: 1001, Home: "/home/user"}
	s := NewSession(Fixed(user), true)
	for _, name := range []string{"", "user"} {
		if u, err := s.User(name); err != nil || u.Name != "user" || u.Home != "/home/user" || len(u.Groups) != 1 {
			t.Errorf("%q is %+v, %v", name, u, err)
		}
	}
	for _, name := range []string{"root", "0", "1000", "nobody"} {
		if u, err := s.User(name); !errors.Is(err, ErrUnknown) {
			t.Errorf("%q is %+v, %v", name, u, err)
		}
	}
	if owner, group := s.Names(1000, 1001); owner != "user" || group != "user" {
		t.Errorf("owner %q, group %q", owner, group)
	}
	if owner, group := s.Names(0, 0); owner != "0" || group != "0" {
		t.Errorf("owner %q, group %q", owner, group)
	}
	if _, err := s.Group("root"); !errors.Is(err, ErrUnknown) {
		t.Error("there is a group root")
	}
	if gid, err := s.Group("user"); err != nil || gid != 1001 {
		t.Errorf("%d, %v", gid, err)
	}
	if !s.Plain() || s.Switches() || s.Credential(user) != nil {
		t.Error("somebody can be switched to")
	}
	if done := false; s.Do(user, func() error { done = true; return nil }) != nil || !done {
		t.Error("nothing is done")
	}
	for path, want := range map[string]string{"": "/home/user", "~/x": "/home/user/x", "/y/../z": "/z"} {
		if got := s.Path(user, path); got != want {
			t.Errorf("%q is %q", path, got)
		}
	}
}
