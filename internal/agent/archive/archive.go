// Package archive moves files of a sandbox as tar archives: the whole root file system out, for a template to be made of
// it, and the files of a build's step in. Both are for the host only and work as the agent itself.
package archive

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/agent/account"
	"github.com/firebreak-dev/firebreak/internal/agent/files"
)

// Service answers the host. It is safe for concurrent use.
type Service struct {
	session *account.Session
	whole   bool
	started time.Time
}

// slack is how far the clock by which a kernel dates files may lie behind.
const slack = time.Second

// New returns the service. Only where the agent has a root file system of its own may that leave: elsewhere it would be
// the host's.
func New(session *account.Session, ownRoot bool) *Service {
	return &Service{session: session, whole: ownRoot, started: time.Now()}
}

// Routes adds GET /export and POST /import to mux, for the services that of returns.
func Routes(mux *http.ServeMux, of func(context.Context) *Service) {
	// With ?changes it comes without the data of files that are the template's.
	mux.HandleFunc("GET /export", func(w http.ResponseWriter, r *http.Request) { of(r.Context()).serveExport(w, r) })
	mux.HandleFunc("POST /import", func(w http.ResponseWriter, r *http.Request) { of(r.Context()).serveImport(w, r) })
}

func (s *Service) serveExport(w http.ResponseWriter, r *http.Request) {
	if !s.whole {
		files.Error(w, http.StatusNotImplemented, errors.New("this sandbox has no root file system of its own"))
		return
	}
	src := Source{Root: "/", Skip: ownFiles()}
	if r.URL.Query().Has("changes") {
		src.Since = s.started.Add(-slack)
	}
	var err error
	if src.Mounts, err = mountPoints("/proc/self/mountinfo"); err != nil {
		files.Error(w, http.StatusInternalServerError, fmt.Errorf("look for mounts: %w", err))
		return
	}
	w.Header().Set("Content-Type", "application/x-tar")
	if err := Export(r.Context(), w, src); err != nil {
		// The status is sent; to cut the stream is the only way left to tell.
		panic(http.ErrAbortHandler)
	}
}

// ownFiles are what the driver and the agent put into every sandbox.
func ownFiles() []string {
	return []string{"/.firebreak", os.TempDir() + "/.firebreak-pids", "/run/e2b"}
}

func (s *Service) serveImport(w http.ResponseWriter, r *http.Request) {
	to, err := s.target(r.URL.Query())
	if err != nil {
		files.Error(w, http.StatusBadRequest, err)
		return
	}
	if err := Import(r.Context(), r.Body, to); err != nil {
		files.Error(w, statusOf(err), err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func statusOf(err error) int {
	switch {
	case errors.Is(err, errRefused):
		return http.StatusBadRequest
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return http.StatusInsufficientStorage
	}
	return http.StatusInternalServerError
}
