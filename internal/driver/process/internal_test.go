package process

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/hostproc"
)

func thisBoot(t *testing.T) string {
	t.Helper()
	id, err := hostproc.BootID()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// sleeper starts a process that ends with the test.
func sleeper(t *testing.T) (*exec.Cmd, hostproc.Stat) {
	t.Helper()
	cmd := exec.Command("sleep", "3600")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed, so this is an error
	})
	st, err := hostproc.ReadStat(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	return cmd, st
}

func TestIdentityAlive(t *testing.T) {
	cmd, st := sleeper(t)
	sound := identity{PID: st.PID, Start: st.Start, Boot: thisBoot(t)}
	later, otherBoot := sound, sound
	later.Start++
	otherBoot.Boot = "another"
	for name, tc := range map[string]struct {
		i    identity
		want bool
	}{
		"itself": {sound, true}, "a later process with its pid": {later, false},
		"a process of another boot": {otherBoot, false}, "none": {identity{}, false}, "init": {identity{PID: 1, Boot: thisBoot(t)}, false},
	} {
		if got := tc.i.alive(); got != tc.want {
			t.Errorf("%s: alive = %v, want %v", name, got, tc.want)
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for sound.alive() {
		time.Sleep(time.Millisecond)
	}
	if st, err := hostproc.ReadStat(sound.PID); err != nil || st.Running() {
		t.Errorf("a zombie: %+v, %v; want it there and not running", st, err)
	}
}

// TestSignalSparesALaterProcess: a pid that was given to another process is not killed.
func TestSignalSparesALaterProcess(t *testing.T) {
	_, st := sleeper(t)
	stale := st
	stale.Start--
	if err := signal(stale, unix.SIGKILL); err != nil {
		t.Errorf("signal to a process that is gone: %v", err)
	}
	time.Sleep(50 * time.Millisecond)
	if now, err := hostproc.ReadStat(st.PID); err != nil || !now.Running() {
		t.Fatalf("the later process was hit: %+v, %v", now, err)
	}
	if err := signal(st, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		if now, err := hostproc.ReadStat(st.PID); err != nil || !now.Running() {
			return
		}
		if time.Now().After(end) {
			t.Fatal("the process itself was not hit")
		}
	}
}

func TestIdentityWait(t *testing.T) {
	cmd, st := sleeper(t)
	who := identity{PID: st.PID, Start: st.Start, Boot: thisBoot(t)}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if err := who.wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("wait for the living: %v, want its context's error", err)
	}
	done := make(chan error, 1)
	go func() { done <- who.wait(t.Context()) }()
	time.Sleep(20 * time.Millisecond)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("wait for one that is killed: %v", err)
	}
	_ = cmd.Wait() // it was killed, so this is an error
	if err := who.wait(t.Context()); err != nil {
		t.Errorf("wait for one that is gone: %v", err)
	}
}

func TestUnescape(t *testing.T) {
	for in, want := range map[string]string{
		"/plain": "/plain", `/a\040b`: "/a b", `\011\012\134`: "\t\n\\", `/end\04`: `/end\04`, `/x\999`: `/x\999`, "": "",
	} {
		if got := unescape(in); got != want {
			t.Errorf("unescape(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzUnescape(f *testing.F) {
	f.Add(`/a\040b`)
	f.Fuzz(func(t *testing.T, s string) {
		if got := unescape(s); len(got) > len(s) {
			t.Errorf("unescape(%q) grew to %q", s, got)
		}
	})
}

// TestClearDirSparesWhatIsMounted: a program that is root may mount the host's directories into its own; they stay.
func TestClearDirSparesWhatIsMounted(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can mount")
	}
	dir, outside := filepath.Join(t.TempDir(), "with space"), t.TempDir()
	kept := filepath.Join(outside, "kept")
	target := filepath.Join(dir, workName, "mnt")
	if err := errors.Join(os.MkdirAll(target, 0o700), os.WriteFile(kept, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(outside, target, "", unix.MS_BIND, ""); err != nil {
		t.Skipf("this host lets root mount nothing: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })
	if err := clearDir(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(kept); err != nil {
		t.Errorf("what was mounted into the sandbox is gone: %v", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("the directory holds %v, %v", entries, err)
	}
}

func TestRemoveTreeLocked(t *testing.T) {
	root := filepath.Join(t.TempDir(), "root")
	deep := filepath.Join(root, "a", "b")
	if err := errors.Join(os.MkdirAll(deep, 0o700), os.WriteFile(filepath.Join(deep, "f"), nil, 0o000),
		os.Chmod(deep, 0), os.Chmod(filepath.Dir(deep), 0o500)); err != nil {
		t.Fatal(err)
	}
	if err := removeTree(root); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(root); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
}

// markedSleeper starts a process that only its mark betrays; it ends with the test.
func markedSleeper(t *testing.T, mark string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "3600")
	cmd.Env = []string{markName + "=" + mark}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed, so this is an error
	})
	return cmd
}

// ends waits for the end of a process that was killed: the kernel takes its environment, and so its mark, a little earlier.
func ends(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if st, err := hostproc.ReadStat(cmd.Process.Pid); err != nil || !st.Running() {
			return
		}
		if time.Now().After(end) {
			t.Fatal("the marked process lives on")
		}
	}
}

// TestMarkedWithoutRecord: a crash between the start of an agent and its record leaves a process that only its mark
// betrays. The same ID under another state directory is another sandbox.
func TestMarkedWithoutRecord(t *testing.T) {
	ours, theirs := New(Config{StateDir: t.TempDir()}), New(Config{StateDir: t.TempDir()})
	spec := driver.Spec{ID: "unrecorded", Dir: t.TempDir()}
	var cmds []*exec.Cmd
	for _, d := range []*Driver{ours, theirs} {
		cmd := markedSleeper(t, d.mark(spec.ID))
		env := []byte(markName + "=" + d.mark(spec.ID))
		for end := time.Now().Add(time.Minute); !marked(cmd.Process.Pid, env); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("it has no mark")
			}
		}
		cmds = append(cmds, cmd)
	}
	if err := ours.Destroy(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	ends(t, cmds[0])
	if st, err := hostproc.ReadStat(cmds[1].Process.Pid); err != nil || !st.Running() {
		t.Errorf("the process of another state directory was hit: %+v, %v", st, err)
	}
}

// TestNascent: Start returns before the kernel has given a process its environment. Until it is marked it is nascent.
func TestNascent(t *testing.T) {
	env := []byte(markName + "=of-a-test")
	for range 400 {
		cmd := markedSleeper(t, "of-a-test")
		st, err := hostproc.ReadStat(cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		all := map[int]hostproc.Stat{st.PID: st}
		if !nascent(all, sinceBoot()) && !marked(st.PID, env) {
			t.Fatal("it is neither nascent nor marked")
		}
		for end := time.Now().Add(time.Minute); !marked(st.PID, env); {
			if time.Now().After(end) {
				t.Fatal("it has no mark")
			}
		}
		if nascent(all, sinceBoot()) {
			t.Fatal("what is marked is nascent")
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed, so this is an error
	}
}

func TestRoots(t *testing.T) {
	binds := []driver.Mount{{Source: "/usr", Target: "/usr", ReadOnly: true}}
	for name, tc := range map[string]struct {
		root driver.Root
		ok   bool
	}{
		"none":              {driver.Root{}, true},
		"the host's":        {driver.Root{Form: driver.FormDirectory, Path: "/"}, true},
		"the host template": {driver.Root{Form: driver.FormDirectory, Path: "/state/host", Binds: binds}, true},
		"a directory":       {driver.Root{Form: driver.FormDirectory, Path: "/state/debian"}, false},
		"an image":          {driver.Root{Form: driver.FormDisk, Path: "/state/debian.erofs"}, false},
	} {
		err := check(t.Context(), driver.Spec{ID: "a", Root: tc.root})
		if tc.ok && err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if !tc.ok && !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: %v, want errors.ErrUnsupported", name, err)
		}
	}
}
