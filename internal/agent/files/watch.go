package files

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/firebreak-dev/firebreak/internal/agent/account"
	filesystemv1 "github.com/firebreak-dev/firebreak/internal/api/filesystem"
)

const (
	maxQueued   = 4096 // events that wait for one watcher's client
	maxWatchers = 256  // that are polled; streams are bounded by their connections
)

// errBehind is the error of a watcher whose client is too slow for its events.
var errBehind = connect.NewError(connect.CodeResourceExhausted,
	fmt.Errorf("more than %d events were not read in time; watch anew", maxQueued))

// watcher turns a Watch's events into the protocol's.
type watcher struct {
	Watch
	service *Service
	user    account.User
	root    string
	entries bool // add what each event is about
}

// watchRequest is what WatchDir and CreateWatcher have in common.
type watchRequest interface {
	GetPath() string
	GetRecursive() bool
	GetIncludeEntry() bool
	GetAllowNetworkMounts() bool
}

func (s *Service) watch(u account.User, path string, req watchRequest) (*watcher, error) {
	watch, err := s.system.Watch(path, WatchOptions{
		Recursive: req.GetRecursive(), Network: req.GetAllowNetworkMounts(),
		As: func(work func() error) error { return s.session.Do(u, work) },
	})
	if err != nil {
		return nil, err
	}
	return &watcher{Watch: watch, service: s, user: u, root: path, entries: req.GetIncludeEntry()}, nil
}

type event = filesystemv1.FilesystemEvent

// run calls emit for every event until ctx is done, the root is gone, or emit or the watching fails. It closes w.
func (w *watcher) run(ctx context.Context, tick <-chan time.Time, alive func() error, emit func(*event) error) error {
	defer w.Close() //nolint:errcheck // nothing is lost
	for {
		e, err := w.Next(ctx, tick)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case e.Path == "":
			err = alive()
		default:
			err = emit(w.event(e))
		}
		if err != nil {
			return err
		}
	}
}

// kind is an Op in the protocol's words.
func (o Op) kind() filesystemv1.EventType {
	switch o {
	case Created:
		return filesystemv1.EventType_EVENT_TYPE_CREATE
	case Renamed:
		return filesystemv1.EventType_EVENT_TYPE_RENAME
	case Written:
		return filesystemv1.EventType_EVENT_TYPE_WRITE
	case Removed:
		return filesystemv1.EventType_EVENT_TYPE_REMOVE
	case Attributes:
		return filesystemv1.EventType_EVENT_TYPE_CHMOD
	}
	return filesystemv1.EventType_EVENT_TYPE_UNSPECIFIED
}

func (w *watcher) event(of Event) *event {
	e := &event{Type: of.Op.kind(), Name: of.Path}
	if rel, err := filepath.Rel(w.root, of.Path); err == nil {
		e.Name = rel
	}
	if w.entries {
		_ = w.service.session.Do(w.user, func() (err error) { // what is gone has no entry
			e.Entry, err = w.service.entry(of.Path)
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
		_ = w.Close()
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
		_ = w.Close()
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
