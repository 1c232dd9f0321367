package memfs

import (
	"errors"
	"path"
	"syscall"
)

// Op is what happened.
type Op uint8

// The events. A rename is two: Rename of the old name, then Create of the new one.
const (
	Create Op = iota + 1
	Write
	Remove
	Rename
	Chmod // permissions, times or metadata
)

// Event is one change.
type Event struct {
	Op   Op
	Path string // the directory as it was given to Watch, and what changed in it
}

// ErrBehind is why a watcher ended whose events were not taken in time.
var ErrBehind = errors.New("more events than a watcher holds were not taken in time")

const maxQueued = 4096 // events that wait for one watcher

// Watcher is told what changes in a directory.
type Watcher struct {
	fs        *FS
	dir       *node
	path      string
	recursive bool
	events    chan Event
	err       error // under the file system's lock, until events is closed
}

// Watch tells of changes in dir, and in all below it if recursive. Close it.
func (f *FS) Watch(dir string, recursive bool) (*Watcher, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	at, err := f.existing(dir, true)
	if err == nil && !at.node.mode.IsDir() {
		err = syscall.ENOTDIR
	}
	if err != nil {
		return nil, wrap("watch", dir, err)
	}
	w := &Watcher{fs: f, dir: at.node, path: path.Clean(dir), recursive: recursive, events: make(chan Event, maxQueued)}
	f.watchers[w] = struct{}{}
	return w, nil
}

// Events gives what happens, in order. It is closed by Close, and with ErrBehind as Err when it is full.
func (w *Watcher) Events() <-chan Event { return w.events }

// Err is why Events was closed; nil if by Close.
func (w *Watcher) Err() error {
	w.fs.mu.Lock()
	defer w.fs.mu.Unlock()
	return w.err
}

// Close ends the watching. It is idempotent.
func (w *Watcher) Close() error {
	w.fs.mu.Lock()
	defer w.fs.mu.Unlock()
	w.end(nil)
	return nil
}

func (w *Watcher) end(err error) {
	if _, lives := w.fs.watchers[w]; lives {
		delete(w.fs.watchers, w)
		w.err = err
		close(w.events)
	}
}

// tell is called with the lock held, after the change.
func (f *FS) tell(op Op, dir *node, name string) {
	for w := range f.watchers {
		if dir != w.dir && (!w.recursive || !dir.within(w.dir)) {
			continue
		}
		at := w.path
		if dir != w.dir {
			at = path.Join(at, dir.path()[len(w.dir.path()):])
		}
		select {
		case w.events <- Event{Op: op, Path: path.Join(at, name)}:
		default:
			w.end(ErrBehind)
		}
	}
}
