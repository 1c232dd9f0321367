package memfs

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"
)

// File is an open file or directory. It stays valid when its last name is removed.
type File struct {
	fs   *FS
	node *node
	dir  *node // where it was opened, for events
	name string
	path string // as it was opened, for errors

	// The file system's lock guards these, too.
	flag   int
	offset int64
	below  io.ReaderAt // the lower tree's file, once it was read from
	names  []string    // of a directory: what ReadDir has not given yet
	listed bool
	closed bool
}

// Open opens name for reading.
func (f *FS) Open(name string) (*File, error) { return f.OpenFile(name, os.O_RDONLY, 0) }

// OpenFile opens name with flags of package os, and syscall.O_DIRECTORY and O_NOFOLLOW.
func (f *FS) OpenFile(name string, flag int, perm fs.FileMode) (*File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	file, err := f.open(name, flag, perm)
	if err != nil {
		return nil, wrap("open", name, err)
	}
	return file, nil
}

func (f *FS) open(name string, flag int, perm fs.FileMode) (*File, error) {
	if f.used.Open >= f.limits.Open {
		return nil, syscall.ENFILE
	}
	exclusive := flag&os.O_CREATE != 0 && flag&os.O_EXCL != 0
	at, err := f.walk(name, !exclusive && flag&syscall.O_NOFOLLOW == 0)
	if err != nil {
		return nil, err
	}
	if at.node == nil {
		err = f.create(&at, flag, perm)
	} else {
		err = f.openable(at.node, flag, exclusive)
	}
	if err != nil {
		return nil, err
	}
	f.used.Open++
	at.node.opens++
	return &File{fs: f, node: at.node, dir: at.dir, name: at.name, path: name, flag: flag}, nil
}

func (f *FS) create(at *place, flag int, perm fs.FileMode) error {
	if flag&os.O_CREATE == 0 {
		return syscall.ENOENT
	}
	if at.slash {
		return syscall.EISDIR
	}
	if flag&syscall.O_DIRECTORY != 0 {
		return syscall.EINVAL
	}
	n := f.newNode(perm.Perm())
	if err := f.add(*at, n); err != nil {
		return err
	}
	at.node = n
	f.tell(Create, at.dir, at.name)
	return nil
}

// openable refuses what cannot be opened so, and empties a file that is to be.
func (f *FS) openable(n *node, flag int, exclusive bool) error {
	writes := flag&(os.O_WRONLY|os.O_RDWR) != 0
	switch {
	case exclusive:
		return syscall.EEXIST
	case n.mode.Type() == fs.ModeSymlink:
		return syscall.ELOOP
	case !n.mode.IsDir() && flag&syscall.O_DIRECTORY != 0:
		return syscall.ENOTDIR
	case n.mode.IsDir() && (writes || flag&(os.O_TRUNC|os.O_CREATE) != 0):
		return syscall.EISDIR
	case flag&os.O_TRUNC != 0 && writes:
		return f.resize(n, 0)
	}
	return nil
}

// resize cuts or lengthens a file. What a change of the lower tree's file needs of it is copied first.
func (f *FS) resize(n *node, size int64) error {
	if size < 0 {
		return syscall.EINVAL
	}
	if size > f.limits.FileSize {
		return syscall.EFBIG
	}
	if err := f.own(n, size > 0); err != nil {
		return err
	}
	if size == 0 {
		f.used.Bytes -= int64(cap(n.data))
		n.data = nil
	} else if err := f.grow(n, size); err != nil {
		return err
	}
	if old := int64(len(n.data)); size < old {
		clear(n.data[size:]) // so that it is not seen again if the file grows
	}
	n.data = n.data[:size]
	n.mtime = f.now()
	return nil
}

// own makes a file of the lower tree one that can be changed.
func (f *FS) own(n *node, keep bool) error {
	if n.below == "" {
		return nil
	}
	if !keep {
		n.below = ""
		return nil
	}
	if n.size > f.limits.FileSize {
		return syscall.EFBIG
	}
	if n.size > f.limits.Bytes-f.used.Bytes {
		return syscall.ENOSPC
	}
	data, err := fs.ReadFile(f.lower, n.below)
	if err != nil {
		return lowerError(err)
	}
	data = slices.Clip(data)
	if err := f.charge(int64(cap(data))); err != nil {
		return err
	}
	n.data, n.below = data, ""
	return nil
}

// grow makes room for size bytes: more than is needed, so that a file written in pieces is not copied for each, unless
// the quota has no more.
func (f *FS) grow(n *node, size int64) error {
	old := int64(cap(n.data))
	if size <= old {
		return nil
	}
	room := max(size, min(2*old, old+1<<20, f.limits.FileSize))
	if f.charge(room-old) != nil {
		room = size
		if err := f.charge(room - old); err != nil {
			return err
		}
	}
	data := make([]byte, len(n.data), room)
	copy(data, n.data)
	n.data = data
	return nil
}

// use runs do with the lock held, unless the file is closed.
func (h *File) use(op string, do func() error) error {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if h.closed {
		return wrap(op, h.path, fs.ErrClosed)
	}
	err := do()
	if err == io.EOF { //nolint:errorlint // never wrapped here
		return err
	}
	return wrap(op, h.path, err)
}

// Name is the path by which the file was opened.
func (h *File) Name() string { return h.path }

// Stat describes the file.
func (h *File) Stat() (i fs.FileInfo, err error) {
	err = h.use("stat", func() error {
		i = h.fs.info(h.name, h.node)
		return nil
	})
	return i, err
}

// Read implements io.Reader.
func (h *File) Read(p []byte) (n int, err error) {
	err = h.use("read", func() error {
		n, err = h.read(p, h.offset)
		h.offset += int64(n)
		if n > 0 {
			return nil
		}
		return err
	})
	return n, err
}

// ReadAt implements io.ReaderAt.
func (h *File) ReadAt(p []byte, offset int64) (n int, err error) {
	err = h.use("read", func() error {
		n, err = h.read(p, offset)
		return err
	})
	return n, err
}

func (h *File) read(p []byte, offset int64) (int, error) {
	switch {
	case h.flag&os.O_WRONLY != 0:
		return 0, syscall.EBADF
	case h.node.mode.IsDir():
		return 0, syscall.EISDIR
	case offset < 0:
		return 0, syscall.EINVAL
	case len(p) == 0:
		return 0, nil
	}
	if h.node.below != "" {
		return h.readLower(p, offset)
	}
	if offset >= int64(len(h.node.data)) {
		return 0, io.EOF
	}
	n := copy(p, h.node.data[offset:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// readLower reads a file of the lower tree, which takes nothing of the quota.
func (h *File) readLower(p []byte, offset int64) (int, error) {
	if h.below == nil {
		file, err := h.fs.lower.Open(h.node.below)
		if err != nil {
			return 0, lowerError(err)
		}
		at, ok := file.(io.ReaderAt)
		if !ok { // of an archive, say
			data, err := io.ReadAll(file)
			if err = errors.Join(err, file.Close()); err != nil {
				return 0, lowerError(err)
			}
			at = bytes.NewReader(data)
		}
		h.below = at
	}
	n, err := h.below.ReadAt(p, offset)
	if err != nil && err != io.EOF { //nolint:errorlint // io.ReaderAt's own word
		return n, lowerError(err)
	}
	return n, err
}

// Write implements io.Writer.
func (h *File) Write(p []byte) (n int, err error) {
	err = h.use("write", func() error {
		if h.flag&os.O_APPEND != 0 {
			h.offset = h.node.length()
		}
		n, err = h.write(p, h.offset)
		h.offset += int64(n)
		return err
	})
	return n, err
}

// WriteAt implements io.WriterAt.
func (h *File) WriteAt(p []byte, offset int64) (n int, err error) {
	err = h.use("write", func() error {
		n, err = h.write(p, offset)
		return err
	})
	return n, err
}

// write writes all of p, or as much as the limits allow: a full disk takes what still fits, and errs at the next byte.
func (h *File) write(p []byte, offset int64) (int, error) {
	f, n := h.fs, h.node
	if err := h.writable(); err != nil {
		return 0, err
	}
	if offset < 0 {
		return 0, syscall.EINVAL
	}
	if offset >= f.limits.FileSize && len(p) > 0 {
		return 0, syscall.EFBIG
	}
	p = p[:min(int64(len(p)), f.limits.FileSize-offset)]
	if len(p) == 0 {
		return 0, nil
	}
	if err := f.own(n, true); err != nil {
		return 0, err
	}
	err := f.grow(n, offset+int64(len(p)))
	if err != nil { // what still fits
		room := int64(cap(n.data)) + f.limits.Bytes - f.used.Bytes
		if room <= offset {
			return 0, err
		}
		p = p[:min(int64(len(p)), room-offset)]
		if err := f.grow(n, offset+int64(len(p))); err != nil {
			return 0, err
		}
	}
	if end := offset + int64(len(p)); end > int64(len(n.data)) {
		n.data = n.data[:end]
	}
	copy(n.data[offset:], p)
	n.mtime = f.now()
	f.tell(Write, h.dir, h.name)
	return len(p), nil
}

func (h *File) writable() error {
	if h.node.mode.IsDir() {
		return syscall.EISDIR
	}
	if h.flag&(os.O_WRONLY|os.O_RDWR) == 0 {
		return syscall.EBADF
	}
	return nil
}

// Seek implements io.Seeker. A directory can only be wound back, to be listed anew.
func (h *File) Seek(offset int64, whence int) (at int64, err error) {
	err = h.use("seek", func() error {
		if h.node.mode.IsDir() {
			if offset != 0 || whence != io.SeekStart {
				return syscall.EINVAL
			}
			h.names, h.listed = nil, false
			return nil
		}
		switch whence {
		case io.SeekStart:
			at = offset
		case io.SeekCurrent:
			at = h.offset + offset
		case io.SeekEnd:
			at = h.node.length() + offset
		default:
			at = -1
		}
		if at < 0 {
			return syscall.EINVAL
		}
		h.offset = at
		return nil
	})
	return at, err
}

// Truncate sets the length of the file; what is added are zero bytes, which count.
func (h *File) Truncate(size int64) error {
	return h.use("truncate", func() error {
		if err := h.writable(); err != nil {
			return err
		}
		if err := h.fs.resize(h.node, size); err != nil {
			return err
		}
		h.fs.tell(Write, h.dir, h.name)
		return nil
	})
}

// SetAppend says whether each Write goes to the end.
func (h *File) SetAppend(on bool) {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if h.flag &^= os.O_APPEND; on {
		h.flag |= os.O_APPEND
	}
}

// IsAppend reports whether each Write goes to the end.
func (h *File) IsAppend() bool {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	return h.flag&os.O_APPEND != 0
}

// Chtimes sets the times of the file. A zero time stays what it is.
func (h *File) Chtimes(atime, mtime time.Time) error {
	return h.use("chtimes", func() error {
		h.node.touch(atime, mtime)
		h.fs.tell(Chmod, h.dir, h.name)
		return nil
	})
}

// SetMetadata replaces all metadata of the file.
func (h *File) SetMetadata(values map[string]string) error {
	return h.use("metadata", func() error {
		if err := h.fs.charge(metadataSize(values) - metadataSize(h.node.metadata)); err != nil {
			return err
		}
		h.node.metadata = values
		return nil
	})
}

// ReadDir implements fs.ReadDirFile. A directory is listed, sorted by name, when it is first asked; what is removed
// meanwhile is left out.
func (h *File) ReadDir(limit int) (entries []fs.DirEntry, err error) {
	err = h.use("readdir", func() error {
		if !h.node.mode.IsDir() {
			return syscall.ENOTDIR
		}
		if !h.listed {
			if err := h.fs.load(h.node); err != nil {
				return err
			}
			h.listed, h.names = true, make([]string, 0, len(h.node.children))
			for name := range h.node.children {
				h.names = append(h.names, name)
			}
			slices.SortFunc(h.names, strings.Compare)
		}
		for len(h.names) > 0 && (limit <= 0 || len(entries) < limit) {
			if child := h.node.children[h.names[0]]; child != nil {
				entries = append(entries, fs.FileInfoToDirEntry(h.fs.info(h.names[0], child)))
			}
			h.names = h.names[1:]
		}
		if limit > 0 && len(entries) == 0 {
			return io.EOF
		}
		return nil
	})
	return entries, err
}

// Close closes the file.
func (h *File) Close() error {
	return h.use("close", func() error {
		h.closed = true
		if c, ok := h.below.(io.Closer); ok {
			_ = c.Close() // opened for reading
		}
		h.fs.used.Open--
		if h.node.opens--; h.node.opens == 0 && h.node.links == 0 {
			h.fs.release(h.node)
		}
		return nil
	})
}
