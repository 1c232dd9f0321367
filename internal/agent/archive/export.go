package archive

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// SameRecord is the PAX record of a file whose data is left out because it is still the template's. It holds the size.
const SameRecord = "FIREBREAK.same"

const (
	maxDepth   = 600       // directories within each other: more than a template may have
	maxLinks   = 1_000_000 // files with several names that are told as such; further ones are several files
	xattrBytes = 64 << 10  // of one attribute, and of all their names: what Linux allows
)

// Source is what Export reads.
type Source struct {
	Root   string
	Mounts map[string]bool // absolute paths below Root that are mounted: directories come out empty, files not at all
	Skip   []string        // absolute paths below Root that are left out
	Since  time.Time       // leave out the data of files whose inode did not change since; zero: of none
}

// Export writes everything below src.Root to w as a tar archive: names without a leading slash, numeric owners, whole
// seconds, hard links, extended attributes. What is mounted, sockets and devices stay out. Others may change the files
// meanwhile: each comes out as some state of it, and what vanishes is left out.
func Export(ctx context.Context, w io.Writer, src Source) error {
	root, err := os.OpenRoot(src.Root)
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // only read from
	buffered := bufio.NewWriterSize(w, 256<<10)
	e := &export{Source: src, ctx: ctx, tar: tar.NewWriter(buffered), links: map[inode]string{}, buf: make([]byte, 128<<10),
		skip: map[string]bool{}}
	for _, p := range src.Skip {
		e.skip[path.Clean(p)] = true
	}
	info, err := root.Lstat(".")
	if err != nil {
		return err
	}
	if err := e.directory(root, "/", info, 0); err != nil {
		return err
	}
	return errors.Join(e.tar.Close(), buffered.Flush())
}

type inode struct{ device, number uint64 }

type export struct {
	Source
	ctx   context.Context
	tar   *tar.Writer
	skip  map[string]bool
	links map[inode]string // the first name of files that have several
	buf   []byte
}

// directory writes dir, which is at, and what is in it.
func (e *export) directory(dir *os.Root, at string, info fs.FileInfo, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("%.200s lies more than %d directories deep", at, maxDepth)
	}
	f, err := dir.Open(".")
	if err != nil {
		return gone(err)
	}
	err = e.header(f, at, info, "")
	var names []string
	if err == nil && (at == "/" || !e.Mounts[at]) {
		names, err = f.Readdirnames(-1)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return gone(err)
	}
	for _, name := range names {
		if err := e.ctx.Err(); err != nil {
			return err
		}
		if err := e.entry(dir, name, path.Join(at, name), depth+1); err != nil {
			return err
		}
	}
	return nil
}

// entry writes what name is in dir. It looks again if that turns into something else under its eyes.
func (e *export) entry(dir *os.Root, name, at string, depth int) error {
	if e.skip[at] {
		return nil
	}
	for range 3 {
		info, err := dir.Lstat(name)
		if err != nil {
			return gone(err)
		}
		if err = gone(e.one(dir, name, at, info, depth)); err == nil {
			return nil
		}
		again, lookErr := dir.Lstat(name)
		if lookErr != nil {
			return gone(lookErr)
		}
		if again.Mode().Type() == info.Mode().Type() {
			return err
		}
	}
	return nil // as if it had vanished
}

func (e *export) one(dir *os.Root, name, at string, info fs.FileInfo, depth int) error {
	switch info.Mode().Type() {
	case fs.ModeDir:
		sub, err := dir.OpenRoot(name)
		if err != nil {
			return err
		}
		return errors.Join(e.directory(sub, at, info, depth), sub.Close())
	case 0:
		return e.file(dir, name, at, info)
	case fs.ModeSymlink:
		return e.symlink(dir, name, at, info)
	case fs.ModeNamedPipe:
		return e.header(nil, at, info, "")
	}
	return nil // sockets mean nothing without their server, and devices are the driver's
}

// gone makes nothing of the error of what is not there any more.
func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (e *export) symlink(dir *os.Root, name, at string, info fs.FileInfo) error {
	target, err := dir.Readlink(name)
	if err != nil {
		return err
	}
	return e.header(nil, at, info, target)
}

// file writes a regular file. Of one that is the template's, a look is enough; else what is said of it comes from the open
// file, as the name may lead elsewhere by now.
func (e *export) file(dir *os.Root, name, at string, info fs.FileInfo) error {
	if e.Mounts[at] {
		return nil
	}
	if e.isSame(info) {
		if first := e.firstName(at, info); first != "" {
			return e.link(at, first)
		}
		return e.same(at, info)
	}
	// Not to wait for a FIFO, nor to follow a link, that took its place.
	f, err := dir.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // only read from
	if info, err = f.Stat(); err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return errors.New("it was replaced while it was being opened")
	}
	if first := e.firstName(at, info); first != "" {
		return e.link(at, first)
	}
	if err := e.header(f, at, info, ""); err != nil {
		return err
	}
	return e.data(f, info.Size())
}

// isSame reports whether a file has the data that it has in the template: its inode has not changed since.
func (e *export) isSame(info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && !e.Since.IsZero() && info.Size() > 0 && time.Unix(st.Ctim.Unix()).Before(e.Since)
}

// firstName returns the name under which a file came already, and "" if it did not.
func (e *export) firstName(at string, info fs.FileInfo) string {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || st.Nlink < 2 {
		return ""
	}
	id := inode{st.Dev, st.Ino}
	first, ok := e.links[id]
	if !ok && len(e.links) < maxLinks {
		e.links[id] = at
	}
	return first
}

func (e *export) link(at, first string) error {
	return e.write(header{&tar.Header{Typeflag: tar.TypeLink, Name: relative(at), Linkname: relative(first)}})
}

// data writes exactly size bytes: of a file that grows, the first ones; zeros for what one lost.
func (e *export) data(f io.Reader, size int64) error {
	n, err := io.CopyBuffer(struct{ io.Writer }{e.tar}, onlyReader{io.LimitReader(f, size)}, e.buf)
	if err != nil {
		return err
	}
	clear(e.buf)
	for left := size - n; left > 0; {
		if err := e.ctx.Err(); err != nil {
			return err
		}
		part := e.buf[:min(int64(len(e.buf)), left)]
		if _, err := e.tar.Write(part); err != nil {
			return err
		}
		left -= int64(len(part))
	}
	return nil
}

// onlyReader hides a WriteTo that would not use our buffer.
type onlyReader struct{ io.Reader }

func relative(at string) string {
	if at == "/" {
		return "./"
	}
	return at[1:]
}

// header writes what is known of an entry; f is its open file, nil for one that has no extended attributes.
func (e *export) header(f *os.File, at string, info fs.FileInfo, target string) error {
	h, err := newHeader(at, info, target)
	if err != nil {
		return err
	}
	if f != nil {
		for name, value := range xattrs(f) {
			h.addRecord("SCHILY.xattr."+name, value)
		}
	}
	return e.write(h)
}

// same writes a file whose data the template has. Templates have no extended attributes.
func (e *export) same(at string, info fs.FileInfo) error {
	h, err := newHeader(at, info, "")
	if err != nil {
		return err
	}
	h.addRecord(SameRecord, strconv.FormatInt(info.Size(), 10))
	h.Size = 0
	return e.write(h)
}

func (e *export) write(h header) error {
	if err := e.tar.WriteHeader(h.Header); err != nil {
		return fmt.Errorf("write %.200q: %w", h.Name, err)
	}
	return nil
}

type header struct{ *tar.Header }

func (h header) addRecord(name, value string) {
	if h.PAXRecords == nil {
		h.PAXRecords = map[string]string{}
	}
	h.PAXRecords[name] = value
}

// newHeader describes an entry. It knows owners by number: names are the template's business.
func newHeader(at string, info fs.FileInfo, target string) (header, error) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return header{}, fmt.Errorf("%s has no status", at)
	}
	h := &tar.Header{
		Name: relative(at), Linkname: target, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid),
		ModTime: info.ModTime().Truncate(time.Second),
	}
	switch info.Mode().Type() {
	case fs.ModeDir:
		h.Typeflag, h.Name = tar.TypeDir, strings.TrimSuffix(h.Name, "/")+"/"
	case fs.ModeSymlink:
		h.Typeflag = tar.TypeSymlink
	case fs.ModeNamedPipe:
		h.Typeflag = tar.TypeFifo
	default:
		h.Typeflag, h.Size = tar.TypeReg, info.Size()
	}
	return header{h}, nil
}
