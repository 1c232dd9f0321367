package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/bzip2"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/image/rootfs"
)

func badImage(format string, args ...any) error {
	return &firebreak.Error{Kind: firebreak.KindInvalid, Err: fmt.Errorf(format, args...)}
}

// noSource explains why a source cannot be read.
func noSource(err error, mend string) error {
	if errors.Is(err, fs.ErrNotExist) {
		return &firebreak.Error{Kind: firebreak.KindNotFound, Err: err, Mend: mend}
	}
	return err
}

// fromPath fills the tree from a directory or file of the host.
func (j *job) fromPath(ctx context.Context, name string) (Template, error) {
	abs, err := filepath.Abs(name)
	if err != nil {
		return Template{}, err
	}
	t := Template{Source: abs}
	info, err := os.Stat(abs)
	switch {
	case err != nil:
		return t, noSource(err, "give the path of a directory or an archive")
	case info.IsDir():
		err = j.fromDirectory(ctx, abs, &t)
	case info.Mode().IsRegular():
		err = j.fromFile(ctx, abs, &t)
	default:
		err = badImage("%s is neither a directory nor a file", abs)
	}
	return t, err
}

func (j *job) fromDirectory(ctx context.Context, dir string, t *Template) error {
	if _, err := os.Lstat(filepath.Join(dir, "oci-layout")); err == nil {
		root, err := os.OpenRoot(dir)
		if err != nil {
			return err
		}
		defer root.Close()
		return j.fromLayout(ctx, dirBlobs{root}, t)
	}
	store, err := os.Stat(j.store.dir)
	if err != nil {
		return err
	}
	j.report("read directory", 0, 0)
	return j.tree.AddDirectory(ctx, dir, store)
}

// fromFile finds out what kind of archive a file is.
func (j *job) fromFile(ctx context.Context, name string, t *Template) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	plain, err := j.plainFile(ctx, f)
	if err != nil {
		return err
	}
	defer plain.Close()
	index, err := indexTar(ctx, plain)
	if err != nil {
		return err
	}
	switch {
	case index.isDocker():
		return j.fromDockerSave(ctx, index, t)
	case index.sections["oci-layout"] != nil && index.sections["index.json"] != nil:
		return j.fromLayout(ctx, index, t)
	}
	if _, err := plain.Seek(0, io.SeekStart); err != nil {
		return err
	}
	size, err := sizeOf(plain)
	if err != nil {
		return err
	}
	return j.tree.ApplyTar(ctx, j.counted(bufio.NewReaderSize(plain, 1<<20), "read archive", size))
}

// plainFile returns f itself, or a file in the work directory with what f unpacks to.
func (j *job) plainFile(ctx context.Context, f *os.File) (*os.File, error) {
	size, err := sizeOf(f)
	if err != nil {
		return nil, err
	}
	in := bufio.NewReader(f)
	packed, err := isPacked(in)
	if err != nil || !packed {
		_, seekErr := f.Seek(0, io.SeekStart)
		return f, errors.Join(err, seekErr)
	}
	r, err := uncompressed(j.counted(in, "uncompress", size))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	out, err := os.OpenFile(j.work.path("plain"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	w := &rootfs.SparseWriter{File: out}
	err = badPacking(copyLimited(ctx, w, r, maxPlain))
	if err = errors.Join(err, w.Finish()); err != nil {
		return nil, errors.Join(err, out.Close())
	}
	return out, nil
}

// maxPlain bounds what a compressed archive may unpack to before its entries are looked at.
const maxPlain = 64 << 30

func copyLimited(ctx context.Context, w io.Writer, r io.Reader, limit int64) error {
	buf := make([]byte, 256<<10)
	for done := int64(0); ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := r.Read(buf)
		if done += int64(n); done > limit {
			return &firebreak.Error{Kind: firebreak.KindExhausted, Err: fmt.Errorf("it unpacks to more than %d bytes", limit)}
		}
		if _, err := w.Write(buf[:n]); err != nil {
			return err
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func sizeOf(f *os.File) (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

func isPacked(in *bufio.Reader) (bool, error) {
	magic, err := in.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	for _, m := range []string{"\x1f\x8b", "\x28\xb5\x2f\xfd", "BZh", "\xfd7zXZ\x00"} {
		if bytes.HasPrefix(magic, []byte(m)) {
			return true, nil
		}
	}
	return false, nil
}

// uncompressed returns what r unpacks to, or r itself if it is not compressed.
func uncompressed(r io.Reader) (io.ReadCloser, error) {
	in := bufio.NewReaderSize(r, 1<<18)
	magic, err := in.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(in)
		if err != nil {
			return nil, badPacking(err)
		}
		return z, nil
	case bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20))
		if err != nil {
			return nil, badPacking(err)
		}
		return z.IOReadCloser(), nil
	case bytes.HasPrefix(magic, []byte("BZh")):
		return io.NopCloser(bzip2.NewReader(in)), nil
	case bytes.HasPrefix(magic, []byte("\xfd7zXZ\x00")):
		return nil, &firebreak.Error{Kind: firebreak.KindUnsupported, Err: fmt.Errorf("xz archive: %w", errors.ErrUnsupported),
			Mend: "unpack it with unxz first"}
	}
	return io.NopCloser(in), nil
}

// badPacking makes damaged compression the input's fault.
func badPacking(err error) error {
	var corrupt bzip2.StructuralError
	switch {
	case errors.Is(err, gzip.ErrHeader), errors.Is(err, gzip.ErrChecksum), errors.Is(err, io.ErrUnexpectedEOF),
		errors.Is(err, zstd.ErrMagicMismatch), errors.Is(err, zstd.ErrCRCMismatch), errors.Is(err, zstd.ErrWindowSizeExceeded),
		errors.As(err, &corrupt):
		return badImage("the compressed data is damaged or cut short: %w", err)
	}
	return err
}

// counted reports how much of r has been read.
func (j *job) counted(r io.Reader, step string, total int64) io.Reader {
	return &counter{r: r, job: j, step: step, total: total}
}

type counter struct {
	r                 io.Reader
	job               *job
	step              string
	done, said, total int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.done += int64(n)
	if c.done-c.said >= 1<<20 || err != nil && c.done != c.said || c.said == 0 {
		c.said = c.done
		c.job.report(c.step, c.done, c.total)
	}
	return n, err
}

// blobs are named pieces of data: of an image layout in a directory, or of an archive.
type blobs interface {
	open(name string) (io.ReadCloser, int64, error) // fs.ErrNotExist
}

type dirBlobs struct{ root *os.Root }

func (d dirBlobs) open(name string) (io.ReadCloser, int64, error) {
	info, err := d.root.Lstat(name)
	if err != nil {
		return nil, 0, err
	}
	if !info.Mode().IsRegular() {
		return nil, 0, badImage("%s is not a file", name)
	}
	f, err := d.root.Open(name)
	return f, info.Size(), err
}

// tarIndex is where the files of an uncompressed archive lie in it.
type tarIndex struct{ sections map[string]*io.SectionReader }

const maxIndexed = 1_000_000

func indexTar(ctx context.Context, f *os.File) (*tarIndex, error) {
	index := &tarIndex{sections: map[string]*io.SectionReader{}}
	links := map[string]string{} // old versions of docker save store a layer once and link to it
	for r := tar.NewReader(f); ; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, badImage("it is no archive that tar could read, or it is damaged: %w", err)
		}
		if len(index.sections)+len(links) > maxIndexed || len(h.Name) > 4096 {
			return nil, badImage("it has too many or too long names")
		}
		name := path.Clean(h.Name)
		switch h.Typeflag {
		case tar.TypeReg:
			at, err := f.Seek(0, io.SeekCurrent) // the reader does not read ahead
			if err != nil {
				return nil, err
			}
			index.sections[name] = io.NewSectionReader(f, at, h.Size)
		case tar.TypeSymlink:
			links[name] = path.Join(path.Dir(name), h.Linkname)
		}
	}
	for name, target := range links {
		if s, ok := index.sections[target]; ok {
			index.sections[name] = s
		}
	}
	return index, nil
}

func (x *tarIndex) open(name string) (io.ReadCloser, int64, error) {
	s, ok := x.sections[path.Clean(name)]
	if !ok {
		return nil, 0, fmt.Errorf("%.200s: %w", name, fs.ErrNotExist)
	}
	return io.NopCloser(io.NewSectionReader(s, 0, s.Size())), s.Size(), nil
}
