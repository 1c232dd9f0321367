package image

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
)

// fakeTool puts a program called mmdebstrap before all others on the path.
func fakeTool(t *testing.T, script string) {
	t.Helper()
	dir := t.TempDir()
	must(t, os.WriteFile(dir+"/mmdebstrap", []byte("#!/bin/sh\n"+script), 0o755))
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

func TestRecipeWithoutTool(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	s := openStore(t, t.TempDir())
	_, err := s.Make(t.Context(), Source{Recipe: "base"}, MakeOptions{})
	if firebreak.KindOf(err) != firebreak.KindHost || !strings.Contains(err.Error(), "apt-get install mmdebstrap") {
		t.Error(err)
	}
	nothingLeft(t, s)
}

func TestRecipeProgressAndFailure(t *testing.T) {
	if mode, err := (&Store{}).mode(); mode == "" {
		t.Skip(err)
	}
	archive := filepath.Join(t.TempDir(), "root.tar")
	must(t, os.WriteFile(archive, files(t, "bin/", "", "bin/bash", "x", "etc/shadow", "root:*:1::::::\n"), 0o600))
	fakeTool(t, "echo 'I: running apt-get update...' >&2; cat "+archive+"; printf 'W: dull\\nI: success in 1 seconds\\n' >&2")
	s := openStore(t, t.TempDir())
	var steps []string
	make1(t, s, Source{Recipe: "base"}, MakeOptions{Progress: func(p Progress) { steps = append(steps, p.Step) }})
	if !slices.Contains(steps, "running apt-get update") || !slices.Contains(steps, "success in 1 seconds") {
		t.Errorf("steps %v", steps)
	}
	root, err := s.Root(t.Context(), "base", []driver.Form{driver.FormDirectory})
	must(t, err)
	if data, err := os.ReadFile(root.Path + "/etc/sudoers.d/user"); err != nil || string(data) != "user ALL=(ALL:ALL) NOPASSWD: ALL\n" {
		t.Errorf("sudo: %q, %v", data, err)
	}
	for what, script := range map[string]string{
		"no mirror":          "echo 'E: cannot reach the mirror' >&2; exit 25",
		"fails at the end":   "cat " + archive + "; echo 'E: cannot reach the mirror' >&2; exit 25",
		"fails in the tar":   "head -c 700 " + archive + "; echo 'E: cannot reach the mirror' >&2; exit 25",
		"killed by somebody": "echo 'E: cannot reach the mirror' >&2; kill -9 $$",
	} {
		fakeTool(t, script)
		_, err := s.Make(t.Context(), Source{Recipe: "base"}, MakeOptions{Name: "x"})
		if firebreak.KindOf(err) != firebreak.KindHost || !strings.Contains(err.Error(), "cannot reach the mirror") {
			t.Errorf("%s: %v", what, err)
		}
	}
	fakeTool(t, "exit 0")
	if made, err := s.Make(t.Context(), Source{Recipe: "base"}, MakeOptions{Name: "x"}); err == nil {
		t.Errorf("nothing written, but made %v", made)
	}
}

func TestCountIDs(t *testing.T) {
	for uidMap, want := range map[string]int64{wholeUIDMap: 1<<32 - 1, "0 1000 1\n": 1, "0 1000 1\n1 100000 65536\n": 65537, "": 0} {
		if got := countIDs(uidMap); got != want {
			t.Errorf("%q: %d", uidMap, got)
		}
	}
}

// TestCancelledRecipe expects the tool and its children to be gone.
func TestCancelledRecipe(t *testing.T) {
	if mode, err := (&Store{}).mode(); mode == "" {
		t.Skip(err)
	}
	pid := filepath.Join(t.TempDir(), "pid")
	fakeTool(t, "sleep 1000 & echo $! >"+pid+".new; mv "+pid+".new "+pid+"; wait")
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Second, cancel) // should the file never appear
	go func() {
		for ctx.Err() == nil {
			if _, err := os.Stat(pid); err == nil {
				cancel()
			}
			time.Sleep(time.Millisecond)
		}
	}()
	s := openStore(t, t.TempDir())
	if _, err := s.Make(ctx, Source{Recipe: "base"}, MakeOptions{}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	nothingLeft(t, s)
	number, err := os.ReadFile(pid)
	must(t, err)
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		state, err := os.ReadFile("/proc/" + strings.TrimSpace(string(number)) + "/stat")
		if err != nil || strings.Contains(string(state), ") Z ") {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("a child of the tool lives: %s", state)
		}
	}
}

// TestBase builds the real thing from a Debian mirror.
func TestBase(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it downloads 100 MB from a Debian mirror")
	}
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		t.Skip("mmdebstrap is not installed")
	}
	needRoot(t)
	s := openStore(t, t.TempDir())
	started := time.Now()
	made := make1(t, s, Source{Recipe: "base"}, MakeOptions{Progress: func(p Progress) { t.Logf("%d/%d %s", p.Done, p.Total, p.Step) }})
	t.Logf("%d bytes in %v", made.Size, time.Since(started).Round(time.Millisecond))
	root, err := s.Root(t.Context(), "base", []driver.Form{driver.FormDirectory})
	must(t, err)
	for command, want := range map[string]string{
		"python3 -c 'print(sum(range(10)))'": "45", "node -p 6*7": "42", "git --version": "git version", "curl --version": "curl",
		"ip -V": "ip utility", "getent hosts sandbox": "127.0.0.1", "ps --version": "ps from procps", "bash -c 'echo $BASH_VERSION'": "5.", "sudo -n id -u": "0",
		"ls /etc/ssl/certs/ca-certificates.crt": "/etc/ssl/certs/ca-certificates.crt", "id": "uid=1000(user)",
	} {
		cmd := exec.CommandContext(t.Context(), "unshare", "--mount", "--pid", "--fork", "sh", "-c",
			"mount --rbind /dev "+root.Path+"/dev && mount -t proc proc "+root.Path+"/proc && exec chroot --userspec=user:user "+root.Path+` /bin/sh -c "$1"`, "sh", command)
		cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/home/user"}
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), want) {
			t.Errorf("%s: %s, %v", command, out, err)
		}
	}
}
