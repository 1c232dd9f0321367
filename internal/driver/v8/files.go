package v8

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"regexp"
	"strings"
	"sync"

	"github.com/firebreak-dev/firebreak/internal/driver/v8/script"
	"github.com/firebreak-dev/firebreak/internal/memfs"
)

// Bounds of what code that uses node:fs has a copy of. It lies in the isolate's memory up to three times.
const (
	maxTree        = 16 << 20 // bytes
	maxTreeEntries = 10_000
)

// tree is a copy of a sandbox's files, by their paths. An isolate cannot ask for a file while its code runs: it is given all of
// them before, and tells what the code changed.
type tree struct {
	Directories []string          `json:"directories"` // each after the one that it is in
	Files       map[string][]byte `json:"files"`
	Links       map[string]string `json:"links"`
	Refused     string            `json:"refused,omitempty"` // why there is nothing of this

	size int
}

// usesFiles is how code gets at node:fs.
var usesFiles = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`\bfs\b`) })

var errTree = fmt.Errorf("the sandbox has more than %d MiB or %d files, and code in a V8 sandbox that uses node:fs has a copy of them all", maxTree>>20, maxTreeEntries)

// newTree copies what there is.
func newTree(ctx context.Context, files *memfs.FS) (*tree, error) {
	t := &tree{Files: map[string][]byte{}, Links: map[string]string{}}
	err := t.add(ctx, files, "/")
	if errors.Is(err, errTree) {
		return &tree{Refused: err.Error()}, nil
	}
	return t, err
}

func (t *tree) add(ctx context.Context, files *memfs.FS, dir string) error {
	entries, err := list(files, dir)
	if err != nil {
		return gone(err)
	}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		at := path.Join(dir, e.Name())
		switch {
		case strings.HasPrefix(at+"/", "/dev/"):
			continue // of the isolate's own
		case len(t.Directories)+len(t.Files)+len(t.Links) >= maxTreeEntries:
			return errTree
		case e.IsDir():
			t.Directories = append(t.Directories, at)
			err = t.add(ctx, files, at)
		case e.Type() == fs.ModeSymlink:
			t.Links[at], err = files.Readlink(at)
		case e.Type().IsRegular():
			err = t.addFile(files, at)
		}
		if err := gone(err); err != nil {
			return err
		}
	}
	return nil
}

func (t *tree) addFile(files *memfs.FS, at string) error {
	f, err := files.Open(at)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // only read from
	data, err := io.ReadAll(io.LimitReader(f, int64(maxTree-t.size+1)))
	if t.size += len(data); t.size > maxTree {
		return errTree
	}
	t.Files[at] = data
	return err
}

// gone is err, unless a file went away while it was to be copied.
func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func list(files *memfs.FS, dir string) ([]fs.DirEntry, error) {
	f, err := files.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // only read from
	return f.ReadDir(-1)
}

// change does to the sandbox's files what code did to its copy. Code can make it say anything, so the files hold it to their
// limits, as they do all that is done to them.
func change(files *memfs.FS, f script.Frame) error {
	var err error
	switch at := path.Clean(f.Path); {
	case at == "/" || strings.HasPrefix(at+"/", "/dev/"):
		return nil
	case f.Kind == script.KindGone:
		err = files.RemoveAll(at)
	case f.Kind == script.KindDirectory:
		err = files.MkdirAll(at, 0o755)
	case f.Kind == script.KindLink:
		if err = files.RemoveAll(at); err == nil {
			err = files.Symlink(f.Target, at)
		}
	default:
		err = write(files, at, f.Data, f.At)
	}
	if err != nil {
		return fmt.Errorf("what the code did to a file is not kept: %w", err)
	}
	return nil
}

// write puts a piece of a file where it belongs. The first one begins the file anew.
func write(files *memfs.FS, at string, data []byte, offset int64) error {
	flag := os.O_WRONLY | os.O_CREATE
	if offset == 0 {
		flag |= os.O_TRUNC
	}
	w, err := files.OpenFile(at, flag, 0o644)
	if err != nil {
		return err
	}
	_, err = w.WriteAt(data, offset)
	return errors.Join(err, w.Close())
}
