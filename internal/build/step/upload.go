package step

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/klauspost/compress/gzip"

	"github.com/firebreak-dev/firebreak"
)

const (
	maxEntries = 500_000  // in an upload
	maxTarget  = 4095     // bytes of a symbolic link
	maxDepth   = 200      // directories within each other
	maxNames   = 64 << 20 // bytes of all names
)

// Upload reads the archive that a client sent for a step. It is bounded here, and what of it goes into a sandbox is
// written anew.
type Upload struct {
	tar    *tar.Reader
	source string
	limit  int64 // bytes that it may unpack to

	links   map[string]bool // symbolic links that were passed on
	regular map[string]bool // files that were passed on
	entries int
	names   int         // bytes so far
	data    int64       // bytes so far
	next    *tar.Header // the first one that belongs to source
	rel     string      // its name below source
}

func badUpload(format string, args ...any) error {
	return &firebreak.Error{Kind: firebreak.KindInvalid, Op: "read the uploaded files", Err: fmt.Errorf(format, args...)}
}

// OpenUpload opens an archive, compressed or not, that unpacks to limit bytes at most. KindInvalid if nothing in it belongs to
// source.
func OpenUpload(r io.Reader, source string, limit int64) (*Upload, error) {
	in := bufio.NewReaderSize(r, 64<<10)
	var plain io.Reader = in
	if magic, err := in.Peek(2); err == nil && magic[0] == 0x1f && magic[1] == 0x8b {
		z, err := gzip.NewReader(in)
		if err != nil {
			return nil, badUpload("the compression is damaged: %w", err)
		}
		plain = z
	}
	u := &Upload{source: source, limit: limit, links: map[string]bool{}, regular: map[string]bool{}}
	u.tar = tar.NewReader(&bounded{plain, limit})
	if err := u.advance(); err != nil {
		return nil, err
	}
	if u.next == nil {
		return nil, badUpload("there is nothing called %q in it", source)
	}
	return u, nil
}

// bounded ends a stream that is longer than was agreed.
type bounded struct {
	r    io.Reader
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, tooLarge()
	}
	return n, err
}

func tooLarge() error {
	return &firebreak.Error{Kind: firebreak.KindExhausted, Op: "read the uploaded files",
		Err: errors.New("they unpack to more than they may"), Mend: "copy less"}
}

// Single returns the name of the entry if source is one file or link, and "" if it is a directory.
func (u *Upload) Single() string {
	if u.rel == "." && u.next.Typeflag != tar.TypeDir {
		return path.Base(u.source)
	}
	return ""
}

// advance goes on to the next entry that belongs to source; next is nil after the last one.
func (u *Upload) advance() error {
	for {
		h, err := u.tar.Next()
		if errors.Is(err, io.EOF) {
			u.next = nil
			return nil
		}
		if err != nil {
			return damaged(err)
		}
		u.entries++
		if u.names += len(h.Name); u.entries > maxEntries || u.names > maxNames {
			return badUpload("it holds more than %d files, or names of more than %d bytes", maxEntries, maxNames)
		}
		rel, ok, err := u.below(h.Name)
		if err != nil {
			return err
		}
		if ok && h.Typeflag != tar.TypeXGlobalHeader {
			u.next, u.rel = h, rel
			return nil
		}
	}
}

// damaged blames the archive, unless it is known whose fault the error is.
func damaged(err error) error {
	if e := new(firebreak.Error); errors.As(err, &e) {
		return err
	}
	return badUpload("it is damaged or cut short: %w", err)
}

// below returns a name as it is below source.
func (u *Upload) below(name string) (rel string, ok bool, err error) {
	if len(name) > MaxPath || !Plain(name) || path.IsAbs(name) || strings.Count(name, "/") > maxDepth {
		return "", false, badUpload("%.60q is no name for a file", name)
	}
	clean := path.Clean(name)
	if clean == ".." || strings.HasPrefix(clean, "../") {
		return "", false, badUpload("%.60q leads out of the archive", name)
	}
	switch rest, inside := strings.CutPrefix(clean, u.source+"/"); {
	case clean == u.source:
		return ".", true, nil
	case u.source == ".":
		return clean, true, nil
	case inside:
		return rest, true, nil
	}
	return "", false, nil
}

// Pass writes an archive with the entries that belong to source, under their names below it.
func (u *Upload) Pass(w io.Writer) error {
	out := tar.NewWriter(w)
	single := u.Single()
	for u.next != nil {
		if err := u.pass(out, single); err != nil {
			return err
		}
		if err := u.advance(); err != nil {
			return err
		}
	}
	return out.Close()
}

// pass passes one entry on.
func (u *Upload) pass(out *tar.Writer, single string) error {
	name := u.rel
	if single != "" {
		if u.rel != "." || len(u.regular)+len(u.links) > 0 {
			return badUpload("%q is a file, and there are files below it", u.source)
		}
		name = single
	}
	for at := path.Dir(name); at != "."; at = path.Dir(at) {
		if u.links[at] {
			return badUpload("%.60q lies behind the symbolic link %.60q", name, at)
		}
	}
	h := &tar.Header{Typeflag: u.next.Typeflag, Name: name, Mode: u.next.Mode & 0o7777, ModTime: u.next.ModTime.Truncate(1e9)}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
		h.Typeflag, h.Size = tar.TypeReg, u.next.Size
		if u.data += h.Size; h.Size < 0 || u.data > u.limit { // holes are not in the stream
			return tooLarge()
		}
		u.regular[name] = true
	case tar.TypeDir:
		h.Name += "/"
	case tar.TypeSymlink:
		if h.Linkname = u.next.Linkname; h.Linkname == "" || len(h.Linkname) > maxTarget || !Plain(h.Linkname) {
			return badUpload("the symbolic link %.60q leads nowhere", name)
		}
		u.links[name] = true
	case tar.TypeLink:
		target, ok, err := u.below(u.next.Linkname)
		if err != nil || !ok || !u.regular[target] || single != "" {
			return errors.Join(badUpload("the hard link %.60q leads to no file before it", name), err)
		}
		h.Linkname = target
		u.regular[name] = true
	default:
		return badUpload("%.60q is neither a file, a directory nor a link", name)
	}
	if err := out.WriteHeader(h); err != nil {
		return badUpload("%.60q: %w", name, err)
	}
	if h.Size > 0 {
		if _, err := io.Copy(out, u.tar); err != nil {
			return damaged(err)
		}
	}
	return nil
}
