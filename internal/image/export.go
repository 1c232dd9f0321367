package image

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/image/erofs"
	"github.com/firebreak-dev/firebreak/internal/image/rootfs"
)

// fromExport fills the tree from what a sandbox sends. All of it is hostile.
func (j *job) fromExport(ctx context.Context, src Export) (Template, error) {
	base, err := j.openBase(src.Base)
	if err != nil {
		return Template{}, err
	}
	archive := j.counted(bufio.NewReaderSize(src.Archive, 1<<20), "read file system", 0)
	err = j.tree.ApplyExport(ctx, archive, base)
	if errors.Is(err, rootfs.ErrNotSame) {
		err = &firebreak.Error{Kind: firebreak.KindState, Err: err, Mend: "export all of it"}
	}
	return Template{}, err
}

// openBase returns the tree of a template's image, nil for no name.
func (j *job) openBase(name string) (*erofs.Node, error) {
	if name == "" {
		return nil, nil
	}
	t, err := j.store.Get(name)
	if err != nil {
		return nil, err
	}
	path, err := j.store.disk(t)
	if err != nil {
		return nil, err
	}
	if j.base, err = os.Open(path); err != nil {
		return nil, err
	}
	return erofs.Read(j.base)
}

// Link gives the image of one template a second name, or gives it to the template that has this name; edit may change what
// is kept with it there, and nil changes nothing. fs.ErrNotExist if there is no template called from.
func (s *Store) Link(ctx context.Context, from, to string, edit func(*Template)) (Template, error) {
	if to == HostName || from == HostName {
		return Template{}, &firebreak.Error{Kind: firebreak.KindInvalid, Op: "name template",
			Err: fmt.Errorf("%q is the host's own template and has no image", HostName), Mend: "take another one: firebreak template build base"}
	}
	if err := checkAny(to); err != nil {
		return Template{}, err
	}
	op := "name template " + to
	turn, err := waitLock(ctx, filepath.Join(s.dir, locksDir, fileName(to)), unix.LOCK_EX)
	if err != nil {
		return Template{}, s.blame(op, err)
	}
	defer turn.release()
	w, err := s.newWork(ctx)
	if err != nil {
		return Template{}, s.blame(op, err)
	}
	t, err := s.linkIn(ctx, w, from, to, edit)
	return t, s.blame(op, errors.Join(err, w.remove()))
}

func (s *Store) linkIn(ctx context.Context, w work, from, to string, edit func(*Template)) (Template, error) {
	// The image must not be collected between the look and the new name.
	l, err := s.hold(ctx, unix.LOCK_SH)
	if err != nil {
		return Template{}, err
	}
	defer l.release()
	t, err := s.Get(from)
	if err != nil {
		return t, err
	}
	if _, err := os.Stat(s.blobPath(hexOf(t.Digest))); errors.Is(err, fs.ErrNotExist) {
		return t, &firebreak.Error{Kind: firebreak.KindNotFound, Err: fmt.Errorf("its image %s is gone: %w", t.Digest, err)}
	}
	if edit != nil {
		edit(&t)
	}
	t.Name, t.Created = to, s.now().UTC().Truncate(time.Second)
	return t, s.name(w, t)
}
