package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/api/filesystem"
)

// copier copies one tree out of a sandbox. Everything it is told about the tree is hostile: names, types, sizes, links.
type copier struct {
	app     *app
	from    remotePath
	meter   *meter
	left    int64 // bytes that may still come
	limit   int64
	root    string // in the sandbox, links resolved where the agent says so
	entries int    // that may still come
	links   []link
	skipped int
}

// link is a symbolic link to make once nothing is written any more.
type link struct {
	dir    string // below the top, where nothing but directories of ours lie on the way
	name   string
	target string
}

// copyFrom copies from to the path host of the caller.
func (a *app) copyFrom(ctx context.Context, from remotePath, host string, limit int64) error {
	entry, err := from.stat(ctx)
	if err != nil {
		return err
	}
	c := &copier{app: a, from: from, left: limit, limit: limit, entries: maxCopyEntries, meter: a.newMeter("copied")}
	defer c.meter.close()
	if c.root = entry.GetPath(); path.IsAbs(entry.GetSymlinkTarget()) {
		c.root = entry.GetSymlinkTarget()
	}
	name := path.Base(path.Clean(from.path))
	isDir := entry.GetType() == filesystem.FileType_FILE_TYPE_DIRECTORY
	contents := isDir && (name == "." || name == ".." || name == "/" || strings.HasSuffix(from.path, "/."))
	info, err := os.Stat(host)
	switch {
	case err == nil && info.IsDir() && contents:
		return c.top(ctx, entry.GetPath(), host)
	case err == nil && info.IsDir():
		host = filepath.Join(host, name)
	case err == nil && isDir:
		return invalid("", fmt.Errorf("%s is a directory, and %s is none", from.path, host), "")
	case err != nil && strings.HasSuffix(host, "/") && !isDir:
		return invalid("", fmt.Errorf("there is no directory %s", host), "create it first")
	}
	if !isDir {
		return c.topFile(ctx, entry, host)
	}
	if err := os.Mkdir(host, 0o777); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return c.top(ctx, entry.GetPath(), host)
}

// stat finds what a path of the sandbox is, following links: the caller has named it.
func (p remotePath) stat(ctx context.Context) (*filesystem.EntryInfo, error) {
	name := p.path
	for range 8 {
		got, err := p.client.Filesystem(p.id).Stat(ctx, request(p.user, &filesystem.StatRequest{Path: name}))
		if err != nil {
			return nil, err
		}
		entry := got.Msg.GetEntry()
		switch entry.GetType() {
		case filesystem.FileType_FILE_TYPE_FILE, filesystem.FileType_FILE_TYPE_DIRECTORY:
			return entry, nil
		case filesystem.FileType_FILE_TYPE_SYMLINK:
			target := entry.GetSymlinkTarget()
			if name = target; !path.IsAbs(target) {
				name = path.Join(path.Dir(entry.GetPath()), target)
			}
		default:
			return nil, invalid("", fmt.Errorf("%s in the sandbox is neither a file nor a directory", p.path), "")
		}
	}
	return nil, invalid("", fmt.Errorf("%s in the sandbox is a link that leads nowhere", p.path), "")
}

// topFile writes a single file to the very path that the caller has named, which may be a device or a link of theirs.
func (c *copier) topFile(ctx context.Context, entry *filesystem.EntryInfo, host string) error {
	f, err := os.OpenFile(host, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o666)
	if err != nil {
		return err
	}
	if err := c.fill(ctx, f, c.from.path, entry); err != nil {
		return errors.Join(err, f.Close())
	}
	return f.Close()
}

// top copies the contents of a directory and then makes the links.
func (c *copier) top(ctx context.Context, remote, host string) error {
	root, err := os.OpenRoot(host)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := c.dir(ctx, root, remote, "", 0); err != nil {
		return err
	}
	for _, l := range c.links {
		if err := c.makeLink(root, l); err != nil {
			return err
		}
	}
	if c.skipped > maxSkipWarnings {
		c.app.warn("%d more were left out", c.skipped-maxSkipWarnings)
	}
	return nil
}

// dir copies the contents of one directory into to. Names are single components, so that nothing is ever resolved.
func (c *copier) dir(ctx context.Context, to *os.Root, remote, below string, depth int) error {
	if depth > maxCopyDepth {
		return exhausted(fmt.Errorf("%s lies more than %d directories deep", oneLine(remote), maxCopyDepth), "copy a part of it")
	}
	list, err := c.from.client.Filesystem(c.from.id).ListDir(ctx, request(c.from.user, &filesystem.ListDirRequest{Path: remote, Depth: 1}))
	if err != nil {
		return err
	}
	for _, entry := range list.Msg.GetEntries() {
		if c.entries--; c.entries < 0 {
			return exhausted(fmt.Errorf("more than %d files", maxCopyEntries), "copy a part of them")
		}
		if !plainName(entry.GetName()) {
			c.skip(remote, entry.GetName(), "its name is no file name")
			continue
		}
		if err := c.entry(ctx, to, remote, below, depth, entry); err != nil {
			return err
		}
	}
	return nil
}

// plainName reports whether name is one component that stays where it is put.
func plainName(name string) bool {
	return name != "" && name != "." && name != ".." && len(name) <= 255 && !strings.ContainsAny(name, "/\x00") && filepath.IsLocal(name)
}

func (c *copier) entry(ctx context.Context, to *os.Root, remote, below string, depth int, entry *filesystem.EntryInfo) error {
	name := entry.GetName()
	switch {
	case entry.SymlinkTarget != nil || entry.GetType() == filesystem.FileType_FILE_TYPE_SYMLINK:
		c.links = append(c.links, link{dir: below, name: name, target: entry.GetSymlinkTarget()})
		return nil
	case entry.GetType() == filesystem.FileType_FILE_TYPE_DIRECTORY:
		return c.subdir(ctx, to, path.Join(remote, name), path.Join(below, name), depth, entry)
	case entry.GetType() == filesystem.FileType_FILE_TYPE_FILE:
		return c.file(ctx, to, path.Join(remote, name), entry)
	}
	c.skip(remote, name, "it is neither a file nor a directory")
	return nil
}

func (c *copier) subdir(ctx context.Context, to *os.Root, remote, below string, depth int, entry *filesystem.EntryInfo) error {
	name := entry.GetName()
	if info, err := to.Lstat(name); err != nil || !info.IsDir() {
		if err := removeOther(to, name); err != nil {
			return err
		}
		if err := to.Mkdir(name, 0o700); err != nil {
			return err
		}
	}
	sub, err := to.OpenRoot(name)
	if err != nil {
		return err
	}
	defer sub.Close()
	if err := c.dir(ctx, sub, remote, below, depth+1); err != nil {
		return err
	}
	return sub.Chmod(".", mode(entry.GetMode())|0o700) // the caller must be able to remove it again
}

// removeOther makes room for a new file or directory, without touching what a link points to.
func removeOther(to *os.Root, name string) error {
	if err := to.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (c *copier) file(ctx context.Context, to *os.Root, remote string, entry *filesystem.EntryInfo) error {
	if err := removeOther(to, entry.GetName()); err != nil {
		return err
	}
	f, err := to.OpenFile(entry.GetName(), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := c.fill(ctx, f, remote, entry); err != nil {
		return errors.Join(err, f.Close())
	}
	return f.Close()
}

// fill copies as much of a file as it claims to have, and then sets its permissions.
func (c *copier) fill(ctx context.Context, f *os.File, remote string, entry *filesystem.EntryInfo) error {
	size := entry.GetSize()
	if size > c.left {
		return c.tooMuch()
	}
	if size <= 0 {
		size = min(maxUnsized, c.left)
	}
	r, err := c.from.client.ReadFile(ctx, c.from.id, remote, c.from.user)
	if err != nil {
		return err
	}
	defer r.Close()
	n, err := io.Copy(f, c.meter.reader(io.LimitReader(r, size)))
	if c.left -= n; err != nil {
		return fmt.Errorf("copy %s: %w", oneLine(remote), err)
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return err // a device of the caller keeps its permissions
	}
	return f.Chmod(mode(entry.GetMode()))
}

func (c *copier) tooMuch() error {
	return exhausted(fmt.Errorf("more than %s would come out", formatSize(c.limit)), "raise it with firebreak cp --limit")
}

func exhausted(err error, mend string) error {
	return &firebreak.Error{Kind: firebreak.KindExhausted, Err: err, Mend: mend}
}

// makeLink makes a link unless it leads out of what was copied.
func (c *copier) makeLink(root *os.Root, l link) error {
	l.target = relativeLink(c.root, l.dir, l.target)
	if !staysBelow(l.dir, l.target) {
		c.skip(l.dir, l.name, "it is a link that leads out of what is copied")
		return nil
	}
	name := filepath.Join(l.dir, l.name)
	if err := removeOther(root, name); err != nil {
		return err
	}
	return root.Symlink(l.target, name)
}

// relativeLink makes a target relative that lies below root: agents may resolve links and give absolute paths.
func relativeLink(root, dir, target string) string {
	if !path.IsAbs(target) {
		return target
	}
	relative, err := filepath.Rel(path.Join(root, dir), path.Clean(target))
	if err != nil {
		return target
	}
	return relative
}

// staysBelow reports whether a link in dir to target cannot lead above the top. ".." may only stand at the beginning:
// after a name it would climb from wherever that name, perhaps a link itself, leads to.
func staysBelow(dir, target string) bool {
	if target == "" || path.IsAbs(target) || strings.ContainsRune(target, 0) || !filepath.IsLocal(filepath.Join(dir, target)) {
		return false
	}
	named := false
	for _, part := range strings.Split(target, "/") {
		if part == ".." && named {
			return false
		}
		named = named || part != ".." && part != "." && part != ""
	}
	return true
}

// maxSkipWarnings bounds the lines that a sandbox can make us print.
const maxSkipWarnings = 10

func (c *copier) skip(dir, name, why string) {
	if c.skipped++; c.skipped <= maxSkipWarnings {
		c.app.warn("%q is left out: %s", path.Join(dir, name), why)
	}
}
