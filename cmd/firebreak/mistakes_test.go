package main_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// fill leaves a file system the number of bytes, in whole pages, and returns a function that frees the rest again.
func fill(t *testing.T, dir string, left int64) (free func()) {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(filepath.Dir(dir), filepath.Base(dir), "filler")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, int64(st.Bavail)*st.Bsize-left); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	}
}

// TestNoSpaceLeft fills the disk of the state directory to the brim, and nearly so, which lets the work begin. What
// cannot be done is said in one line and leaves nothing that the next start does not clear, and when there is space again
// all goes on as before.
func TestNoSpaceLeft(t *testing.T) {
	for _, isolation := range []string{"gvisor", "container", "process"} {
		t.Run(isolation, func(t *testing.T) {
			state := mountTmpfs(t, "size=40m")
			serves(t, binary(t), isolation)
			a := newAlone(t, state)
			a.must("run", "-q", "--isolation", isolation, "--", "true")
			before := a.files()
			for left := int64(0); left <= 160<<10; left = max(4<<10, 2*left) {
				free := fill(t, state, left)
				args := []string{"run", "-q", "--isolation", isolation, "--", "true"}
				if _, errs, status := a.run(args...); status != 0 || errs != "" {
					isRefusal(t, args, errs, status)
				} else if left == 0 {
					t.Error("a sandbox was made of nothing")
				}
				if left == 0 {
					a.refused([]string{"no space left", "; free space there, or use another state directory"}, args...)
				}
				free()
				a.must("ls") // where not even the removal could be written down, the next start does it
				a.unchanged(before)
			}
			a.must("run", "-q", "--isolation", isolation, "--", "true")
		})
	}
}

// TestNoSpaceEver begins with too small a disk, each too small for another thing, and goes on once it has grown.
func TestNoSpaceEver(t *testing.T) {
	for name, size := range map[string]string{
		"64 KiB": "size=64k", "2 MiB": "size=2m", "10 MiB": "size=10m",
		"5 files": "size=40m,nr_inodes=5", "12 files": "size=40m,nr_inodes=12", "16 files": "size=40m,nr_inodes=16",
	} {
		t.Run(name, func(t *testing.T) {
			a := newAlone(t, mountTmpfs(t, size))
			a.refused([]string{"no space left on device", "; free space"}, "run", "-q", "--", "true")
			remount(t, a.state, 0, "size=40m,nr_inodes=10000")
			a.must("run", "-q", "--", "true")
		})
	}
}

// TestFullDiskIsFreedByKill: who fills the disk of the state directory can be ended, although nothing can be written down.
func TestFullDiskIsFreedByKill(t *testing.T) {
	for _, isolation := range []string{"gvisor", "container"} {
		t.Run(isolation, func(t *testing.T) {
			state := mountTmpfs(t, "size=60m")
			serves(t, binary(t), isolation)
			a := newAlone(t, state)
			a.must("run", "-q", "--isolation", isolation, "--detach", "--name", "filler", "--", "sleep", "3600")
			a.run("exec", "filler", "--", "sh", "-c", "head -c 200M /dev/zero >big; sync")
			a.must("kill", "filler")
			a.must("run", "-q", "--isolation", isolation, "--", "true")
		})
	}
}

// TestNoSpaceForTemplate imports a template of three megabytes where there is less.
func TestNoSpaceForTemplate(t *testing.T) {
	image := filepath.Join(t.TempDir(), "image.tar")
	makeTar(t, image, 3<<20)
	a := newAlone(t, mountTmpfs(t, "size=16m"))
	a.must("ls")
	for _, left := range []int64{16 << 10, 1 << 20, 4 << 20} { // the last one is enough to read, but not to write it
		free := fill(t, a.state, left)
		a.refused([]string{"no space left on device; free space"}, "template", "import", "-q", "--name", "x", image)
		free()
		if out := a.must("template", "ls", "-q"); out != "host\n" {
			t.Errorf("with %d bytes left there are templates: %q", left, out)
		}
		for _, dir := range []string{"blobs", "templates", "trees"} {
			if found, err := os.ReadDir(filepath.Join(a.state, "images", dir)); err != nil || len(found) > 0 {
				t.Errorf("with %d bytes left: %s holds %v, %v", left, dir, found, err)
			}
		}
	}
	a.must("template", "import", "-q", "--name", "x", image)
}

// makeTar writes an archive with one file of the size that nothing can make smaller.
func makeTar(t *testing.T, path string, size int) {
	t.Helper()
	dir := t.TempDir()
	script := "mkdir bin && head -c " + strconv.Itoa(size) + " /dev/urandom >bin/sh && tar cf " + path + " bin"
	cmd := exec.Command("sh", "-ec", script)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// TestUnwritableStateDirectory tries a file system that was made read-only, also after sandboxes ran from it.
func TestUnwritableStateDirectory(t *testing.T) {
	for _, used := range []bool{false, true} {
		t.Run(fmt.Sprint("used ", used), func(t *testing.T) {
			state := mountTmpfs(t, "size=40m")
			a := newAlone(t, state)
			if used {
				a.must("run", "-q", "--", "true")
			}
			remount(t, state, unix.MS_RDONLY, "")
			before := a.files()
			for _, line := range []string{"run -- true", "ls", "kill --all", "template ls", "template import /usr/share/doc", "template gc"} {
				a.refused([]string{"read-only file system; name one that you may write with --state-dir or FIREBREAK_STATE_DIR"}, strings.Fields(line)...)
			}
			a.unchanged(before)
			remount(t, state, 0, "")
		})
	}
}

func remount(t *testing.T, dir string, flags uintptr, options string) {
	t.Helper()
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|flags, options); err != nil {
		t.Fatal(err)
	}
}

// withoutNamespaces is a command in a user namespace that may have no further ones below it, as the whole of a host may
// forbid them. The host's own setting is not touched.
func (u ordinary) withoutNamespaces(uid string, args ...string) *exec.Cmd {
	script := `echo 0 >/proc/sys/user/max_user_namespaces && exec setpriv --reuid "$0" --regid "$0" --clear-groups "$@"`
	cmd := exec.CommandContext(u.t.Context(), "sh", slices.Concat([]string{"-c", script, uid, u.bin}, args)...)
	cmd.Dir = "/"
	cmd.Env = []string{"HOME=" + u.home, "PATH=" + os.Getenv("PATH")}
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: ordinaryID + 1}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true}
	return cmd
}

// TestNoUserNamespaces is on a host that forbids user namespaces, for an ordinary user and for the root of a container.
func TestNoUserNamespaces(t *testing.T) {
	u := newOrdinary(t)
	before := traces(t, u.home)
	for _, line := range []string{"run -- true", "run --isolation process -- true", "ls"} {
		args := strings.Fields(line)
		_, errs, status := finish(t, u.withoutNamespaces(strconv.Itoa(ordinaryID), args...))
		isRefusal(t, args, errs, status, "make a user namespace", "max_user_namespaces forbids it", "run firebreak as root")
	}
	if found, err := os.ReadDir(u.home); err != nil || len(found) > 0 {
		t.Errorf("left in the home: %v, %v", found, err)
	}
	state := filepath.Join(filepath.Dir(u.home), "state")
	args := []string{"run", "--state-dir", state, "--", "true"}
	_, errs, status := finish(t, u.withoutNamespaces("0", args...))
	isRefusal(t, args, errs, status, "nothing here gives that: gvisor: ", "allow namespaces")
	nothingLeft(t, state, before)
}
