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

	"github.com/firebreak-dev/firebreak/internal/agent/files"
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
func newTree(ctx context.Context, from *memfs.FS) (*tree, error) {
	t := &tree{Files: map[string][]byte{}, Links: map[string]string{}}
	err := t.add(ctx, files.Memory{FS: from}, "/")
	if errors.Is(err, errTree) {
		return &tree{Refused: err.Error()}, nil
	}
	return t, ofCode(err)
}

func (t *tree) add(ctx context.Context, from files.Memory, dir string) error {
	names, err := from.List(dir, maxTreeEntries+1)
	for _, name := range names {
		if err == nil {
			err = t.addEntry(ctx, from, path.Join(dir, name))
		}
	}
	return gone(err)
}

func (t *tree) addEntry(ctx context.Context, from files.Memory, at string) error {
	info, err := from.Lstat(at)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return gone(err)
	case strings.HasPrefix(at+"/", "/dev/"): // of the isolate's own
	case len(t.Directories)+len(t.Files)+len(t.Links) >= maxTreeEntries:
		return errTree
	case info.IsDir():
		t.Directories = append(t.Directories, at)
		err = t.add(ctx, from, at)
	case info.Mode().Type() == fs.ModeSymlink:
		t.Links[at], err = from.Readlink(at)
	case info.Mode().IsRegular():
		err = t.addFile(from, at)
	}
	return gone(err)
}

func (t *tree) addFile(from files.Memory, at string) error {
	f, err := from.Open(at, os.O_RDONLY, 0)
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

// change does to the sandbox's files what code did to its copy. Code can make it say anything, so the files hold it to their
// limits, as they do all that is done to them.
func change(of *memfs.FS, f script.Frame) error {
	var err error
	switch at := path.Clean(f.Path); {
	case at == "/" || strings.HasPrefix(at+"/", "/dev/"):
		return nil
	case f.Kind == script.KindGone:
		err = of.RemoveAll(at)
	case f.Kind == script.KindDirectory:
		err = of.MkdirAll(at, 0o755)
	case f.Kind == script.KindLink:
		if err = of.RemoveAll(at); err == nil {
			err = of.Symlink(f.Target, at)
		}
	default:
		err = write(files.Memory{FS: of}, at, f.Data, f.At)
	}
	if err != nil {
		return fmt.Errorf("what the code did to a file is not kept: %w", err)
	}
	return nil
}

// write puts a piece of a file where it belongs. The first one begins the file anew.
func write(to files.Memory, at string, data []byte, offset int64) error {
	flag := os.O_WRONLY | os.O_CREATE
	if offset == 0 {
		flag |= os.O_TRUNC
	}
	w, err := to.Open(at, flag, 0o644)
	if err != nil {
		return err
	}
	_, err = w.Seek(offset, io.SeekStart)
	if err == nil {
		_, err = w.Write(data)
	}
	return errors.Join(err, w.Close())
}
