package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/image/erofs"
	"github.com/firebreak-dev/firebreak/internal/image/rootfs"
)

// Make makes a template, or replaces the one of that name; sandboxes that run from the old one are not disturbed. Two
// that make the same name at once take turns. It leaves nothing behind if it fails or ctx ends.
func (s *Store) Make(ctx context.Context, src Source, opts MakeOptions) (Template, error) {
	name, err := src.name(opts.Name)
	if err != nil {
		return Template{}, err
	}
	turn, err := waitLock(ctx, filepath.Join(s.dir, locksDir, fileName(name)), unix.LOCK_EX)
	if err != nil {
		return Template{}, s.blame("make template "+name, err)
	}
	defer turn.release()
	if opts.IfMissing {
		if t, err := s.Get(name); !errors.Is(err, fs.ErrNotExist) {
			return t, err
		}
	}
	s.sweepIfIdle()
	w, err := s.newWork(ctx)
	if err != nil {
		return Template{}, s.blame("make template "+name, err)
	}
	t, err := s.makeIn(ctx, w, src, name, opts)
	if rmErr := w.remove(); rmErr != nil {
		s.log.Warn("leftovers stay until the next collection", "dir", w.dir, "error", rmErr)
	}
	if err != nil {
		return Template{}, s.blame("make template "+name, err)
	}
	return t, nil
}

// name checks the source and returns the name for what is made from it.
func (src Source) name(wanted string) (string, error) {
	name, given := wanted, 0
	for _, f := range []struct{ value, name string }{
		{src.Path, filepath.Base(src.Path)}, {src.Reference, src.Reference}, {src.Recipe, src.Recipe},
		{src.Module.Path, src.Module.program()}, {src.Scripts, filepath.Base(src.Scripts)},
	} {
		if f.value != "" {
			given++
			if name == "" {
				name = f.name
			}
		}
	}
	if src.Export.Archive != nil {
		given++
	}
	if given != 1 {
		return "", &firebreak.Error{Kind: firebreak.KindInvalid, Op: "make template",
			Err: fmt.Errorf("%d sources are given", given), Mend: "give one path, image reference, recipe, module or directory of scripts"}
	}
	if wanted == "" && src.Module.ByContent {
		var err error
		if name, err = src.Module.contentName(); err != nil {
			return "", err
		}
	}
	if name == HostName {
		return "", &firebreak.Error{Kind: firebreak.KindInvalid, Op: "make template",
			Err: fmt.Errorf("%q is the host's own template", name), Mend: "choose another name"}
	}
	return name, checkAny(name)
}

// job is one Make at work.
type job struct {
	store *Store
	work  work
	tree  *rootfs.Tree
	*reporter
	limits rootfs.Limits
	pull   Pull
	base   *os.File // the image whose data is used again
}

func (j *job) close() {
	_ = j.tree.Close() // only reads
	if j.base != nil {
		_ = j.base.Close() // only read from
	}
}

func (s *Store) makeIn(ctx context.Context, w work, src Source, name string, opts MakeOptions) (Template, error) {
	spool, err := os.OpenFile(w.path("spool"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return Template{}, err
	}
	defer spool.Close()
	j := &job{store: s, work: w, tree: rootfs.New(spool, opts.Limits), reporter: &reporter{call: opts.Progress},
		limits: opts.Limits, pull: opts.Pull}
	defer j.close()
	t, err := j.fill(ctx, src, name)
	if err == nil && len(j.tree.Root().Entries) == 0 {
		err = badImage("there are no files in it")
	}
	if err != nil {
		return Template{}, s.blameSource("read "+src.Path+src.Reference+src.Recipe+src.Module.Path+src.Scripts, err)
	}
	if n := j.tree.Dropped(); n > 0 {
		s.log.Info("devices and sockets of the image are left out", "template", name, "count", n)
	}
	if t.Form == FormRoot {
		if err := j.tree.Complete(ctx); err != nil {
			return Template{}, err
		}
	}
	if opts.Edit != nil {
		opts.Edit(&t)
	}
	if err := t.checkProgram(); err != nil {
		return Template{}, err
	}
	t.Name, t.Created = name, s.now().UTC().Truncate(time.Second)
	digest, size, err := j.write(ctx)
	if err != nil {
		return Template{}, s.blameSource("write image", err)
	}
	t.Digest, t.Size = "sha256:"+digest, size
	return t, s.publish(ctx, w, digest, t)
}

// fill puts what src holds into the tree.
func (j *job) fill(ctx context.Context, src Source, name string) (Template, error) {
	switch {
	case src.Path != "":
		return j.fromPath(ctx, src.Path)
	case src.Reference != "":
		return j.fromRegistry(ctx, src.Reference)
	case src.Export.Archive != nil:
		return j.fromExport(ctx, src.Export)
	case src.Module.Path != "":
		return j.fromModule(ctx, src.Module, name)
	case src.Scripts != "":
		return j.fromScripts(ctx, src.Scripts)
	}
	return j.fromRecipe(ctx, src.Recipe)
}

// write writes the image into the work directory.
func (j *job) write(ctx context.Context) (digest string, size int64, err error) {
	f, err := os.OpenFile(j.work.path("image"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	sum := sha256.New()
	out := &rootfs.SparseWriter{File: f}
	j.report("write image", 0, 0)
	if err := erofs.Write(ctx, io.MultiWriter(&flushing{out: out}, sum), j.tree.Root()); err != nil {
		return "", 0, err
	}
	j.report("write image", out.Offset, out.Offset)
	// A power cut must not leave a name without its content.
	if err := errors.Join(out.Finish(), f.Chmod(0o444), f.Sync()); err != nil {
		return "", 0, err
	}
	return hex.EncodeToString(sum.Sum(nil)), out.Offset, nil
}

// flushing has the disk begin to write while there is more to come, so that there is little to wait for at the end.
type flushing struct {
	out  *rootfs.SparseWriter
	done int64
}

const flushPiece = 16 << 20

// Write implements io.Writer.
func (w *flushing) Write(p []byte) (int, error) {
	n, err := w.out.Write(p)
	if ahead := w.out.Offset - w.done; ahead >= flushPiece {
		const begin = 2                                                    // SYNC_FILE_RANGE_WRITE
		_ = unix.SyncFileRange(int(w.out.File.Fd()), w.done, ahead, begin) // what it does not do is left to Sync
		w.done = w.out.Offset
	}
	return n, err
}

// publish makes the image and then its template appear.
func (s *Store) publish(ctx context.Context, w work, digest string, t Template) error {
	// An old time says that nobody was handed this yet; see Root.
	if err := os.Chtimes(w.path("image"), time.Unix(0, 0), time.Unix(0, 0)); err != nil {
		return err
	}
	l, err := s.hold(ctx, unix.LOCK_SH)
	if err != nil {
		return err
	}
	defer l.release()
	if _, err := os.Stat(s.blobPath(digest)); errors.Is(err, fs.ErrNotExist) {
		if err := os.Rename(w.path("image"), s.blobPath(digest)); err != nil {
			return err
		}
	}
	return s.name(w, t)
}

// name makes a template appear whose image is there. The caller holds the store's shared lock.
func (s *Store) name(w work, t Template) error {
	record, err := json.MarshalIndent(t, "", "\t")
	if err != nil {
		return err
	}
	if err := writeSynced(w.path("template"), record); err != nil {
		return err
	}
	return os.Rename(w.path("template"), filepath.Join(s.dir, templatesDir, fileName(t.Name)+".json"))
}

func writeSynced(path string, data []byte) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.Sync()
}

// hexOf returns the digest's hexadecimal part.
func hexOf(digest string) string { return strings.TrimPrefix(digest, "sha256:") }
