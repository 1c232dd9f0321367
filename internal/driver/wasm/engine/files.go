package engine

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"time"

	experimentalsys "github.com/tetratelabs/wazero/experimental/sys"
	"github.com/tetratelabs/wazero/sys"

	"github.com/firebreak-dev/firebreak/internal/memfs"
)

// Files gives a module a file system in memory.
func Files(f *memfs.FS) experimentalsys.FS { return files{fs: f} }

type files struct {
	experimentalsys.UnimplementedFS
	fs  *memfs.FS
	dir string // where paths begin that do not begin in the root; "" for the root
}

// errno is what wazero makes a status of WASI of.
func errno(err error) experimentalsys.Errno {
	var e syscall.Errno
	switch {
	case err == nil:
		return 0
	case errors.Is(err, fs.ErrClosed):
		return experimentalsys.EBADF
	case errors.As(err, &e):
		return experimentalsys.UnwrapOSError(e)
	}
	return experimentalsys.EIO
}

// path is a path of a module: wazero gives those of its root as "" or ".".
func (f files) path(name string) string {
	if name == "" || name == "." {
		return "/"
	}
	if f.dir == "" {
		return name
	}
	first, _, _ := strings.Cut(name, "/")
	if _, err := f.fs.Lstat(first); err == nil || first == ".." {
		return name
	}
	return f.dir + "/" + name
}

func stat(info fs.FileInfo) sys.Stat_t {
	st := info.Sys().(*syscall.Stat_t)
	return sys.Stat_t{
		Dev: 1, Ino: st.Ino, Mode: info.Mode(), Nlink: st.Nlink, Size: info.Size(),
		Atim: st.Atim.Nano(), Mtim: st.Mtim.Nano(), Ctim: st.Ctim.Nano(),
	}
}

func (f files) OpenFile(name string, flag experimentalsys.Oflag, perm fs.FileMode) (experimentalsys.File, experimentalsys.Errno) {
	flags := 0
	for _, row := range []struct {
		theirs experimentalsys.Oflag
		ours   int
	}{
		{experimentalsys.O_RDWR, os.O_RDWR}, {experimentalsys.O_WRONLY, os.O_WRONLY}, {experimentalsys.O_APPEND, os.O_APPEND},
		{experimentalsys.O_CREAT, os.O_CREATE}, {experimentalsys.O_DIRECTORY, syscall.O_DIRECTORY}, {experimentalsys.O_EXCL, os.O_EXCL},
		{experimentalsys.O_NOFOLLOW, syscall.O_NOFOLLOW}, {experimentalsys.O_TRUNC, os.O_TRUNC},
	} {
		if flag&row.theirs != 0 {
			flags |= row.ours
		}
	}
	h, err := f.fs.OpenFile(f.path(name), flags, perm)
	if err != nil {
		return nil, errno(err)
	}
	return &file{h: h}, 0
}

func (f files) Lstat(name string) (sys.Stat_t, experimentalsys.Errno) {
	info, err := f.fs.Lstat(f.path(name))
	if err != nil {
		return sys.Stat_t{}, errno(err)
	}
	return stat(info), 0
}

func (f files) Stat(name string) (sys.Stat_t, experimentalsys.Errno) {
	info, err := f.fs.Stat(f.path(name))
	if err != nil {
		return sys.Stat_t{}, errno(err)
	}
	return stat(info), 0
}

func (f files) Mkdir(name string, perm fs.FileMode) experimentalsys.Errno {
	return errno(f.fs.Mkdir(f.path(name), perm))
}

func (f files) Chmod(name string, perm fs.FileMode) experimentalsys.Errno {
	return errno(f.fs.Chmod(f.path(name), perm))
}

func (f files) Rename(from, to string) experimentalsys.Errno {
	return errno(f.fs.Rename(f.path(from), f.path(to)))
}

func (f files) Rmdir(name string) experimentalsys.Errno { return errno(f.fs.Rmdir(f.path(name))) }

func (f files) Unlink(name string) experimentalsys.Errno { return errno(f.fs.Unlink(f.path(name))) }

func (f files) Link(old, name string) experimentalsys.Errno {
	return errno(f.fs.Link(f.path(old), f.path(name)))
}

func (f files) Symlink(target, name string) experimentalsys.Errno {
	if strings.HasPrefix(target, "/") {
		return experimentalsys.EPERM // as WASI has it, though it would lead to nothing but this root
	}
	return errno(f.fs.Symlink(target, f.path(name)))
}

func (f files) Readlink(name string) (string, experimentalsys.Errno) {
	target, err := f.fs.Readlink(f.path(name))
	return target, errno(err)
}

func (f files) Utimens(name string, atim, mtim int64) experimentalsys.Errno {
	return errno(f.fs.Chtimes(f.path(name), moment(atim), moment(mtim)))
}

// moment is zero for a time that is to stay.
func moment(ns int64) time.Time {
	if ns == experimentalsys.UTIME_OMIT {
		return time.Time{}
	}
	return time.Unix(0, ns)
}

type file struct {
	experimentalsys.UnimplementedFile
	h *memfs.File
}

func (f *file) Dev() (uint64, experimentalsys.Errno) { return 1, 0 }

func (f *file) Ino() (sys.Inode, experimentalsys.Errno) {
	st, e := f.Stat()
	return st.Ino, e
}

func (f *file) IsDir() (bool, experimentalsys.Errno) {
	st, e := f.Stat()
	return st.Mode.IsDir(), e
}

func (f *file) IsAppend() bool { return f.h.IsAppend() }

func (f *file) SetAppend(on bool) experimentalsys.Errno {
	f.h.SetAppend(on)
	return 0
}

func (f *file) Stat() (sys.Stat_t, experimentalsys.Errno) {
	info, err := f.h.Stat()
	if err != nil {
		return sys.Stat_t{}, errno(err)
	}
	return stat(info), 0
}

// count makes of the end of a file what WASI makes of it: nothing, without an error.
func count(n int, err error) (int, experimentalsys.Errno) {
	if err == io.EOF { //nolint:errorlint // io.Reader's own word
		err = nil
	}
	return n, errno(err)
}

func (f *file) Read(p []byte) (int, experimentalsys.Errno) { return count(f.h.Read(p)) }

func (f *file) Pread(p []byte, offset int64) (int, experimentalsys.Errno) {
	return count(f.h.ReadAt(p, offset))
}

func (f *file) Write(p []byte) (int, experimentalsys.Errno) { return count(f.h.Write(p)) }

func (f *file) Pwrite(p []byte, offset int64) (int, experimentalsys.Errno) {
	return count(f.h.WriteAt(p, offset))
}

// position is an int64 by a name of its own: vet takes a Seek with another error than io.Seeker's for a mistake.
type position = int64

func (f *file) Seek(offset position, whence int) (position, experimentalsys.Errno) {
	at, err := f.h.Seek(offset, whence)
	return at, errno(err)
}

func (f *file) Readdir(n int) ([]experimentalsys.Dirent, experimentalsys.Errno) {
	entries, err := f.h.ReadDir(n)
	if err != nil && err != io.EOF { //nolint:errorlint // fs.ReadDirFile's own word
		return nil, errno(err)
	}
	list := make([]experimentalsys.Dirent, 0, len(entries))
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			return nil, errno(err)
		}
		list = append(list, experimentalsys.Dirent{Ino: info.Sys().(*syscall.Stat_t).Ino, Name: e.Name(), Type: e.Type()})
	}
	return list, 0
}

func (f *file) Truncate(size int64) experimentalsys.Errno { return errno(f.h.Truncate(size)) }

// Sync does nothing: memory is all there is.
func (f *file) Sync() experimentalsys.Errno { return 0 }

func (f *file) Datasync() experimentalsys.Errno { return 0 }

func (f *file) Utimens(atim, mtim int64) experimentalsys.Errno {
	return errno(f.h.Chtimes(moment(atim), moment(mtim)))
}

func (f *file) Close() experimentalsys.Errno { return errno(f.h.Close()) }

// FilesFrom is Files for a program that starts in a directory. WASI knows none: programs name what lies in the root as
// they name what lies where they are. So what does not begin with a name in the root is looked for below dir.
func FilesFrom(f *memfs.FS, dir string) experimentalsys.FS {
	return files{fs: f, dir: strings.Trim(dir, "/")}
}
