package files

import (
	"context"
	"io"
	"io/fs"
	"time"
)

// System is a file system that a Service serves: the machine's (Host), or one that an embedded agent keeps for itself.
// Paths are absolute and clean. Errors wrap the errno that Linux would give, as package os does. All methods may be
// called concurrently, and on the machine they do what the user may for whom the calling thread works.
type System interface {
	Tree
	Changer
	// Open opens a file as os.OpenFile does, but waits for nobody at the other end of a FIFO.
	Open(path string, flag int, mode fs.FileMode) (File, error)
	// Metadata is what SetMetadata keeps with a file or directory; nil where nothing is or can be kept.
	Metadata(path string) map[string]string
	// SetMetadata replaces all metadata of a file that Open opened.
	SetMetadata(f File, values map[string]string) error
	// Watch tells of changes in a directory. unix.ENOTDIR if it is none.
	Watch(dir string, o WatchOptions) (Watch, error)
}

// Tree tells what is where.
type Tree interface {
	Stat(path string) (fs.FileInfo, error)
	Lstat(path string) (fs.FileInfo, error)
	Readlink(path string) (string, error)
	// Resolve returns path with all links followed; an error if it leads nowhere.
	Resolve(path string) (string, error)
	// List returns the names in a directory, up to limit of them, sorted.
	List(dir string, limit int) ([]string, error)
}

// Changer changes what is where, each as the function of that name in package os does.
type Changer interface {
	MkdirAll(dir string, mode fs.FileMode) error
	// Rename moves between parts of the tree too that lie on different devices.
	Rename(from, to string) error
	Remove(path string) error
	RemoveAll(path string) error
}

// File is an open file. *os.File is one.
type File interface {
	io.ReadWriteSeeker
	io.Closer
	Stat() (fs.FileInfo, error)
}

// WatchOptions are how a directory is watched.
type WatchOptions struct {
	Recursive bool                          // all below too
	Network   bool                          // even where others may make changes that nobody tells of
	As        func(work func() error) error // does work for the user who watches
}

// Watch tells of changes, in their order.
type Watch interface {
	// Next waits for a change. The event is zero if tick fired first; io.EOF if there will be none any more.
	Next(ctx context.Context, tick <-chan time.Time) (Event, error)
	Close() error
}

// Op is what happened.
type Op uint8

// The changes. A rename is Rename of the old name and Create of the new one.
const (
	Created Op = iota + 1
	Renamed
	Written
	Removed
	Attributes // mode, times or owner
)

// Event is one change of what is at Path, which begins with the directory as it was given to Watch.
type Event struct {
	Op   Op
	Path string
}
