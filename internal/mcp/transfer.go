package mcp

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak"
)

// maxTransfer bounds a file that goes from or to the user's computer.
const maxTransfer = 256 << 20

type uploadIn struct {
	Source  string `json:"source" jsonschema:"a file on the user's computer, within a directory that the client shares (its roots)"`
	Path    string `json:"path" jsonschema:"what it becomes in the sandbox"`
	Sandbox string `json:"sandbox,omitempty" jsonschema:"id of another sandbox of this session; default: the session's own"`
}

type downloadIn struct {
	Path      string `json:"path" jsonschema:"a file in the sandbox"`
	Target    string `json:"target" jsonschema:"what it becomes on the user's computer, within a directory that the client shares (its roots)"`
	Overwrite bool   `json:"overwrite,omitempty" jsonschema:"replace a file that is there"`
	Sandbox   string `json:"sandbox,omitempty" jsonschema:"id of another sandbox of this session; default: the session's own"`
}

type transferOut struct {
	Sandbox string `json:"sandbox"`
	Path    string `json:"path"`
	Host    string `json:"host" jsonschema:"path on the user's computer"`
	Size    int64  `json:"size"`
}

// addTransferTools offers to copy files, where the client's files are this host's.
func (d *Door) addTransferTools() {
	if !d.cfg.Local {
		return
	}
	path, id := longest(maxPath), longest(maxID)
	add(d, tool{name: "upload_file", title: "Copy a file into the sandbox", openWorld: true, destructive: true,
		about:  "Copy a file from the user's computer into the sandbox, 256 MiB at most. The user is asked.",
		limits: limits{"source": path, "path": path, "sandbox": id}},
		(*call).upload)
	add(d, tool{name: "download_file", title: "Copy a file out of the sandbox", openWorld: true, destructive: true,
		about:  "Copy a file from the sandbox to the user's computer, 256 MiB at most. The user is asked.",
		limits: limits{"path": path, "target": path, "sandbox": id}},
		(*call).download)
}

// place is a file of the user's computer, within a directory that the client shares: no link leads out of it.
type place struct {
	root *os.Root
	name string // within it
	path string // as a whole
}

func (p *place) Close() error { return p.root.Close() }

// place finds the root that path lies in.
func (c *call) place(path string) (*place, error) {
	roots := c.roots()
	if len(roots) == 0 {
		return nil, &firebreak.Error{Kind: firebreak.KindDenied, Err: errors.New("the client shares no directory of the user's computer"), Mend: "ask the user to open one in the client"}
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(roots[0], path)
	}
	path = filepath.Clean(path)
	for _, dir := range roots {
		name, err := filepath.Rel(dir, path)
		if err != nil || !filepath.IsLocal(name) || name == "." {
			continue
		}
		root, err := os.OpenRoot(dir)
		if err != nil {
			return nil, hostError(path, err)
		}
		return &place{root, name, path}, nil
	}
	return nil, &firebreak.Error{Kind: firebreak.KindDenied, Err: fmt.Errorf("%s is in none of the directories that the client shares: %s", path, strings.Join(roots, ", ")),
		Mend: "use a path within one of them"}
}

// hostError is an error of a file of the user's computer.
func hostError(path string, err error) error {
	kind := firebreak.KindInvalid
	if errors.Is(err, fs.ErrNotExist) {
		kind = firebreak.KindNotFound
	}
	return &firebreak.Error{Kind: kind, Op: "use " + path + " of the user's computer", Err: err}
}

func (c *call) upload(in uploadIn) (result, transferOut, error) {
	besides, err := c.askRoots()
	if err != nil {
		return result{}, transferOut{}, err
	}
	ask, err := c.consent("upload", fmt.Sprintf("May the model copy the file %q of this computer into its sandbox, as %q?", in.Source, in.Path), in, besides)
	if ask != nil || err != nil {
		return result{ask: ask}, transferOut{}, err
	}
	from, err := c.place(in.Source)
	if err != nil {
		return result{}, transferOut{}, err
	}
	defer from.Close() //nolint:errcheck // opened for reading
	f, err := from.root.OpenFile(from.name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return result{}, transferOut{}, hostError(from.path, err)
	}
	defer f.Close() //nolint:errcheck // opened for reading
	fi, err := f.Stat()
	switch {
	case err != nil:
		return result{}, transferOut{}, hostError(from.path, err)
	case !fi.Mode().IsRegular():
		return result{}, transferOut{}, invalid("name a file", "%s is no regular file", from.path)
	case fi.Size() > maxTransfer:
		return result{}, transferOut{}, invalid("share its directory with --workspace", "%s has more than %d bytes", from.path, maxTransfer)
	}
	b, g, err := c.box(in.Sandbox)
	if err != nil {
		return result{}, transferOut{}, err
	}
	defer b.keep(c.ctx, c.door)()
	size := &counter{}
	if err := g.WriteFile(c.ctx, in.Path, "", io.TeeReader(io.LimitReader(f, maxTransfer), size)); err != nil {
		return result{}, transferOut{}, err
	}
	b.log.add("copied %s of the host to %s, %d bytes", from.path, in.Path, size.n)
	return text("Copied %s into the sandbox as %s, %d bytes.", from.path, in.Path, size.n), transferOut{b.id, in.Path, from.path, size.n}, nil
}

type counter struct{ n int64 }

func (c *counter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return len(p), nil
}

func (c *call) download(in downloadIn) (result, transferOut, error) {
	besides, err := c.askRoots()
	if err != nil {
		return result{}, transferOut{}, err
	}
	question := fmt.Sprintf("May the model copy the file %q of its sandbox to this computer, as %q?", in.Path, in.Target)
	if in.Overwrite {
		question += " It replaces what is there."
	}
	ask, err := c.consent("download", question, in, besides)
	if ask != nil || err != nil {
		return result{ask: ask}, transferOut{}, err
	}
	to, err := c.place(in.Target)
	if err != nil {
		return result{}, transferOut{}, err
	}
	defer to.Close() //nolint:errcheck // what was written is closed by itself
	b, g, err := c.box(in.Sandbox)
	if err != nil {
		return result{}, transferOut{}, err
	}
	defer b.keep(c.ctx, c.door)()
	body, _, err := g.ReadFile(c.ctx, in.Path, "", 0, -1)
	if err != nil {
		return result{}, transferOut{}, fileError(err)
	}
	defer body.Close() //nolint:errcheck // read as far as we want it
	n, err := to.write(body, in.Overwrite)
	if err != nil {
		return result{}, transferOut{}, err
	}
	b.log.add("copied %s to %s of the host, %d bytes", in.Path, to.path, n)
	return text("Copied %s to %s of the user's computer, %d bytes.", in.Path, to.path, n), transferOut{b.id, in.Path, to.path, n}, nil
}

// write makes the file, or leaves what was there.
func (p *place) write(from io.Reader, overwrite bool) (int64, error) {
	if fi, err := p.root.Lstat(p.name); err == nil && (!overwrite || !fi.Mode().IsRegular()) {
		return 0, &firebreak.Error{Kind: firebreak.KindExists, Err: fmt.Errorf("%s is there already", p.path), Mend: "use another name, or set overwrite for a regular file"}
	}
	temp := filepath.Join(filepath.Dir(p.name), ".firebreak-"+rand.Text())
	f, err := p.root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return 0, hostError(p.path, err)
	}
	n, err := io.Copy(f, io.LimitReader(from, maxTransfer+1))
	if n > maxTransfer {
		err = fmt.Errorf("it has more than %d bytes", maxTransfer)
	}
	if err = errors.Join(err, f.Close()); err == nil {
		if overwrite {
			err = p.root.Rename(temp, p.name)
		} else if err = p.root.Link(temp, p.name); err == nil { // which replaces nothing
			err = p.root.Remove(temp)
		}
	}
	if err != nil {
		_ = p.root.Remove(temp) // the error tells enough
		return 0, hostError(p.path, err)
	}
	return n, nil
}
