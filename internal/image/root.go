package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/image/erofs"
	"github.com/firebreak-dev/firebreak/internal/image/rootfs"
)

// Root is RootOf the template that is called name now.
func (s *Store) Root(ctx context.Context, name string, forms []driver.Form) (driver.Root, error) {
	t, err := s.Get(name)
	if err != nil {
		return driver.Root{}, err
	}
	return s.RootOf(ctx, t, forms)
}

// RootOf returns the template's root file system in the first of the forms that it can have. An image is unpacked the
// first time somebody wants a directory. errors.ErrUnsupported if none of the forms will do.
func (s *Store) RootOf(ctx context.Context, t Template, forms []driver.Form) (driver.Root, error) {
	if t.Name == HostName {
		return s.hostRoot(ctx, t, forms)
	}
	for _, form := range forms {
		if !slices.Contains(t.Forms(), form) {
			continue
		}
		root := driver.Root{Form: form}
		var err error
		switch form {
		case driver.FormDisk:
			root.Path, err = s.disk(t)
		case driver.FormModule, driver.FormScript:
			root.Language, root.Command = t.Language, t.Command
			fallthrough
		default:
			root.Path, err = s.directory(ctx, t)
		}
		return root, s.blame("serve template "+t.Name, err)
	}
	return driver.Root{}, noForm(t.Name, forms)
}

func noForm(name string, forms []driver.Form) error {
	return &firebreak.Error{Kind: firebreak.KindUnsupported, Op: "serve template " + name,
		Err: fmt.Errorf("it cannot be had in any of the forms %v: %w", forms, errors.ErrUnsupported)}
}

// touch marks path as just handed out. fs.ErrNotExist if it is not there.
func (s *Store) touch(path string) error { return os.Chtimes(path, time.Time{}, s.now()) }

func (s *Store) disk(t Template) (string, error) {
	path := s.blobPath(hexOf(t.Digest))
	err := s.touch(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", &firebreak.Error{Kind: firebreak.KindNotFound, Err: fmt.Errorf("its image %s is gone: %w", t.Digest, err),
			Mend: "make the template again from " + t.Source}
	}
	return path, err
}

// directory unpacks the image unless that was done before.
func (s *Store) directory(ctx context.Context, t Template) (string, error) {
	blob, err := s.disk(t)
	if err != nil {
		return "", err
	}
	return s.tree(ctx, hexOf(t.Digest), func() (*erofs.Node, func() error, error) {
		f, err := os.Open(blob)
		if err != nil {
			return nil, nil, err
		}
		root, err := erofs.Read(f)
		if err != nil {
			return nil, nil, errors.Join(err, f.Close())
		}
		return root, f.Close, nil
	})
}

// owners tells trees apart that were unpacked where not all owners exist: by another user, or in a user namespace.
func (s *Store) owners() string {
	ids, err := os.ReadFile("/proc/self/uid_map")
	if err == nil && os.Geteuid() == 0 && string(ids) == wholeUIDMap {
		return ""
	}
	sum := sha256.Sum256(fmt.Appendf(ids, "%d", os.Geteuid()))
	return "-" + hex.EncodeToString(sum[:4])
}

// wholeUIDMap is /proc/self/uid_map outside of user namespaces.
const wholeUIDMap = "         0          0 4294967295\n"

// boot names this boot of the host.
func (s *Store) boot() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	return string(id[:min(len(id), 8)]), nil
}

// treeSuffix tells apart who unpacked a tree, and in which boot.
func (s *Store) treeSuffix() (string, error) {
	boot, err := s.boot()
	return "-" + boot + s.owners(), err
}

func (s *Store) treePath(hex string) (string, error) {
	suffix, err := s.suffix()
	return filepath.Join(s.dir, treesDir, hex+suffix), err
}

// tree returns the path of the unpacked tree of a digest. It makes it by load if it is not there.
//
// A tree is written without waiting for the disk, which could take long, so a power cut may leave holes in it:
// therefore it serves for one boot only.
func (s *Store) tree(ctx context.Context, hex string, load func() (*erofs.Node, func() error, error)) (string, error) {
	final, err := s.treePath(hex)
	if err != nil {
		return "", err
	}
	root := filepath.Join(final, "root")
	if s.touch(final) == nil {
		return root, nil
	}
	turn, err := waitLock(ctx, filepath.Join(s.dir, locksDir, "~tree-"+hex[:2]), unix.LOCK_EX)
	if err != nil {
		return "", err
	}
	defer turn.release()
	if s.touch(final) == nil { // somebody else was unpacking it
		return root, nil
	}
	w, err := s.newWork(ctx)
	if err != nil {
		return "", err
	}
	defer func() {
		if err := w.remove(); err != nil {
			s.log.Warn("leftovers stay until the next collection", "dir", w.dir, "error", err)
		}
	}()
	if err := s.unpack(ctx, w, load); err != nil {
		return "", fmt.Errorf("unpack: %w", err)
	}
	if err := s.touch(w.path("tree")); err != nil {
		return "", err
	}
	l, err := s.hold(ctx, unix.LOCK_SH)
	if err != nil {
		return "", err
	}
	defer l.release()
	return root, os.Rename(w.path("tree"), final)
}

func (s *Store) unpack(ctx context.Context, w work, load func() (*erofs.Node, func() error, error)) (err error) {
	from, done, err := load()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	dir := w.path("tree/root")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	strangers, err := rootfs.Unpack(ctx, from, dir)
	if err != nil {
		return err
	}
	if strangers > 0 {
		s.log.Debug("owners that this user cannot give away are left out", "files", strangers)
	}
	return nil
}
