package gvisor_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/drivertest"
	"github.com/firebreak-dev/firebreak/internal/driver/gvisor"
	"github.com/firebreak-dev/firebreak/internal/image"
)

// programVariable tells re-executed test binaries where testdata/program has been built.
const programVariable = "FIREBREAK_GVISOR_PROGRAM"

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	if os.Getenv(programVariable) != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "gvisor-test")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	program := filepath.Join(dir, "program")
	// Never with -race and always static, whatever the test itself is: it runs in a sandbox's empty root.
	build := exec.Command("go", "build", "-o", program, "./testdata/program")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build testdata/program: %v\n%s", err, out)
		return 1
	}
	if err := os.Setenv(programVariable, program); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

func newDriver(_ testing.TB, p drivertest.Place) driver.Driver {
	return gvisor.New(gvisor.Config{StateDir: p.StateDir, Agent: p.Agent, Exe: os.Getenv(programVariable), Log: p.Log})
}

// allCaps is what the driver offers on a host that lets us make cgroups: one of root's.
const allCaps = driver.CapLimitCPU | driver.CapLimitMemory | driver.CapLimitDisk | driver.CapLimitPIDs | driver.CapMounts |
	driver.CapProcesses | driver.CapTerminal | driver.CapUsers | driver.CapRootUser | driver.CapPrivateRoot |
	driver.CapPrivatePIDs | driver.CapPrivateNet

func TestConformance(t *testing.T) {
	images, err := image.Open(t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	caps := allCaps
	if inNamespace() {
		caps &^= driver.CapLimitCPU | driver.CapLimitMemory
	}
	drivertest.Suite{
		Name: "gvisor", Caps: caps, New: newDriver,
		Root: func(t testing.TB) driver.Root {
			root, err := images.Root(context.Background(), "host", []driver.Form{driver.FormDirectory})
			if err != nil {
				t.Fatal(err)
			}
			return root
		},
	}.Run(t)
}
