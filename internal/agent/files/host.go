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

	"golang.org/x/sys/unix"
)

// Host is the file system of the machine that the agent runs on. Metadata are extended attributes.
type Host struct{}

var _ System = Host{}

// Stat implements System.
func (Host) Stat(path string) (fs.FileInfo, error) { return os.Stat(path) }

// Lstat implements System.
func (Host) Lstat(path string) (fs.FileInfo, error) { return os.Lstat(path) }

// Readlink implements System.
func (Host) Readlink(path string) (string, error) { return os.Readlink(path) }

// Resolve implements System.
func (Host) Resolve(path string) (string, error) { return filepath.EvalSymlinks(path) }

// List implements System: a directory may be larger than the memory.
func (Host) List(dir string, limit int) ([]string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // opened for reading
	names, err := f.Readdirnames(limit)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	slices.Sort(names)
	return names, nil
}

// Open implements System. O_NONBLOCK, because a FIFO in the file's place would hold the request for ever.
func (Host) Open(path string, flag int, mode fs.FileMode) (File, error) {
	f, err := os.OpenFile(path, flag|unix.O_NONBLOCK, mode)
	if err != nil {
		return nil, err // and no File that is a nil *os.File
	}
	return f, nil
}

// MkdirAll implements System.
func (Host) MkdirAll(dir string, mode fs.FileMode) error { return os.MkdirAll(dir, mode) }

// Remove implements System.
func (Host) Remove(path string) error { return os.Remove(path) }

// RemoveAll implements System.
func (Host) RemoveAll(path string) error { return os.RemoveAll(path) }

// metadataPrefix is where uploads keep what clients say about a file.
const metadataPrefix = "user.e2b."

// Metadata implements System.
func (Host) Metadata(path string) map[string]string {
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

// SetMetadata implements System. It asks the descriptor: a thread with a user's permissions may not look into /proc/self.
func (Host) SetMetadata(file File, values map[string]string) error {
	f, ok := file.(*os.File)
	if !ok {
		return fmt.Errorf("store metadata of a %T: %w", file, errors.ErrUnsupported)
	}
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

// Rename implements System: it copies between file systems as mv does.
func (Host) Rename(source, destination string) error {
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
