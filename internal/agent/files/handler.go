package files

import (
	"context"
	"net/http"

	"connectrpc.com/connect"

	filesystemv1 "github.com/firebreak-dev/firebreak/internal/api/filesystem"
	"github.com/firebreak-dev/firebreak/internal/api/filesystem/filesystemconnect"
)

// finder finds the service of a request by its context, so that one handler does for many services.
type finder func(context.Context) *Service

var _ filesystemconnect.FilesystemHandler = finder(nil)

// Handler returns the path of filesystem.Filesystem and its handler, which serves the services that of returns.
func Handler(of func(context.Context) *Service, opts ...connect.HandlerOption) (string, http.Handler) {
	return filesystemconnect.NewFilesystemHandler(finder(of), opts...)
}

func (f finder) Stat(ctx context.Context, r *request[filesystemv1.StatRequest]) (*response[filesystemv1.StatResponse], error) {
	return f(ctx).Stat(ctx, r)
}

func (f finder) MakeDir(ctx context.Context, r *request[filesystemv1.MakeDirRequest]) (*response[filesystemv1.MakeDirResponse], error) {
	return f(ctx).MakeDir(ctx, r)
}

func (f finder) Move(ctx context.Context, r *request[filesystemv1.MoveRequest]) (*response[filesystemv1.MoveResponse], error) {
	return f(ctx).Move(ctx, r)
}

func (f finder) ListDir(ctx context.Context, r *request[filesystemv1.ListDirRequest]) (*response[filesystemv1.ListDirResponse], error) {
	return f(ctx).ListDir(ctx, r)
}

func (f finder) Remove(ctx context.Context, r *request[filesystemv1.RemoveRequest]) (*response[filesystemv1.RemoveResponse], error) {
	return f(ctx).Remove(ctx, r)
}

func (f finder) WatchDir(ctx context.Context, r *request[filesystemv1.WatchDirRequest], out *stream[filesystemv1.WatchDirResponse]) error {
	return f(ctx).WatchDir(ctx, r, out)
}

func (f finder) CreateWatcher(ctx context.Context, r *request[filesystemv1.CreateWatcherRequest]) (*response[filesystemv1.CreateWatcherResponse], error) {
	return f(ctx).CreateWatcher(ctx, r)
}

func (f finder) GetWatcherEvents(ctx context.Context, r *request[filesystemv1.GetWatcherEventsRequest]) (*response[filesystemv1.GetWatcherEventsResponse], error) {
	return f(ctx).GetWatcherEvents(ctx, r)
}

func (f finder) RemoveWatcher(ctx context.Context, r *request[filesystemv1.RemoveWatcherRequest]) (*response[filesystemv1.RemoveWatcherResponse], error) {
	return f(ctx).RemoveWatcher(ctx, r)
}
