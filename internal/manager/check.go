package manager

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/driver"
)

// Request asks for a sandbox. Its zero value is a good one.
type Request struct {
	Template string            // empty: the driver's own for Language, or host
	Language string            // what the code is written in, as in Question
	Options  map[string]string // the driver's own, which refuses those that it does not know

	Workload     firebreak.Workload // what is said of the code; what is not said is taken to be the careful word
	Driver       string             // empty: the policy chooses
	AcceptWeaker string             // why Driver may be weaker than the policy accepts

	Limits   firebreak.Limits
	Mounts   []driver.Mount
	Envs     map[string]string
	Timeout  time.Duration // zero: none
	Detached bool          // it lives on when this process ends
	Name     string
	Command  string // what it is for, shown to people
	User     string // of programs that name none: a name, or numbers uid:gid; empty: the template's
	Workdir  string // where they begin; empty: the template's

	Metadata     map[string]string       // the caller's own words about it
	Annotations  map[string]string       // the door's own, kept with the record
	TrafficToken string                  // asked for by the door of those who reach its ports; kept with the record
	OnTimeout    firebreak.TimeoutAction // empty: kill
	AutoResume   bool                    // traffic resumes it when it is paused
	Lent         bool                    // the door knows that the caller may use Template although it is another tenant's
}

const (
	maxMounts   = 64
	maxEnvs     = 1000
	maxEnvSize  = 1 << 20
	maxCommand  = 4 << 10
	maxUser     = 64
	maxMetadata = 64 << 10
	minMemory   = 16 << 20
	minDisk     = 1 << 20
	maxOptions  = 16 << 10
	maxTimeout  = 366 * 24 * time.Hour
)

func (r Request) question() Question {
	return Question{Workload: r.Workload, Driver: r.Driver, AcceptWeaker: r.AcceptWeaker, TimeLimit: r.Timeout,
		Template: r.Template, Language: r.Language, Detached: r.Detached,
		Needs:   driver.Spec{Limits: r.Limits, Mounts: r.Mounts}.Needs(),
		Writes:  slices.ContainsFunc(r.Mounts, func(m driver.Mount) bool { return !m.ReadOnly }),
		Fetches: r.Options[optionFetch] != "", Alone: r.alone()}
}

func invalid(format string, args ...any) error {
	return &firebreak.Error{Kind: firebreak.KindInvalid, Op: "create sandbox", Err: fmt.Errorf(format, args...)}
}

// mayAsk refuses to tenants what would reach beyond their sandboxes.
func (r Request) mayAsk(by auth.Caller) error {
	refuse := func(what string) error {
		return &firebreak.Error{Kind: firebreak.KindDenied, Op: "create sandbox", Err: errors.New(what), Mend: "ask whoever runs this server"}
	}
	switch {
	case by.Operator:
		return nil
	case len(r.Mounts) > 0:
		return refuse("a tenant cannot mount parts of the host")
	case !r.Lent && auth.OwnerOf(r.Template) != "" && !by.May(auth.OwnerOf(r.Template)):
		return &firebreak.Error{Kind: firebreak.KindNotFound, Op: "create sandbox", Err: fmt.Errorf("there is no template %q: %w", r.Template, fs.ErrNotExist)}
	case r.AcceptWeaker != "":
		return refuse("a tenant cannot accept a weaker boundary than the policy does")
	}
	for key := range r.Options {
		if !slices.Contains(narrowing(), key) {
			return refuse(fmt.Sprintf("a tenant cannot set the option %.40q, as it may reach beyond the sandbox", key))
		}
	}
	return nil
}

// optionFetch names hosts that code may fetch from.
const optionFetch = "fetch"

// narrowing are the options that only take away from a sandbox.
func narrowing() []string {
	return []string{"deterministic", driver.OptionExclusive, "fuel", "output", "timeout"}
}

// alone reports whether no other sandbox may be in the process. What is no answer is for the driver to refuse.
func (r Request) alone() bool {
	alone, err := strconv.ParseBool(cmp.Or(r.Options[driver.OptionExclusive], "false"))
	return alone || err != nil
}

// check refuses what is wrong with r itself, on any host.
func (r Request) check() error {
	l := r.Limits
	switch {
	case r.Name != "" && !regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}$`).MatchString(r.Name):
		return invalid("the name %q is not 1 to 63 of letters, digits, '_', '.' and '-', with a letter or digit first", r.Name)
	case r.Timeout < 0 || r.Timeout > maxTimeout:
		return invalid("a timeout of %s is not between 0 and %s", r.Timeout, maxTimeout)
	case math.IsNaN(l.CPUs) || l.CPUs < 0 || l.CPUs > 0 && l.CPUs < 0.01 || l.CPUs > 1<<16:
		return invalid("%g processors are not between 0.01 and %d", l.CPUs, 1<<16)
	case l.Memory < 0 || l.Memory > 0 && l.Memory < minMemory:
		return invalid("a memory limit of %d bytes is below the least, %d", l.Memory, minMemory)
	case l.Disk < 0 || l.Disk > 0 && l.Disk < minDisk:
		return invalid("a disk limit of %d bytes is below the least, %d", l.Disk, minDisk)
	case l.PIDs < 0 || l.PIDs > 1<<22:
		return invalid("a limit of %d processes is not between 1 and %d", l.PIDs, 1<<22)
	case len(r.Command) > maxCommand:
		return invalid("the command is longer than %d bytes", maxCommand)
	case len(r.User) > maxUser || strings.ContainsAny(r.User, "\x00\n"):
		return invalid("the user %.80q is no name", r.User)
	case r.Workdir != "" && !filepath.IsAbs(r.Workdir) || len(r.Workdir) > maxCommand || strings.Contains(r.Workdir, "\x00"):
		return invalid("the work directory %.80q is no absolute path", r.Workdir)
	case r.OnTimeout != "" && r.OnTimeout != firebreak.TimeoutKill && r.OnTimeout != firebreak.TimeoutPause:
		return invalid("a sandbox whose time is up can be %s or %s, not %q", firebreak.TimeoutKill, firebreak.TimeoutPause, r.OnTimeout)
	case sizeOf(r.Options) > maxOptions:
		return invalid("%d bytes of options are more than %d", sizeOf(r.Options), maxOptions)
	case len(r.Mounts) > maxMounts:
		return invalid("%d mounts are more than %d", len(r.Mounts), maxMounts)
	}
	for _, m := range []map[string]string{r.Metadata, r.Annotations} {
		if size := sizeOf(m); size > maxMetadata {
			return invalid("%d bytes of metadata are more than %d", size, maxMetadata)
		}
	}
	return checkEnvs(r.Envs)
}

func sizeOf(m map[string]string) int {
	size := 0
	for k, v := range m {
		size += len(k) + len(v) + 2
	}
	return size
}

func checkEnvs(envs map[string]string) error {
	for k, v := range envs {
		if k == "" || strings.ContainsAny(k, "=\x00") || strings.Contains(v, "\x00") {
			return invalid("%q is no name or has no value for an environment variable", k)
		}
	}
	size := sizeOf(envs)
	if len(envs) > maxEnvs || size > maxEnvSize {
		return invalid("%d environment variables of %d bytes are more than %d of %d", len(envs), size, maxEnvs, maxEnvSize)
	}
	return nil
}

// checkMounts resolves the sources of mounts, sorts them so that none hides one below it, and returns warnings too.
func checkMounts(mounts []driver.Mount, stateDir string) ([]driver.Mount, []string, error) {
	var checked []driver.Mount
	var warnings []string
	for _, mt := range mounts {
		source, err := checkSource(mt.Source, stateDir)
		if err != nil {
			return nil, nil, err
		}
		target := filepath.Clean(mt.Target)
		if err := checkTarget(target); err != nil {
			return nil, nil, err
		}
		if slices.ContainsFunc(checked, func(o driver.Mount) bool { return o.Target == target }) {
			return nil, nil, invalid("two mounts go to %s", target)
		}
		if inside(stateDir, source) {
			warnings = append(warnings, fmt.Sprintf("%s is mounted and holds firebreak's own state, with the keys to other sandboxes", source))
		}
		checked = append(checked, driver.Mount{Source: source, Target: target, ReadOnly: mt.ReadOnly})
	}
	slices.SortStableFunc(checked, func(a, b driver.Mount) int { return strings.Compare(a.Target, b.Target) })
	return checked, warnings, nil
}

func checkSource(source, stateDir string) (string, error) {
	if !filepath.IsAbs(source) {
		return "", invalid("the mount source %q is not an absolute path", source)
	}
	path, err := filepath.EvalSymlinks(source)
	if err != nil {
		return "", &firebreak.Error{Kind: firebreak.KindInvalid, Op: "create sandbox", Err: fmt.Errorf("mount source: %w", err),
			Mend: "make it first: firebreak never makes a file or directory of the host for a mount"}
	}
	fi, err := os.Stat(path)
	switch {
	case err != nil:
		return "", invalid("mount source: %w", err)
	case !fi.IsDir() && !fi.Mode().IsRegular():
		return "", invalid("the mount source %s is neither a directory nor a file: a socket or device of the host is a way out of the sandbox", path)
	case inside(path, stateDir):
		return "", &firebreak.Error{Kind: firebreak.KindDenied, Op: "create sandbox",
			Err: fmt.Errorf("the mount source %s is firebreak's own state", path), Mend: "mount something else"}
	}
	return path, nil
}

func checkTarget(target string) error {
	if !filepath.IsAbs(target) || target == "/" || strings.Contains(target, "\x00") {
		return invalid("the mount target %q is not an absolute path below /", target)
	}
	for _, kept := range []string{"/proc", "/sys", "/dev"} {
		if inside(target, kept) {
			return invalid("the mount target %s would cover the sandbox's own %s", target, kept)
		}
	}
	return nil
}

// inside reports whether path is dir or lies below it.
func inside(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}

// limits completes what was asked for with the template's and with defaults where the driver can enforce them, and
// refuses what it cannot.
func limits(asked, template firebreak.Limits, info driver.Info) (firebreak.Limits, error) {
	missing := driver.Missing(info.Caps, driver.Spec{Limits: asked}.Needs())
	if missing != 0 {
		return asked, cannotLimit(info, missing)
	}
	if info.Caps.Has(driver.CapLimitCPU) {
		asked.CPUs = cmp.Or(asked.CPUs, template.CPUs, info.Usual.CPUs, float64(min(2, runtime.NumCPU())))
	}
	if info.Caps.Has(driver.CapLimitMemory) {
		asked.Memory = cmp.Or(asked.Memory, template.Memory, info.Usual.Memory, 1<<30)
	}
	if info.Caps.Has(driver.CapLimitDisk) {
		asked.Disk = cmp.Or(asked.Disk, template.Disk, info.Usual.Disk, 2<<30)
	}
	if info.Caps.Has(driver.CapLimitPIDs) {
		asked.PIDs = cmp.Or(asked.PIDs, info.Usual.PIDs, 512)
	}
	return asked, nil
}

func cannotLimit(info driver.Info, missing driver.Caps) error {
	var what []string
	for _, name := range missing.Names() {
		what = append(what, strings.TrimPrefix(name, "limit-"))
	}
	e := &firebreak.Error{Kind: firebreak.KindUnsupported, Op: "create sandbox",
		Err:  fmt.Errorf("%s cannot limit %s on this host", info.Name, strings.Join(what, ", ")),
		Mend: "leave the limit out, or use another driver"}
	if len(info.Warnings) > 0 { // they say what the host lacks
		w := info.Warnings[0]
		e.Kind, e.Err = firebreak.KindHost, errors.New(e.Err.Error()+": "+w.Text)
		if w.Mend != "" {
			e.Mend = w.Mend + "; or leave the limit out"
		}
	}
	return e
}
