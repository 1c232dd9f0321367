package proc

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/agent/account"
)

// DefaultPath is where programs are looked for if nobody says.
const DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Environ is the whole environment of a process: a base of four, then the layers, each of which wins over those before.
func Environ(u account.User, path string, layers ...map[string]string) (map[string]string, error) {
	env := map[string]string{"PATH": path, "HOME": u.Home, "USER": u.Name, "LOGNAME": u.Name}
	for _, layer := range layers {
		for k, v := range layer {
			if k == "" || strings.ContainsAny(k, "=\x00") || strings.Contains(v, "\x00") {
				return nil, fmt.Errorf("environment variable %q is not one", k)
			}
			env[k] = v
		}
	}
	return env, nil
}

func environList(env map[string]string) []string {
	list := make([]string, 0, len(env))
	for k, v := range env {
		list = append(list, k+"="+v)
	}
	return list
}

// checkDir says what is wrong with a working directory, because a failed exec does not say that it is the directory.
func checkDir(dir string) error {
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("cwd '%s' does not exist", dir)
	case err != nil:
		return fmt.Errorf("cwd '%s': %w", dir, err)
	case !info.IsDir():
		return fmt.Errorf("cwd '%s' is not a directory", dir)
	}
	if err := unix.Faccessat(unix.AT_FDCWD, dir, unix.X_OK, unix.AT_EACCESS); err != nil {
		return fmt.Errorf("cwd '%s': %w", dir, err)
	}
	return nil
}

// lookPath finds the program that cmd names, as execvp in the new process would, but so that the error says what is
// wrong. It runs with the user's permissions.
func lookPath(cmd, dir, path string) (string, error) {
	if cmd == "" || strings.Contains(cmd, "\x00") {
		return "", errors.New("no command is given")
	}
	if strings.Contains(cmd, "/") {
		return cmd, executable(absolute(dir, cmd))
	}
	found := error(nil)
	for _, d := range filepath.SplitList(path) {
		file := filepath.Join(absolute(dir, d), cmd)
		err := executable(file)
		if err == nil {
			return file, nil
		}
		if errors.Is(err, fs.ErrPermission) {
			found = err
		}
	}
	if found != nil {
		return "", found
	}
	return "", fmt.Errorf("exec: %q: executable file not found in $PATH", cmd)
}

func absolute(dir, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}

func executable(file string) error {
	var st unix.Stat_t
	err := unix.Stat(file, &st)
	switch {
	case err != nil:
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		err = unix.EISDIR
	case st.Mode&0o111 == 0:
		err = unix.EACCES
	}
	if err != nil {
		return &fs.PathError{Op: "exec", Path: file, Err: err}
	}
	return nil
}

// startError classes what fork and exec answered: what the caller named is the caller's, a limit is a limit.
func startError(file string, err error) error {
	err = &fs.PathError{Op: "exec", Path: file, Err: err}
	for _, limit := range []error{unix.EAGAIN, unix.ENOMEM, unix.EMFILE, unix.ENFILE} {
		if errors.Is(err, limit) {
			return connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("no more processes: %w", err))
		}
	}
	if errors.Is(err, unix.EPERM) {
		return connect.NewError(connect.CodeInternal, fmt.Errorf("start as that user: %w", err))
	}
	return connect.NewError(connect.CodeInvalidArgument, err)
}
