// Package engine compiles and runs WebAssembly modules within limits: wazero, with the compiled code kept on disk and in
// memory, so that a run only has to make an instance. A module reaches what its Config gives it and nothing else: there
// are no system calls, no files of the host, no sockets and no threads.
package engine

import (
	"bytes"
	"container/list"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver/wasm/meter"
)

const (
	wasi        = "wasi_snapshot_preview1"
	maxLoaded   = 32               // modules whose code is kept in memory although nobody uses them now
	compileTime = 10 * time.Minute // that one module may take
)

// Engine keeps the compiled modules of one state directory. Its methods may be called concurrently.
type Engine struct {
	disk *disk
	// compiling has room for one: two compilers would take the memory of two.
	compiling chan struct{}
	making    sync.WaitGroup  // modules
	alive     context.Context // until Close
	stop      context.CancelFunc

	mu     sync.Mutex
	loaded map[string]*Module // by digest
	idle   *list.List         // of *Module that nobody uses, the longest unused first
	known  map[string]known   // digests by path
	closed bool
}

// known is a file whose digest was taken.
type known struct {
	dev, ino   uint64
	size       int64
	mtim, ctim syscall.Timespec
	digest     string
}

// New makes an engine that keeps what it compiles below dir, which is made when it is needed.
func New(dir string) *Engine {
	e := &Engine{disk: &disk{dir: dir}, compiling: make(chan struct{}, 1), loaded: map[string]*Module{}, idle: list.New(), known: map[string]known{}}
	e.alive, e.stop = context.WithCancel(context.Background())
	return e
}

// Close ends what is compiled and frees all modules. Nothing may run any more.
func (e *Engine) Close(ctx context.Context) error {
	e.mu.Lock()
	e.closed = true
	e.mu.Unlock()
	e.stop()
	e.making.Wait()
	e.mu.Lock()
	defer e.mu.Unlock()
	var errs []error
	for digest, m := range e.loaded {
		delete(e.loaded, digest)
		errs = append(errs, m.free(ctx))
	}
	e.idle.Init()
	return errors.Join(errs...)
}

// Module is a compiled module that is ready to run. Release it.
type Module struct {
	engine   *Engine
	digest   string
	runtime  wazero.Runtime
	compiled wazero.CompiledModule
	facts    facts

	ready chan struct{} // closed when the fields above are set, or err
	err   error

	// Under the engine's lock.
	users int
	place *list.Element // in idle
}

// Open loads the module in a file of the host. The error is of firebreak.KindInvalid if it is none that can run here.
func (e *Engine) Open(ctx context.Context, path string) (*Module, error) {
	digest, data, err := e.digestOf(path)
	if err != nil {
		return nil, err
	}
	return e.load(ctx, digest, func() ([]byte, error) {
		if data != nil {
			return data, nil
		}
		data, err := os.ReadFile(path)
		if sum := sha256.Sum256(data); err == nil && hex.EncodeToString(sum[:]) != digest {
			err = errors.New("the module was changed while it was read")
		}
		return data, err
	})
}

// Load loads a module.
func (e *Engine) Load(ctx context.Context, wasm []byte) (*Module, error) {
	sum := sha256.Sum256(wasm)
	return e.load(ctx, hex.EncodeToString(sum[:]), func() ([]byte, error) { return wasm, nil })
}

// digestOf is the digest of a file, which is taken once as long as the file stays the same. Data is nil if that was earlier.
func (e *Engine) digestOf(path string) (digest string, data []byte, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", nil, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.Mode().IsRegular() {
		return "", nil, &fs.PathError{Op: "open", Path: path, Err: syscall.EINVAL}
	}
	if info.Size() > maxModule {
		return "", nil, invalid("it has %d bytes; %d is the most", info.Size(), int64(maxModule))
	}
	now := known{dev: st.Dev, ino: st.Ino, size: st.Size, mtim: st.Mtim, ctim: st.Ctim}
	e.mu.Lock()
	old, ok := e.known[path]
	e.mu.Unlock()
	if now.digest = old.digest; ok && now == old {
		return old.digest, nil, nil
	}
	if data, err = os.ReadFile(path); err != nil {
		return "", nil, err
	}
	sum := sha256.Sum256(data)
	now.digest = hex.EncodeToString(sum[:])
	e.mu.Lock()
	defer e.mu.Unlock()
	// A file that was changed in this moment may be changed again without any of its times telling.
	if time.Since(time.Unix(st.Ctim.Unix())) > time.Second {
		if len(e.known) >= 10_000 {
			clear(e.known)
		}
		e.known[path] = now
	}
	return now.digest, data, nil
}

// load returns the module of a digest, which read returns; whoever asks first has it compiled, and the others wait.
func (e *Engine) load(ctx context.Context, digest string, read func() ([]byte, error)) (*Module, error) {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return nil, errors.New("the engine is closed")
	}
	m := e.loaded[digest]
	mine := m == nil
	if mine {
		e.making.Add(1)
		m = &Module{engine: e, digest: digest, ready: make(chan struct{})}
		e.loaded[digest] = m
	}
	m.users++
	if m.place != nil {
		e.idle.Remove(m.place)
		m.place = nil
	}
	e.mu.Unlock()
	if mine {
		// Not ended with the first who asked: others wait for it, too.
		go m.make(e.alive, read)
	}
	select {
	case <-m.ready:
	case <-ctx.Done():
		m.Release()
		return nil, ctx.Err()
	}
	if m.err != nil {
		err := m.err
		m.Release()
		return nil, err
	}
	return m, nil
}

// make compiles m, or reads what was compiled before.
func (m *Module) make(ctx context.Context, read func() ([]byte, error)) {
	e := m.engine
	defer e.making.Done()
	defer close(m.ready)
	e.compiling <- struct{}{}
	defer func() { <-e.compiling }()
	ctx, cancel := context.WithTimeout(ctx, compileTime)
	defer cancel()
	if m.err = m.compile(ctx, read); m.err != nil {
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.loaded[m.digest] == m {
			delete(e.loaded, m.digest) // to be tried again
		}
	}
}

func (m *Module) compile(ctx context.Context, read func() ([]byte, error)) (err error) {
	wasm, err := read()
	if err != nil {
		return err
	}
	if m.facts, err = check(wasm); err != nil {
		return err
	}
	stored, err := m.engine.disk.open(m.digest)
	if err != nil {
		return err
	}
	m.runtime = wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfig().
		WithCoreFeatures(api.CoreFeaturesV2).
		WithCompilationCache(stored.cache).
		WithDebugInfoEnabled(false))
	defer func() {
		if err != nil {
			err = errors.Join(err, m.free(context.WithoutCancel(ctx)))
		}
	}()
	if err := offerWASI(ctx, m.runtime); err != nil {
		return fmt.Errorf("make the host's functions: %w", err)
	}
	metered, err := stored.metered(wasm)
	if err != nil {
		return err
	}
	if err := m.translate(ctx, metered); err != nil {
		return err
	}
	return stored.save()
}

// offerWASI gives modules the functions of WASI preview 1: wazero's, but for one.
func offerWASI(ctx context.Context, r wazero.Runtime) error {
	b := r.NewHostModuleBuilder(wasi)
	wasi_snapshot_preview1.NewFunctionExporter().ExportFunctions(b)
	i32 := api.ValueTypeI32
	b.NewFunctionBuilder().WithGoModuleFunction(api.GoModuleFunc(poll), []api.ValueType{i32, i32, i32, i32}, []api.ValueType{i32}).
		Export("poll_oneoff")
	_, err := b.Instantiate(ctx)
	return err
}

// translate compiles the module itself.
func (m *Module) translate(ctx context.Context, wasm []byte) (err error) {
	defer func() {
		if r := recover(); r != nil { // what hostile bytes may find in the compiler must not end this process
			err = invalid("it cannot be compiled: %v", r)
		}
	}()
	ctx = experimental.WithCompilationWorkers(ctx, min(4, runtime.GOMAXPROCS(0)))
	m.compiled, err = m.runtime.CompileModule(ctx, wasm)
	switch {
	case err == nil:
		return m.link(ctx)
	case errors.Is(err, context.DeadlineExceeded):
		return invalid("compiling it takes longer than %v", compileTime)
	}
	return invalid("%w", err)
}

// link offers what the module imports. WASI is there; what nobody offers is a trap when it is called, because programs
// like Ruby import what they only call in a browser.
func (m *Module) link(ctx context.Context) error {
	offered := m.runtime.Module(wasi).ExportedFunctionDefinitions()
	strangers := map[string]wazero.HostModuleBuilder{}
	for _, f := range m.compiled.ImportedFunctions() {
		module, name, _ := f.Import()
		if module == wasi {
			if _, ok := offered[name]; !ok {
				return invalid("it imports %s of WASI preview 1, which has no such function", name)
			}
			continue
		}
		if module == meter.Module || module == Host {
			continue
		}
		if strangers[module] == nil {
			strangers[module] = m.runtime.NewHostModuleBuilder(module)
		}
		if module == resources && offerResource(strangers[module], f) {
			continue
		}
		trap := api.GoFunc(func(context.Context, []uint64) {
			panic(fmt.Errorf("it called %s of %s, which it is not given", name, module))
		})
		strangers[module].NewFunctionBuilder().WithGoFunction(trap, f.ParamTypes(), f.ResultTypes()).Export(name)
	}
	if err := errors.Join(offerTick(ctx, m.runtime), offerHost(ctx, m.runtime)); err != nil {
		return err
	}
	for _, b := range strangers {
		if _, err := b.Instantiate(ctx); err != nil {
			return invalid("what it imports cannot be offered: %w", err)
		}
	}
	return nil
}

// Digest is the SHA-256 of the module, in hexadecimal.
func (m *Module) Digest() string { return m.digest }

// Exports reports whether the module exports a function of this name.
func (m *Module) Exports(name string) bool {
	_, ok := m.compiled.ExportedFunctions()[name]
	return ok
}

// Release says that the module is not used any more. Nothing may run in it.
func (m *Module) Release() {
	e := m.engine
	e.mu.Lock()
	defer e.mu.Unlock()
	if m.users--; m.users > 0 || e.loaded[m.digest] != m {
		return
	}
	select {
	case <-m.ready:
	default:
		return // still being made: it is kept, and found by the next who asks
	}
	m.place = e.idle.PushBack(m)
	for e.idle.Len() > maxLoaded {
		oldest := e.idle.Remove(e.idle.Front()).(*Module)
		oldest.place = nil
		delete(e.loaded, oldest.digest)
		_ = oldest.free(context.Background()) // only memory is freed
	}
}

func (m *Module) free(ctx context.Context) error {
	if m.runtime == nil {
		return nil
	}
	return m.runtime.Close(ctx)
}

func invalid(format string, args ...any) error {
	return &firebreak.Error{Kind: firebreak.KindInvalid, Op: "load WebAssembly module", Err: fmt.Errorf(format, args...)}
}

// Version is that of the engine.
func Version() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			if m.Path == "github.com/tetratelabs/wazero" {
				return m.Version
			}
		}
	}
	return "of an unknown version"
}

// IsModule reports whether a file begins as a WebAssembly module does.
func IsModule(head []byte) bool { return bytes.HasPrefix(head, []byte("\x00asm\x01\x00\x00\x00")) }

func (d *disk) path(elem ...string) string { return filepath.Join(append([]string{d.dir}, elem...)...) }
