package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// ReadFile streams a regular file from offset on, at most length bytes of it (negative: all), for the caller to close. The
// path is absolute, or below the user's home; user "" is the sandbox's default. It also returns the file's size, or -1 if
// that shows only at the end. What comes is the sandbox's own word: it may be longer or shorter than the size says.
func (g *Guest) ReadFile(ctx context.Context, path, user string, offset, length int64) (io.ReadCloser, int64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, filesURL(path, user), nil)
	if err != nil {
		return nil, 0, err
	}
	req.Header.Set("Accept-Encoding", "identity")
	want := http.StatusOK
	if offset > 0 || length >= 0 {
		want = http.StatusPartialContent
		req.Header.Set("Range", rangeOf(offset, length))
	}
	res, err := g.do(req, "read "+path, want, http.StatusOK, http.StatusRequestedRangeNotSatisfiable)
	if err != nil {
		return nil, 0, err
	}
	switch res.StatusCode {
	case http.StatusRequestedRangeNotSatisfiable: // it begins behind the end
		return http.NoBody, sizeOf(res), res.Body.Close()
	case http.StatusPartialContent:
		return res.Body, sizeOf(res), nil
	}
	body := res.Body // the whole of it, because it is empty or its size is not known
	if want != http.StatusOK {
		if _, err := io.CopyN(io.Discard, body, offset); err != nil && !errors.Is(err, io.EOF) {
			return nil, 0, errors.Join(fmt.Errorf("read %s: %w", path, err), body.Close())
		}
		if length >= 0 {
			body = limitedBody{io.LimitReader(res.Body, length), res.Body}
		}
	}
	return body, res.ContentLength, nil
}

type limitedBody struct {
	io.Reader
	io.Closer
}

func rangeOf(offset, length int64) string {
	if length < 0 {
		return fmt.Sprintf("bytes=%d-", offset)
	}
	return fmt.Sprintf("bytes=%d-%d", offset, offset+max(length, 1)-1)
}

// sizeOf reads the size behind the slash of Content-Range.
func sizeOf(res *http.Response) int64 {
	_, text, _ := strings.Cut(res.Header.Get("Content-Range"), "/")
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 {
		return -1
	}
	return n
}

// WriteFile makes or replaces a file, and the directories above it.
func (g *Guest) WriteFile(ctx context.Context, path, user string, content io.Reader) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, filesURL(path, user), io.NopCloser(content))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	res, err := g.do(req, "write "+path, http.StatusOK)
	if err != nil {
		return err
	}
	return res.Body.Close()
}

func filesURL(path, user string) string {
	q := url.Values{"path": {path}}
	if user != "" {
		q.Set("username", user)
	}
	return base + "/files?" + q.Encode()
}
