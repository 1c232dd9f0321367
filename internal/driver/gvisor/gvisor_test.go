package gvisor_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/agentbin"
	"github.com/firebreak-dev/firebreak/internal/api/process"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/drivertest"
	"github.com/firebreak-dev/firebreak/internal/driver/gvisor"
	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/image"
)

// programVariable tells re-executed test binaries where testdata/program has been built.
const programVariable = "FIREBREAK_GVISOR_PROGRAM"

func TestMain(m *testing.M) {
	gvisor.MaybeMain()
	os.Exit(testMain(m))
}

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
	if err := os.Chmod(dir, 0o755); err != nil { // a sentry that needs no files is started as nobody
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
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
	driver.CapPrivatePIDs | driver.CapPrivateNet | driver.CapPause | driver.CapDetach

// TestMemoryShown: programs that size themselves by the machine's memory must see the limit.
func TestMemoryShown(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	dir := t.TempDir()
	agent, err := agentbin.Path(ctx, dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	d := newDriver(t, drivertest.Place{StateDir: filepath.Join(dir, "state"), Agent: agent})
	if info, err := d.Probe(ctx); err != nil || !info.Caps.Has(driver.CapLimitMemory) {
		t.Skipf("memory cannot be limited here: %v", err)
	}
	images, err := image.Open(filepath.Join(dir, "images"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	root, err := images.Root(ctx, "host", []driver.Form{driver.FormDirectory})
	if err != nil {
		t.Fatal(err)
	}
	spec := driver.Spec{ID: "memory", Dir: filepath.Join(dir, "memory"), Root: root,
		Limits: firebreak.Limits{Memory: 300 << 20}}
	if err := os.Mkdir(spec.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	sb, err := d.Create(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Destroy(context.Background(), spec); err != nil {
			t.Error(err)
		}
	})
	g := guest.New(sb.Dial, "token")
	defer g.Close()
	if err := g.Init(ctx, guest.Config{User: "root"}); err != nil {
		t.Fatal(err)
	}
	got := strings.Fields(output(ctx, t, g, "/bin/grep", "MemTotal", "/proc/meminfo"))
	if strings.Join(got, " ") != "MemTotal: 307200 kB" {
		t.Errorf("a sandbox of 300 MiB sees %q", got)
	}
}

// output runs a program and returns what it writes.
func output(ctx context.Context, t *testing.T, g *guest.Guest, cmd string, args ...string) string {
	t.Helper()
	stream, err := g.Process().Start(ctx, connect.NewRequest(&process.StartRequest{
		Process: &process.ProcessConfig{Cmd: cmd, Args: args},
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	var out []byte
	for stream.Receive() {
		out = append(out, stream.Msg().GetEvent().GetData().GetStdout()...)
	}
	if err := stream.Err(); err != nil {
		t.Fatal(err)
	}
	return string(out)
}

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

// bench is a driver and a sandbox of the host template to be made.
func bench(b *testing.B) (driver.Driver, driver.Spec) {
	ctx := context.Background()
	dir := b.TempDir()
	log := slog.New(slog.DiscardHandler)
	agent, err := agentbin.Path(ctx, dir, log)
	if err != nil {
		b.Fatal(err)
	}
	images, err := image.Open(filepath.Join(dir, "images"), log)
	if err != nil {
		b.Fatal(err)
	}
	root, err := images.Root(ctx, "host", []driver.Form{driver.FormDirectory})
	if err != nil {
		b.Fatal(err)
	}
	d := newDriver(b, drivertest.Place{StateDir: filepath.Join(dir, "state"), Agent: agent, Log: log})
	spec := driver.Spec{ID: "bench", Dir: filepath.Join(dir, "bench"), Root: root}
	if err := os.Mkdir(spec.Dir, 0o700); err != nil {
		b.Fatal(err)
	}
	return d, spec
}

// BenchmarkCreate makes and destroys a sandbox, until its agent listens.
func BenchmarkCreate(b *testing.B) {
	ctx := context.Background()
	d, spec := bench(b)
	for b.Loop() {
		if _, err := d.Create(ctx, spec); err != nil {
			b.Fatal(err)
		}
		if err := d.Destroy(ctx, spec); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkPause pauses and resumes a sandbox, until its agent takes a connection again.
func BenchmarkPause(b *testing.B) {
	ctx := context.Background()
	d, spec := bench(b)
	sb, err := d.Create(ctx, spec)
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := d.Destroy(ctx, spec); err != nil {
			b.Error(err)
		}
	}()
	drivertest.BenchmarkPause(b, sb)
}
