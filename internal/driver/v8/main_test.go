package v8_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/agentbin"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/container"
	"github.com/firebreak-dev/firebreak/internal/driver/drivertest"
	"github.com/firebreak-dev/firebreak/internal/driver/gvisor"
	"github.com/firebreak-dev/firebreak/internal/driver/v8"
)

// TestMain: gVisor's processes are this program.
func TestMain(m *testing.M) {
	gvisor.MaybeMain()
	os.Exit(run(m))
}

// programVariable has the path of the program that gVisor's processes are.
const programVariable = "FIREBREAK_V8_TEST_PROGRAM"

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "v8test")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	program := filepath.Join(dir, "program")
	// Always static, whatever the test itself is: it runs in a sandbox's empty root.
	build := exec.Command("go", "build", "-o", program, "../gvisor/testdata/program")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	if err = errors.Join(err, os.Chmod(dir, 0o755), os.Setenv(programVariable, program)); err != nil {
		fmt.Fprintf(os.Stderr, "build testdata/program: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// workerd is where scripts/install-test-tools.sh puts it, or where it is found by itself.
func workerd() string {
	if at, err := filepath.Abs("../../../.cache/bin/workerd"); err == nil {
		if _, err := os.Stat(at); err == nil {
			return at
		}
	}
	at, err := exec.LookPath("workerd")
	if err != nil {
		return ""
	}
	return at
}

// sucrase lies beside workerd; "": it does not.
func sucrase() string {
	at := filepath.Join(filepath.Dir(workerd()), "sucrase.tgz")
	if _, err := os.Stat(at); err != nil {
		return ""
	}
	return at
}

// agentPath is the agent for the sandboxes of workerd.
var agentPath = sync.OnceValues(func() (string, error) {
	return agentbin.Path(context.Background(), filepath.Join(filepath.Dir(os.Getenv(programVariable)), "agent"), slog.New(slog.DiscardHandler))
})

// open returns a driver that has its processes behind one of the walls: the first of both that serves here, if none is named.
func open(t testing.TB, state, wall string, change func(*v8.Config)) *v8.Driver {
	t.Helper()
	agent, err := agentPath()
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	walls := map[string]driver.Driver{
		"gvisor":    gvisor.New(gvisor.Config{StateDir: filepath.Join(state, "gvisor"), Agent: agent, Exe: os.Getenv(programVariable), Log: log}),
		"container": container.New(container.Config{StateDir: filepath.Join(state, "container"), Agent: agent, Log: log}),
	}
	inner := []driver.Driver{walls["gvisor"], walls["container"]}
	if wall != "" {
		inner = []driver.Driver{walls[wall]}
	}
	cfg := v8.Config{StateDir: filepath.Join(state, "v8"), Workerd: workerd, TypeScript: sucrase, Inner: func(context.Context) ([]driver.Driver, error) { return inner, nil }, Log: log}
	if change != nil {
		change(&cfg)
	}
	return v8.New(cfg)
}

// required reports whether this host must serve the driver.
func required() bool {
	return slices.Contains(strings.Split(os.Getenv("FIREBREAK_REQUIRE"), ","), "v8")
}

func TestConformance(t *testing.T) {
	var hosts sync.Map // by state directory: the one driver of this process
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "hello.js"), []byte("console.log('hello')"), 0o600); err != nil {
		t.Fatal(err)
	}
	drivertest.Suite{
		Name:     "v8",
		InMemory: true,
		Caps:     driver.CapLimitDisk | driver.CapLimitPIDs | driver.CapPrivateRoot | driver.CapPrivatePIDs | driver.CapPrivateNet,
		Agent:    func(testing.TB) string { return "" },
		Language: &drivertest.Language{
			Program: []string{"node", "-e", "console.log('ok')"}, Spin: []string{"node", "-e", "for (;;);"}, Name: "javascript", Define: "let x = 42",
			Recall: "x", Print: "console.log('ok')", Fail: "nothing.of.this", Forever: "for (;;);",
		},
		Root: func(testing.TB) driver.Root {
			return driver.Root{Form: driver.FormScript, Path: root, Language: "javascript"}
		},
		New: func(t testing.TB, p drivertest.Place) driver.Driver {
			first, _ := hosts.LoadOrStore(p.StateDir, open(t, p.StateDir, "", nil))
			if p.Mute {
				return first.(*v8.Driver).Mute()
			}
			return first.(driver.Driver)
		},
		Patience: 2 * time.Minute,
	}.Run(t)
}
