package drivertest_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/drivertest"
	"github.com/firebreak-dev/firebreak/internal/driver/process"
)

// lie is a check that must fail for a plain process that claims to be a hardened container with every limit.
type lie struct {
	check string
	says  string
	root  bool // only what runs as root is caught
}

func lies(t *testing.T) []lie {
	out := []lie{
		{check: "uname", says: "the host name inside is"},
		{check: "pid-one", says: "processes are visible"},
		{check: "host-processes-invisible", says: "the host's process is visible"},
		{check: "neighbour-processes-invisible", says: "a neighbour's program is visible"},
		{check: "host-files-invisible", says: "is visible"},
		{check: "host-sockets-unreachable", says: "can be reached from inside"},
		{check: "neighbour-unreachable", says: "can be reached from inside"},
		{check: "no-new-privileges", says: "want 1"},
		{check: "mounts", says: "/mnt/rw/given"},
		{check: "limit-memory", says: "a program took 640 MiB"},
		{check: "limit-processes", says: "within a limit of 100"},
		{check: "limit-disk", says: "within a limit of 48"},
		{check: "environment-clean", says: "the agent has inherited the secret"},
		{check: "capabilities-dropped", says: "want none", root: true},
		{check: "kernel-out-of-reach", says: "one can ", root: true},
	}
	if links, err := net.Interfaces(); err != nil {
		t.Fatal(err)
	} else if len(links) > 1 {
		out = append(out, lie{check: "network-loopback-only", says: "want only lo"})
	}
	if status, err := os.ReadFile("/proc/self/status"); err != nil {
		t.Fatal(err)
	} else if strings.Contains(string(status), "Seccomp:\t0") {
		out = append(out, lie{check: "seccomp", says: "want 2"})
	}
	return out
}

// TestLies: every fact of containment and every limit that the suite asks for is one that a plain process fails.
func TestLies(t *testing.T) {
	for _, lie := range lies(t) {
		t.Run(lie.check, func(t *testing.T) {
			if lie.root && os.Geteuid() != 0 {
				t.Skip("only root can do what must be caught")
			}
			suite := liar(t)
			r := record(t, func(t testing.TB) { suite.RunCheck(t, lie.check) })
			if !r.Failed() || !strings.Contains(r.said(), lie.says) {
				t.Errorf("failed: %v; want it to say %q, but it says:\n%s", r.Failed(), lie.says, r.said())
			}
		})
	}
}

// liar is the suite for the process driver, which claims what it has not.
func liar(t *testing.T) drivertest.Suite {
	return drivertest.Suite{
		Name: "process", Patience: 30 * time.Second,
		Work: func(spec driver.Spec) string { return filepath.Join(spec.Dir, "work") },
		New: func(_ testing.TB, p drivertest.Place) driver.Driver {
			agent := filepath.Join(t.TempDir(), "agent")
			conf := process.Config{StateDir: p.StateDir, Agent: agent, Log: p.Log}
			b := &buggy{Driver: process.New(conf), place: p}
			b.probe = func(i driver.Info) driver.Info {
				i.Boundary = firebreak.BoundarySharedKernel
				i.Caps |= driver.CapPrivateRoot | driver.CapPrivatePIDs | driver.CapPrivateNet | driver.CapMounts |
					driver.CapLimitMemory | driver.CapLimitPIDs | driver.CapLimitDisk
				return i
			}
			b.create = func(ctx context.Context, spec driver.Spec) (driver.Sandbox, error) {
				if err := leaky(agent, p.Agent); err != nil {
					return nil, err
				}
				spec.Limits, spec.Mounts = firebreak.Limits{}, nil
				return b.Driver.Create(ctx, spec)
			}
			return b
		},
	}
}

// leaky makes a program at path that hands the secret of the test's environment to the agent.
func leaky(path, agent string) error {
	script := "#!/bin/sh\nexport FIREBREAK_TEST_SECRET='" + os.Getenv("FIREBREAK_TEST_SECRET") + "'\nexec " + agent + " \"$@\"\n"
	return os.WriteFile(path, []byte(script), 0o755)
}
