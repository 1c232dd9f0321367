package v8

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"debug/elf"
	"embed"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/image/rootfs"
)

//go:embed engine
var engineFiles embed.FS

// engineVersion is of the workerd that this driver is made for.
const engineVersion = "1.20261117.1"

const engineAt = "/engine" // in the sandbox of workerd

func inEngine(name string) string { return path.Join(engineAt, name) }

// workerd is the path of the program.
func (d *Driver) workerd() (string, error) {
	if found := d.cfg.Workerd(); found != "" {
		return filepath.Abs(found)
	}
	return "", &firebreak.Error{Kind: firebreak.KindHost, Err: errors.New("workerd, the runtime of V8 isolates, is not set up"), Mend: "firebreak setup v8"}
}

// root is what the sandboxes of workerd start from: workerd and the libraries that it needs, and nothing else of the
// host. It is made once for each workerd.
func (d *Driver) root(ctx context.Context, sucrase string) (driver.Root, error) {
	program, err := d.workerd()
	if err != nil {
		return driver.Root{}, err
	}
	sum := sha256.New()
	fmt.Fprintln(sum, heap)
	for _, at := range []string{program, sucrase} {
		info, err := os.Stat(at)
		if err != nil && at != "" {
			return driver.Root{}, err
		} else if at != "" {
			fmt.Fprintln(sum, at, info.Size(), info.ModTime().UnixNano())
		}
	}
	if err := copyEngine(func(_ string, text []byte) error { _, err := sum.Write(text); return err }); err != nil {
		return driver.Root{}, err
	}
	dir := filepath.Join(d.cfg.StateDir, ".engine-"+hex.EncodeToString(sum.Sum(nil))[:16])
	root := driver.Root{Form: driver.FormDirectory, Path: filepath.Join(dir, "root"),
		Binds: []driver.Mount{{Source: filepath.Join(dir, "engine"), Target: engineAt, ReadOnly: true}}}
	if _, err := os.Stat(dir); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return root, err
	}
	if err := os.MkdirAll(d.cfg.StateDir, 0o755); err != nil {
		return root, err
	}
	work, err := os.MkdirTemp(d.cfg.StateDir, ".work-")
	if err != nil {
		return root, err
	}
	defer os.RemoveAll(work)
	if err := errors.Join(os.Chmod(work, 0o755), fillEngine(program, sucrase, filepath.Join(work, "engine")), fillRoot(ctx, filepath.Join(work, "root"))); err != nil {
		return root, fmt.Errorf("make the root of workerd: %w", err)
	}
	if err := os.Rename(work, dir); err != nil {
		if _, statErr := os.Stat(dir); statErr != nil {
			return root, err
		} // else another process was faster
	}
	return root, nil
}

// fillRoot makes a tree that has an account and nothing to run.
func fillRoot(ctx context.Context, dir string) error {
	t := rootfs.New(nil, rootfs.Limits{Entries: 1000})
	if err := t.MkdirAll(engineAt, 0o755, 0); err != nil {
		return err
	}
	ca, err := nobody()
	if err != nil {
		return err
	}
	err = errors.Join(t.MkdirAll("/etc/ssl/certs", 0o755, 0), t.WriteFile("/etc/ssl/certs/ca-certificates.crt", ca, 0o444), t.Complete(ctx), os.Mkdir(dir, 0o755))
	if err != nil {
		return err
	}
	_, err = rootfs.Unpack(ctx, t.Root(), dir)
	return err
}

// nobody is the certificate of an authority whose key is thrown away: workerd does not start without one to trust.
func nobody() ([]byte, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "nobody"}, NotAfter: time.Now().AddDate(100, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), err
}

// fillEngine gathers workerd, its libraries and what it is told.
func fillEngine(program, sucrase, dir string) error {
	if err := os.MkdirAll(filepath.Join(dir, "lib"), 0o755); err != nil {
		return err
	}
	if err := place(program, filepath.Join(dir, "workerd")); err != nil {
		return err
	}
	modules, err := typeScriptModules(sucrase)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "typescript.json"), modules, 0o444); err != nil {
		return err
	}
	loader, libraries, err := needs(program)
	if err != nil {
		return err
	}
	if err := place(loader, filepath.Join(dir, "ld.so")); err != nil {
		return err
	}
	for name, at := range libraries {
		if err := place(at, filepath.Join(dir, "lib", name)); err != nil {
			return err
		}
	}
	return copyEngine(func(name string, text []byte) error { return os.WriteFile(filepath.Join(dir, name), text, 0o444) })
}

// copyEngine passes on the files that workerd is told.
func copyEngine(to func(name string, text []byte) error) error {
	entries, err := engineFiles.ReadDir("engine")
	if err != nil {
		return err
	}
	for _, e := range entries {
		text, err := engineFiles.ReadFile("engine/" + e.Name())
		if err != nil {
			return err
		}
		text = bytes.ReplaceAll(text, []byte("=HEAP"), []byte("="+strconv.Itoa(heap)))
		if err := to(e.Name(), bytes.ReplaceAll(text, []byte(":PORT"), []byte(":"+strconv.Itoa(port)))); err != nil {
			return err
		}
	}
	return nil
}

// place copies a program.
func place(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Chmod(0o555))
}

// needs finds the loader of a program and all libraries that it is linked with, directly or not.
func needs(program string) (loader string, libraries map[string]string, err error) {
	f, err := elf.Open(program)
	if err != nil {
		return "", nil, err
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			text, err := io.ReadAll(io.LimitReader(p.Open(), 4096))
			if err != nil {
				return "", nil, err
			}
			loader = strings.TrimRight(string(text), "\x00")
		}
	}
	if loader == "" {
		return "", nil, fmt.Errorf("%s names no loader", program)
	}
	libraries = map[string]string{}
	return loader, libraries, gather(f, libraries)
}

func gather(f *elf.File, found map[string]string) error {
	names, err := f.ImportedLibraries()
	if err != nil {
		return err
	}
	for _, name := range names {
		if found[name] != "" || strings.HasPrefix(name, "ld-linux") {
			continue
		}
		at, err := library(name)
		if err != nil {
			return err
		}
		found[name] = at
		l, err := elf.Open(at)
		if err != nil {
			return err
		}
		err = gather(l, found)
		_ = l.Close() // only read from
		if err != nil {
			return err
		}
	}
	return nil
}

// library finds a library where the distributions have them.
func library(name string) (string, error) {
	for _, pattern := range []string{"/lib/*-linux-gnu", "/usr/lib/*-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/lib"} {
		dirs, err := filepath.Glob(pattern)
		if err != nil {
			return "", err
		}
		for _, dir := range dirs {
			at := filepath.Join(dir, filepath.Base(name))
			if f, err := elf.Open(at); err == nil {
				native := f.Machine == machine()
				_ = f.Close() // only read from
				if native {
					return at, nil
				}
			}
		}
	}
	return "", &firebreak.Error{Kind: firebreak.KindHost, Err: fmt.Errorf("workerd needs the library %s, which is not here", name), Mend: "workerd runs on hosts with the GNU C library"}
}

// machine is this program's own.
func machine() elf.Machine {
	f, err := elf.Open("/proc/self/exe")
	if err != nil {
		return elf.EM_NONE
	}
	defer f.Close()
	return f.Machine
}

// under shows a tree at a directory.
type under struct {
	fs.FS
	at string
}

func (u under) Open(name string) (fs.File, error) {
	inside, ok := u.inside(name)
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return u.FS.Open(inside)
}

// inside is the name in the tree.
func (u under) inside(name string) (string, bool) {
	if name == u.at {
		return ".", true
	}
	return strings.CutPrefix(name, u.at+"/")
}

// ReadDir implements fs.ReadDirFS.
func (u under) ReadDir(name string) ([]fs.DirEntry, error) {
	if inside, ok := u.inside(name); ok {
		return fs.ReadDir(u.FS, inside)
	}
	rest := u.at
	if name != "." {
		var ok bool
		if rest, ok = strings.CutPrefix(u.at, name+"/"); !ok {
			return nil, &fs.PathError{Op: "readdir", Path: name, Err: fs.ErrNotExist}
		}
	}
	info, err := fs.Stat(u.FS, ".")
	next, _, _ := strings.Cut(rest, "/")
	return []fs.DirEntry{fs.FileInfoToDirEntry(renamed{info, next})}, err
}

// ReadLink implements fs.ReadLinkFS.
func (u under) ReadLink(name string) (string, error) {
	inside, ok := u.inside(name)
	if !ok {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: fs.ErrNotExist}
	}
	return fs.ReadLink(u.FS, inside)
}

// Lstat implements fs.ReadLinkFS.
func (u under) Lstat(name string) (fs.FileInfo, error) {
	inside, ok := u.inside(name)
	if !ok {
		return nil, &fs.PathError{Op: "lstat", Path: name, Err: fs.ErrNotExist}
	}
	return fs.Lstat(u.FS, inside)
}

type renamed struct {
	fs.FileInfo
	name string
}

func (r renamed) Name() string { return r.name }
