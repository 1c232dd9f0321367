package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/client"
	"github.com/firebreak-dev/firebreak/internal/api"
	"github.com/firebreak-dev/firebreak/internal/api/filesystem"
	"github.com/firebreak-dev/firebreak/internal/api/filesystem/filesystemconnect"
	firebreakv1 "github.com/firebreak-dev/firebreak/internal/api/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/api/firebreak/v1/firebreakv1connect"
	"github.com/firebreak-dev/firebreak/internal/api/process/processconnect"
)

// server is a Firebreak whose one sandbox is a directory, in which programs of this machine run.
type server struct {
	firebreakv1connect.UnimplementedSandboxServiceHandler
	firebreakv1connect.UnimplementedTemplateServiceHandler
	firebreakv1connect.UnimplementedPolicyServiceHandler
	firebreakv1connect.UnimplementedHostServiceHandler
	fakeOperator
	processconnect.UnimplementedProcessHandler
	filesystemconnect.UnimplementedFilesystemHandler

	t    *testing.T
	dir  string // the sandbox's root
	http *httptest.Server

	mu        sync.Mutex // guards what follows
	sandboxes map[string]*firebreakv1.Sandbox
	usage     *firebreakv1.Usage
	created   []*firebreakv1.CreateSandboxRequest
	makes     []*firebreakv1.MakeTemplateRequest
	asked     []*firebreakv1.AdviseRequest
	decision  *firebreakv1.Decision          // what Advise answers
	policy    *firebreakv1.GetPolicyResponse // what GetPolicy answers
	report    *firebreakv1.Report            // what Doctor answers
	deleted   []string
	templates []*firebreakv1.Template
	procs     map[uint32]*proc
	all       []*proc
	users     []string // that requests of Process came from
	limits    []string // of time, that programs were started with

	absent     []string                                     // programs that Start does not find
	cutInput   bool                                         // StreamInput breaks off
	slow       chan struct{}                                // not nil: creating waits for it
	oldest     uint64                                       // byte of stdout that Connect has
	breakAfter int                                          // bytes of output after which a stream breaks off, once
	onEnd      func(sb *firebreakv1.Sandbox)                // what the record says once the stream has broken off for good
	entries    func(dir string) []*filesystem.EntryInfo     // a hostile ListDir
	file       func(w http.ResponseWriter, r *http.Request) // a hostile GET /files
}

const sandboxID = "3fa7b2c1"

func newServer(t *testing.T) *server {
	s := &server{t: t, dir: t.TempDir(), sandboxes: map[string]*firebreakv1.Sandbox{}, procs: map[uint32]*proc{},
		templates: []*firebreakv1.Template{{Name: "host"}, {Name: "base", Digest: "sha256:0123456789abcdef0123", SizeBytes: 3 << 20}}}
	if err := os.MkdirAll(filepath.Join(s.dir, "home"), 0o755); err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle(firebreakv1connect.NewSandboxServiceHandler(s))
	mux.Handle(firebreakv1connect.NewTemplateServiceHandler(s))
	mux.Handle(firebreakv1connect.NewPolicyServiceHandler(s))
	mux.Handle(firebreakv1connect.NewHostServiceHandler(s))
	mux.Handle(firebreakv1connect.NewKeyServiceHandler(&s.fakeOperator))
	mux.Handle(firebreakv1connect.NewTenantServiceHandler(&s.fakeOperator))
	mux.Handle(firebreakv1connect.NewPoolServiceHandler(&s.fakeOperator))
	mux.Handle(processconnect.NewProcessHandler(s))
	mux.Handle(filesystemconnect.NewFilesystemHandler(s))
	mux.HandleFunc("/files", s.files)
	s.http = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Connect-Timeout-Ms") == "0" {
			t.Error("a request has no time at all")
		}
		if r.URL.Path == processconnect.ProcessStartProcedure {
			s.mu.Lock()
			s.limits = append(s.limits, r.Header.Get("Connect-Timeout-Ms"))
			s.mu.Unlock()
		}
		mux.ServeHTTP(w, r)
	}))
	t.Cleanup(func() {
		s.mu.Lock()
		for _, p := range s.all {
			_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
		}
		s.mu.Unlock()
		s.http.Close()
	})
	return s
}

func (s *server) connect(context.Context, ServerOptions) (*client.Client, func() error, error) {
	transport := &http.Transport{}
	return client.New(s.http.URL, &http.Client{Transport: transport}), func() error {
		transport.CloseIdleConnections()
		return nil
	}, nil
}

func wire(kind firebreak.Kind, text, mend string) error {
	return api.ErrorToWire(&firebreak.Error{Kind: kind, Err: errors.New(text), Mend: mend})
}

func (s *server) CreateSandbox(ctx context.Context, req *connect.Request[firebreakv1.CreateSandboxRequest]) (*connect.Response[firebreakv1.CreateSandboxResponse], error) {
	if s.slow != nil {
		select {
		case <-s.slow:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.created = append(s.created, req.Msg)
	if req.Msg.Driver == "nodriver" {
		return nil, wire(firebreak.KindHost, "nodriver cannot run here", "buy a better machine")
	}
	sb := &firebreakv1.Sandbox{Decision: decided(), Id: sandboxID, Name: req.Msg.Name, State: "running", Driver: "gvisor", Boundary: "user-kernel",
		Template: "host", Limits: req.Msg.Limits, Detached: req.Msg.Detached, Command: req.Msg.Command}
	if req.Msg.Driver == "process" {
		sb.Boundary, sb.Warnings = "none", []string{"no boundary"}
	}
	s.sandboxes[sandboxID] = sb
	ms := func(n int) *durationpb.Duration { return durationpb.New(time.Duration(n) * time.Millisecond) }
	return connect.NewResponse(&firebreakv1.CreateSandboxResponse{Sandbox: sb,
		Timings: &firebreakv1.Timings{Image: ms(1), Create: ms(41), Agent: ms(12)}}), nil
}

func (s *server) find(word string) (*firebreakv1.Sandbox, error) {
	for id, sb := range s.sandboxes {
		if word != "" && (sb.Name == word || strings.HasPrefix(id, word)) {
			if s.onEnd != nil {
				s.onEnd(sb)
			}
			return sb, nil
		}
	}
	return nil, wire(firebreak.KindNotFound, "no sandbox "+word, "")
}

func (s *server) GetSandbox(_ context.Context, req *connect.Request[firebreakv1.GetSandboxRequest]) (*connect.Response[firebreakv1.GetSandboxResponse], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sb, err := s.find(req.Msg.Id)
	return connect.NewResponse(&firebreakv1.GetSandboxResponse{Sandbox: sb, Usage: s.usage}), err
}

func (s *server) WaitSandbox(_ context.Context, req *connect.Request[firebreakv1.WaitSandboxRequest]) (*connect.Response[firebreakv1.WaitSandboxResponse], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sb, err := s.find(req.Msg.Id)
	return connect.NewResponse(&firebreakv1.WaitSandboxResponse{Sandbox: sb}), err
}

func (s *server) ListSandboxes(_ context.Context, req *connect.Request[firebreakv1.ListSandboxesRequest]) (*connect.Response[firebreakv1.ListSandboxesResponse], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := &firebreakv1.ListSandboxesResponse{}
	for _, sb := range s.sandboxes {
		if len(req.Msg.States) == 0 || slices.Contains(req.Msg.States, sb.State) {
			list.Sandboxes = append(list.Sandboxes, sb)
		}
	}
	return connect.NewResponse(list), nil
}

func (s *server) DeleteSandbox(_ context.Context, req *connect.Request[firebreakv1.DeleteSandboxRequest]) (*connect.Response[firebreakv1.DeleteSandboxResponse], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sb, err := s.find(req.Msg.Id)
	if err != nil {
		return nil, err
	}
	delete(s.sandboxes, sb.Id)
	s.deleted = append(s.deleted, sb.Id)
	for _, p := range s.procs {
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	}
	return connect.NewResponse(&firebreakv1.DeleteSandboxResponse{Sandbox: sb, Usage: s.usage}), nil
}

func (s *server) GetTemplate(_ context.Context, req *connect.Request[firebreakv1.GetTemplateRequest]) (*connect.Response[firebreakv1.GetTemplateResponse], error) {
	for _, t := range s.templates {
		if t.Name == req.Msg.Name {
			return connect.NewResponse(&firebreakv1.GetTemplateResponse{Template: t}), nil
		}
	}
	return nil, wire(firebreak.KindNotFound, "no template", "")
}

func (s *server) ListTemplates(context.Context, *connect.Request[firebreakv1.ListTemplatesRequest]) (*connect.Response[firebreakv1.ListTemplatesResponse], error) {
	return connect.NewResponse(&firebreakv1.ListTemplatesResponse{Templates: s.templates}), nil
}

func (s *server) MakeTemplate(_ context.Context, req *connect.Request[firebreakv1.MakeTemplateRequest], stream *connect.ServerStream[firebreakv1.MakeTemplateResponse]) error {
	s.mu.Lock()
	s.makes = append(s.makes, req.Msg)
	s.mu.Unlock()
	for done := int64(0); done <= 100; done += 50 {
		if err := stream.Send(&firebreakv1.MakeTemplateResponse{Event: &firebreakv1.MakeTemplateResponse_Progress{
			Progress: &firebreakv1.Progress{Step: "pull layer 3a5f", Done: done, Total: 100}}}); err != nil {
			return err
		}
	}
	name := req.Msg.Name
	if name == "" {
		name = "made"
	}
	return stream.Send(&firebreakv1.MakeTemplateResponse{Event: &firebreakv1.MakeTemplateResponse_Template{
		Template: &firebreakv1.Template{Name: name, SizeBytes: 1 << 20}}})
}

func (s *server) DeleteTemplate(_ context.Context, req *connect.Request[firebreakv1.DeleteTemplateRequest]) (*connect.Response[firebreakv1.DeleteTemplateResponse], error) {
	if _, err := s.GetTemplate(context.Background(), connect.NewRequest(&firebreakv1.GetTemplateRequest{Name: req.Msg.Name})); err != nil {
		return nil, err
	}
	return connect.NewResponse(&firebreakv1.DeleteTemplateResponse{}), nil
}

func (s *server) CollectGarbage(context.Context, *connect.Request[firebreakv1.CollectGarbageRequest]) (*connect.Response[firebreakv1.CollectGarbageResponse], error) {
	return connect.NewResponse(&firebreakv1.CollectGarbageResponse{FreedBytes: 2 << 30, Removed: 3}), nil
}

// host is where a path of the sandbox lies.
func (s *server) host(name string) string {
	if filepath.IsAbs(name) {
		return filepath.Join(s.dir, name)
	}
	return filepath.Join(s.dir, "home", name)
}

func (s *server) info(name string) (*filesystem.EntryInfo, error) {
	info, err := os.Lstat(s.host(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, wire(firebreak.KindNotFound, "no such file", "")
	}
	if err != nil {
		return nil, err
	}
	guest := "/" + strings.TrimPrefix(strings.TrimPrefix(s.host(name), s.dir), "/")
	e := &filesystem.EntryInfo{Name: info.Name(), Path: guest, Size: info.Size(), Mode: uint32(info.Mode().Perm()), Type: filesystem.FileType_FILE_TYPE_FILE}
	switch {
	case info.IsDir():
		e.Type = filesystem.FileType_FILE_TYPE_DIRECTORY
	case info.Mode()&fs.ModeSymlink != 0:
		target, _ := os.Readlink(s.host(name))
		e.Type, e.SymlinkTarget = filesystem.FileType_FILE_TYPE_SYMLINK, &target
	case !info.Mode().IsRegular():
		e.Type = filesystem.FileType_FILE_TYPE_UNSPECIFIED
	}
	return e, nil
}

func (s *server) Stat(_ context.Context, req *connect.Request[filesystem.StatRequest]) (*connect.Response[filesystem.StatResponse], error) {
	e, err := s.info(req.Msg.Path)
	return connect.NewResponse(&filesystem.StatResponse{Entry: e}), err
}

func (s *server) MakeDir(_ context.Context, req *connect.Request[filesystem.MakeDirRequest]) (*connect.Response[filesystem.MakeDirResponse], error) {
	if _, err := os.Stat(s.host(req.Msg.Path)); err == nil {
		return nil, wire(firebreak.KindExists, "it is there", "")
	}
	return connect.NewResponse(&filesystem.MakeDirResponse{}), os.MkdirAll(s.host(req.Msg.Path), 0o755)
}

func (s *server) ListDir(_ context.Context, req *connect.Request[filesystem.ListDirRequest]) (*connect.Response[filesystem.ListDirResponse], error) {
	if s.entries != nil {
		return connect.NewResponse(&filesystem.ListDirResponse{Entries: s.entries(req.Msg.Path)}), nil
	}
	list := &filesystem.ListDirResponse{}
	entries, err := os.ReadDir(s.host(req.Msg.Path))
	for _, e := range entries {
		info, err := s.info(filepath.Join(req.Msg.Path, e.Name()))
		if err != nil {
			return nil, err
		}
		list.Entries = append(list.Entries, info)
	}
	return connect.NewResponse(list), err
}

func (s *server) files(w http.ResponseWriter, r *http.Request) {
	name := s.host(r.URL.Query().Get("path"))
	if r.Header.Get(client.HeaderSandbox) != sandboxID {
		http.Error(w, `{"message":"no sandbox in the header"}`, http.StatusBadGateway)
		return
	}
	if r.Method == http.MethodGet {
		if s.file != nil {
			s.file(w, r)
			return
		}
		http.ServeFile(w, r, name)
		return
	}
	err := os.MkdirAll(filepath.Dir(name), 0o755)
	f, createErr := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err = errors.Join(err, createErr); err == nil {
		_, err = io.Copy(f, r.Body)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		http.Error(w, fmt.Sprintf(`{"message":%q}`, err), http.StatusInternalServerError)
	}
}
