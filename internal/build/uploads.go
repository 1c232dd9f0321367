package build

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/build/step"
)

const (
	tokenTime    = time.Hour // that a client has to begin an upload
	maxTokens    = 1000      // of one tenant
	maxUploading = 8         // uploads of one tenant at once
	partial      = ".part-"  // begins the names of what is being uploaded
	young        = time.Hour // uploads are not thrown away before: their build may not have begun
)

// token lets whoever has it upload one file, once.
type token struct {
	tenant, template, hash string
	expires                time.Time
}

// tokens are those that were given out. They need not survive the process: clients use them at once.
type tokens struct {
	mu        sync.Mutex
	all       map[string]token // guarded by mu
	uploading map[string]int   // guarded by mu: by tenant
}

func (t *tokens) give(what token, now time.Time) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := 0
	for id, other := range t.all {
		if now.After(other.expires) {
			delete(t.all, id)
		} else if other.tenant == what.tenant {
			n++
		}
	}
	if n >= maxTokens {
		return "", tooMany("%d uploads were asked for and not begun", n)
	}
	id := strings.ToLower(rand.Text() + rand.Text())
	what.expires = now.Add(tokenTime)
	t.all[id] = what
	return id, nil
}

// take uses a token up. done is to be called at the end of the upload.
func (t *tokens) take(id string, now time.Time) (what token, done func(), err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	what, ok := t.all[id]
	if !ok || now.After(what.expires) {
		return what, nil, &firebreak.Error{Kind: firebreak.KindDenied, Op: "upload files",
			Err: errors.New("this address is of no use, or no more"), Mend: "begin the build anew"}
	}
	if t.uploading[what.tenant] >= maxUploading {
		return what, nil, tooMany("%d files are being uploaded", maxUploading)
	}
	if t.uploading == nil {
		t.uploading = map[string]int{}
	}
	delete(t.all, id)
	t.uploading[what.tenant]++
	return what, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.uploading[what.tenant]--; t.uploading[what.tenant] == 0 {
			delete(t.uploading, what.tenant)
		}
	}, nil
}

// Upload is where the files of a step may be sent to, and whether they need to be.
type Upload struct {
	Template string // its ID
	Hash     string
	Present  bool
	Token    string // for one Receive
}

// Upload tells whether the files of a hash were uploaded before, and lets them be now.
func (e *Engine) Upload(ctx context.Context, template, hash string) (Upload, error) {
	t, _, err := e.own(ctx, template)
	if err != nil {
		return Upload{}, err
	}
	if !step.IsHash(hash) {
		return Upload{}, invalid("%.80q is no SHA-256 in hexadecimal", hash)
	}
	now := time.Now()
	u := Upload{Template: t.ID, Hash: hash}
	u.Present = os.Chtimes(e.uploadPath(t.Tenant, hash), now, now) == nil // whoever asks is about to need it
	u.Token, err = e.tokens.give(token{tenant: t.Tenant, template: t.ID, hash: hash}, now)
	return u, err
}

// Receive takes the upload that a token is for. Nobody needs to be known for that but by the token.
func (e *Engine) Receive(ctx context.Context, id, template, hash string, r io.Reader) error {
	what, done, err := e.tokens.take(id, time.Now())
	if err != nil {
		return err
	}
	defer done()
	if what.template != template || what.hash != hash {
		return &firebreak.Error{Kind: firebreak.KindDenied, Op: "upload files", Err: errors.New("this address is for other files")}
	}
	if err := e.receive(ctx, e.uploadPath(what.tenant, what.hash), r); err != nil {
		return fmt.Errorf("upload files: %w", err)
	}
	e.begin(e.tidyUp)
	return nil
}

func (e *Engine) receive(ctx context.Context, path string, r io.Reader) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), partial)
	if err != nil {
		return err
	}
	coming := &comingReader{ctx: ctx, r: r, all: &e.coming, limit: e.cfg.Uploads}
	n, err := io.Copy(f, io.LimitReader(coming, e.cfg.UploadBytes+1))
	coming.done()
	if err == nil && n > e.cfg.UploadBytes {
		err = &firebreak.Error{Kind: firebreak.KindExhausted, Err: fmt.Errorf("an upload has more than %d bytes", e.cfg.UploadBytes),
			Mend: "copy less, or in several steps"}
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// comingReader is an upload under way. It ends with its context, and when all of them have more than limit bytes: one that is
// finished may make others go, but these cannot.
type comingReader struct {
	ctx   context.Context
	r     io.Reader
	all   *atomic.Int64
	limit int64
	n     int64
}

func (c *comingReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := c.r.Read(p)
	c.n += int64(n)
	if c.all.Add(int64(n)) > c.limit {
		return n, &firebreak.Error{Kind: firebreak.KindExhausted, Err: fmt.Errorf("the uploads under way have more than %d bytes", c.limit),
			Mend: "upload them again in a while"}
	}
	return n, err
}

// done is for an upload that has ended, whole or not.
func (c *comingReader) done() { c.all.Add(-c.n) }

// uploadPath is where the files of a tenant lie. A hash is what the client says, so no other tenant's counts.
func (e *Engine) uploadPath(tenant, hash string) string {
	if tenant == "" {
		tenant = "~operator" // which no tenant can be called
	}
	return filepath.Join(e.cfg.Dir, "uploads", tenant, hash)
}

// openFiles opens the upload of a hash.
func (e *Engine) openFiles(tenant, hash string) (*os.File, error) {
	f, err := os.Open(e.uploadPath(tenant, hash))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &firebreak.Error{Kind: firebreak.KindState, Err: errors.New("its files were not uploaded, or too long ago"),
			Mend: "upload them again"}
	}
	return f, err
}

type kept struct {
	path string
	size int64
	used time.Time
}

// uploads lists what was uploaded, and what was not to its end.
func (e *Engine) uploads() (whole, parts []kept, err error) {
	err = filepath.WalkDir(filepath.Join(e.cfg.Dir, "uploads"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		k := kept{path, info.Size(), info.ModTime()}
		if strings.HasPrefix(d.Name(), partial) {
			parts = append(parts, k)
		} else {
			whole = append(whole, k)
		}
		return nil
	})
	slices.SortFunc(whole, func(a, b kept) int { return a.used.Compare(b.used) })
	return whole, parts, err
}

// clearUploads removes what is too much, the longest unused first, and what nobody will complete.
func (e *Engine) clearUploads() error {
	whole, parts, err := e.uploads()
	if err != nil {
		return err
	}
	var errs []error
	remove := func(path string) {
		if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) { // another process may do the same
			errs = append(errs, err)
		}
	}
	for _, k := range parts {
		if time.Since(k.used) > young { // it is written to all the time
			remove(k.path)
		}
	}
	sum := int64(0)
	for _, k := range whole {
		sum += k.size
	}
	for _, k := range whole {
		if sum <= e.cfg.Uploads || time.Since(k.used) < young && sum <= 2*e.cfg.Uploads {
			break
		}
		remove(k.path)
		sum -= k.size
	}
	return errors.Join(errs...)
}
