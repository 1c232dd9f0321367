package main_test

import (
	"bytes"
	"context"
	"encoding/json"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// crash is one host under kill -9, and the detached sandboxes whose ids firebreak has told us.
type crash struct {
	alone

	mu   sync.Mutex
	kept []string // guarded by mu
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
	rounds := 100
	if testing.Short() {
		rounds = 8
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	c := &crash{alone: newAlone(t, t.TempDir())}
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
