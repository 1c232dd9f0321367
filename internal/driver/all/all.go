// Package all is the explicit list of the drivers that the program has. Each is made when it is first wanted, and the
// agent's program is found, or built, only for a driver that is to make a sandbox.
package all

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"

	"github.com/firebreak-dev/firebreak/internal/agentbin"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/container"
	"github.com/firebreak-dev/firebreak/internal/driver/gvisor"
	"github.com/firebreak-dev/firebreak/internal/driver/process"
	"github.com/firebreak-dev/firebreak/internal/driver/v8"
	"github.com/firebreak-dev/firebreak/internal/driver/wasm"
	"github.com/firebreak-dev/firebreak/internal/setup"
)

// Set is the drivers of one state directory. It may be used concurrently.
type Set struct {
	stateDir string
	log      *slog.Logger

	mu    sync.Mutex
	agent string                   // guarded by mu: path of the agent's program, once it is known
	made  map[string]driver.Driver // guarded by mu: by name, and by name and agent
}

// New returns the drivers of stateDir, which is absolute. It makes none yet.
func New(stateDir string, log *slog.Logger) *Set {
	return &Set{stateDir: stateDir, log: log, made: map[string]driver.Driver{}}
}

type entry struct {
	name string
	make func(stateDir, agent string, log *slog.Logger) driver.Driver
	// here: sandboxes live in this process, which serves them itself. There is one such driver, and it needs no agent.
	here bool
}

// entries is the list: the preferred driver first, the weakest boundary last.
func (s *Set) entries() []entry {
	return []entry{
		{name: "gvisor", make: func(dir, agent string, log *slog.Logger) driver.Driver {
			return gvisor.New(gvisor.Config{StateDir: dir, Agent: agent, Log: log})
		}},
		{name: "container", make: func(dir, agent string, log *slog.Logger) driver.Driver {
			return container.New(container.Config{StateDir: dir, Agent: agent, Log: log})
		}},
		{name: "wasm", here: true, make: func(dir, _ string, log *slog.Logger) driver.Driver {
			return wasm.New(wasm.Config{StateDir: dir, Log: log})
		}},
		{name: "v8", here: true, make: func(dir, _ string, log *slog.Logger) driver.Driver {
			inner := func(ctx context.Context) ([]driver.Driver, error) { return s.walls(ctx, dir) }
			return v8.New(v8.Config{StateDir: dir, Workerd: s.workerd, TypeScript: s.typeScript, Inner: inner, Log: log})
		}},
		{name: "process", make: func(dir, agent string, log *slog.Logger) driver.Driver {
			return process.New(process.Config{StateDir: dir, Agent: agent, Log: log})
		}},
	}
}

// Names lists all drivers, the preferred one first.
func (s *Set) Names() []string {
	var names []string
	for _, e := range s.entries() {
		names = append(names, e.name)
	}
	return names
}

// Keeper returns a driver for all but Create. fs.ErrNotExist for an unknown name.
func (s *Set) Keeper(name string) (driver.Driver, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.driver(name, "")
}

// Maker returns a driver for Create too.
func (s *Set) Maker(ctx context.Context, name string) (driver.Driver, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d, err := s.driver(name, "")
	if err != nil || s.here(name) {
		return d, err // before an agent is built for it
	}
	if err := s.findAgent(ctx); err != nil {
		return nil, err
	}
	return s.driver(name, s.agent)
}

// findAgent must be called with s.mu held.
func (s *Set) findAgent(ctx context.Context) error {
	if s.agent != "" {
		return nil
	}
	agent, err := agentbin.Path(ctx, filepath.Join(s.stateDir, "agent"), s.log)
	if err != nil {
		return err
	}
	s.agent = agent
	return nil
}

// walls are the drivers for the sandboxes of another driver's own, which keeps their state: the strongest first.
func (s *Set) walls(ctx context.Context, dir string) ([]driver.Driver, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.findAgent(ctx); err != nil {
		return nil, err
	}
	return []driver.Driver{
		gvisor.New(gvisor.Config{StateDir: filepath.Join(dir, ".gvisor"), Agent: s.agent, Log: s.log}),
		container.New(container.Config{StateDir: filepath.Join(dir, ".container"), Agent: s.agent, Log: s.log}),
	}, nil
}

// tool is the path of one that was set up, or "".
func (s *Set) tool(name string) string {
	if tools, err := setup.Find(name); err == nil && len(tools) > 0 && tools[0].Here(s.stateDir) {
		return tools[0].Path(s.stateDir)
	}
	return ""
}

// typeScript finds what makes JavaScript of TypeScript for the driver v8: what was set up, else what lies beside workerd.
func (s *Set) typeScript() string {
	if path := s.tool("sucrase"); path != "" {
		return path
	}
	path := filepath.Join(filepath.Dir(s.workerd()), "sucrase.tgz")
	if info, err := os.Stat(path); err != nil || !info.Mode().IsRegular() {
		return ""
	}
	return path
}

// workerd finds the engine of the driver v8: what was set up, else what is on PATH.
func (s *Set) workerd() string {
	if path := s.tool("workerd"); path != "" {
		return path
	}
	path, err := exec.LookPath("workerd")
	if err != nil {
		return ""
	}
	return path
}

// here reports whether a driver's sandboxes live in this process.
func (s *Set) here(name string) bool {
	return slices.ContainsFunc(s.entries(), func(e entry) bool { return e.name == name && e.here })
}

// driver must be called with s.mu held.
func (s *Set) driver(name, agent string) (driver.Driver, error) {
	key := name + " " + agent
	if d := s.made[key]; d != nil {
		return d, nil
	}
	for _, e := range s.entries() {
		if e.name == name {
			s.made[key] = e.make(filepath.Join(s.stateDir, "drivers", name), agent, s.log)
			return s.made[key], nil
		}
	}
	return nil, fmt.Errorf("driver %q: %w", name, fs.ErrNotExist)
}
