package main_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// crash is one host under kill -9: a state directory, and the detached sandboxes whose ids firebreak has told us.
type crash struct {
	t     *testing.T
	bin   string
	state string

	mu   sync.Mutex
	kept []string // guarded by mu
}

func (c *crash) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, c.bin, args...)
	cmd.Env = append(os.Environ(), "FIREBREAK_STATE_DIR="+c.state)
	return cmd
}

// must runs firebreak to its end; the bound is there for a hang, not for speed.
func (c *crash) must(args ...string) string {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 3*time.Minute)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := c.command(ctx, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		c.t.Fatalf("firebreak %s: %v\n%s%s", strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return stdout.String()
}

// victim starts firebreak and kills it -9 after the delay, wherever it then is.
func (c *crash) victim(delay time.Duration, args ...string) {
	var stdout bytes.Buffer
	cmd := c.command(context.Background(), args...)
	cmd.Stdout = &stdout
	if err := cmd.Start(); err != nil {
		c.t.Error(err)
		return
	}
	timer := time.AfterFunc(delay, func() { cmd.Process.Kill() })
	cmd.Wait()
	timer.Stop()
	if id := strings.TrimSpace(stdout.String()); slices.Contains(args, "--detach") && id != "" {
		c.mu.Lock()
		c.kept = append(c.kept, id)
		c.mu.Unlock()
	}
}

// TestKilledAtAnyMoment kills the host process at random moments of create, exec and destroy of several sandboxes, and
// then holds firebreak to its word: what it said to keep answers, and of all else nothing is left.
func TestKilledAtAnyMoment(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("the leaks that this test looks for are visible to root only")
	}
	rounds := 100
	if testing.Short() {
		rounds = 8
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	c := &crash{t: t, bin: binary(t), state: t.TempDir()}
	before := traces(t, c.state)
	for _, isolation := range []string{"gvisor", "container"} {
		c.must("run", "--isolation", isolation, "--", "true") // fills the caches, and fails early if nothing works
	}
	for round := range rounds {
		var wg sync.WaitGroup
		for i := range 3 {
			args := [][]string{
				{"run", "--isolation", "gvisor", "--", "sh", "-c", "echo here; sleep 0.05"},
				{"run", "--isolation", "container", "--", "sh", "-c", "echo here; sleep 0.05"},
				{"run", "--isolation", []string{"gvisor", "container"}[random.IntN(2)], "--detach", "--", "sleep", "3600"},
			}[i]
			delay := time.Duration(random.IntN(700)) * time.Millisecond
			wg.Go(func() { c.victim(delay, args...) })
		}
		wg.Wait()
		if round%10 == 9 {
			c.settle()
		}
	}
	c.settle()
	c.must("kill", "--all")
	c.must("ls")
	// What was killed may still be on its way out, and init may take its time to reap it.
	left := difference(traces(t, c.state), before)
	for end := time.Now().Add(time.Minute); len(left) > 0 && time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		left = difference(traces(t, c.state), before)
	}
	if len(left) > 0 {
		t.Errorf("left behind after %d rounds:\n%s", rounds, strings.Join(left, "\n"))
	}
	if entries, err := os.ReadDir(filepath.Join(c.state, "sandboxes")); err != nil || len(entries) > 0 {
		t.Errorf("sandbox directories left: %v, %v", entries, err)
	}
}

// settle lets a new firebreak find what the dead ones left, checks that exactly what was promised lives, and ends it.
func (c *crash) settle() {
	c.t.Helper()
	var listed []struct{ ID, State string }
	if err := json.Unmarshal([]byte(c.must("ls", "--json")), &listed); err != nil {
		c.t.Fatal(err)
	}
	alive := map[string]bool{}
	for _, s := range listed {
		if s.State != "running" {
			c.t.Errorf("sandbox %s is %s after the start of a new firebreak", s.ID, s.State)
		}
		alive[s.ID] = true
	}
	for _, id := range c.kept {
		if !alive[id] {
			c.t.Errorf("sandbox %s was promised and is lost", id)
			continue
		}
		if out := c.must("exec", id, "--", "echo", "answers"); out != "answers\n" {
			c.t.Errorf("sandbox %s says %q", id, out)
		}
		c.must("kill", id)
	}
	c.kept = nil
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
		if strings.Contains(line, state) || strings.Contains(line, " nsfs ") {
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
