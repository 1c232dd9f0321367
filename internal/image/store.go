package image

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak"
)

// Get returns the template called name. fs.ErrNotExist if there is none, with names that may have been meant.
func (s *Store) Get(name string) (Template, error) {
	if name == HostName {
		return s.hostTemplate()
	}
	if err := checkAny(name); err != nil {
		return Template{}, err
	}
	t, err := s.read(fileName(name) + ".json")
	if errors.Is(err, fs.ErrNotExist) {
		return Template{}, missing(name, s.names())
	}
	return t, s.blame("read template "+name, err)
}

func (s *Store) read(file string) (Template, error) {
	data, err := os.ReadFile(filepath.Join(s.dir, templatesDir, file))
	if err != nil {
		return Template{}, err
	}
	var t Template
	if err := json.Unmarshal(data, &t); err != nil {
		return Template{}, &firebreak.Error{Kind: firebreak.KindState, Err: fmt.Errorf("its record is damaged: %w", err),
			Mend: "make the template again"}
	}
	return t, nil
}

// List returns all templates but the layers of builds: host, then the others by name.
func (s *Store) List() ([]Template, error) {
	host, err := s.hostTemplate()
	if err != nil {
		return nil, err
	}
	made, err := s.made()
	if err != nil {
		return nil, s.blame("list templates", err)
	}
	made = slices.DeleteFunc(made, func(t Template) bool { return IsLayerName(t.Name) })
	slices.SortFunc(made, func(a, b Template) int { return cmp.Compare(a.Name, b.Name) })
	return append([]Template{host}, made...), nil
}

// made returns the templates but host.
func (s *Store) made() ([]Template, error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, templatesDir))
	if err != nil {
		return nil, err
	}
	var list []Template
	for _, e := range entries {
		t, err := s.read(e.Name())
		if errors.Is(err, fs.ErrNotExist) {
			continue // deleted meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", e.Name(), err)
		}
		list = append(list, t)
	}
	return list, nil
}

func (s *Store) names() []string {
	names := []string{HostName}
	made, err := s.made()
	if err != nil {
		s.log.Warn("some templates cannot be read", "error", err)
	}
	for _, t := range made {
		if !IsLayerName(t.Name) {
			names = append(names, t.Name)
		}
	}
	return append(names, Recipes()...)
}

// Delete takes the name away; Collect frees what no name and no sandbox needs any more. fs.ErrNotExist if there is no
// such template.
func (s *Store) Delete(name string) error {
	if name == HostName {
		return &firebreak.Error{Kind: firebreak.KindInvalid, Op: "delete template",
			Err: errors.New("the template host is the host itself and cannot be deleted")}
	}
	if err := checkAny(name); err != nil {
		return err
	}
	err := os.Remove(filepath.Join(s.dir, templatesDir, fileName(name)+".json"))
	if errors.Is(err, fs.ErrNotExist) {
		return missing(name, s.names())
	}
	return s.blame("delete template "+name, err)
}

// grace is how long what Root handed out stays, also if nothing seems to use it: its receiver may not have said so yet.
const grace = time.Minute

// Collect removes images and trees that no template names, that inUse does not claim and that Root did not hand out
// just now, and the leftovers of makers that died. inUse is asked with digests as in Template.Digest.
func (s *Store) Collect(ctx context.Context, inUse func(digest string) bool) (freed int64, removed int, err error) {
	w, err := s.newWork(ctx)
	if err != nil {
		return 0, 0, s.blame("collect garbage", err)
	}
	freed, removed, err = s.collectInto(ctx, w, inUse)
	if rmErr := w.remove(); err == nil {
		err = rmErr
	}
	return freed, removed, s.blame("collect garbage", err)
}

// collectInto moves the garbage into w under the lock, so that deleting it holds nobody up.
func (s *Store) collectInto(ctx context.Context, w work, inUse func(digest string) bool) (freed int64, removed int, err error) {
	l, err := s.hold(ctx, unix.LOCK_EX)
	if err != nil {
		return 0, 0, err
	}
	defer l.release()
	if freed, removed, err = s.sweep(); err != nil {
		return freed, removed, err
	}
	names, err := s.garbage(ctx, inUse)
	if err != nil {
		return freed, removed, err
	}
	for _, name := range names {
		path := filepath.Join(s.dir, name)
		size := diskUse(path)
		if err := os.Rename(path, w.path(filepath.Base(name))); err != nil {
			return freed, removed, err
		}
		freed, removed = freed+size, removed+1
	}
	return freed, removed, nil
}

// garbage returns what nobody needs, relative to the store. The caller holds the exclusive lock.
func (s *Store) garbage(ctx context.Context, inUse func(digest string) bool) ([]string, error) {
	keep, err := s.named()
	if err != nil {
		return nil, err
	}
	boot, err := s.boot()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, part := range []string{blobsDir, treesDir} {
		entries, err := os.ReadDir(filepath.Join(s.dir, part))
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			name := filepath.Join(part, e.Name())
			hex, rest, _ := strings.Cut(strings.TrimSuffix(e.Name(), ".erofs"), "-")
			stale := part == treesDir && !strings.HasPrefix(rest, boot) // nothing runs from a tree of an earlier boot
			if !stale && (keep[hex] || inUse("sha256:"+hex) || s.handedOut(filepath.Join(s.dir, name))) {
				continue
			}
			names = append(names, name)
		}
	}
	return names, nil
}

// named returns the digests that templates name.
func (s *Store) named() (map[string]bool, error) {
	host, err := s.hostTemplate()
	if err != nil {
		return nil, err
	}
	made, err := s.made()
	if err != nil {
		return nil, err
	}
	keep := map[string]bool{}
	for _, t := range append(made, host) {
		keep[hexOf(t.Digest)] = true
	}
	return keep, nil
}

func (s *Store) handedOut(path string) bool {
	info, err := os.Stat(path)
	return err == nil && s.now().Sub(info.ModTime()) < grace
}
