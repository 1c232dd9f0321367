package image

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/firebreak-dev/firebreak"
)

// recipe is a template made of Debian packages.
type recipe struct {
	name, suite string
	packages    []string
	files       []textFile
}

func recipes() []recipe {
	base := []string{"bash", "ca-certificates", "coreutils", "curl", "git", "iproute2", "nodejs", "procps", "python3", "sudo"}
	sudo := []textFile{{"/etc/sudoers.d/user", "user ALL=(ALL:ALL) NOPASSWD: ALL\n"}}
	return []recipe{
		{name: "base", suite: "bookworm", packages: base, files: sudo},
		{name: "code-interpreter", suite: "bookworm", files: sudo,
			packages: slices.Concat(base, []string{"python3-matplotlib", "python3-numpy", "python3-pandas"})},
	}
}

// unwanted are dpkg's options to leave out what no program reads: as Debian's own images for containers do, and what
// scientific packages need only to compile others. Licences stay.
func unwanted() []string {
	return []string{"path-exclude=/usr/share/doc/*", "path-include=/usr/share/doc/*/copyright", "path-exclude=/usr/share/man/*",
		"path-exclude=/usr/share/info/*", "path-exclude=/usr/share/locale/*", "path-exclude=/usr/include/boost/*",
		"path-exclude=/usr/lib/*/openblas*/*.a", "path-exclude=/usr/lib/python3*/config-*/*.a", "path-exclude=/usr/share/unicode/*"}
}

// Recipes returns the names of the recipes that Make knows.
func Recipes() []string {
	var names []string
	for _, r := range recipes() {
		names = append(names, r.name)
	}
	return names
}

func (j *job) fromRecipe(ctx context.Context, wanted string) (Template, error) {
	all := recipes()
	at := slices.IndexFunc(all, func(r recipe) bool { return r.name == wanted })
	if at < 0 {
		return Template{}, &firebreak.Error{Kind: firebreak.KindInvalid, Err: fmt.Errorf("there is no recipe %q", wanted),
			Mend: "the recipes are: " + strings.Join(Recipes(), ", ")}
	}
	r := all[at]
	t := Template{Source: "Debian " + r.suite + ": " + strings.Join(r.packages, " ")}
	if err := j.bootstrap(ctx, r); err != nil {
		return t, err
	}
	if _, err := j.tree.Lookup("/bin/bash"); err != nil {
		return t, &firebreak.Error{Kind: firebreak.KindHost, Err: fmt.Errorf("mmdebstrap wrote no root file system: %w", err)}
	}
	for _, f := range r.files {
		if err := j.tree.WriteFile(f.path, []byte(f.text), 0o440); err != nil {
			return t, err
		}
	}
	t.Workdir = "/home/user"
	return t, nil
}

// bootstrap lets mmdebstrap write the root file system as an archive straight into the tree.
func (j *job) bootstrap(ctx context.Context, r recipe) error {
	tool, err := exec.LookPath("mmdebstrap")
	if err != nil {
		return &firebreak.Error{Kind: firebreak.KindHost, Err: errors.New("mmdebstrap is not installed"),
			Mend: "apt-get install mmdebstrap, or take an image: firebreak template import python:3"}
	}
	mode, err := j.store.mode()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	args := []string{"--mode=" + mode, "--variant=minbase", "--format=tar", "--include=" + strings.Join(r.packages, ",")}
	for _, pattern := range unwanted() {
		args = append(args, "--dpkgopt="+pattern)
	}
	cmd := exec.CommandContext(ctx, tool, append(args, r.suite, "-")...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", fmt.Sprintf("SOURCE_DATE_EPOCH=%d", 946684800))
	// It has children and mounts of its own and clears them away at SIGTERM, also if we die.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	log := &bootstrapLog{job: j}
	cmd.Stderr = log
	return j.runInto(ctx, cancel, cmd, log)
}

// runInto runs cmd and applies the archive that it writes.
func (j *job) runInto(ctx context.Context, cancel func(), cmd *exec.Cmd, log *bootstrapLog) error {
	runtime.LockOSThread() // the parent-death signal is about the thread that forks
	defer runtime.UnlockOSThread()
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start mmdebstrap: %w", err)
	}
	applyErr := j.tree.ApplyTar(ctx, bufio.NewReaderSize(out, 1<<20))
	if applyErr != nil {
		cancel() // nobody reads on
		_, _ = io.Copy(io.Discard, out)
	}
	runErr := cmd.Wait()
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // what it may have left
	if runErr == nil || applyErr != nil && log.mistake() == "" {
		return applyErr
	}
	if err := context.Cause(ctx); err != nil && applyErr != nil && errors.Is(applyErr, context.Canceled) {
		return applyErr
	}
	return &firebreak.Error{Kind: firebreak.KindHost, Err: fmt.Errorf("mmdebstrap: %w: %s", runErr, log.mistake()),
		Mend: "check that this machine reaches its Debian mirror; as an ordinary user install uidmap or fakechroot"}
}

// mode chooses how mmdebstrap gets the owners right: an ordinary user leaves that to it; root, also of a user namespace
// that has as many ids as packages use, simply is root. With fewer ids there is no way: even its preload libraries fail.
func (s *Store) mode() (string, error) {
	if os.Geteuid() != 0 {
		return "auto", nil
	}
	ids, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return "", err
	}
	if countIDs(string(ids)) < 65536 {
		return "", &firebreak.Error{Kind: firebreak.KindHost,
			Err: errors.New("this user has too few user ids to unpack Debian packages"),
			Mend: "apt-get install uidmap and give the user a range in /etc/subuid and /etc/subgid, " +
				"or take an image: firebreak template import python:3"}
	}
	return "root", nil
}

// countIDs adds up the lengths of the ranges in a uid_map.
func countIDs(uidMap string) int64 {
	var sum int64
	for line := range strings.Lines(uidMap) {
		if fields := strings.Fields(line); len(fields) == 3 {
			n, _ := strconv.ParseInt(fields[2], 10, 64) // the kernel wrote it
			sum += n
		}
	}
	return sum
}

// bootstrapSteps is how many "I:" lines a run of mmdebstrap prints, about.
const bootstrapSteps = 12

// bootstrapLog makes progress of what mmdebstrap prints and keeps what it complains of.
type bootstrapLog struct {
	job    *job
	rest   []byte
	steps  int64
	errors []string
	last   string
}

// Write implements io.Writer.
func (l *bootstrapLog) Write(p []byte) (int, error) {
	l.rest = append(l.rest, p...)
	for {
		at := bytes.IndexAny(l.rest, "\r\n")
		if at < 0 {
			break
		}
		l.line(strings.TrimSpace(string(l.rest[:at])))
		l.rest = l.rest[at+1:]
	}
	if len(l.rest) > 64<<10 {
		l.rest = nil
	}
	return len(p), nil
}

func (l *bootstrapLog) line(text string) {
	switch {
	case strings.HasPrefix(text, "I: "):
		l.steps = min(l.steps+1, bootstrapSteps)
		l.job.report(strings.TrimSuffix(text[3:], "..."), l.steps, bootstrapSteps)
	case strings.HasPrefix(text, "E: ") && len(l.errors) < 5:
		l.errors = append(l.errors, text[3:])
	case text != "" && !strings.HasPrefix(text, "W: "):
		l.last = text
	}
}

// mistake returns what went wrong in mmdebstrap's own words.
func (l *bootstrapLog) mistake() string {
	if len(l.errors) > 0 {
		return strings.Join(l.errors, "; ")
	}
	return l.last
}
