package files

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"connectrpc.com/connect"
	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"
)

const maxWatched = 8192 // directories of one recursive watch

// hostWatch turns inotify's events under root into ours.
type hostWatch struct {
	WatchOptions
	root    string
	notify  *fsnotify.Watcher
	watched map[string]struct{}
	queue   []Event // that Next gives before it waits for more
}

// Watch implements System.
func (Host) Watch(root string, o WatchOptions) (Watch, error) {
	info, err := os.Stat(root)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return nil, &fs.PathError{Op: "watch", Path: root, Err: unix.ENOTDIR}
	}
	if !o.Network {
		if err := refuseNetwork(root); err != nil {
			return nil, err
		}
	}
	n, err := fsnotify.NewBufferedWatcher(64)
	if err != nil {
		return nil, connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("watch: %w", err))
	}
	w := &hostWatch{WatchOptions: o, root: root, notify: n, watched: map[string]struct{}{}}
	if err := w.add(root, nil); err != nil {
		_ = n.Close()
		return nil, err
	}
	return w, nil
}

// refuseNetwork refuses file systems on which others change files without inotify's knowing.
func refuseNetwork(path string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return &fs.PathError{Op: "statfs", Path: path, Err: err}
	}
	switch uint32(st.Type) {
	case unix.NFS_SUPER_MAGIC, unix.FUSE_SUPER_MAGIC, unix.SMB_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC:
		return connect.NewError(connect.CodeInvalidArgument,
			fmt.Errorf("%s is on a network file system, where events of other machines are not seen", path))
	}
	return nil
}

// add watches dir and, if the watch is recursive, all below. Found is told of what is there already: in a directory that
// appeared just now, something may have been made before it was watched.
func (w *hostWatch) add(dir string, found func(path string)) error {
	if len(w.watched) >= maxWatched {
		return connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("more than %d directories to watch", maxWatched))
	}
	if err := w.notify.Add(dir); err != nil {
		return err
	}
	w.watched[dir] = struct{}{}
	if !w.Recursive {
		return nil
	}
	list, err := Host{}.List(dir, maxEntries+1)
	if err != nil {
		return err
	}
	for _, name := range list {
		path := filepath.Join(dir, name)
		if found != nil {
			found(path)
		}
		info, err := os.Lstat(path)
		if err != nil || !info.IsDir() {
			continue
		}
		if err := w.add(path, found); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
			return err
		}
	}
	return nil
}

// Next implements Watch.
func (w *hostWatch) Next(ctx context.Context, tick <-chan time.Time) (Event, error) {
	for len(w.queue) == 0 {
		select {
		case <-ctx.Done():
			return Event{}, ctx.Err()
		case <-tick:
			return Event{}, nil
		case err := <-w.notify.Errors:
			switch {
			case errors.Is(err, fsnotify.ErrEventOverflow):
				return Event{}, errBehind
			case err == nil:
				return Event{}, io.EOF
			}
			return Event{}, err
		case e, ok := <-w.notify.Events:
			if !ok {
				return Event{}, io.EOF
			}
			if err := w.take(e); err != nil {
				return Event{}, err
			}
		}
	}
	next := w.queue[0]
	w.queue = w.queue[1:]
	return next, nil
}

func (w *hostWatch) take(e fsnotify.Event) error {
	if e.Name == w.root {
		return nil // of the directory itself; the protocol is about what is in it
	}
	var made []string
	err := w.As(func() error {
		switch {
		case e.Has(fsnotify.Remove), e.Has(fsnotify.Rename):
			delete(w.watched, e.Name)
		case w.Recursive && e.Has(fsnotify.Create):
			if info, err := os.Lstat(e.Name); err == nil && info.IsDir() {
				err := w.add(e.Name, func(path string) { made = append(made, path) })
				if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, row := range []struct {
		op  fsnotify.Op
		our Op
	}{
		{fsnotify.Create, Created}, {fsnotify.Rename, Renamed}, {fsnotify.Write, Written}, {fsnotify.Remove, Removed},
		{fsnotify.Chmod, Attributes},
	} {
		if e.Has(row.op) {
			w.queue = append(w.queue, Event{row.our, e.Name})
		}
	}
	for _, path := range made {
		w.queue = append(w.queue, Event{Created, path})
	}
	return nil
}

// Close implements Watch.
func (w *hostWatch) Close() error { return w.notify.Close() }
