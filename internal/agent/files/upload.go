package files

import (
	"compress/gzip"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"mime/multipart"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/agent/account"
)

const (
	maxParts    = 10_000          // files in one upload
	stallTime   = 2 * time.Minute // that an upload may send nothing
	maxMetadata = 4096            // bytes of keys and values together
	maxKey      = 246             // what is left of a name of 255 after the prefix
	maxCompose  = 1 << 20         // bytes of a compose request
)

// written is one file of an upload's answer.
type written struct {
	Path     string            `json:"path"`
	Name     string            `json:"name"`
	Type     string            `json:"type"`
	Metadata map[string]string `json:"metadata,omitempty"`
}

func (s *Service) upload(w http.ResponseWriter, r *http.Request, u account.User) error {
	path, err := s.queryPath(r, u)
	if err != nil {
		return err
	}
	meta, err := metadataOf(r.Header)
	if err != nil {
		return err
	}
	kind, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil {
		return badRequest("read Content-Type: %w", err)
	}
	body := &stalling{r: r.Body, control: http.NewResponseController(w)}
	var done []written
	switch kind {
	case "multipart/form-data":
		done, err = s.uploadParts(u, path, multipart.NewReader(body, params["boundary"]), meta)
	case "application/octet-stream":
		done, err = s.uploadBody(u, path, body, r.Header.Get("Content-Encoding"), meta)
	default:
		err = badRequest("an upload is multipart/form-data or application/octet-stream, not %s", kind)
	}
	if err != nil {
		return err
	}
	JSON(w, http.StatusOK, done)
	return nil
}

func (s *Service) uploadBody(u account.User, path string, body io.Reader, encoding string, meta map[string]string) ([]written, error) {
	if path == "" {
		return nil, badRequest("the query names no path")
	}
	switch encoding {
	case "", "identity":
	case "gzip":
		z, err := gzip.NewReader(body)
		if err != nil {
			return nil, badRequest("read gzip: %w", err)
		}
		body = z
	default:
		return nil, badRequest("Content-Encoding %q is not known here", encoding)
	}
	one, err := s.write(u, path, body, meta)
	return []written{one}, err
}

func (s *Service) uploadParts(u account.User, path string, parts *multipart.Reader, meta map[string]string) ([]written, error) {
	done := []written{}
	for {
		part, err := parts.NextRawPart()
		if errors.Is(err, io.EOF) && len(done) > 0 {
			return done, nil
		}
		if err != nil {
			return nil, badBody(err)
		}
		if part.FormName() != "file" {
			continue
		}
		if len(done) == maxParts {
			return nil, badRequest("more than %d files in one upload", maxParts)
		}
		to := path
		if to == "" {
			name, err := partPath(part.Header.Get("Content-Disposition"))
			if err != nil {
				return nil, err
			}
			to = s.session.Path(u, name)
		} else if len(done) > 0 {
			return nil, badRequest("the query names one path, and the upload has several files")
		}
		one, err := s.write(u, to, part, meta)
		if err != nil {
			return nil, err
		}
		done = append(done, one)
	}
}

// partPath is the file name of a part with its directories, which multipart.Part.FileName strips.
func partPath(disposition string) (string, error) {
	_, params, err := mime.ParseMediaType(disposition)
	if err != nil {
		return "", badRequest("read Content-Disposition: %w", err)
	}
	name := params["filename"]
	if name == "" || strings.Contains(name, "\x00") || strings.HasSuffix(name, "/") {
		return "", badRequest("%q is no name of a file", name)
	}
	return name, nil
}

// badBody blames the client for a body that is malformed, and leaves errors of reading what they are.
func badBody(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("the upload stalled: %w", err)
	}
	return badRequest("read upload: %w", err)
}

// stalling is a request body that ends with an error if nothing comes for too long.
type stalling struct {
	r       io.Reader
	control *http.ResponseController
}

func (s *stalling) Read(p []byte) (int, error) {
	_ = s.control.SetReadDeadline(time.Now().Add(stallTime)) // unsupported over HTTP/2 only without a connection
	n, err := s.r.Read(p)
	if err != nil {
		_ = s.control.SetReadDeadline(time.Time{})
	}
	return n, err
}

// metadataOf collects the X-Metadata-* headers.
func metadataOf(h http.Header) (map[string]string, error) {
	meta, size := map[string]string{}, 0
	for name, values := range h {
		key, ok := strings.CutPrefix(strings.ToLower(name), "x-metadata-")
		if !ok {
			continue
		}
		value := strings.Join(values, ",")
		if key == "" || len(key) > maxKey || strings.ContainsFunc(key+value, func(c rune) bool { return c < ' ' || c > '~' }) {
			return nil, badRequest("metadata %q: keys have 1 to %d characters, and all are printable ASCII", key, maxKey)
		}
		if size += len(key) + len(value); size > maxMetadata {
			return nil, badRequest("more than %d bytes of metadata", maxMetadata)
		}
		meta[key] = value
	}
	return meta, nil
}

// write makes or replaces the file at path. An existing one is written in place, as its watchers and its links expect;
// what could not be completed of a new one is removed again.
func (s *Service) write(u account.User, path string, from io.Reader, meta map[string]string) (written, error) {
	var f File
	var made bool
	err := s.makeDirs(u, filepath.Dir(path))
	if err == nil {
		err = s.session.Do(u, func() (err error) {
			f, made, err = s.create(path)
			if err == nil && (len(meta) > 0 || !made) {
				err = s.system.SetMetadata(f, meta)
			}
			return err
		})
	}
	if err == nil {
		_, err = io.CopyBuffer(struct{ io.Writer }{f}, from, make([]byte, 64<<10))
		err = blame(err)
	}
	if f != nil {
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		if made {
			_ = s.session.Do(u, func() error { return s.system.Remove(path) })
		}
		return written{}, fmt.Errorf("write %s: %w", path, err)
	}
	return written{Path: path, Name: filepath.Base(path), Type: "file", Metadata: meta}, nil
}

// blame tells errors of the file, which name it, from those of the body.
func blame(err error) error {
	if pe := new(fs.PathError); err == nil || errors.As(err, &pe) {
		return err
	}
	return badBody(err)
}

// create opens path for writing and reports whether it is new.
func (s *Service) create(path string) (f File, made bool, err error) {
	f, err = s.system.Open(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err == nil {
		return f, true, nil
	}
	if !errors.Is(err, fs.ErrExist) {
		return nil, false, err
	}
	f, err = s.system.Open(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644) // O_CREATE: a link may lead to what does not exist
	return f, false, err
}

// composition is the body of POST /files/compose.
type composition struct {
	Sources     []string `json:"source_paths"`
	Destination string   `json:"destination"`
	Username    string   `json:"username"`
}

// compose joins files into one and removes them. The destination is there whole or not at all.
func (s *Service) compose(w http.ResponseWriter, r *http.Request) {
	var c composition
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxCompose)).Decode(&c); err != nil {
		Error(w, http.StatusBadRequest, fmt.Errorf("read compose: %w", err))
		return
	}
	if c.Username == "" {
		c.Username = s.username(r)
	}
	u, err := s.session.User(c.Username)
	if err != nil {
		Error(w, http.StatusUnauthorized, err)
		return
	}
	one, err := s.join(u, c)
	if err != nil {
		Error(w, statusOf(err), err)
		return
	}
	JSON(w, http.StatusOK, one)
}

func (s *Service) join(u account.User, c composition) (written, error) {
	if len(c.Sources) == 0 || c.Destination == "" || slices.Contains(c.Sources, "") {
		return written{}, badRequest("compose needs sources and a destination")
	}
	destination := s.session.Path(u, c.Destination)
	if err := s.makeDirs(u, filepath.Dir(destination)); err != nil {
		return written{}, err
	}
	sources := make([]string, len(c.Sources))
	for i, source := range c.Sources {
		sources[i] = s.session.Path(u, source)
	}
	err := s.session.Do(u, func() error {
		if info, err := s.system.Stat(destination); err == nil && info.IsDir() {
			return &fs.PathError{Op: "compose", Path: destination, Err: unix.EISDIR}
		}
		temp := filepath.Join(filepath.Dir(destination), ".compose-"+rand.Text())
		if err := s.concatenate(temp, sources); err != nil {
			return err
		}
		if err := s.system.Rename(temp, destination); err != nil {
			return errors.Join(err, ignoreMissing(s.system.Remove(temp)))
		}
		var errs []error
		for _, path := range sources {
			if path != destination {
				errs = append(errs, ignoreMissing(s.system.Remove(path)))
			}
		}
		return errors.Join(errs...)
	})
	return written{Path: destination, Name: filepath.Base(destination), Type: "file"}, err
}

// concatenate makes a file of others, or leaves nothing behind.
func (s *Service) concatenate(path string, sources []string) error {
	f, err := s.system.Open(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	for _, source := range sources {
		if err = s.appendFile(f, source); err != nil {
			break
		}
	}
	if err = errors.Join(err, f.Close()); err != nil {
		err = errors.Join(err, ignoreMissing(s.system.Remove(path)))
	}
	return err
}

func (s *Service) appendFile(to io.Writer, source string) error {
	f, err := s.system.Open(source, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // opened for reading
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return errors.Join(err, badRequest("%s is not a file", source))
	}
	_, err = io.Copy(to, f)
	return err
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
