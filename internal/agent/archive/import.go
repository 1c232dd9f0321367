package archive

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/agent/account"
)

// errRefused is of an archive, or a place for it, that cannot be.
var errRefused = errors.New("refused")

func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: %w", errRefused, fmt.Errorf(format, args...))
}

// Target is where Import puts an archive.
type Target struct {
	Path     string // absolute; a directory, or with Single what its only entry becomes
	Dir      bool   // Path is a directory even if nothing is there yet
	Single   string // the archive has one entry of this name, which goes to Path, or into it if that is a directory
	UID, GID uint32 // who gets all that is made
	Mode     int64  // permissions of files and directories; negative: those of the archive
}

// target reads the query of an import: path, and cwd where a relative one begins; user, who gives what the others do not
// say; owner as "name", "name:group" or numbers; mode in octal; single, a name.
func (s *Service) target(q url.Values) (Target, error) {
	t := Target{Single: q.Get("single"), Mode: -1}
	user, err := s.session.User(q.Get("user"))
	if err != nil {
		return t, err
	}
	name := q.Get("path")
	if name == "" || strings.ContainsRune(name+q.Get("cwd"), 0) {
		return t, fmt.Errorf("%.100q is no path", name)
	}
	t.Dir = strings.HasSuffix(name, "/") || name == "." || strings.HasSuffix(name, "/.")
	base := user.Home
	if cwd := q.Get("cwd"); cwd != "" {
		base = filepath.Join(base, "/", cwd)
		if filepath.IsAbs(cwd) {
			base = filepath.Clean(cwd)
		}
	}
	switch rest, tilde := strings.CutPrefix(name, "~"); {
	case tilde && (rest == "" || rest[0] == '/'):
		t.Path, t.Dir = filepath.Join(user.Home, rest), t.Dir || rest == ""
	case filepath.IsAbs(name):
		t.Path = filepath.Clean(name)
	default:
		t.Path = filepath.Join(base, name)
	}
	if t.UID, t.GID, err = s.owner(user, q.Get("owner")); err != nil {
		return t, err
	}
	if mode := q.Get("mode"); mode != "" {
		if t.Mode, err = strconv.ParseInt(mode, 8, 32); err != nil || t.Mode < 0 || t.Mode > 0o7777 {
			return t, fmt.Errorf("%.40q is no mode in octal", mode)
		}
	}
	return t, nil
}

// owner finds the ids that a "name:group" means; the group is the user's own if none is given.
func (s *Service) owner(user account.User, owner string) (uid, gid uint32, err error) {
	if owner == "" {
		return user.UID, user.GID, nil
	}
	name, group, both := strings.Cut(owner, ":")
	u, err := s.session.Lookup(name)
	if err != nil || !both || group == "" {
		return u.UID, u.GID, err
	}
	gid, err = s.session.Group(group)
	return u.UID, gid, err
}

// Import unpacks the tar archive r. Directories that are there keep what they are, and links to directories are followed
// as the image means them; a link that came with the archive is not, and no name leads out of t.Path. Files and links
// take the place of what is there, except of a directory.
func Import(ctx context.Context, r io.Reader, t Target) error {
	i := &importer{Target: t, ctx: ctx, as: t.Single, links: map[string]bool{}, buf: make([]byte, 128<<10)}
	if err := i.begin(); err != nil {
		return err
	}
	archive := tar.NewReader(r)
	for {
		h, err := archive.Next()
		switch {
		case errors.Is(err, io.EOF):
			// What else comes is no part of the archive, but the sender waits for it to be read.
			_, err = io.Copy(io.Discard, r)
			return errors.Join(err, i.finish())
		case err != nil:
			return refuse("the archive is damaged: %w", err)
		case ctx.Err() != nil:
			return ctx.Err()
		}
		if err := i.entry(h, archive); err != nil {
			return fmt.Errorf("%.200s: %w", h.Name, err)
		}
	}
}

type importer struct {
	Target
	ctx   context.Context
	as    string          // what the entry Single is called in the end
	links map[string]bool // symbolic links that this archive made
	times []dirTime
	buf   []byte
}

// dirTime is set at the end: what is put into a directory changes it.
type dirTime struct {
	path string
	mode int64
	when time.Time
}

// begin finds out where things go, and makes what is missing on the way.
func (i *importer) begin() error {
	info, err := os.Stat(i.Path)
	if i.Single != "" && !i.Dir && (err != nil || !info.IsDir()) {
		i.Path, i.as = filepath.Dir(i.Path), filepath.Base(i.Path)
	}
	return i.makeDirs(i.Path)
}

// name is where an entry goes.
func (i *importer) name(entry string) (string, error) {
	if i.Single != "" {
		if entry != i.Single {
			return "", refuse("the archive was to hold %q alone", i.Single)
		}
		entry = i.as
	}
	clean := strings.TrimSuffix(entry, "/")
	if clean == "." || clean == "" {
		return i.Path, nil
	}
	if !filepath.IsLocal(clean) || filepath.Clean(clean) != clean || strings.ContainsRune(clean, 0) {
		return "", refuse("the name leads out of its directory, or is not a plain one")
	}
	for at := filepath.Dir(clean); at != "."; at = filepath.Dir(at) {
		if i.links[at] {
			return "", refuse("it lies behind the symbolic link %q of the same archive", at)
		}
	}
	return filepath.Join(i.Path, clean), nil
}

func (i *importer) entry(h *tar.Header, data io.Reader) error {
	at, err := i.name(h.Name)
	if err != nil {
		return err
	}
	if h.Typeflag == tar.TypeDir {
		return i.directory(at, h)
	}
	if at == i.Path {
		return refuse("it would replace the directory itself")
	}
	if err := i.makeDirs(filepath.Dir(at)); err != nil {
		return err
	}
	if err := i.clear(at, h); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeReg:
		if isSparse(h) {
			return refuse("it has holes, which the archive says are as large as it likes")
		}
		return i.file(at, h, data)
	case tar.TypeSymlink:
		if err := os.Symlink(h.Linkname, at); err != nil {
			return err
		}
		i.links[strings.TrimPrefix(at[len(i.Path):], "/")] = true
		return os.Lchown(at, int(i.UID), int(i.GID))
	case tar.TypeLink:
		return i.link(at, h.Linkname)
	}
	return refuse("it is of a kind that no step copies")
}

// isSparse reports whether a file has holes, which are not in the archive. The host sends none.
func isSparse(h *tar.Header) bool {
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// clear removes what an entry replaces.
func (i *importer) clear(at string, h *tar.Header) error {
	info, err := os.Lstat(at)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.IsDir():
		return refuse("a directory is there already")
	}
	delete(i.links, strings.TrimPrefix(at[len(i.Path):], "/"))
	return os.Remove(at)
}

func (i *importer) directory(at string, h *tar.Header) error {
	if info, err := os.Stat(at); err == nil && info.IsDir() {
		return nil
	}
	if err := i.makeDirs(at); err != nil {
		return err
	}
	i.times = append(i.times, dirTime{at, i.mode(h), h.ModTime})
	return nil
}

// makeDirs is os.MkdirAll that gives what it makes to the owner.
func (i *importer) makeDirs(dir string) error {
	info, err := os.Stat(dir)
	switch {
	case err == nil && !info.IsDir():
		return refuse("%s is there already and no directory", dir)
	case err == nil:
		return nil
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if err := i.makeDirs(filepath.Dir(dir)); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	return os.Chown(dir, int(i.UID), int(i.GID))
}

func (i *importer) mode(h *tar.Header) int64 {
	if i.Mode >= 0 {
		return i.Mode
	}
	return h.Mode & 0o7777
}

func (i *importer) file(at string, h *tar.Header, data io.Reader) (err error) {
	f, err := os.OpenFile(at, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for left := h.Size; left > 0; {
		if err := i.ctx.Err(); err != nil {
			return err
		}
		part := i.buf[:min(int64(len(i.buf)), left)]
		if _, err := io.ReadFull(data, part); err != nil {
			return refuse("the archive ends in the middle of it: %w", err)
		}
		if _, err := f.Write(part); err != nil {
			return err
		}
		left -= int64(len(part))
	}
	// The owner first: a change of it clears setuid.
	if err := f.Chown(int(i.UID), int(i.GID)); err != nil {
		return err
	}
	if err := unix.Fchmod(int(f.Fd()), uint32(i.mode(h))); err != nil {
		return err
	}
	return os.Chtimes(at, h.ModTime, h.ModTime)
}

// link makes a further name for a file that the archive brought.
func (i *importer) link(at, target string) error {
	from, err := i.name(target)
	if err != nil {
		return err
	}
	info, err := os.Lstat(from)
	if err != nil || !info.Mode().IsRegular() {
		return refuse("a link to %.200q, which is no file of the archive", target)
	}
	return os.Link(from, at)
}

// finish gives the directories their permissions and times, the innermost first.
func (i *importer) finish() error {
	var errs []error
	for n := len(i.times) - 1; n >= 0; n-- {
		d := i.times[n]
		errs = append(errs, unix.Chmod(d.path, uint32(d.mode)), os.Chtimes(d.path, d.when, d.when))
	}
	return errors.Join(errs...)
}
