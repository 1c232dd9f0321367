package main_test

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// ordinary is a user of the host without any right: an id that no account has, with a home of its own.
type ordinary struct {
	t    *testing.T
	bin  string
	home string
}

const ordinaryID = 54321

func newOrdinary(t *testing.T) ordinary {
	t.Helper()
	needRoot(t, "only root can become another user")
	dir := t.TempDir()
	program, err := os.ReadFile(binary(t))
	if err != nil {
		t.Fatal(err)
	}
	u := ordinary{t: t, bin: filepath.Join(dir, "firebreak"), home: filepath.Join(dir, "home")}
	if err := os.WriteFile(u.bin, program, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(u.home, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(u.home, ordinaryID, ordinaryID); err != nil {
		t.Fatal(err)
	}
	for parent := dir; parent != os.TempDir() && len(parent) > 1; parent = filepath.Dir(parent) {
		if err := os.Chmod(parent, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return u
}

// run returns what firebreak printed and its exit status.
func (u ordinary) run(args ...string) (stdout, stderr string, status int) {
	u.t.Helper()
	return finish(u.t, u.command(args...))
}

func (u ordinary) command(args ...string) *exec.Cmd {
	cmd := exec.CommandContext(u.t.Context(), u.bin, args...)
	cmd.Dir = u.home
	cmd.Env = []string{"HOME=" + u.home, "PATH=" + os.Getenv("PATH")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: ordinaryID, Gid: ordinaryID}}
	return cmd
}

// TestOrdinaryUser runs gVisor sandboxes for a user who is nobody on this host.
func TestOrdinaryUser(t *testing.T) {
	u := newOrdinary(t)
	if out, errs, status := u.run("run", "--", "python3", "-c", "print(sum(range(10)))"); out != "45\n" || status != 0 {
		t.Fatalf("printed %q, status %d: %s", out, status, errs)
	}
	if out, errs, _ := u.run("run", "--", "sh", "-c", "id -un; uname -r; cat /proc/1/comm"); !strings.HasPrefix(out, "user\n4.") {
		t.Errorf("inside: %q %s", out, errs)
	}
	if _, _, status := u.run("run", "--", "sh", "-c", "exit 7"); status != 7 {
		t.Errorf("status %d, want the program's 7", status)
	}
	id, errs, status := u.run("run", "--detach", "--", "sleep", "1000")
	id = strings.TrimSpace(id)
	if status != 0 {
		t.Fatalf("detach: status %d: %s", status, errs)
	}
	if out, errs, _ := u.run("exec", id, "--", "echo", "again"); out != "again\n" {
		t.Errorf("another process's exec printed %q: %s", out, errs)
	}
	if _, errs, status := u.run("kill", id); status != 0 {
		t.Errorf("kill: status %d: %s", status, errs)
	}
	if left, err := os.ReadDir(filepath.Join(u.home, ".local/share/firebreak/sandboxes")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestOrdinaryUserIsToldWhatIsMissing holds refusals to saying what is missing and how to mend it.
func TestOrdinaryUserIsToldWhatIsMissing(t *testing.T) {
	u := newOrdinary(t)
	_, errs, status := u.run("run", "--isolation", "container", "--", "true")
	if status != 125 || !strings.Contains(errs, "as root") || strings.Count(strings.TrimSpace(errs), "\n") > 0 {
		t.Errorf("status %d, %q; want one line with the mend", status, errs)
	}
	_, errs, status = u.run("run", "--state-dir", "/proc/firebreak", "--", "true")
	if status != 125 || !strings.Contains(errs, "--state-dir") {
		t.Errorf("status %d, %q; want the way to another state directory", status, errs)
	}
}

// TestOrdinaryUserServes runs a server for a user who is nobody on this host, and ends it as a service manager does.
func TestOrdinaryUserServes(t *testing.T) {
	u := newOrdinary(t)
	if id, errs, status := u.run("run", "-q", "--detach", "--", "sleep", "1000"); status != 0 {
		t.Fatalf("detach %s: status %d: %s", id, status, errs)
	}
	socket := filepath.Join(u.home, "s")
	server := u.command("serve", "--listen", "127.0.0.1:0", "--socket", socket, "--kill-on-exit")
	var errs bytes.Buffer
	server.Stderr = &errs
	out, err := server.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{}
	for lines := bufio.NewScanner(out); len(env) < 3 && lines.Scan(); {
		name, value, _ := strings.Cut(strings.TrimPrefix(lines.Text(), "export "), "=")
		env[name] = value
	}
	if len(env["E2B_API_KEY"]) != 44 || !strings.HasPrefix(env["E2B_API_URL"], "http://127.0.0.1:") {
		t.Errorf("it prints %v: %s", env, errs.String())
	}
	if out, errs, status := u.run("--server", "unix://"+socket, "run", "-q", "--", "id", "-un"); out != "user\n" || status != 0 {
		t.Errorf("on the socket: %q, status %d: %s", out, status, errs)
	}
	t.Setenv("FIREBREAK_API_KEY", env["E2B_API_KEY"])
	remote := exec.CommandContext(t.Context(), u.bin, "--server", env["E2B_API_URL"], "run", "-q", "--", "id", "-un") // of another user
	if out, errs, status := finish(t, remote); out != "user\n" || status != 0 {
		t.Errorf("over the network: %q, status %d: %s", out, status, errs)
	}
	if err := server.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := server.Wait(); err != nil {
		t.Errorf("it ends with %v: %s", err, errs.String())
	}
	if !strings.Contains(errs.String(), "sandboxes taken over: 1") {
		t.Errorf("it says %s", errs.String())
	}
	if left, err := os.ReadDir(filepath.Join(u.home, ".local/share/firebreak/sandboxes")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
