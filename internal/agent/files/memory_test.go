package files_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/firebreak-dev/firebreak/internal/agent/account"
	"github.com/firebreak-dev/firebreak/internal/agent/files"
	filesystemv1 "github.com/firebreak-dev/firebreak/internal/api/filesystem"
	"github.com/firebreak-dev/firebreak/internal/api/filesystem/filesystemconnect"
	"github.com/firebreak-dev/firebreak/internal/memfs"
)

// serve serves a file system in memory.
func serve(t *testing.T, o memfs.Options) (*memfs.FS, *httptest.Server, filesystemconnect.FilesystemClient) {
	t.Helper()
	o.UID, o.GID = 1000, 1000
	memory := memfs.New(o)
	if err := memory.MkdirAll("/home/user", 0o755); err != nil {
		t.Fatal(err)
	}
	session := account.NewSession(account.Fixed(account.User{Name: "user", UID: 1000, GID: 1000, Home: "/home/user"}), true)
	s := files.New(session, files.Memory{FS: memory}, slog.New(slog.DiscardHandler))
	t.Cleanup(s.Close)
	mux := http.NewServeMux()
	of := func(context.Context) *files.Service { return s }
	mux.Handle(files.Handler(of))
	files.Routes(mux, of, func(*http.Request, string) error { return nil })
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	return memory, srv, filesystemconnect.NewFilesystemClient(srv.Client(), srv.URL)
}

func transfer(t *testing.T, method, url, body string, headers ...string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(text)
}

// TestMemory: the whole service on a file system of which the machine knows nothing.
func TestMemory(t *testing.T) {
	memory, srv, client := serve(t, memfs.Options{Limits: memfs.Limits{Bytes: 1 << 20}})
	ctx := t.Context()
	watch, err := client.CreateWatcher(ctx, connect.NewRequest(&filesystemv1.CreateWatcherRequest{Path: "~", Recursive: true, IncludeEntry: true}))
	if err != nil {
		t.Fatal(err)
	}
	if status, text := transfer(t, "POST", srv.URL+"/files?path=a/b.txt", "content", "X-Metadata-Author", "me"); status != 200 {
		t.Fatal(status, text)
	}
	if status, text := transfer(t, "GET", srv.URL+"/files?path=a/b.txt", "", "Range", "bytes=3-5"); status != 206 || text != "ten" {
		t.Errorf("%d %q", status, text)
	}
	if err := memory.Symlink("b.txt", "/home/user/a/link"); err != nil {
		t.Fatal(err)
	}
	stat, err := client.Stat(ctx, connect.NewRequest(&filesystemv1.StatRequest{Path: "/home/user/a/link"}))
	if e := stat.Msg.GetEntry(); err != nil || e.GetSize() != 7 || e.GetSymlinkTarget() != "/home/user/a/b.txt" || e.GetOwner() != "user" ||
		e.GetGroup() != "user" || e.GetMetadata()["author"] != "me" {
		t.Errorf("%v, %v", e, err)
	}
	list, err := client.ListDir(ctx, connect.NewRequest(&filesystemv1.ListDirRequest{Path: "/", Depth: 9}))
	var paths []string
	for _, e := range list.Msg.GetEntries() {
		paths = append(paths, e.GetPath())
	}
	if got := strings.Join(paths, " "); err != nil || got != "/home /home/user /home/user/a /home/user/a/b.txt /home/user/a/link" {
		t.Errorf("%s, %v", got, err)
	}
	if _, err := client.Move(ctx, connect.NewRequest(&filesystemv1.MoveRequest{Source: "/home/user/a", Destination: "/srv/x/a"})); err != nil {
		t.Error(err)
	}
	if status, text := transfer(t, "POST", srv.URL+"/files/compose", `{"source_paths":["/srv/x/a/b.txt","/srv/x/a/b.txt"],"destination":"/whole"}`); status != 200 {
		t.Error(status, text)
	}
	if status, text := transfer(t, "GET", srv.URL+"/files?path=/whole", ""); status != 200 || text != "contentcontent" {
		t.Errorf("%d %q", status, text)
	}
	if _, err := client.Remove(ctx, connect.NewRequest(&filesystemv1.RemoveRequest{Path: "/srv"})); err != nil {
		t.Error(err)
	}
	if _, err := memory.Stat("/srv"); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	events, err := client.GetWatcherEvents(ctx, connect.NewRequest(&filesystemv1.GetWatcherEventsRequest{WatcherId: watch.Msg.GetWatcherId()}))
	seen := map[string]bool{}
	for _, e := range events.Msg.GetEvents() {
		seen[e.GetType().String()[len("EVENT_TYPE_"):]+" "+e.GetName()] = true
	}
	for _, want := range []string{"CREATE a", "CREATE a/b.txt", "WRITE a/b.txt", "CREATE a/link", "RENAME a"} {
		if !seen[want] {
			t.Errorf("no event %q in %v, %v", want, seen, err)
		}
	}
}

// TestMemoryRefusals: the statuses and codes that a real file system gives.
func TestMemoryRefusals(t *testing.T) {
	memory, srv, client := serve(t, memfs.Options{Limits: memfs.Limits{Bytes: 64 << 10, FileSize: 48 << 10}})
	if err := errors.Join(memory.Symlink("loop", "/loop"), memory.Symlink("../../../etc/passwd", "/home/user/out")); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		method, path, body string
		status             int
	}{
		{"GET", "missing", "", 404}, {"GET", "/", "", 400}, {"GET", "/loop", "", 400}, {"GET", "out", "", 404},
		{"GET", "../../../../../../etc/passwd", "", 404}, {"POST", "huge", strings.Repeat("x", 60<<10), 413},
		{"POST", "fits", strings.Repeat("x", 40<<10), 200}, {"POST", "big", strings.Repeat("x", 40<<10), 507}, {"POST", "/home", "x", 400},
	} {
		if status, text := transfer(t, test.method, srv.URL+"/files?path="+test.path, test.body); status != test.status {
			t.Errorf("%s %s: %d %s", test.method, test.path, status, text)
		}
	}
	if _, err := memory.Lstat("/home/user/huge"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("half of a file is left: %v", err)
	}
	for path, code := range map[string]connect.Code{"/loop": connect.CodeFailedPrecondition, "/none": connect.CodeNotFound} {
		if _, err := client.Stat(t.Context(), connect.NewRequest(&filesystemv1.StatRequest{Path: path})); connect.CodeOf(err) != code {
			t.Errorf("%s: %v", path, err)
		}
	}
	request := connect.NewRequest(&filesystemv1.StatRequest{Path: "/home"})
	request.Header().Set("Authorization", "Basic cm9vdDo=") // root
	if _, err := client.Stat(t.Context(), request); connect.CodeOf(err) != connect.CodeUnauthenticated {
		t.Errorf("as root: %v", err)
	}
}
