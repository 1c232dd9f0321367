package agent

import (
	"maps"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestIDsInTheEnvironment(t *testing.T) {
	for name, tc := range map[string]struct {
		req  initRequest
		want map[string]string
	}{
		"none":     {initRequest{EnvVars: map[string]string{"A": "a"}}, map[string]string{"A": "a"}},
		"sandbox":  {initRequest{SandboxID: "s"}, map[string]string{"E2B_SANDBOX": "true", "E2B_SANDBOX_ID": "s"}},
		"template": {initRequest{TemplateID: "t"}, map[string]string{"E2B_SANDBOX": "true", "E2B_TEMPLATE_ID": "t"}},
		"both, and others win": {
			initRequest{SandboxID: "s", TemplateID: "t", EnvVars: map[string]string{"E2B_SANDBOX": "no", "E2B_TEMPLATE_ID": "mine", "A": "a"}},
			map[string]string{"E2B_SANDBOX": "no", "E2B_SANDBOX_ID": "s", "E2B_TEMPLATE_ID": "mine", "A": "a"},
		},
	} {
		if got := tc.req.environ(); !maps.Equal(got, tc.want) {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}

func TestIDsInFiles(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "outside")
	const at = "e2b/.E2B_SANDBOX_ID"
	for name, plant := range map[string]func(run string) error{
		"nothing":           func(string) error { return nil },
		"an older one":      func(run string) error { return os.WriteFile(filepath.Join(run, at), []byte("a longer one"), 0o600) },
		"a link":            func(run string) error { return os.Symlink(outside, filepath.Join(run, at)) },
		"a FIFO":            func(run string) error { return unix.Mkfifo(filepath.Join(run, at), 0o600) },
		"a link as the new": func(run string) error { return os.Symlink(outside, filepath.Join(run, at+".new")) },
		"a FIFO as the new": func(run string) error { return unix.Mkfifo(filepath.Join(run, at+".new"), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			run := t.TempDir()
			if err := os.Mkdir(filepath.Join(run, "e2b"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := plant(run); err != nil {
				t.Fatal(err)
			}
			if err := (initRequest{SandboxID: "s", TemplateID: "t"}).writeIDs(run); err != nil {
				t.Fatal(err)
			}
			for file, want := range map[string]string{at: "s", "e2b/.E2B_TEMPLATE_ID": "t"} {
				info, err := os.Lstat(filepath.Join(run, file))
				if err != nil || info.Mode() != 0o644 {
					t.Fatalf("%s: %v, %v; want a file that all may read", file, info.Mode(), err)
				}
				if got, err := os.ReadFile(filepath.Join(run, file)); err != nil || string(got) != want {
					t.Errorf("%s: %q, %v; want %q", file, got, err, want)
				}
			}
			if entries, err := os.ReadDir(filepath.Join(run, "e2b")); err != nil || len(entries) != 2 {
				t.Errorf("left there: %v, %v", entries, err)
			}
			if _, err := os.Lstat(outside); err == nil {
				t.Error("a link was followed")
			}
		})
	}
}

func TestIDsLeaveTheDirectory(t *testing.T) {
	run, elsewhere := t.TempDir(), t.TempDir()
	if err := os.Symlink(elsewhere, filepath.Join(run, "e2b")); err != nil {
		t.Fatal(err)
	}
	if err := (initRequest{SandboxID: "s"}).writeIDs(run); err == nil {
		t.Error("a directory elsewhere was taken")
	}
	if entries, err := os.ReadDir(elsewhere); err != nil || len(entries) != 0 {
		t.Errorf("written there: %v, %v", entries, err)
	}
	if err := (initRequest{}).writeIDs(filepath.Join(run, "missing")); err != nil {
		t.Errorf("without ids: %v, want nothing to be done", err)
	}
}
