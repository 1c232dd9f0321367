package files

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"time"

	"github.com/firebreak-dev/firebreak/internal/memfs"
)

// Memory is a file system in memory, for an agent that is embedded in the host's own process.
type Memory struct{ *memfs.FS }

var _ System = Memory{}

// Open implements System.
func (m Memory) Open(path string, flag int, mode fs.FileMode) (File, error) {
	f, err := m.OpenFile(path, flag, mode)
	if err != nil {
		return nil, err // and no File that is a nil *memfs.File
	}
	return memoryFile{f}, nil
}

// memoryFile writes all or says why not, as io.Writer wants it; the file itself writes what fits, as system calls do.
type memoryFile struct{ *memfs.File }

func (f memoryFile) Write(p []byte) (n int, err error) {
	for len(p) > n && err == nil {
		var more int
		more, err = f.File.Write(p[n:])
		n += more
	}
	return n, err
}

// List implements System.
func (m Memory) List(dir string, limit int) ([]string, error) {
	f, err := m.FS.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // opened for reading
	entries, err := f.ReadDir(limit)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	slices.Sort(names)
	return names, nil
}

// Metadata implements System.
func (m Memory) Metadata(path string) map[string]string {
	values, err := m.FS.Metadata(path)
	if err != nil || len(values) == 0 {
		return nil
	}
	return values
}

// SetMetadata implements System.
func (Memory) SetMetadata(file File, values map[string]string) error {
	f, ok := file.(memoryFile)
	if !ok {
		return fmt.Errorf("store metadata of a %T: %w", file, errors.ErrUnsupported)
	}
	return f.SetMetadata(values)
}

// Watch implements System.
func (m Memory) Watch(dir string, o WatchOptions) (Watch, error) {
	w, err := m.FS.Watch(dir, o.Recursive)
	if err != nil {
		return nil, err
	}
	return memoryWatch{w}, nil
}

type memoryWatch struct{ *memfs.Watcher }

// Next implements Watch.
func (w memoryWatch) Next(ctx context.Context, tick <-chan time.Time) (Event, error) {
	select {
	case <-ctx.Done():
		return Event{}, ctx.Err()
	case <-tick:
		return Event{}, nil
	case e, ok := <-w.Events():
		switch {
		case ok:
			return Event{opOf(e.Op), e.Path}, nil
		case errors.Is(w.Err(), memfs.ErrBehind):
			return Event{}, errBehind
		case w.Err() != nil:
			return Event{}, w.Err()
		}
		return Event{}, io.EOF
	}
}

func opOf(op memfs.Op) Op {
	switch op {
	case memfs.Create:
		return Created
	case memfs.Rename:
		return Renamed
	case memfs.Write:
		return Written
	case memfs.Remove:
		return Removed
	}
	return Attributes
}
