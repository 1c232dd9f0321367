package agentbin

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/firebreak-dev/firebreak"
)

// program is something that can be built from this module.
type program struct{ name, pkg string }

// Static returns the path of an executable that is the running program and is linked statically, as the processes of
// gVisor must be, which re-execute it where no library is: the running program itself if it is so, else a build of it
// without cgo, kept in dir. `go run` on a host with a C compiler links dynamically. The error is of firebreak.KindHost.
func Static(ctx context.Context, dir string, log *slog.Logger) (string, error) {
	exe, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find the running program: %w", err)
	}
	dynamic, err := isDynamic(exe)
	if err != nil {
		return "", err
	}
	if !dynamic {
		return "/proc/self/exe", nil
	}
	path, err := build(ctx, dir, exe, program{"firebreak", "./cmd/firebreak"}, log)
	if err != nil {
		return "", &firebreak.Error{Kind: firebreak.KindHost, Op: "build firebreak without cgo", Err: err,
			Mend: "run `make build` in Firebreak's source and use bin/firebreak"}
	}
	return path, nil
}

// isDynamic reports whether an executable names an interpreter, which would have to be there wherever it is run.
func isDynamic(exe string) (bool, error) {
	f, err := elf.Open(exe)
	if err != nil {
		return false, fmt.Errorf("read the running program: %w", err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return true, nil
		}
	}
	return false, nil
}

// build makes a program from the module that the running program was built from, unless dir has it. The key is the
// running program's own build, because a program that was built anew may come with new ones.
func build(ctx context.Context, dir, exe string, p program, log *slog.Logger) (string, error) {
	key, err := buildKey(exe)
	if err != nil {
		return "", err
	}
	dir, err = filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, p.name+"-"+key)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	module, err := moduleDir()
	if err != nil {
		return "", err
	}
	gotool, err := exec.LookPath("go")
	if err != nil {
		return "", err
	}
	log.Warn("building " + p.pkg + " without cgo, once for this build of firebreak: it can take a minute")
	temp, err := os.MkdirTemp("", "firebreak-build-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(temp)
	built := filepath.Join(temp, p.name)
	cmd := exec.CommandContext(ctx, gotool, "build", "-trimpath", "-ldflags", "-s -w", "-o", built, p.pkg)
	cmd.Dir = module
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build %s: %w: %s", p.pkg, err, lastLine(out))
	}
	path, err = install(dir, p.name+"-"+key, func(w io.Writer) error { return copyFile(w, built) })
	if err == nil {
		dropOlder(dir, p.name, path)
	}
	return path, err
}

// dropOlder removes what earlier builds left, since each time the source changes there is a new one. Processes that still
// run an old one keep it open.
func dropOlder(dir, name, keep string) {
	older, _ := filepath.Glob(filepath.Join(dir, name+"-*"))
	for _, path := range older {
		if path != keep {
			_ = os.Remove(path) // the next build tries again
		}
	}
}

func lastLine(out []byte) string {
	text := strings.TrimSpace(string(out))
	return text[strings.LastIndexByte(text, '\n')+1:]
}

// moduleDir is where this source file lay when it was compiled, if it is still there.
func moduleDir() (string, error) {
	_, file, _, ok := runtime.Caller(0)
	if !ok || !filepath.IsAbs(file) {
		return "", errors.New("this program does not know where its source is")
	}
	dir := filepath.Join(filepath.Dir(file), "..", "..")
	if _, err := os.Stat(filepath.Join(dir, "cmd", siblingName)); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("its source is no longer at %s", dir)
		}
		return "", err
	}
	return dir, nil
}
