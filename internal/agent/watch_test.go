package agent_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/firebreak-dev/firebreak/internal/agent"
	filesystemv1 "github.com/firebreak-dev/firebreak/internal/api/filesystem"
)

const (
	created = filesystemv1.EventType_EVENT_TYPE_CREATE
	wrote   = filesystemv1.EventType_EVENT_TYPE_WRITE
	removed = filesystemv1.EventType_EVENT_TYPE_REMOVE
	renamed = filesystemv1.EventType_EVENT_TYPE_RENAME
	chmoded = filesystemv1.EventType_EVENT_TYPE_CHMOD
)

// watch opens a stream and reads its start.
func (b *box) watch(req *filesystemv1.WatchDirRequest, options ...option) *connect.ServerStreamForClient[filesystemv1.WatchDirResponse] {
	b.t.Helper()
	s, err := b.Filesystem().WatchDir(b.t.Context(), request(req, options...))
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = s.Close() })
	if !s.Receive() || s.Msg().GetStart() == nil {
		b.t.Fatal("no start: ", s.Err())
	}
	return s
}

// expect reads events until that one came.
func expect(t *testing.T, s *connect.ServerStreamForClient[filesystemv1.WatchDirResponse], name string, kind filesystemv1.EventType) *filesystemv1.FilesystemEvent {
	t.Helper()
	for s.Receive() {
		if e := s.Msg().GetFilesystem(); e.GetName() == name && e.GetType() == kind {
			return e
		}
	}
	t.Fatalf("no %v of %s: %v", kind, name, s.Err())
	return nil
}

func TestWatchDir(t *testing.T) {
	b := inProcess(t, agent.Config{})
	dir := t.TempDir()
	must(t, os.WriteFile(dir+"/old", nil, 0o600))
	s := b.watch(&filesystemv1.WatchDirRequest{Path: dir, IncludeEntry: true})
	b.put(dir+"/new", "content")
	if e := expect(t, s, "new", created).GetEntry(); e.GetPath() != dir+"/new" {
		t.Errorf("entry %v", e)
	}
	expect(t, s, "new", wrote)
	b.put(dir+"/old", "written in place")
	expect(t, s, "old", wrote)
	must(t, os.Chmod(dir+"/old", 0o644))
	expect(t, s, "old", chmoded)
	must(t, os.Rename(dir+"/old", dir+"/newer"))
	expect(t, s, "old", renamed)
	expect(t, s, "newer", created)
	must(t, os.Remove(dir+"/newer"))
	if e := expect(t, s, "newer", removed); e.GetEntry() != nil {
		t.Errorf("what is gone has the entry %v", e.GetEntry())
	}
}

func TestWatchDirRecursive(t *testing.T) {
	b := inProcess(t, agent.Config{})
	dir := t.TempDir()
	must(t, os.MkdirAll(dir+"/was/there", 0o755))
	s := b.watch(&filesystemv1.WatchDirRequest{Path: dir, Recursive: true})
	must(t, os.WriteFile(dir+"/was/there/f", nil, 0o600))
	expect(t, s, "was/there/f", created)
	for i := range 20 { // what is made in a directory before it is watched is not missed
		deep := fmt.Sprintf("new%d/deep/er", i)
		must(t, os.MkdirAll(filepath.Join(dir, deep), 0o755))
		must(t, os.WriteFile(filepath.Join(dir, deep, "f"), nil, 0o600))
		expect(t, s, deep+"/f", created)
	}
	flat := b.watch(&filesystemv1.WatchDirRequest{Path: dir})
	must(t, os.WriteFile(dir+"/was/there/g", nil, 0o600))
	must(t, os.WriteFile(dir+"/top", nil, 0o600))
	if !flat.Receive() || flat.Msg().GetFilesystem().GetName() != "top" {
		t.Errorf("a flat watcher saw %v, %v", flat.Msg(), flat.Err())
	}
}

func TestWatchDirEnds(t *testing.T) {
	b := inProcess(t, agent.Config{})
	for path, code := range map[string]connect.Code{"/no/such": connect.CodeNotFound, "/etc/passwd": connect.CodeInvalidArgument} {
		s, err := b.Filesystem().WatchDir(t.Context(), request(&filesystemv1.WatchDirRequest{Path: path}))
		if err == nil {
			for s.Receive() {
			}
			err = s.Err()
		}
		wantCode(t, err, code)
	}
	s := b.watch(&filesystemv1.WatchDirRequest{Path: t.TempDir()}, header("Connect-Timeout-Ms", "3000"))
	for s.Receive() {
	}
	wantCode(t, s.Err(), connect.CodeDeadlineExceeded)
	alive := b.watch(&filesystemv1.WatchDirRequest{Path: t.TempDir()}, header("Keepalive-Ping-Interval", "1"))
	if !alive.Receive() || alive.Msg().GetKeepalive() == nil {
		t.Errorf("got %v, %v, want a keepalive", alive.Msg(), alive.Err())
	}
}

func TestPolledWatcher(t *testing.T) {
	b := inProcess(t, agent.Config{})
	fs, dir := b.Filesystem(), t.TempDir()
	made, err := fs.CreateWatcher(t.Context(), request(&filesystemv1.CreateWatcherRequest{Path: dir, Recursive: true}))
	if err != nil {
		t.Fatal(err)
	}
	id := made.Msg.GetWatcherId()
	get := func() (string, error) {
		res, err := fs.GetWatcherEvents(t.Context(), request(&filesystemv1.GetWatcherEventsRequest{WatcherId: id}))
		if err != nil {
			return "", err
		}
		var all strings.Builder
		for _, e := range res.Msg.GetEvents() {
			fmt.Fprintf(&all, "%v %s\n", e.GetType(), e.GetName())
		}
		return all.String(), nil
	}
	must(t, os.WriteFile(dir+"/f", []byte("x"), 0o600))
	seen := ""
	eventually(t, func() string {
		more, err := get()
		must(t, err)
		if seen += more; !strings.Contains(seen, "WRITE f\n") {
			return "no write of f in " + seen
		}
		return ""
	})
	if strings.Count(seen, "EVENT_TYPE_CREATE f\n") != 1 {
		t.Errorf("f was created as often as in %s", seen)
	}
	// A watcher that is fast has more than it keeps for its client, and one that is slow more than the kernel keeps for it.
	text, err := os.ReadFile("/proc/sys/fs/inotify/max_queued_events")
	must(t, err)
	most, err := strconv.Atoi(strings.TrimSpace(string(text)))
	must(t, err)
	names := [2]string{dir + "/f", dir + "/g"}
	for i := range (most + 4096 + 8192) / 2 { // 2 events each
		must(t, os.Rename(names[i%2], names[1-i%2]))
	}
	eventually(t, func() string {
		if _, err := get(); connect.CodeOf(err) != connect.CodeResourceExhausted || err == nil {
			return fmt.Sprintf("got %v of a watcher that is behind", err)
		}
		return ""
	})
	if _, err := fs.RemoveWatcher(t.Context(), request(&filesystemv1.RemoveWatcherRequest{WatcherId: id})); err != nil {
		t.Fatal(err)
	}
	_, err = get()
	wantCode(t, err, connect.CodeNotFound)
	_, err = fs.RemoveWatcher(t.Context(), request(&filesystemv1.RemoveWatcherRequest{WatcherId: id}))
	wantCode(t, err, connect.CodeNotFound)
}

func TestWatcherLeavesNothing(t *testing.T) {
	files := 0
	t.Run("use", func(t *testing.T) {
		b := inProcess(t, agent.Config{})
		files = openFiles(t)
		for range 10 {
			ctx, cancel := context.WithCancel(t.Context())
			s, err := b.Filesystem().WatchDir(ctx, request(&filesystemv1.WatchDirRequest{Path: t.TempDir(), Recursive: true}))
			if err != nil || !s.Receive() {
				t.Fatal(err, s.Err())
			}
			cancel()
			_ = s.Close()
			if _, err := b.Filesystem().CreateWatcher(t.Context(), request(&filesystemv1.CreateWatcherRequest{Path: t.TempDir()})); err != nil {
				t.Fatal(err)
			}
		}
	})
	eventually(t, func() string {
		if now := openFiles(t); now > files {
			return fmt.Sprintf("%d files are open, %d were", now, files)
		}
		return ""
	})
}
