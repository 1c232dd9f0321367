package files

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	filesystemv1 "github.com/firebreak-dev/firebreak/internal/api/filesystem"
)

// entry describes what is at path. Of a link it describes the target, and names it; a link that leads nowhere is shown
// as a link.
func (s *Service) entry(path string) (*filesystemv1.EntryInfo, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	e := &filesystemv1.EntryInfo{Name: filepath.Base(path), Path: path}
	if info.Mode().Type() == fs.ModeSymlink {
		target, err := filepath.EvalSymlinks(path)
		switch {
		case err == nil:
			if shown, err := os.Stat(target); err == nil {
				info = shown
			}
		case isCycle(path):
			return nil, &fs.PathError{Op: "stat", Path: path, Err: unix.ELOOP}
		default:
			if target, err = os.Readlink(path); err != nil {
				return nil, err
			}
		}
		e.SymlinkTarget = &target
	}
	e.Type, e.Size = typeOf(info.Mode()), info.Size()
	e.Mode, e.Permissions = modeOf(info.Mode()), info.Mode().String()
	e.ModifiedTime = timestamppb.New(info.ModTime())
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		e.Owner, e.Group = s.session.Names(st.Uid, st.Gid)
	}
	if info.Mode().IsRegular() || info.IsDir() {
		e.Metadata = metadata(path)
	}
	return e, nil
}

func isCycle(path string) bool {
	var st unix.Stat_t
	return errors.Is(unix.Stat(path, &st), unix.ELOOP)
}

func typeOf(m fs.FileMode) filesystemv1.FileType {
	switch {
	case m.IsDir():
		return filesystemv1.FileType_FILE_TYPE_DIRECTORY
	case m.IsRegular():
		return filesystemv1.FileType_FILE_TYPE_FILE
	case m.Type() == fs.ModeSymlink:
		return filesystemv1.FileType_FILE_TYPE_SYMLINK
	}
	return filesystemv1.FileType_FILE_TYPE_UNSPECIFIED
}

func modeOf(m fs.FileMode) uint32 { return uint32(m.Perm()) }

// readNames lists dir up to one more than maxEntries, sorted: a directory may be larger than the memory.
func readNames(dir string) ([]string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // opened for reading
	names, err := f.Readdirnames(maxEntries + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	slices.Sort(names)
	return names, nil
}

// metadataPrefix is where uploads keep what clients say about a file.
const metadataPrefix = "user.e2b."

// metadata reads it; a file system without extended attributes has none.
func metadata(path string) map[string]string {
	return readMetadata(func(list []byte) (int, error) { return unix.Listxattr(path, list) },
		func(name string, value []byte) (int, error) { return unix.Getxattr(path, name, value) })
}

func readMetadata(list func([]byte) (int, error), get func(string, []byte) (int, error)) map[string]string {
	size, err := list(nil)
	if err != nil || size == 0 {
		return nil
	}
	names := make([]byte, min(size+1<<10, 64<<10))
	if size, err = list(names); err != nil {
		return nil
	}
	var found map[string]string
	value := make([]byte, maxMetadata)
	for name := range strings.SplitSeq(string(names[:size]), "\x00") {
		key, ok := strings.CutPrefix(name, metadataPrefix)
		if !ok {
			continue
		}
		if n, err := get(name, value); err == nil {
			if found == nil {
				found = map[string]string{}
			}
			found[key] = string(value[:n])
		}
	}
	return found
}

// setMetadata replaces all of a file's metadata. It asks the descriptor: a thread with a user's permissions may not
// look into /proc/self.
func setMetadata(f *os.File, values map[string]string) error {
	fd := int(f.Fd())
	old := readMetadata(func(list []byte) (int, error) { return unix.Flistxattr(fd, list) },
		func(name string, value []byte) (int, error) { return unix.Fgetxattr(fd, name, value) })
	for key := range old {
		if _, stays := values[key]; !stays {
			if err := unix.Fremovexattr(fd, metadataPrefix+key); err != nil {
				return fmt.Errorf("remove metadata: %w", err)
			}
		}
	}
	for key, value := range values {
		if err := unix.Fsetxattr(fd, metadataPrefix+key, []byte(value), 0); err != nil {
			return fmt.Errorf("store metadata: %w", err)
		}
	}
	return nil
}

// move renames, and copies between file systems as mv does.
func move(source, destination string) error {
	err := os.Rename(source, destination)
	if !errors.Is(err, unix.EXDEV) {
		return err
	}
	temp := destination + ".firebreak-move"
	if err := copyTree(source, temp); err != nil {
		_ = os.RemoveAll(temp)
		return fmt.Errorf("copy to another file system: %w", err)
	}
	if err := os.Rename(temp, destination); err != nil {
		_ = os.RemoveAll(temp)
		return err
	}
	return os.RemoveAll(source)
}

func copyTree(source, destination string) error {
	return filepath.WalkDir(source, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(source, path)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		to := filepath.Join(destination, rel)
		switch {
		case d.IsDir():
			return os.Mkdir(to, info.Mode().Perm()|0o300)
		case d.Type() == fs.ModeSymlink:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			return os.Symlink(target, to)
		case info.Mode().IsRegular():
			return copyFile(path, to, info.Mode().Perm())
		}
		return fmt.Errorf("%s is of a kind that cannot be copied: %w", path, errors.ErrUnsupported)
	})
}

func copyFile(from, to string, mode fs.FileMode) (err error) {
	r, err := os.Open(from)
	if err != nil {
		return err
	}
	defer r.Close() //nolint:errcheck // opened for reading
	w, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	_, err = io.Copy(w, r)
	return err
}
