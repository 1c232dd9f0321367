package setup

import (
	"archive/tar"
	"archive/zip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/gzip"

	"github.com/firebreak-dev/firebreak"
)

const (
	maxMember = 512 << 20 // bytes of a tool
	maxSaid   = 4 << 10   // bytes of what a client said that are repeated
)

// Get has the tool below a state directory, and returns its path. Archives holds packages that were fetched by hand; if
// it is empty, the package's client fetches.
//
// firebreak.KindHost if the client is not there, or does not get it; KindInvalid if a package is not what is pinned.
func (t Tool) Get(ctx context.Context, stateDir, archives string) (string, error) {
	path := t.Path(stateDir)
	if t.Here(stateDir) {
		return path, nil
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("set up %s: %w", t.Name, err)
	}
	work, err := os.MkdirTemp(dir, ".work-")
	if err != nil {
		return "", fmt.Errorf("set up %s: %w", t.Name, err)
	}
	defer os.RemoveAll(work)
	if archives == "" {
		archives = filepath.Join(work, "fetched")
		if err := t.Package.fetch(ctx, archives); err != nil {
			return "", err
		}
	}
	archive, err := t.Package.find(ctx, archives)
	if err != nil {
		return "", err
	}
	made := filepath.Join(work, t.File)
	if err := t.unpack(archive, made); err != nil {
		return "", fmt.Errorf("set up %s: unpack %s: %w", t.Name, t.Package, err)
	}
	return path, os.Rename(made, path)
}

// fetch has the client lay the package into dir, which is made.
func (p Package) fetch(ctx context.Context, dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	words, err := p.command(dir)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, words[0], words[1:]...)
	cmd.Dir = dir
	said, err := cmd.CombinedOutput()
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		text := strings.TrimSpace(string(said[max(0, len(said)-maxSaid):]))
		return &firebreak.Error{Kind: firebreak.KindHost, Op: "fetch " + p.String(), Err: fmt.Errorf("%s: %w: %s", words[0], err, text), Mend: p.byHand()}
	}
	return nil
}

// command is what fetches the package: the first client that is on this host.
func (p Package) command(dir string) ([]string, error) {
	var ways [][]string
	switch p.Client {
	case NPM:
		ways = [][]string{{"npm", "pack", "--silent", "--ignore-scripts", "--pack-destination", dir, p.Name + "@" + p.Version}}
	case Pip:
		download := []string{"download", "--quiet", "--no-deps", "--only-binary", ":all:", "--no-input", "--dest", dir,
			"--python-version", "3.13", p.Name + "==" + p.Version}
		ways = [][]string{append([]string{"pip"}, download...), append([]string{"pip3"}, download...)}
	}
	for _, way := range ways {
		if path, err := exec.LookPath(way[0]); err == nil {
			return append([]string{path}, way[1:]...), nil
		}
	}
	return nil, &firebreak.Error{Kind: firebreak.KindHost, Op: "fetch " + p.String(), Err: fmt.Errorf("there is no %s on this host", p.Client),
		Mend: fmt.Sprintf("apt-get install %s; or %s", map[Client]string{NPM: "npm", Pip: "python3-pip"}[p.Client], p.byHand())}
}

// byHand says how to do without the client, or without a network.
func (p Package) byHand() string {
	how := map[Client]string{NPM: "npm pack " + p.Name + "@" + p.Version, Pip: "pip download --no-deps " + p.Name + "==" + p.Version}
	return fmt.Sprintf("on a host that reaches the registry: %s; then here: firebreak setup --from DIRECTORY", how[p.Client])
}

// find returns the archive of the package in dir: the file that is the pinned one, whatever it is called.
func (p Package) find(ctx context.Context, dir string) (string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", &firebreak.Error{Kind: firebreak.KindInvalid, Op: "look for " + p.String(), Err: err, Mend: "name a directory with packages"}
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !info.Mode().IsRegular() || info.Size() != p.Size {
			continue
		}
		path := filepath.Join(dir, e.Name())
		if sum, err := sumOf(ctx, path); err != nil || sum == p.SHA256 {
			return path, err
		}
	}
	return "", &firebreak.Error{Kind: firebreak.KindInvalid, Op: "look for " + p.String(),
		Err: fmt.Errorf("no file there has its SHA-256, %s: nothing else is taken", p.SHA256), Mend: p.byHand()}
}

func sumOf(ctx context.Context, path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, reading{ctx, f}); err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// reading ends with its context.
type reading struct {
	ctx context.Context
	io.Reader
}

func (r reading) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.Reader.Read(p)
}

// unpack writes the tool to a file. Of the archive only that one member is looked at.
func (t Tool) unpack(archive, to string) error {
	if t.Member == "" {
		f, err := os.Open(archive)
		if err != nil {
			return err
		}
		defer f.Close()
		return writeTool(to, f)
	}
	if strings.HasSuffix(archive, ".whl") || t.Package.Client == Pip {
		return t.unpackZip(archive, to)
	}
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return err
	}
	defer z.Close()
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("%s: %w", t.Member, fs.ErrNotExist)
		}
		if err != nil {
			return err
		}
		if h.Name == t.Member && h.Typeflag == tar.TypeReg {
			return writeTool(to, r)
		}
	}
}

func (t Tool) unpackZip(archive, to string) error {
	z, err := zip.OpenReader(archive)
	if err != nil {
		return err
	}
	defer z.Close()
	f, err := z.Open(t.Member)
	if err != nil {
		return err
	}
	defer f.Close()
	return writeTool(to, f)
}

func writeTool(to string, from io.Reader) (err error) {
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	n, err := io.Copy(f, io.LimitReader(from, maxMember+1))
	if err == nil && n > maxMember {
		err = fmt.Errorf("it has more than %d bytes", int64(maxMember))
	}
	return errors.Join(err, f.Sync())
}
