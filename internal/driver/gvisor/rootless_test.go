package gvisor_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/agentbin"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/drivertest"
)

// ordinaryUser is an account without a name: what matters is that it is not root.
const ordinaryUser = 23456

// stepVariable tells a re-executed test binary, which then is root of a user namespace, what to do there.
const stepVariable = "FIREBREAK_GVISOR_STEP"

func inNamespace() bool { return os.Getenv(stepVariable) != "" }

// ordinary is what an ordinary user has: a directory with the programs that tests need, and no toolchain.
type ordinary struct{ dir string }

func newOrdinary(t *testing.T) ordinary {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can become another user; as an ordinary user the other tests are this one")
	}
	dir, err := os.MkdirTemp("", "gvisor-ordinary") // not t.TempDir, whose parents are root's alone
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if _, err := agentbin.Path(context.Background(), dir, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]string{"probe": "", "deaf": "deaf", "brief": "brief"} {
		build := exec.Command("go", "build", "-ldflags", "-X main.mode="+mode, "-o", filepath.Join(dir, "inside-"+name),
			"github.com/firebreak-dev/firebreak/internal/driver/drivertest/inside")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("build: %v\n%s", err, out)
		}
	}
	copyInto(t, os.Getenv(programVariable), filepath.Join(dir, "program"))
	copyInto(t, "/proc/self/exe", filepath.Join(dir, "test"))
	if err := os.Mkdir(filepath.Join(dir, "tmp"), 0o755); err != nil {
		t.Fatal(err)
	}
	err = filepath.Walk(dir, func(path string, _ os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		if err := os.Chmod(path, 0o755); err != nil {
			return err
		}
		return os.Chown(path, ordinaryUser, ordinaryUser)
	})
	if err != nil {
		t.Fatal(err)
	}
	return ordinary{dir}
}

// run runs tests of this binary as the ordinary user, root of a new user namespace of his.
func (o ordinary) run(t *testing.T, step, tests string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "unshare", "--user", "--map-root-user", "--mount",
		filepath.Join(o.dir, "test"), "-test.v", "-test.count=1", "-test.run", tests)
	cmd.Dir = o.dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + o.dir, "TMPDIR=" + filepath.Join(o.dir, "tmp"),
		"FIREBREAK_DRIVERTEST_PROGRAMS=" + o.dir, programVariable + "=" + filepath.Join(o.dir, "program"),
		"FIREBREAK_REQUIRE=gvisor", stepVariable + "=" + step}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: ordinaryUser, Gid: ordinaryUser}}
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Contains(string(out), "no tests to run") {
		t.Errorf("as an ordinary user: %v\n%s", err, out)
	}
}

// TestOrdinaryUser is the part of the suite in which an ordinary user differs from root.
func TestOrdinaryUser(t *testing.T) {
	if inNamespace() {
		t.Skip("this is the ordinary user")
	}
	newOrdinary(t).run(t, "suite", "^TestConformance$/^(lifecycle|probe-describes|usage|wait|mute-agent|agent-ends-at-once|"+
		"deep-path|open-by-second-driver|creator-killed|creator-killed-at-random|limits-without-bit-refused|exec-table|users|"+
		"root-user|terminal|files-round-trip|template-untouched|mounts|host-files-invisible|mounts-safe|pid-one|"+
		"network-loopback-only|limit-disk|limit-processes|pause.*|hammer)$")
}

// TestOtherNamespace shows that every process of the same user can take a sandbox over, as each of his commands runs in a
// user namespace of its own.
func TestOtherNamespace(t *testing.T) {
	switch step := os.Getenv(stepVariable); step {
	case "":
		o := newOrdinary(t)
		o.run(t, "make", "^TestOtherNamespace$")
		o.run(t, "take over", "^TestOtherNamespace$")
	case "make":
		sb := place(t)
		if _, err := sb.driver.Create(context.Background(), sb.spec); err != nil {
			t.Fatal(err)
		}
	case "take over":
		takeOver(t)
	default:
		t.Fatalf("no step %q", step)
	}
}

type placed struct {
	driver driver.Driver
	spec   driver.Spec
}

// place is the same for both steps.
func place(t *testing.T) placed {
	t.Helper()
	home := os.Getenv("HOME")
	agent, err := agentbin.Path(context.Background(), home, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	p := placed{
		driver: newDriver(t, drivertest.Place{StateDir: filepath.Join(home, "state"), Agent: agent}),
		spec: driver.Spec{ID: "other", Dir: filepath.Join(home, "other"),
			Root: driver.Root{Form: driver.FormDirectory, Path: filepath.Join(home, "root")}},
	}
	for _, dir := range []string{p.spec.Dir, p.spec.Root.Path} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

func takeOver(t *testing.T) {
	p := place(t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	sb, err := p.driver.Open(ctx, p.spec)
	if err != nil {
		t.Fatal(err)
	}
	if u, err := sb.Usage(ctx); err != nil || u.Memory == 0 {
		t.Errorf("usage = %+v, %v; want some memory", u, err)
	}
	short, stop := context.WithTimeout(ctx, 50*time.Millisecond)
	defer stop()
	if exit, err := sb.Wait(short); err == nil {
		t.Errorf("the sandbox has ended: %+v", exit)
	}
	ended := make(chan driver.Exit, 1)
	go func() {
		exit, err := sb.Wait(ctx)
		if err != nil {
			exit.Detail = err.Error()
		}
		ended <- exit
	}()
	if err := p.driver.Destroy(ctx, p.spec); err != nil {
		t.Fatal(err)
	}
	if exit := <-ended; exit.Reason != firebreak.EndDestroyed {
		text, _ := json.Marshal(exit)
		t.Errorf("it ended with %s", text)
	}
	if ids, err := p.driver.List(ctx); err != nil || len(ids) > 0 {
		t.Errorf("left: %v, %v", ids, err)
	}
}
