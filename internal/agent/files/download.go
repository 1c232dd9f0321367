package files

import (
	"compress/flate"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/agent/account"
)

// Routes adds /files to mux, for the services that of returns. Allowed says whether a request may "read" or "write" the
// path of its query.
func Routes(mux *http.ServeMux, of func(context.Context) *Service, allowed func(r *http.Request, operation string) error) {
	guarded := func(operation string, serve func(*Service, http.ResponseWriter, *http.Request, account.User) error) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			s := of(r.Context())
			if err := allowed(r, operation); err != nil {
				Error(w, http.StatusUnauthorized, err)
				return
			}
			u, err := s.session.User(s.username(r))
			if err != nil {
				Error(w, http.StatusUnauthorized, err)
				return
			}
			if err := serve(s, w, r, u); err != nil {
				Error(w, statusOf(err), err)
			}
		}
	}
	mux.Handle("GET /files", guarded("read", (*Service).download))
	mux.Handle("POST /files", guarded("write", (*Service).upload))
	mux.HandleFunc("POST /files/compose", func(w http.ResponseWriter, r *http.Request) { of(r.Context()).compose(w, r) })
}

// username is who a request is: its query says so, or its header as for the other half of the protocol.
func (s *Service) username(r *http.Request) string {
	if name := r.URL.Query().Get("username"); name != "" {
		return name
	}
	return account.HeaderUser(r.Header)
}

// statusError is an error that has its status already.
type statusError struct {
	status int
	err    error
}

func (e *statusError) Error() string { return e.err.Error() }

func (e *statusError) Unwrap() error { return e.err }

func badRequest(format string, args ...any) error {
	return &statusError{http.StatusBadRequest, fmt.Errorf(format, args...)}
}

func statusOf(err error) int {
	var se *statusError
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &se):
		return se.status
	case errors.As(err, &large), errors.Is(err, unix.EFBIG):
		return http.StatusRequestEntityTooLarge
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return http.StatusInsufficientStorage
	case errors.Is(err, fs.ErrNotExist):
		return http.StatusNotFound
	case errors.Is(err, fs.ErrPermission):
		return http.StatusForbidden
	case errors.Is(err, unix.EISDIR), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ENAMETOOLONG), errors.Is(err, unix.ELOOP):
		return http.StatusBadRequest
	case errors.Is(err, os.ErrDeadlineExceeded):
		return http.StatusRequestTimeout
	case errors.Is(err, errors.ErrUnsupported):
		return http.StatusNotImplemented
	}
	return http.StatusInternalServerError
}

// queryPath is the path that the query names, as u means it; "" if it names none.
func (s *Service) queryPath(r *http.Request, u account.User) (string, error) {
	path := r.URL.Query().Get("path")
	if strings.Contains(path, "\x00") {
		return "", badRequest("a path holds no zero byte")
	}
	if path == "" {
		return "", nil
	}
	return s.session.Path(u, path), nil
}

func (s *Service) download(w http.ResponseWriter, r *http.Request, u account.User) error {
	path, err := s.queryPath(r, u)
	if err != nil {
		return err
	}
	if path == "" {
		return badRequest("the query names no path")
	}
	f, info, err := s.open(u, path)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // opened for reading
	encoding, err := negotiate(r.Header.Get("Accept-Encoding"), r.Header.Get("Range") != "")
	if err != nil {
		return &statusError{http.StatusNotAcceptable, err}
	}
	head := make([]byte, sample)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	h := w.Header()
	h.Set("Content-Type", http.DetectContentType(head[:n]))
	if encoding == "gzip" && !shrinks(head[:n]) {
		if plain, err := negotiate(r.Header.Get("Accept-Encoding"), true); err == nil {
			encoding = plain
		}
	}
	h.Set("Content-Disposition", mime.FormatMediaType("inline", map[string]string{"filename": filepath.Base(path)}))
	h.Set("Vary", "Accept-Encoding")
	if _, err := f.Seek(0, io.SeekStart); err != nil { // of /proc and the like: no length, no ranges
		return err
	}
	switch {
	case encoding == "gzip":
		return zip(w, f)
	case info.Size() == 0 && n > 0: // a file of /proc: its size is known once it is read
		_, err := io.Copy(w, f)
		return ignoreGone(err)
	}
	http.ServeContent(w, r, "", info.ModTime(), f)
	return nil
}

// open opens a regular file.
func (s *Service) open(u account.User, path string) (f File, info fs.FileInfo, err error) {
	err = s.session.Do(u, func() error {
		f, err = s.system.Open(path, os.O_RDONLY, 0)
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	if info, err = f.Stat(); err == nil && !info.Mode().IsRegular() {
		err = badRequest("%s is not a file but %s", path, kindOf(info.Mode()))
	}
	if err != nil {
		_ = f.Close()
		return nil, nil, err
	}
	return f, info, nil
}

func kindOf(m fs.FileMode) string {
	if m.IsDir() {
		return "a directory"
	}
	return "something special"
}

// sample is how much of a file says whether it is worth compressing, in bytes.
const sample = 32 << 10

// shrinks reports whether data is worth compressing: it gets smaller by a tenth, and there is more than fits one packet.
// Pictures and archives do not, and clients that ask for gzip unasked take many times as long to unpack them.
func shrinks(data []byte) bool {
	const packet = 1400
	if len(data) < packet {
		return false
	}
	var size counter
	z, err := flate.NewWriter(&size, flate.BestSpeed)
	if err != nil {
		return false
	}
	_, _ = z.Write(data) // a counter has no errors
	_ = z.Close()
	return int(size) < len(data)*9/10
}

type counter int

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

func zip(w http.ResponseWriter, f io.Reader) error {
	w.Header().Set("Content-Encoding", "gzip")
	z, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
	if err != nil {
		return err
	}
	if _, err := io.Copy(z, f); err != nil {
		return ignoreGone(err)
	}
	return ignoreGone(z.Close())
}

// ignoreGone is for errors after the status was sent: the only way to tell the client is to cut the stream.
func ignoreGone(err error) error {
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	return nil
}

// negotiate chooses between gzip and identity. Parts of a compressed stream are of no use, so ranges are never.
func negotiate(accept string, ranged bool) (string, error) {
	quality := map[string]float64{}
	for part := range strings.SplitSeq(accept, ",") {
		name, params, _ := strings.Cut(part, ";")
		q := 1.0
		if value, ok := strings.CutPrefix(strings.TrimSpace(params), "q="); ok {
			parsed, err := strconv.ParseFloat(value, 64)
			if err != nil || parsed < 0 || parsed > 1 || parsed != parsed {
				continue
			}
			q = parsed
		}
		if name = strings.ToLower(strings.TrimSpace(name)); name != "" {
			quality[name] = q
		}
	}
	any, hasAny := quality["*"]
	gzipQ, ok := quality["gzip"]
	if !ok {
		gzipQ = any
	}
	identityQ, named := quality["identity"]
	switch {
	case !named && hasAny && any == 0:
		identityQ = 0
	case !named:
		identityQ = 0.001 // always acceptable, never preferred to what was asked for
	}
	switch {
	case gzipQ > identityQ && !ranged:
		return "gzip", nil
	case identityQ > 0:
		return "identity", nil
	case gzipQ > 0 && !ranged:
		return "gzip", nil
	}
	return "", fmt.Errorf("none of the encodings %q can be served", accept)
}
