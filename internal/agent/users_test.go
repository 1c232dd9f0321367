package agent_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/firebreak-dev/firebreak/internal/agent"
	filesystemv1 "github.com/firebreak-dev/firebreak/internal/api/filesystem"
)

// Through the agent, which is root, a user must not reach what the user could not reach alone.
func TestFilesAreTheUsers(t *testing.T) {
	needRoot(t)
	b := inProcess(t, agent.Config{})
	dir, err := os.MkdirTemp("/tmp", "agent-users-")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	must(t, os.Chmod(dir, 0o777)) //nolint:gosec // for the user nobody, until the test ends
	secret := filepath.Join(dir, "secret")
	must(t, os.WriteFile(secret, []byte("root's"), 0o600))
	must(t, os.Mkdir(filepath.Join(dir, "closed"), 0o700))
	must(t, os.WriteFile(filepath.Join(dir, "closed", "f"), nil, 0o644))
	nobody := asUser("nobody")
	octets := header("Content-Type", "application/octet-stream")
	for name, status := range map[string]int{
		"read":      first(b.do("GET", filesURL(secret, "username", "nobody"), nil)).StatusCode,
		"by header": first(b.do("GET", filesURL(secret), nil, nobody)).StatusCode,
		"write":     first(b.do("POST", filesURL(secret, "username", "nobody"), strings.NewReader("x"), octets)).StatusCode,
		"make":      first(b.do("POST", filesURL("/etc/new", "username", "nobody"), strings.NewReader("x"), octets)).StatusCode,
		"compose":   first(b.do("POST", "/files/compose", strings.NewReader(`{"source_paths":["`+secret+`"],"destination":"`+dir+`/stolen","username":"nobody"}`))).StatusCode,
	} {
		if status != 403 {
			t.Errorf("%s: status %d, want 403", name, status)
		}
	}
	_, err = b.stat(filepath.Join(dir, "closed", "f"), nobody)
	wantCode(t, err, connect.CodePermissionDenied)
	fs := b.Filesystem()
	_, err = fs.ListDir(t.Context(), request(&filesystemv1.ListDirRequest{Path: filepath.Join(dir, "closed")}, nobody))
	wantCode(t, err, connect.CodePermissionDenied)
	_, err = fs.Remove(t.Context(), request(&filesystemv1.RemoveRequest{Path: filepath.Join(dir, "closed")}, nobody))
	wantCode(t, err, connect.CodePermissionDenied)
	_, err = fs.Move(t.Context(), request(&filesystemv1.MoveRequest{Source: "/etc/passwd", Destination: filepath.Join(dir, "p")}, nobody))
	if err == nil {
		t.Error("nobody moved /etc/passwd")
	}
	_, err = fs.MakeDir(t.Context(), request(&filesystemv1.MakeDirRequest{Path: "/etc/new"}, nobody))
	wantCode(t, err, connect.CodePermissionDenied)
	_, err = fs.CreateWatcher(t.Context(), request(&filesystemv1.CreateWatcherRequest{Path: filepath.Join(dir, "closed")}, nobody))
	wantCode(t, err, connect.CodePermissionDenied)

	// And what the user makes is the user's, parents too.
	own := filepath.Join(dir, "made", "deep", "file")
	b.put(own, "mine", nobody)
	for p := own; p != dir; p = filepath.Dir(p) {
		e, err := b.stat(p)
		if err != nil || e.GetOwner() != "nobody" {
			t.Errorf("%s belongs to %s, %v", p, e.GetOwner(), err)
		}
	}
	if got, err := os.ReadFile(secret); err != nil || string(got) != "root's" {
		t.Errorf("the secret is %q now, %v", got, err)
	}
	// The agent is root again afterwards, on every thread.
	for range 64 {
		if res, _ := b.do("GET", filesURL(secret), nil); res.StatusCode != 200 {
			t.Fatalf("root lost its rights: %d", res.StatusCode)
		}
	}
}

func first(res *http.Response, _ []byte) *http.Response { return res }

func TestGroupsCount(t *testing.T) {
	needRoot(t)
	b := inProcess(t, agent.Config{})
	dir, err := os.MkdirTemp("/tmp", "agent-groups-")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	must(t, os.Chmod(dir, 0o755)) //nolint:gosec // for others, until the test ends
	must(t, os.WriteFile(filepath.Join(dir, "f"), []byte("x"), 0o640))
	must(t, os.Chown(filepath.Join(dir, "f"), 0, 12345))
	if res, _ := b.do("GET", filesURL(dir+"/f", "username", "60000:12345"), nil); res.StatusCode != 200 {
		t.Errorf("a member of the group: %d", res.StatusCode)
	}
	if res, _ := b.do("GET", filesURL(dir+"/f", "username", "60000"), nil); res.StatusCode != 403 {
		t.Errorf("somebody else: %d", res.StatusCode)
	}
	if got := b.output("id -u; id -g; id -G", asUser("60000")); got != "60000\n60000\n60000\n" {
		t.Errorf("a user by number: %q", got)
	}
}
