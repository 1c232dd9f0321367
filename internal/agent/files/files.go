// Package files serves the files of a sandbox for the agent: filesystem.Filesystem with its watchers, and the uploads
// and downloads of /files. Everything is done with the permissions of the user that a request names.
package files

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"sync"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/agent/account"
	filesystemv1 "github.com/firebreak-dev/firebreak/internal/api/filesystem"
)

// The wrappers of Connect, whose full names would fill every line.
type (
	request[T any]  = connect.Request[T]
	response[T any] = connect.Response[T]
	stream[T any]   = connect.ServerStream[T]
)

// Service serves the files.
type Service struct {
	session *account.Session
	system  System
	log     *slog.Logger

	mu       sync.Mutex
	watchers map[string]*polled
}

// New returns the service of system for the users of session.
func New(session *account.Session, system System, log *slog.Logger) *Service {
	return &Service{session: session, system: system, log: log, watchers: map[string]*polled{}}
}

// Close ends the watchers that are polled.
func (s *Service) Close() {
	s.mu.Lock()
	watchers := s.watchers
	s.watchers = map[string]*polled{}
	s.mu.Unlock()
	for _, w := range watchers {
		w.close()
	}
}

// JSON answers with value.
func JSON(w http.ResponseWriter, status int, value any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(value) // the client went away
}

// Error answers in the protocol's form.
func Error(w http.ResponseWriter, status int, err error) {
	JSON(w, status, map[string]any{"code": status, "message": err.Error()})
}

// whose returns the user that headers name, and path as that user means it.
func (s *Service) whose(h http.Header, path string) (account.User, string, error) {
	u, err := s.session.User(account.HeaderUser(h))
	if err != nil {
		return u, "", connect.NewError(connect.CodeUnauthenticated, err)
	}
	if strings.Contains(path, "\x00") {
		return u, "", connect.NewError(connect.CodeInvalidArgument, errors.New("a path holds no zero byte"))
	}
	return u, s.session.Path(u, path), nil
}

// as resolves path as the user means it that headers name, and does work there with that user's permissions.
func (s *Service) as(h http.Header, path string, work func(u account.User, path string) error) error {
	u, path, err := s.whose(h, path)
	if err != nil {
		return err
	}
	return coded(s.session.Do(u, func() error { return work(u, path) }))
}

// coded gives a file error its code of Connect.
func coded(err error) error {
	if err == nil {
		return nil
	}
	if ce := new(connect.Error); errors.As(err, &ce) {
		return err
	}
	code := connect.CodeInternal
	for _, row := range []struct {
		is   error
		code connect.Code
	}{
		{unix.ELOOP, connect.CodeFailedPrecondition},
		{fs.ErrNotExist, connect.CodeNotFound},
		{fs.ErrExist, connect.CodeAlreadyExists},
		{fs.ErrPermission, connect.CodePermissionDenied},
		{unix.ENOTDIR, connect.CodeInvalidArgument},
		{unix.EISDIR, connect.CodeInvalidArgument},
		{unix.EINVAL, connect.CodeInvalidArgument},
		{unix.ENAMETOOLONG, connect.CodeInvalidArgument},
		{unix.ENOSPC, connect.CodeResourceExhausted},
		{unix.EDQUOT, connect.CodeResourceExhausted},
		{unix.EFBIG, connect.CodeResourceExhausted},
		{errors.ErrUnsupported, connect.CodeUnimplemented},
		{context.Canceled, connect.CodeCanceled},
		{context.DeadlineExceeded, connect.CodeDeadlineExceeded},
	} {
		if errors.Is(err, row.is) {
			code = row.code
			break
		}
	}
	return connect.NewError(code, err)
}

// Stat implements filesystem.Filesystem.
func (s *Service) Stat(_ context.Context, req *request[filesystemv1.StatRequest]) (*response[filesystemv1.StatResponse], error) {
	var entry *filesystemv1.EntryInfo
	err := s.as(req.Header(), req.Msg.GetPath(), func(_ account.User, path string) (err error) {
		entry, err = s.entry(path)
		return err
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&filesystemv1.StatResponse{Entry: entry}), nil
}

// MakeDir implements filesystem.Filesystem: parents too, all of them the user's.
func (s *Service) MakeDir(_ context.Context, req *request[filesystemv1.MakeDirRequest]) (*response[filesystemv1.MakeDirResponse], error) {
	u, path, err := s.whose(req.Header(), req.Msg.GetPath())
	if err != nil {
		return nil, err
	}
	err = s.session.Do(u, func() error {
		switch info, err := s.system.Stat(path); {
		case err == nil && info.IsDir():
			return &fs.PathError{Op: "mkdir", Path: path, Err: fs.ErrExist}
		case err == nil:
			return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("%s exists and is not a directory", path))
		case !errors.Is(err, fs.ErrNotExist):
			return err
		}
		return nil
	})
	if err == nil {
		err = s.makeDirs(u, path)
	}
	var entry *filesystemv1.EntryInfo
	if err == nil {
		err = s.session.Do(u, func() (err error) {
			entry, err = s.entry(path)
			return err
		})
	}
	if err != nil {
		return nil, coded(err)
	}
	return connect.NewResponse(&filesystemv1.MakeDirResponse{Entry: entry}), nil
}

// Move implements filesystem.Filesystem. The destination's parents are made.
func (s *Service) Move(_ context.Context, req *request[filesystemv1.MoveRequest]) (*response[filesystemv1.MoveResponse], error) {
	u, source, err := s.whose(req.Header(), req.Msg.GetSource())
	if err != nil {
		return nil, err
	}
	destination := s.session.Path(u, req.Msg.GetDestination())
	err = s.session.Do(u, func() error {
		_, err := s.system.Lstat(source)
		return err
	})
	if err == nil {
		err = s.makeDirs(u, filepath.Dir(destination))
	}
	var entry *filesystemv1.EntryInfo
	if err == nil {
		err = s.session.Do(u, func() (err error) {
			if err = s.system.Rename(source, destination); err == nil {
				entry, err = s.entry(destination)
			}
			return err
		})
	}
	if err != nil {
		return nil, coded(err)
	}
	return connect.NewResponse(&filesystemv1.MoveResponse{Entry: entry}), nil
}

// maxEntries bounds one listing; each is some 300 bytes here and on the wire.
const maxEntries = 50_000

// ListDir implements filesystem.Filesystem. Links below the directory are shown and not followed.
func (s *Service) ListDir(ctx context.Context, req *request[filesystemv1.ListDirRequest]) (*response[filesystemv1.ListDirResponse], error) {
	res := &filesystemv1.ListDirResponse{}
	err := s.as(req.Header(), req.Msg.GetPath(), func(_ account.User, path string) error {
		// A link to a directory is listed as that directory, but under the name that was asked for.
		if info, err := s.system.Stat(path); err != nil {
			return err
		} else if !info.IsDir() {
			return &fs.PathError{Op: "list", Path: path, Err: unix.ENOTDIR}
		}
		return s.list(ctx, path, max(1, req.Msg.GetDepth()), &res.Entries)
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(res), nil
}

func (s *Service) list(ctx context.Context, dir string, depth uint32, into *[]*filesystemv1.EntryInfo) error {
	names, err := s.system.List(dir, maxEntries+1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		if len(*into) >= maxEntries {
			return connect.NewError(connect.CodeResourceExhausted,
				fmt.Errorf("more than %d entries; list with less depth", maxEntries))
		}
		path := filepath.Join(dir, name)
		entry, err := s.entry(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it went away meanwhile
		}
		if err != nil {
			return err
		}
		*into = append(*into, entry)
		if depth > 1 && entry.GetType() == filesystemv1.FileType_FILE_TYPE_DIRECTORY && entry.SymlinkTarget == nil {
			err := s.list(ctx, path, depth-1, into)
			if err != nil && !errors.Is(err, fs.ErrPermission) && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// Remove implements filesystem.Filesystem: with everything below; what does not exist is removed already.
func (s *Service) Remove(_ context.Context, req *request[filesystemv1.RemoveRequest]) (*response[filesystemv1.RemoveResponse], error) {
	err := s.as(req.Header(), req.Msg.GetPath(), func(_ account.User, path string) error {
		if path == "/" {
			return connect.NewError(connect.CodeInvalidArgument, errors.New("the root directory cannot be removed"))
		}
		return s.system.RemoveAll(path)
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&filesystemv1.RemoveResponse{}), nil
}
