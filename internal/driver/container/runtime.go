package container

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"golang.org/x/mod/semver"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
)

// tool is an OCI runtime of this host.
type tool struct {
	Name    string `json:"name"` // crun, runc, youki
	Path    string `json:"path"`
	Version string `json:"version"`

	// What the file was when it was asked for its version, so that it is asked again when it has changed.
	Size  int64     `json:"size"`
	Mtime time.Time `json:"mtime"`
}

// runtimeNames are looked for on PATH, the fastest first.
func runtimeNames() []string { return []string{"crun", "runc", "youki"} }

// findRuntime returns the runtime to use, or why none can be used.
func (d *Driver) findRuntime(ctx context.Context) (tool, error) {
	names := runtimeNames()
	if d.cfg.Runtime != "" {
		names = []string{d.cfg.Runtime}
	}
	var first error
	for _, name := range names {
		t, err := d.askRuntime(ctx, name)
		if err == nil {
			err = t.flaw()
		}
		if err == nil {
			return t, nil
		}
		if ctx.Err() != nil {
			return tool{}, ctx.Err()
		}
		if first == nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, exec.ErrNotFound) {
			first = err
		}
	}
	if first == nil {
		first = &firebreak.Error{Kind: firebreak.KindHost, Op: "find container runtime",
			Err: fmt.Errorf("none of %s is on PATH", strings.Join(names, ", ")), Mend: "apt-get install crun"}
	}
	return tool{}, first
}

// askRuntime finds a runtime and its version. The answer is kept in the state directory, because asking takes as long as
// a good part of making a container.
func (d *Driver) askRuntime(ctx context.Context, name string) (tool, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return tool{}, err
	}
	if path, err = filepath.Abs(path); err != nil {
		return tool{}, fmt.Errorf("find %s: %w", name, err)
	}
	st, err := os.Stat(path)
	if err != nil {
		return tool{}, fmt.Errorf("find %s: %w", name, err)
	}
	kept := filepath.Join(d.cfg.StateDir, ".runtime-"+filepath.Base(path)+".json")
	var t tool
	if data, err := os.ReadFile(kept); err == nil && json.Unmarshal(data, &t) == nil &&
		t.Path == path && t.Size == st.Size() && t.Mtime.Equal(st.ModTime()) {
		return t, nil
	}
	cmd := exec.CommandContext(ctx, path, "--version")
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		return tool{}, &firebreak.Error{Kind: firebreak.KindHost, Op: "ask " + path + " for its version", Err: err,
			Mend: "apt-get install --reinstall crun"}
	}
	t = tool{Path: path, Size: st.Size(), Mtime: st.ModTime()}
	if t.Name, t.Version = parseVersion(string(out)); t.Name == "" {
		return tool{}, &firebreak.Error{Kind: firebreak.KindHost, Op: "ask " + path + " for its version",
			Err: fmt.Errorf("%.60q is not what a runtime answers", out), Mend: "apt-get install crun"}
	}
	if data, err := json.Marshal(t); err == nil {
		if err := writeAtomic(kept, data); err != nil {
			d.log.Debug("the runtime's version was not kept", "error", err)
		}
	}
	return t, nil
}

// parseVersion leaves out what distributions append: "-0ubuntu1" would make a version seem older than the release.
func parseVersion(out string) (name, version string) {
	// The first line of --version: "runc version 1.1.5+ds1", "crun version 1.8.1", "youki version: 0.5.7".
	line := regexp.MustCompile(`(?m)^(crun|runc|youki)(?: version)?:? v?([0-9]+\.[0-9]+(?:\.[0-9]+)?(?:-rc\.?[0-9]+)?)`)
	m := line.FindStringSubmatch(out)
	if m == nil {
		return "", ""
	}
	return m[1], m[2]
}

// flaw returns an error if it is known that code can break out of containers of this runtime.
func (t tool) flaw() error {
	v := "v" + t.Version
	older := func(than string) bool { return semver.Compare(v, than) < 0 }
	switch t.Name {
	case "runc":
		if older("v1.2.8") || !older("v1.3.0-0") && older("v1.3.3") || !older("v1.4.0-0") && older("v1.4.0-rc.3") {
			return t.escape("CVE-2025-31133, CVE-2025-52565, CVE-2025-52881", "install runc 1.2.8, 1.3.3, 1.4.0-rc.3 or later, or apt-get install crun")
		}
	case "youki":
		if older("v0.5.7") {
			return t.escape("CVE-2025-62161, CVE-2025-62596", "install youki 0.5.7 or later, or apt-get install crun")
		}
	}
	return nil
}

func (t tool) escape(cves, mend string) error {
	return &firebreak.Error{Kind: firebreak.KindHost, Op: "use " + t.Path,
		Err: fmt.Errorf("%s %s lets code out of its container (%s)", t.Name, t.Version, cves), Mend: mend}
}

// run starts the container of spec, with one call of the runtime, and returns when its first process runs. It must be
// called on a thread that stays locked meanwhile: the runtime inherits its mounts and dies with it.
func (d *Driver) run(ctx context.Context, t tool, spec driver.Spec, limited bool, std stdio) error {
	own := ownDir(spec)
	log := filepath.Join(own, logName)
	args := []string{"--root", d.claimDir(spec.ID), "--log", log, "--log-format", "json"}
	if t.Name == "crun" {
		manager := "cgroupfs"
		if !limited {
			manager = "disabled"
		}
		args = append(args, "--cgroup-manager", manager)
	}
	args = append(args, "run", "--detach", "--bundle", own, "--pid-file", filepath.Join(own, pidName), string(spec.ID))
	cmd := exec.CommandContext(ctx, t.Path, args...)
	cmd.Dir = own // by which a half-made container is found
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = std.in, std.out, std.out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		why := lastError(log)
		if why == "" {
			why = tail(std.out)
		}
		return fmt.Errorf("%s: %w: %s", t.Name, err, why)
	}
	return nil
}

// lastError is the last message of level error in a runtime's log.
func lastError(log string) string {
	data, err := os.ReadFile(log)
	if err != nil {
		return ""
	}
	var last string
	for line := range bytes.Lines(data) {
		var entry struct{ Level, Msg string }
		if json.Unmarshal(line, &entry) == nil && strings.EqualFold(entry.Level, slog.LevelError.String()) {
			last = entry.Msg
		}
	}
	return last
}

// tail is the end of what a sandbox's agent has said, in one line for a person.
func tail(output *os.File) string {
	const most = 400
	st, err := output.Stat()
	if err != nil {
		return ""
	}
	buf := make([]byte, most)
	n, _ := output.ReadAt(buf, max(st.Size()-most, 0)) // io.EOF is what short output gives
	return strings.Join(strings.Fields(strings.ToValidUTF8(string(buf[:n]), "?")), " ")
}
