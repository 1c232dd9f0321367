package files

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/firebreak-dev/firebreak/internal/agent/account"
)

// TestGive: only where nobody but root can have laid anything on the way.
func TestGive(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give directories away")
	}
	root := t.TempDir()
	dir := func(name string, mode os.FileMode, uid int) {
		t.Helper()
		path := filepath.Join(root, name)
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(path, uid, uid); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	dir("opt", 0o755, 0)
	dir("opt/mine", 0o755, 1000)
	dir("shared", 0o777|os.ModeSticky, 0)
	dir("group", 0o775, 0)
	if err := os.Symlink("opt", filepath.Join(root, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ dir, made string }{
		{"/workspace", "workspace"}, {"/srv/a/b", "srv"}, {"/opt/app/x", "opt/app"}, {"/opt/../etc/x", "etc"},
		{"/shared/x", ""}, {"/group/x", ""}, {"/opt/mine/x", ""}, {"/link/y", ""}, {"/opt", ""}, {"/", ""},
	} {
		err := give(root, account.User{UID: 1000, GID: 1001}, test.dir)
		if (err == nil) != (test.made != "") {
			t.Errorf("%s: %v", test.dir, err)
		}
		if test.made == "" {
			continue
		}
		info, err := os.Lstat(filepath.Join(root, test.made))
		if err != nil {
			t.Errorf("%s: %v", test.dir, err)
			continue
		}
		if st := info.Sys().(*syscall.Stat_t); st.Uid != 1000 || st.Gid != 1001 || info.Mode().Perm() != 0o755 {
			t.Errorf("%s: %d:%d %s", test.dir, st.Uid, st.Gid, info.Mode())
		}
	}
	for _, left := range []string{"shared/x", "group/x", "opt/mine/x", "opt/y", "srv/a"} {
		if _, err := os.Lstat(filepath.Join(root, left)); err == nil {
			t.Errorf("%s was made", left)
		}
	}
}
