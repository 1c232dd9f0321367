package oci

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/hostproc"
)

// freezable returns cgroups of this host that can be frozen, made for the test: one of each version that there is.
func freezable(t *testing.T) map[string]*Cgroup {
	t.Helper()
	groups := map[string]*Cgroup{}
	c, id := host(t)
	if c.freezer != "" {
		groups["version 1"] = &Cgroup{freezer: c.Open(id).freezer}
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); f[2] == "cgroup2" {
			groups["version 2"] = &Cgroup{v2: filepath.Join(f[1], fmt.Sprintf("firebreak-frozen%d", os.Getpid()))}
		}
	}
	for name, g := range groups {
		dir := g.toggle().dir
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Logf("%s: %v", name, err)
			delete(groups, name)
			continue
		}
		t.Cleanup(func() { emptied(t, dir) })
	}
	if len(groups) == 0 {
		t.Skip("no cgroup that can be made here can be frozen")
	}
	return groups
}

// emptied removes a cgroup once all in it have ended.
func emptied(t *testing.T, dir string) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		err := syscall.Rmdir(dir)
		if err == nil || errors.Is(err, syscall.ENOENT) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("remove %s: %v", dir, err)
		}
	}
}

// crowd starts a shell in g that starts others, which count for ever; it returns once they do.
func crowd(t *testing.T, g *Cgroup) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sh", "-c", "read go; for n in 1 2 3; do (while :; do :; done) & done; sleep 1000 & echo up; wait")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ended := errors.Join(g.Freeze(context.Background()), g.EndFrozen())
		_ = cmd.Wait() // it was killed
		if ended != nil && !gone(ended) {
			t.Error(ended)
		}
	})
	if err := writeFile(g.toggle().dir, "cgroup.procs", fmt.Sprint(cmd.Process.Pid)); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(in, "go")
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "up\n" {
		t.Fatalf("%q, %v", line, err)
	}
	return cmd
}

// taken is the time that all in g have taken of processors.
func taken(t *testing.T, g *Cgroup) (ticks uint64) {
	t.Helper()
	pids, err := processesIn(g.toggle().dir)
	if err != nil || len(pids) < 4 {
		t.Fatalf("processes %v, %v", pids, err)
	}
	for _, pid := range pids {
		s, err := hostproc.ReadStat(pid)
		if err != nil {
			t.Fatal(err)
		}
		ticks += s.CPU
	}
	return ticks
}

func TestFreeze(t *testing.T) {
	for name, g := range freezable(t) {
		t.Run(name, func(t *testing.T) {
			cmd := crowd(t, g)
			if !g.Freezes(cmd.Process.Pid) || g.Freezes(os.Getpid()) {
				t.Errorf("it freezes its own: %v, others: %v", g.Freezes(cmd.Process.Pid), g.Freezes(os.Getpid()))
			}
			for range 3 {
				for range 2 {
					if err := g.Freeze(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				before := taken(t, g)
				time.Sleep(50 * time.Millisecond) // in which three loops would take 5 ticks or more
				if after := taken(t, g); after != before || !g.Frozen() {
					t.Errorf("frozen: %v; it took %d ticks meanwhile", g.Frozen(), after-before)
				}
				for range 2 {
					if err := g.Thaw(); err != nil {
						t.Fatal(err)
					}
				}
				if g.Frozen() {
					t.Error("it is frozen after it was thawed")
				}
				for end := time.Now().Add(time.Minute); taken(t, g) == before; time.Sleep(time.Millisecond) {
					if time.Now().After(end) {
						t.Fatal("nothing goes on after it was thawed")
					}
				}
			}
		})
	}
}

func TestFreezeWithoutTime(t *testing.T) {
	for name, g := range freezable(t) {
		t.Run(name, func(t *testing.T) {
			crowd(t, g)
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if err := g.Freeze(ctx); !errors.Is(err, context.Canceled) || g.Frozen() {
				t.Errorf("frozen: %v, %v; want the context's error, and that they go on", g.Frozen(), err)
			}
			for i := range 50 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*10*time.Microsecond)
				err := g.Freeze(ctx)
				cancel()
				if g.Frozen() != (err == nil) {
					t.Fatalf("frozen: %v, after %v", g.Frozen(), err)
				}
				if err := g.Thaw(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func TestFrozenEnds(t *testing.T) {
	for name, g := range freezable(t) {
		t.Run(name, func(t *testing.T) {
			cmd := crowd(t, g)
			if err := g.EndFrozen(); err != nil || g.Frozen() {
				t.Fatal(err)
			}
			if pids, err := processesIn(g.toggle().dir); err != nil || len(pids) < 4 {
				t.Errorf("what was not frozen was ended: %v, %v", pids, err)
			}
			if err := g.Freeze(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := g.EndFrozen(); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err == nil || cmd.ProcessState.ExitCode() != -1 {
				t.Errorf("it ended with %v, want it to be killed", err)
			}
		})
	}
}

func TestFreezeWhatIsGone(t *testing.T) {
	for name, g := range freezable(t) {
		t.Run(name, func(t *testing.T) {
			emptied(t, g.toggle().dir)
			if err := errors.Join(g.Thaw(), g.EndFrozen()); err != nil || g.Frozen() || g.Freezes(os.Getpid()) {
				t.Errorf("frozen %v, %v", g.Frozen(), err)
			}
			if err := g.Freeze(t.Context()); err == nil {
				t.Error("what is gone was frozen")
			}
		})
	}
}

func TestNoFreezer(t *testing.T) {
	g := &Cgroup{v1: map[string]string{"memory": t.TempDir()}}
	if err := g.Freeze(t.Context()); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Freeze: %v", err)
	}
	if err := errors.Join(g.Thaw(), g.EndFrozen()); err != nil || g.Frozen() || g.Freezes(os.Getpid()) {
		t.Errorf("frozen: %v, %v", g.Frozen(), err)
	}
}

// TestUnifiedPause: a version 2 hierarchy can be frozen if its kernel can, and one of version 1 is preferred, since runtimes
// put containers into that.
func TestUnifiedPause(t *testing.T) {
	host, _ := unified(t, "cpu memory pids", "")
	if host.Caps().Has(driver.CapPause) {
		t.Error("it can be frozen by a kernel that cannot")
	}
	cgroupFiles(t, host.v2, map[string]string{"cgroup.freeze": "0\n"})
	if !host.find().Has(driver.CapPause) {
		t.Error("it cannot be frozen")
	}
	g := host.Open("abc")
	cgroupFiles(t, g.v2, map[string]string{"cgroup.freeze": "0\n", "cgroup.events": "populated 1\nfrozen 1\n", "cgroup.procs": "12\n"})
	if !g.Freezes(12) || g.Frozen() {
		t.Errorf("freezes: %v, frozen: %v", g.Freezes(12), g.Frozen())
	}
	if err := g.Freeze(t.Context()); err != nil || !g.Frozen() {
		t.Errorf("frozen: %v, %v", g.Frozen(), err)
	}
	wantFiles(t, g.v2, map[string]string{"cgroup.freeze": "1"})
	g.freezer = t.TempDir()
	cgroupFiles(t, g.freezer, map[string]string{"freezer.state": "FROZEN\n"})
	if err := g.Freeze(t.Context()); err != nil {
		t.Error(err)
	}
	wantFiles(t, g.freezer, map[string]string{"freezer.state": "FROZEN"})
}
