package files

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/agent/account"
	filesystemv1 "github.com/firebreak-dev/firebreak/internal/api/filesystem"
)

const (
	maxWatched  = 8192 // directories of one recursive watcher
	maxQueued   = 4096 // events that wait for one watcher's client
	maxWatchers = 256  // that are polled; streams are bounded by their connections
)

// errBehind is the error of a watcher whose client is too slow for its events.
var errBehind = connect.NewError(connect.CodeResourceExhausted,
	fmt.Errorf("more than %d events were not read in time; watch anew", maxQueued))

// watcher turns inotify's events under root into the protocol's.
type watcher struct {
	service   *Service
	user      account.User
	root      string
	recursive bool
	entries   bool // add what each event is about
	notify    *fsnotify.Watcher
	watched   map[string]struct{} // only its own goroutine's, once it runs
}

// watchRequest is what WatchDir and CreateWatcher have in common.
type watchRequest interface {
	GetPath() string
	GetRecursive() bool
	GetIncludeEntry() bool
	GetAllowNetworkMounts() bool
}

func (s *Service) watch(u account.User, path string, req watchRequest) (*watcher, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return nil, &fs.PathError{Op: "watch", Path: path, Err: unix.ENOTDIR}
	}
	if !req.GetAllowNetworkMounts() {
		if err := refuseNetwork(path); err != nil {
			return nil, err
		}
	}
	n, err := fsnotify.NewBufferedWatcher(64)
	if err != nil {
		return nil, connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("watch: %w", err))
	}
	w := &watcher{
		service: s, user: u, root: path, recursive: req.GetRecursive(), entries: req.GetIncludeEntry(),
		notify: n, watched: map[string]struct{}{},
	}
	if err := w.add(path, nil); err != nil {
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

// add watches dir and, if the watcher is recursive, all below. Found is told of what is there already: in a directory
// that appeared just now, something may have been made before it was watched.
func (w *watcher) add(dir string, found func(path string)) error {
	if len(w.watched) >= maxWatched {
		return connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("more than %d directories to watch", maxWatched))
	}
	if err := w.notify.Add(dir); err != nil {
		return err
	}
	w.watched[dir] = struct{}{}
	if !w.recursive {
		return nil
	}
	list, err := readNames(dir)
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

type event = filesystemv1.FilesystemEvent

// run calls emit for every event until ctx is done, the root is gone, or emit or the watching fails. It closes w.
func (w *watcher) run(ctx context.Context, tick <-chan time.Time, alive func() error, emit func(*event) error) error {
	defer w.notify.Close() //nolint:errcheck // nothing is lost
	for {
		var err error
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick:
			err = alive()
		case err = <-w.notify.Errors:
			if errors.Is(err, fsnotify.ErrEventOverflow) {
				err = errBehind
			}
			if err == nil {
				return nil
			}
		case e, ok := <-w.notify.Events:
			if !ok {
				return nil
			}
			err = w.handle(e, emit)
		}
		if err != nil {
			return err
		}
	}
}

func (w *watcher) handle(e fsnotify.Event, emit func(*filesystemv1.FilesystemEvent) error) error {
	if e.Name == w.root {
		return nil // of the directory itself; the protocol is about what is in it
	}
	var made []string
	err := w.service.session.Do(w.user, func() error {
		switch {
		case e.Has(fsnotify.Remove), e.Has(fsnotify.Rename):
			delete(w.watched, e.Name)
		case w.recursive && e.Has(fsnotify.Create):
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
		op   fsnotify.Op
		kind filesystemv1.EventType
	}{
		{fsnotify.Create, filesystemv1.EventType_EVENT_TYPE_CREATE},
		{fsnotify.Rename, filesystemv1.EventType_EVENT_TYPE_RENAME},
		{fsnotify.Write, filesystemv1.EventType_EVENT_TYPE_WRITE},
		{fsnotify.Remove, filesystemv1.EventType_EVENT_TYPE_REMOVE},
		{fsnotify.Chmod, filesystemv1.EventType_EVENT_TYPE_CHMOD},
	} {
		if e.Has(row.op) {
			if err := emit(w.event(e.Name, row.kind)); err != nil {
				return err
			}
		}
	}
	for _, path := range made {
		if err := emit(w.event(path, filesystemv1.EventType_EVENT_TYPE_CREATE)); err != nil {
			return err
		}
	}
	return nil
}

func (w *watcher) event(path string, kind filesystemv1.EventType) *filesystemv1.FilesystemEvent {
	e := &filesystemv1.FilesystemEvent{Type: kind, Name: path}
	if rel, err := filepath.Rel(w.root, path); err == nil {
		e.Name = rel
	}
	if w.entries {
		_ = w.service.session.Do(w.user, func() (err error) { // what is gone has no entry
			e.Entry, err = w.service.entry(path)
			return err
		})
	}
	return e
}

// WatchDir implements filesystem.Filesystem.
func (s *Service) WatchDir(ctx context.Context, req *request[filesystemv1.WatchDirRequest], out *stream[filesystemv1.WatchDirResponse]) error {
	var w *watcher
	err := s.as(req.Header(), req.Msg.GetPath(), func(u account.User, path string) (err error) {
		w, err = s.watch(u, path, req.Msg)
		return err
	})
	if err != nil {
		return err
	}
	silence := keepalive(req.Header().Get("Keepalive-Ping-Interval"))
	tick := time.NewTicker(silence)
	defer tick.Stop()
	send := func(event *filesystemv1.WatchDirResponse) error {
		tick.Reset(silence)
		return out.Send(event)
	}
	if err := send(started()); err != nil {
		_ = w.notify.Close()
		return err
	}
	err = w.run(ctx, tick.C, func() error { return send(alive()) }, func(e *filesystemv1.FilesystemEvent) error {
		return send(&filesystemv1.WatchDirResponse{Event: &filesystemv1.WatchDirResponse_Filesystem{Filesystem: e}})
	})
	return coded(err)
}

func started() *filesystemv1.WatchDirResponse {
	start := &filesystemv1.WatchDirResponse_StartEvent{}
	return &filesystemv1.WatchDirResponse{Event: &filesystemv1.WatchDirResponse_Start{Start: start}}
}

func alive() *filesystemv1.WatchDirResponse {
	keepalive := &filesystemv1.WatchDirResponse_KeepAlive{}
	return &filesystemv1.WatchDirResponse{Event: &filesystemv1.WatchDirResponse_Keepalive{Keepalive: keepalive}}
}

func keepalive(header string) time.Duration {
	seconds, err := strconv.Atoi(header)
	if err != nil || seconds <= 0 || seconds > 3600 {
		seconds = 90
	}
	return time.Duration(seconds) * time.Second
}

// polled is a watcher whose events wait to be fetched.
type polled struct {
	stop context.CancelFunc
	done chan struct{}

	mu     sync.Mutex
	events []*filesystemv1.FilesystemEvent
	err    error // why it ended by itself
}

func (p *polled) close() {
	p.stop()
	<-p.done
}

// CreateWatcher implements filesystem.Filesystem.
func (s *Service) CreateWatcher(_ context.Context, req *request[filesystemv1.CreateWatcherRequest]) (*response[filesystemv1.CreateWatcherResponse], error) {
	var w *watcher
	err := s.as(req.Header(), req.Msg.GetPath(), func(u account.User, path string) (err error) {
		w, err = s.watch(u, path, req.Msg)
		return err
	})
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background()) // it lives until RemoveWatcher or Close
	p, id := &polled{stop: stop, done: make(chan struct{})}, "w"+rand.Text()
	s.mu.Lock()
	full := len(s.watchers) >= maxWatchers
	if !full {
		s.watchers[id] = p
	}
	s.mu.Unlock()
	if full {
		stop()
		_ = w.notify.Close()
		return nil, connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("more than %d watchers; remove some", maxWatchers))
	}
	go p.collect(ctx, w)
	return connect.NewResponse(&filesystemv1.CreateWatcherResponse{WatcherId: id}), nil
}

func (p *polled) collect(ctx context.Context, w *watcher) {
	defer close(p.done)
	err := w.run(ctx, nil, nil, func(e *filesystemv1.FilesystemEvent) error {
		p.mu.Lock()
		defer p.mu.Unlock()
		if len(p.events) >= maxQueued {
			return errBehind
		}
		p.events = append(p.events, e)
		return nil
	})
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err = err
}

func (s *Service) watcher(id string) (*polled, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.watchers[id]; p != nil {
		return p, nil
	}
	return nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("watcher %q not found", id))
}

// GetWatcherEvents implements filesystem.Filesystem: each event is given once. What ended the watcher is told after
// the last event before it.
func (s *Service) GetWatcherEvents(_ context.Context, req *request[filesystemv1.GetWatcherEventsRequest]) (*response[filesystemv1.GetWatcherEventsResponse], error) {
	p, err := s.watcher(req.Msg.GetWatcherId())
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.events) == 0 && p.err != nil {
		return nil, coded(p.err)
	}
	res := &filesystemv1.GetWatcherEventsResponse{Events: p.events}
	p.events = nil
	return connect.NewResponse(res), nil
}

// RemoveWatcher implements filesystem.Filesystem.
func (s *Service) RemoveWatcher(_ context.Context, req *request[filesystemv1.RemoveWatcherRequest]) (*response[filesystemv1.RemoveWatcherResponse], error) {
	p, err := s.watcher(req.Msg.GetWatcherId())
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	delete(s.watchers, req.Msg.GetWatcherId())
	s.mu.Unlock()
	p.close()
	return connect.NewResponse(&filesystemv1.RemoveWatcherResponse{}), nil
}
