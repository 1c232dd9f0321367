package files

import (
	"errors"
	"io/fs"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/agent/account"
)

// makeDirs makes a directory with its parents, all of them u's, and is content with one that exists.
//
// Where u may not, as in the root directory, the agent does it: E2B's clients expect that /workspace or the like can be
// made, and who may send requests at all may send them as root.
func (s *Service) makeDirs(u account.User, dir string) error {
	mkdir := func() error { return s.system.MkdirAll(dir, 0o755) }
	err := s.session.Do(u, mkdir)
	if !errors.Is(err, fs.ErrPermission) || s.session.Plain() || give("/", u, dir) != nil {
		return err
	}
	return s.session.Do(u, mkdir)
}

// give makes the first directory that is missing on the way from root to dir, and it becomes u's. All before it must be
// the superuser's alone, so that nobody can have laid a link there to what u may not reach.
func give(root string, u account.User, dir string) error {
	at, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(at) }() // nothing was written
	for name := range strings.SplitSeq(strings.Trim(filepath.Clean(dir), "/"), "/") {
		var st unix.Stat_t
		if err := unix.Fstat(at, &st); err != nil {
			return err
		}
		if st.Uid != 0 || st.Mode&0o022 != 0 {
			return unix.EPERM
		}
		const flags = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
		next, err := unix.Openat(at, name, flags, 0)
		if errors.Is(err, unix.ENOENT) {
			return mkdirFor(u, at, name)
		}
		if err != nil {
			return err
		}
		_ = unix.Close(at)
		at = next
	}
	return unix.EEXIST
}

func mkdirFor(u account.User, at int, name string) error {
	if err := unix.Mkdirat(at, name, 0o755); err != nil {
		return err
	}
	err := unix.Fchownat(at, name, int(u.UID), int(u.GID), unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		_ = unix.Unlinkat(at, name, unix.AT_REMOVEDIR) // of no use to u
	}
	return err
}
