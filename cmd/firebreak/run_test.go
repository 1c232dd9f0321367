package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/firebreak-dev/firebreak"
)

func TestWantsServer(t *testing.T) {
	for line, want := range map[string]bool{
		"":                                false,
		"version":                         false,
		"help run":                        false,
		"completion bash":                 false,
		"__complete run ''":               false,
		"run --help":                      false,
		"run -- true":                     true,
		"run -- x --help --server y":      true,
		"--server http://x run -- true":   false,
		"run --server=http://x a.py":      false,
		"ls":                              true,
		"run --servers true":              true,
		"--state-dir /x template build b": true,
	} {
		if got := wantsServer(strings.Fields(line), ""); got != want {
			t.Errorf("%q: %v, want %v", line, got, want)
		}
	}
	if wantsServer([]string{"ls"}, "http://x") {
		t.Error("a server is wanted although the environment names one")
	}
}

func TestStateDir(t *testing.T) {
	dir := t.TempDir()
	got, err := stateDir(filepath.Join(dir, "a", "b"))
	if err != nil || got != filepath.Join(dir, "a", "b") {
		t.Errorf("%q, %v", got, err)
	}
	if fi, err := os.Stat(got); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("mode %v, %v, want 0700: it holds tokens", fi.Mode(), err)
	}
	if err := os.Symlink(got, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if linked, err := stateDir(filepath.Join(dir, "link")); err != nil || linked != got {
		t.Errorf("by a link: %q, %v", linked, err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	shared := filepath.Join(dir, "shared")
	if err := os.Mkdir(shared, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(shared, 0o777); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{file, filepath.Join(file, "x"), "/proc/firebreak", shared} {
		_, err := stateDir(bad)
		var e *firebreak.Error
		if !errors.As(err, &e) || e.Kind != firebreak.KindHost || !strings.Contains(e.Mend, "FIREBREAK_STATE_DIR") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func TestDefaultStateDir(t *testing.T) {
	for _, c := range []struct{ uid, data, home, want string }{
		{"0", "", "/h", "/var/lib/firebreak"},
		{"1000", "", "/h", "/h/.local/share/firebreak"},
		{"1000", "/d", "/h", "/d/firebreak"},
		{"1000", "relative", "/h", "/h/.local/share/firebreak"},
	} {
		t.Setenv(userVariable, c.uid)
		t.Setenv("XDG_DATA_HOME", c.data)
		t.Setenv("HOME", c.home)
		if got, err := defaultStateDir(); err != nil || got != c.want {
			t.Errorf("%+v: %q, %v", c, got, err)
		}
	}
}

func TestExitStatus(t *testing.T) {
	for script, want := range map[string]int{"exit 0": 0, "exit 7": 7, "kill -TERM $$": 128 + int(syscall.SIGTERM)} {
		cmd := exec.Command("sh", "-c", script)
		err := cmd.Run()
		if got, err := exitStatus(cmd.ProcessState, err); got != want || err != nil {
			t.Errorf("%s: %d, %v, want %d", script, got, err, want)
		}
	}
}

func TestNamespaceErrorSaysHowToMendIt(t *testing.T) {
	var e *firebreak.Error
	if err := namespaceError(syscall.EPERM); !errors.As(err, &e) || e.Kind != firebreak.KindHost || !strings.Contains(e.Mend, "root") {
		t.Errorf("%v", err)
	}
}

func TestInspectSelf(t *testing.T) {
	key, static, err := inspectSelf()
	if err != nil || static == (key != "") {
		t.Errorf("key %q, static %v, %v", key, static, err)
	}
}
