package main_test

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// alone is a firebreak with a state directory of its own, of which nothing may be left when its test ends.
type alone struct {
	t     *testing.T
	bin   string
	state string
}

// newAlone needs root, because only root sees all that may be left.
func newAlone(t *testing.T, state string) alone {
	t.Helper()
	needRoot(t, "the leaks that this test looks for are visible to root only")
	a := alone{t: t, bin: binary(t), state: state}
	before := traces(t, state)
	t.Cleanup(func() {
		if _, errs, status := a.run("kill", "--all"); status != 0 {
			t.Errorf("kill --all: status %d: %s", status, errs)
		}
		nothingLeft(t, state, before)
	})
	return a
}

func (a alone) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, a.bin, args...)
	cmd.Env = append(os.Environ(), "FIREBREAK_STATE_DIR="+a.state, "FIREBREAK_POLICY="+anyPolicy(a.t))
	return cmd
}

// anyPolicy is for tests of what an isolation does, whoever may choose it.
func anyPolicy(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs("testdata/any.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// run returns what firebreak printed and its exit status. The bound is there for a hang, not for speed.
func (a alone) run(args ...string) (stdout, stderr string, status int) {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(a.t.Context()), 3*time.Minute) // cleanups run it too
	defer cancel()
	return finish(a.t, a.command(ctx, args...))
}

func (a alone) must(args ...string) (stdout string) {
	a.t.Helper()
	out, errs, status := a.run(args...)
	if status != 0 {
		a.t.Fatalf("firebreak %s: status %d\n%s%s", strings.Join(args, " "), status, out, errs)
	}
	return out
}

// refused runs what cannot be, and holds firebreak to one line with these words and the exit status 125.
func (a alone) refused(words []string, args ...string) {
	a.t.Helper()
	_, errs, status := a.run(args...)
	isRefusal(a.t, args, errs, status, words...)
}

func isRefusal(t *testing.T, args []string, errs string, status int, words ...string) {
	t.Helper()
	if status != 125 || !strings.HasPrefix(errs, "firebreak: ") || strings.Count(errs, "\n") != 1 {
		t.Errorf("%s: status %d, want 125 and one line:\n%s", strings.Join(args, " "), status, errs)
	}
	for _, word := range words {
		if !strings.Contains(errs, word) {
			t.Errorf("%s: want %q in: %s", strings.Join(args, " "), word, errs)
		}
	}
}

// files lists what is in the state directory, but for what a probe of the drivers keeps for the next run.
func (a alone) files() []string {
	a.t.Helper()
	var all []string
	err := filepath.WalkDir(a.state, func(path string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(a.state, path) // of a path below it
		if err == nil && !strings.HasPrefix(rel, "probes/") && !strings.HasPrefix(rel, "firebreak.db-") {
			all = append(all, rel)
		}
		return err
	})
	if err != nil {
		a.t.Fatal(err)
	}
	return all
}

// unchanged compares the state directory with what files told of it before.
func (a alone) unchanged(before []string) {
	a.t.Helper()
	now := a.files()
	if added, gone := difference(slices.Clone(now), before), difference(slices.Clone(before), now); len(added)+len(gone) > 0 {
		a.t.Errorf("the state directory has %q, and no longer %q", added, gone)
	}
}

func finish(t *testing.T, cmd *exec.Cmd) (stdout, stderr string, status int) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// mountTmpfs mounts a file system in memory for the time of the test, with mount's own words for its size.
func mountTmpfs(t *testing.T, size string) string {
	t.Helper()
	needRoot(t, "only root can mount")
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=700,"+size); err != nil {
		t.Fatalf("mount: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("something holds the state directory: %v", err)
			_ = unix.Unmount(dir, unix.MNT_DETACH) // so that the next test has a chance
		}
	})
	return dir
}

// needRoot skips the test for an ordinary user, unless FIREBREAK_REQUIRE names a driver that needs root.
func needRoot(t *testing.T, why string) {
	t.Helper()
	switch {
	case os.Getuid() == 0:
	case required("container"):
		t.Fatalf("container is required, and so is root: %s", why)
	default:
		t.Skip(why)
	}
}

func required(isolation string) bool {
	return slices.Contains(strings.Split(os.Getenv("FIREBREAK_REQUIRE"), ","), isolation)
}

// serves skips the test if this host cannot serve an isolation, unless FIREBREAK_REQUIRE names it.
func serves(t *testing.T, bin, isolation string) {
	t.Helper()
	try := exec.Command(bin, "run", "--isolation", isolation, "--", "true")
	try.Env = append(os.Environ(), "FIREBREAK_STATE_DIR="+t.TempDir(), "FIREBREAK_POLICY="+anyPolicy(t))
	out, err := try.CombinedOutput()
	switch {
	case err == nil:
	case required(isolation):
		t.Fatalf("%s is required: %v\n%s", isolation, err, out)
	case strings.Contains(string(out), "cannot run here"):
		t.Skipf("%s", out)
	default:
		t.Fatalf("%v\n%s", err, out)
	}
}

// traces lists what sandboxes make on a host: processes, mounts, namespaces, cgroups and loop devices.
func traces(t *testing.T, state string) []string {
	t.Helper()
	var found []string
	processes, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range processes {
		cgroup, _ := os.ReadFile(p + "/cgroup")
		cmdline, _ := os.ReadFile(p + "/cmdline")
		if bytes.Contains(cgroup, []byte("/firebreak")) || bytes.Contains(cmdline, []byte(state)) {
			found = append(found, fmt.Sprintf("process %s %q", p, cmdline))
		}
		if ns, err := os.Readlink(p + "/ns/net"); err == nil {
			found = append(found, "namespace "+ns)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, state+"/") || strings.Contains(line, " nsfs ") {
			found = append(found, "mount "+strings.TrimSpace(line))
		}
	}
	filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(path, "firebreak/") {
			found = append(found, "cgroup "+path)
		}
		return nil
	})
	loops, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, file := range loops {
		backing, _ := os.ReadFile(file)
		found = append(found, "loop device "+string(backing))
	}
	slices.Sort(found)
	return slices.Compact(found)
}

func difference(after, before []string) []string {
	return slices.DeleteFunc(after, func(s string) bool { return slices.Contains(before, s) })
}

// nothingLeft compares with the traces of before. What was killed may still be on its way out, and init may take its time
// to reap it; and others may come and go on this host.
func nothingLeft(t *testing.T, state string, before []string) {
	t.Helper()
	left := difference(traces(t, state), before)
	for end := time.Now().Add(time.Minute); len(left) > 0 && time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		now := traces(t, state)
		left = slices.DeleteFunc(left, func(s string) bool { return !slices.Contains(now, s) })
	}
	if len(left) > 0 {
		t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
	// What is being made lies in directories of its own, which are all empty again.
	for _, pattern := range []string{"sandboxes/*", "images/work/*", "agent/.*", "drivers/*/[^.]*", "drivers/*/.probe*/*", "drivers/*/.ids/*"} {
		if found, _ := filepath.Glob(filepath.Join(state, pattern)); len(found) > 0 { // the patterns are well formed
			for _, path := range found {
				t.Errorf("left behind: %s", path)
			}
		}
	}
}

// binary returns the firebreak under test: FIREBREAK_BIN, or one built for this run.
func binary(t *testing.T) string {
	t.Helper()
	if path := os.Getenv("FIREBREAK_BIN"); path != "" {
		return path
	}
	path := filepath.Join(t.TempDir(), "firebreak")
	build := exec.Command("go", "build", "-o", path, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return path
}
