// Package build makes templates of what clients describe in steps: files to copy, commands to run, variables. The steps
// run inside a sandbox, never on the host; what that sandbox's root file system has become is the template. What builds
// have in common is kept in layers.
//
// Everything in a build is hostile: the steps are a client's, the files an upload's, the image a registry's, and the result
// comes from a sandbox. Each is bounded, and nothing of one tenant is seen by another.
package build

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/image"
	"github.com/firebreak-dev/firebreak/internal/manager"
	"github.com/firebreak-dev/firebreak/internal/store"
)

// Sandboxes is where builds run, on behalf of the caller in the context.
type Sandboxes interface {
	Create(ctx context.Context, req manager.Request) (store.Record, manager.Timings, error)
	Delete(ctx context.Context, ref string) (store.Record, error)
	Guest(ctx context.Context, ref string) (*guest.Guest, error)
	Digests(ctx context.Context) (map[string]bool, error)
}

// Images keeps what is built.
type Images interface {
	Get(name string) (image.Template, error)
	Make(ctx context.Context, src image.Source, opts image.MakeOptions) (image.Template, error)
	Link(ctx context.Context, from, to string, edit func(*image.Template)) (image.Template, error)
	Delete(name string) error
	Collect(ctx context.Context, inUse func(digest string) bool) (freed int64, removed int, err error)
}

// Config is what an engine is made of. The first block is needed.
type Config struct {
	Dir       string // its own: uploads and logs
	Sandboxes Sandboxes
	Images    Images
	Store     *store.Store
	Log       *slog.Logger

	Parallel    int           // builds at once; 0: 2
	PerTenant   int           // of one tenant at once; 0: 2
	Queue       int           // of one tenant that wait; 0: 20
	Templates   int           // of one tenant; 0: 200
	Timeout     time.Duration // of a build; 0: an hour
	Disk        int64         // bytes that a build may write; 0: 8 GiB
	ImageBytes  int64         // of what is built, and of what it begins with; 0: 10 GiB
	UploadBytes int64         // of one upload, compressed or not; 0: 2 GiB
	Uploads     int64         // bytes of all uploads that are kept, and of all that are under way; 0: 10 GiB
	Cache       int64         // bytes of all layers that are kept; 0: 20 GiB
	Registries  []string      // host or host:port, that tenants may name although they are not on the public Internet
}

func (c Config) withDefaults() Config {
	number := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	size := func(v *int64, d int64) {
		if *v == 0 {
			*v = d
		}
	}
	number(&c.Parallel, 2)
	number(&c.PerTenant, 2)
	number(&c.Queue, 20)
	number(&c.Templates, 200)
	if c.Timeout == 0 {
		c.Timeout = time.Hour
	}
	size(&c.Disk, 8<<30)
	size(&c.ImageBytes, 10<<30)
	size(&c.UploadBytes, 2<<30)
	size(&c.Uploads, 10<<30)
	size(&c.Cache, 20<<30)
	return c
}

// Engine builds templates. It may be used concurrently; several processes may have one on the same directory.
type Engine struct {
	cfg    Config
	log    *slog.Logger
	ctx    context.Context // done when Close begins
	cancel context.CancelCauseFunc
	work   sync.WaitGroup
	tokens tokens
	tidy   sync.Mutex   // held while layers and uploads are thrown away
	coming atomic.Int64 // bytes of uploads under way
	places sync.Mutex   // held from the look for a place in the queue until it is taken

	worth        time.Duration // see worthKeeping
	readyPause   time.Duration
	readyTimeout time.Duration // what every sandbox of the template has, too

	mu     sync.Mutex
	closed bool            // guarded by mu
	jobs   map[string]*job // guarded by mu: the builds of this process that are queued or run, by ID
	queue  []*job          // guarded by mu: those that wait, the first first
	pinned map[string]int  // guarded by mu: images that builds are using
}

// New opens an engine and sees to what earlier processes left: their builds have failed.
func New(cfg Config) (*Engine, error) {
	cfg = cfg.withDefaults()
	for _, dir := range []string{"logs", "uploads"} {
		if err := os.MkdirAll(filepath.Join(cfg.Dir, dir), 0o700); err != nil {
			return nil, fmt.Errorf("prepare for builds: %w", err)
		}
	}
	e := &Engine{cfg: cfg, log: cfg.Log, tokens: tokens{all: map[string]token{}}, jobs: map[string]*job{}, pinned: map[string]int{},
		worth: worthKeeping, readyPause: readyPause, readyTimeout: manager.ReadyTimeout}
	e.ctx, e.cancel = context.WithCancelCause(context.Background())
	if err := e.recover(e.ctx); err != nil {
		e.cancel(nil)
		return nil, fmt.Errorf("see to earlier builds: %w", err)
	}
	return e, nil
}

// Close ends all builds of this process and returns when nothing of them is left.
func (e *Engine) Close() error {
	e.mu.Lock()
	e.closed = true
	waiting := e.queue
	e.queue = nil
	e.mu.Unlock()
	e.cancel(saidError{stoppedText})
	for _, j := range waiting {
		e.finish(j, saidError{stoppedText})
	}
	e.work.Wait()
	return nil
}

// begin does work beside its caller, unless Close has begun.
func (e *Engine) begin(work func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.closed {
		e.work.Go(work)
	}
}

// recover sees to the builds and uploads of processes that died.
func (e *Engine) recover(ctx context.Context) error {
	unfinished, err := e.cfg.Store.UnfinishedBuilds(ctx)
	if err != nil {
		return err
	}
	for _, b := range unfinished {
		if err := e.recoverBuild(ctx, b); err != nil {
			e.log.Warn("see to an earlier build", "build", b.ID, "err", err)
		}
	}
	return e.clearUploads()
}

// maxRequested is how long a build may stay without being started.
const maxRequested = 24 * time.Hour

func (e *Engine) recoverBuild(ctx context.Context, b store.Build) error {
	if b.State == store.BuildRequested {
		if time.Since(b.Created) < maxRequested {
			return nil
		}
		return e.fail(ctx, b.ID, "", "nobody started it within a day")
	}
	l, ok, err := openLog(e.cfg.Dir, b.ID)
	if err != nil || !ok {
		return err
	}
	const why = "the server was restarted while this was being built; build it again"
	l.add(LevelError, why)
	err = e.fail(ctx, b.ID, "", why)
	layers, listErr := e.cfg.Store.Layers(ctx)
	for _, layer := range layers {
		if layer.Build == b.ID && !layer.Ready {
			e.dropLayer(ctx, layer)
		}
	}
	return errors.Join(err, listErr, l.close())
}

// fail records that a build has failed.
func (e *Engine) fail(ctx context.Context, id, step, reason string) error {
	_, err := e.cfg.Store.UpdateBuild(ctx, id, func(b *store.Build) error {
		b.State, b.Finished, b.Step, b.Reason = store.BuildFailed, time.Now().UTC(), step, reason
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil // its template was deleted
	}
	return err
}

// newID returns an ID of a template: lower-case letters and digits, nobody else's.
func newID() string {
	const alphabet = "abcdefghijklmnopqrstuvwxyz234567" // of 32, so that no letter is likelier
	id := make([]byte, 20)
	rand.Read(id) // never fails
	for i, b := range id {
		id[i] = alphabet[b%32]
	}
	return string(id)
}

// newBuildID returns a random UUID, which clients take a build's ID to be.
func newBuildID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// operator returns a context for what is done for nobody in particular.
func operator(ctx context.Context) context.Context {
	return auth.WithCaller(ctx, auth.Caller{Operator: true})
}

func notFound(what, name string) error {
	return &firebreak.Error{Kind: firebreak.KindNotFound, Err: fmt.Errorf("there is no %s %.100q: %w", what, name, fs.ErrNotExist)}
}
