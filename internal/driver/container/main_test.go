package container

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"crypto/rand"

	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/oci"
	"github.com/firebreak-dev/firebreak/internal/image"
)

// TestMain: as pid 1 of a container the test program is its agent, so that what is proved here is this driver's alone.
func TestMain(m *testing.M) {
	if os.Args[0] == oci.AgentPath {
		shellAgent()
		return
	}
	os.Exit(m.Run())
}

// shellAgent runs one line of shell for each connection, with all that the agent has and its programs would not.
func shellAgent() {
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", agentPort))
	if err != nil {
		fmt.Println(err)
		os.Exit(3)
	}
	for {
		conn, err := l.Accept()
		if err != nil {
			os.Exit(4)
		}
		go func() {
			defer conn.Close()
			line, err := bufio.NewReader(conn).ReadString('\n')
			if err != nil {
				return
			}
			var n int
			if _, err := fmt.Sscanf(line, "exit %d", &n); err == nil {
				os.Exit(n)
			}
			if _, err := fmt.Sscanf(line, "shout %d", &n); err == nil {
				var err error
				for mib := make([]byte, 1<<20); n > 0 && err == nil; n-- {
					_, err = os.Stdout.Write(mib)
				}
				fmt.Fprint(conn, err)
				return
			}
			out, err := exec.Command("/bin/sh", "-c", line).CombinedOutput()
			if err != nil {
				out = append(out, err.Error()...)
			}
			_, _ = conn.Write(out)
		}()
	}
}

// runtimes are those that make test has installed.
func runtimes() map[string]string {
	built, _ := filepath.Abs("../../../.cache/bin/runc")
	return map[string]string{"crun": "crun", "runc": built}
}

// place is a driver with the shell agent, and what its sandboxes start from.
type place struct {
	*Driver
	t    testing.TB
	base string
	root driver.Root
}

func newPlace(t testing.TB, runtime string) *place {
	t.Helper()
	if !slices.Contains(strings.Split(os.Getenv("FIREBREAK_REQUIRE"), ","), "container") {
		if p := hostProblems("/proc"); len(p) > 0 {
			t.Skip(p[0].Text)
		}
		if _, err := exec.LookPath(runtime); err != nil {
			t.Skipf("%v; to mend it: scripts/install-test-tools.sh", err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	base := t.TempDir()
	log := slog.New(slog.DiscardHandler)
	images, err := image.Open(filepath.Join(base, "images"), log)
	if err != nil {
		t.Fatal(err)
	}
	root, err := images.Root(context.Background(), "host", []driver.Form{driver.FormDirectory})
	if err != nil {
		t.Fatal(err)
	}
	d := New(Config{StateDir: filepath.Join(base, "state"), Agent: self, Runtime: runtime, Log: log})
	return &place{Driver: d, t: t, base: base, root: root}
}

func (p *place) spec() driver.Spec {
	p.t.Helper()
	id := driver.ID("c" + strings.ToLower(rand.Text()[:10]))
	spec := driver.Spec{ID: id, Dir: filepath.Join(p.base, "boxes", string(id)), Root: p.root}
	if err := os.MkdirAll(spec.Dir, 0o700); err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() {
		if err := p.Destroy(context.Background(), spec); err != nil {
			p.t.Error(err)
		}
	})
	return spec
}

// box is a running sandbox.
type box struct {
	driver.Sandbox
	t    testing.TB
	spec driver.Spec
}

func (p *place) box(spec driver.Spec) box {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	sb, err := p.Create(ctx, spec)
	if err != nil {
		p.t.Fatal(err)
	}
	return box{sb, p.t, spec}
}

// sh returns what a line of shell says inside.
func (b box) sh(line string) string {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := b.Dial(ctx)
	if err != nil {
		b.t.Fatal(err)
	}
	defer conn.Close()
	if _, err := fmt.Fprintln(conn, line); err != nil {
		b.t.Fatal(err)
	}
	out, err := io.ReadAll(conn)
	if err != nil && !strings.Contains(err.Error(), "reset") { // an agent that was told to end
		b.t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// each runs a test with every runtime.
func each(t *testing.T, test func(t *testing.T, p *place)) {
	for name, path := range runtimes() {
		t.Run(name, func(t *testing.T) { test(t, newPlace(t, path)) })
	}
}
