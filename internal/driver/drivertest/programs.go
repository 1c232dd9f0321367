package drivertest

import (
	"context"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/firebreak-dev/firebreak/internal/agentbin"
)

// insidePackage is the program that is built for the sandboxes.
const insidePackage = "github.com/firebreak-dev/firebreak/internal/driver/drivertest/inside"

// programsVariable names a directory in which the programs lie built already: for accounts without a toolchain.
const programsVariable = "FIREBREAK_DRIVERTEST_PROGRAMS"

// programs builds what the suite runs, each once and only when it is needed.
type programs struct {
	suite Suite
	dir   string

	mu   sync.Mutex
	path map[string]string // guarded by mu
}

func newPrograms(t testing.TB, s Suite) *programs {
	t.Helper()
	p := &programs{suite: s, dir: os.Getenv(programsVariable), path: map[string]string{}}
	if p.dir == "" {
		p.dir = t.TempDir()
	}
	return p
}

// agent returns the real agent.
func (p *programs) agent(t testing.TB) string {
	t.Helper()
	if p.suite.Agent != nil {
		return p.suite.Agent(t)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.path["agent"] == "" {
		path, err := agentbin.Path(context.Background(), p.dir, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatalf("make the agent: %v", err)
		}
		p.path["agent"] = path
	}
	return p.path["agent"]
}

// probe returns the program of package inside.
func (p *programs) probe(t testing.TB) string {
	t.Helper()
	return p.build(t, "probe", "")
}

// badAgent returns an agent that misbehaves: deaf, silent or brief.
func (p *programs) badAgent(t testing.TB, mode string) string {
	t.Helper()
	return p.build(t, mode, mode)
}

func (p *programs) build(t testing.TB, name, mode string) string {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if path := p.path[name]; path != "" {
		return path
	}
	path := filepath.Join(p.dir, "inside-"+name)
	if _, err := os.Stat(path); err != nil {
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w -X main.mode="+mode, "-o", path, insidePackage)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v\n%s", insidePackage, err, out)
		}
	}
	if err := os.Chmod(path, 0o755); err != nil && !os.IsPermission(err) {
		t.Fatal(err)
	}
	p.path[name] = path
	return path
}
