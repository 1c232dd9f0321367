package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// contender is one way to run `true` in a fresh sandbox, measured as a whole process.
type contender struct {
	name string
	argv []string
	dir  string
	skip string // why it is not on this host
	from *thread
	took sample
}

// calm is how long a host is left alone before each contender, so that none profits from what the one before it has woken:
// the first move between cgroups after a while takes the kernel some 10 ms, and those that follow soon none.
const calm = 150 * time.Millisecond

func (c *contender) once(ctx context.Context) error {
	time.Sleep(calm)
	cmd := exec.CommandContext(ctx, c.argv[0], c.argv[1:]...)
	cmd.Dir = c.dir
	var out []byte
	var err error
	c.from.do(func() {
		start := time.Now()
		out, err = cmd.CombinedOutput()
		c.took = append(c.took, time.Since(start))
	})
	if err != nil {
		return fmt.Errorf("%s: %w: %s", c.name, err, out)
	}
	return nil
}

// peers are the contenders in the order of the report; ours stand before the one whose budget they are held to.
func (b *bench) peers() ([]*contender, error) {
	bundle, err := b.bundle()
	if err != nil {
		return nil, err
	}
	hidden, err := withoutUnified()
	if err != nil {
		return nil, err
	}
	state := "--state-dir=" + filepath.Join(b.dir, "state")
	root := filepath.Join(b.dir, "oci")
	all := []*contender{
		{name: "firebreak gvisor", argv: []string{b.exe, "run", state, "--isolation", "gvisor", "--", "true"}},
		{name: "runsc do", argv: []string{b.runsc, "--root", root + "-runsc", "--network=none", "do", "true"}},
		{name: "firebreak container", argv: []string{b.exe, "run", state, "--isolation", "container", "--origin", "trusted", "--", "true"}},
		{name: "crun run", argv: []string{"crun", "--root", root, "--cgroup-manager", "cgroupfs", "run", "bench-crun"}, dir: bundle, from: hidden},
		{name: "runc run", argv: []string{"runc", "--root", root + "-runc", "run", "bench-runc"}, dir: bundle},
		{name: "firebreak process", argv: []string{b.exe, "run", state, "-q", "--isolation", "process", "--accept-weaker", "to compare", "--", "true"}},
		{name: "bwrap", argv: []string{"bwrap", "--unshare-all", "--ro-bind", "/usr", "/usr", "--symlink", "usr/bin", "/bin",
			"--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64", "--proc", "/proc", "--dev", "/dev", "true"}},
		{name: "true on the host", argv: []string{"true"}},
	}
	for _, c := range all {
		if _, err := exec.LookPath(c.argv[0]); err != nil {
			c.skip = "not installed"
		}
	}
	return all, nil
}

// bundle writes an OCI bundle that does what our container does: the host's /usr read-only, true, all namespaces.
func (b *bench) bundle() (string, error) {
	dir := filepath.Join(b.dir, "bundle")
	for _, sub := range []string{"rootfs/usr", "rootfs/proc", "rootfs/dev", "rootfs/sys"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return "", err
		}
	}
	for _, link := range []string{"bin", "lib", "lib64"} {
		if err := os.Symlink("usr/"+link, filepath.Join(dir, "rootfs", link)); err != nil {
			return "", err
		}
	}
	spec := specs.Spec{
		Version: "1.0.2", // what every runtime in use knows
		Root:    &specs.Root{Path: "rootfs", Readonly: true},
		Process: &specs.Process{Args: []string{"true"}, Cwd: "/", Env: []string{"PATH=/usr/bin:/bin"}, NoNewPrivileges: true},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755"}},
			{Destination: "/usr", Type: "bind", Source: "/usr", Options: []string{"rbind", "ro"}},
		},
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{
			{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace},
			{Type: specs.UTSNamespace}, {Type: specs.NetworkNamespace},
		}},
	}
	text, err := json.Marshal(spec)
	if err != nil {
		return "", err
	}
	return dir, os.WriteFile(filepath.Join(dir, "config.json"), text, 0o644)
}

// oneShot runs all contenders in turn, round by round, so that a drift of the machine's speed hits all alike.
func (b *bench) oneShot(ctx context.Context) ([]*contender, error) {
	all, err := b.peers()
	if err != nil {
		return nil, err
	}
	for round := range b.rounds + 1 {
		for _, c := range all {
			if c.skip != "" {
				continue
			}
			if err := c.once(ctx); err != nil {
				return nil, err
			}
			if round == 0 { // warm-up
				c.took = nil
			}
		}
		fmt.Fprintf(os.Stderr, "\rone-shot round %d of %d ", round, b.rounds)
	}
	fmt.Fprintln(os.Stderr)
	return all, nil
}
