package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"
	"github.com/tetratelabs/wazero/experimental/sysfs"
	"github.com/tetratelabs/wazero/sys"

	experimentalsys "github.com/tetratelabs/wazero/experimental/sys"
)

// Resolution is that of a module's clocks: too coarse to time the machine's caches by.
const Resolution = time.Millisecond

// Config is what one run is given. The zero value gives nothing.
type Config struct {
	Args   []string
	Env    []string // NAME=value
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
	Files  []Mount
	CPU    *CPU             // counts what the run takes; nil: nobody does
	Memory *Memory          // DefaultMemory of its own if nil
	Fuel   int64            // instructions, about, after which the run is ended; the same each time; 0: as many as it likes
	Output int64            // bytes of stdout and stderr together, after which the run is ended; 0: as many as it likes
	Given  map[string]Given // what of Host's functions it may call; none of them if it is not here
	Fixed  *Fixed           // nil: the clocks and the randomness of the world
}

// DefaultMemory is what a run has that is given none, in bytes.
const DefaultMemory = 256 << 20

// Mount is a file system that a module finds at a path.
type Mount struct {
	At    string
	Files experimentalsys.FS
}

// Fixed makes runs repeatable: clocks begin at Start and go on by one Resolution each time they are read, sleeping only
// sets them forward, and random bytes follow from Seed.
type Fixed struct {
	Start time.Time
	Seed  [32]byte
}

// Trap is the error of a module that did what the machine forbids: it divided by zero, left its memory, called too deep.
type Trap struct{ Text string }

func (t *Trap) Error() string { return t.Text }

// The reasons for which a run is ended from outside, besides the errors of its context.
var (
	ErrFuel   = errors.New("it executed more instructions than it may")
	ErrOutput = errors.New("it wrote more than it may")
	ErrMemory = errors.New("its memory is larger than it may have")
)

// Run runs a WASI command to its end and returns its exit status. The error is a *Trap, ErrFuel, ErrOutput, ErrMemory or the
// context's cause; an exit status is none.
func (m *Module) Run(ctx context.Context, c Config) (int, error) {
	if !m.Exports("_start") {
		return 0, invalid("it is no command: it exports no function _start")
	}
	inst, err := m.Instantiate(ctx, c)
	if err != nil {
		return 0, err
	}
	defer inst.Close()
	return inst.Start(ctx)
}

// Instance is a module with a memory of its own. It is used by one goroutine at a time, except for Close.
type Instance struct {
	module api.Module
	memory *linear
	fuel   fuel
	given  map[string]Given
	// objects are what bindings keep with the host; see offerResource.
	objects []uint32
	cpu     *CPU
	wall    func() (seconds int64, nanoseconds int32)
	nano    func() int64
	sleep   func(nanoseconds int64)
	// calls are under way, and closing waits for them.
	mu     sync.Mutex
	calls  sync.WaitGroup
	closed bool
	// ended is canceled with the reason when the instance must not go on.
	ended context.Context
	end   context.CancelCauseFunc
}

// Instantiate makes an instance in which nothing has run yet. Close it.
func (m *Module) Instantiate(ctx context.Context, c Config) (*Instance, error) {
	if c.Memory == nil {
		c.Memory = NewMemory(DefaultMemory)
	}
	if c.CPU == nil {
		c.CPU = &CPU{}
	}
	if int64(m.facts.minPages)<<16 > c.Memory.max-c.Memory.Used() {
		c.Memory.denied.Add(1)
		return nil, ErrMemory
	}
	i := &Instance{memory: &linear{quota: c.Memory}, fuel: fuel{limit: c.Fuel, given: slice}, given: c.Given, cpu: c.CPU}
	i.ended, i.end = context.WithCancelCause(context.Background())
	conf, err := i.configure(c)
	if err != nil {
		return nil, err
	}
	err = protect(func() (err error) {
		i.module, err = m.runtime.InstantiateModule(experimental.WithMemoryAllocator(i.bind(ctx), i.memory), m.compiled, conf)
		return err
	})
	if err == nil {
		i.refuel(i.module)
	} else {
		err = i.reason(ctx, err)
		i.end(nil)
		i.memory.release()
		return nil, err
	}
	return i, nil
}

// configure turns a Config into wazero's.
func (i *Instance) configure(c Config) (wazero.ModuleConfig, error) {
	conf := wazero.NewModuleConfig().WithName("").WithStartFunctions().WithArgs(c.Args...)
	for _, pair := range c.Env {
		name, value, _ := strings.Cut(pair, "=")
		if name == "" || strings.Contains(pair, "\x00") {
			return nil, invalid("%q is no variable of the environment", pair)
		}
		conf = conf.WithEnv(name, value)
	}
	budget := &atomic.Int64{}
	budget.Store(c.Output)
	limit := func(w io.Writer) io.Writer {
		if w == nil {
			w = io.Discard
		}
		return &writer{to: w, budget: budget, limited: c.Output > 0, end: i.end}
	}
	conf = conf.WithStdout(limit(c.Stdout)).WithStderr(limit(c.Stderr))
	if c.Stdin != nil {
		conf = conf.WithStdin(c.CPU.Waits(c.Stdin))
	}
	files := wazero.NewFSConfig()
	for _, mount := range c.Files {
		files = files.(sysfs.FSConfig).WithSysFSMount(mount.Files, mount.At)
	}
	conf = conf.WithFSConfig(files)
	if c.Fixed != nil {
		i.fix(*c.Fixed)
		conf = conf.WithRandSource(rand.NewChaCha8(c.Fixed.Seed))
	} else {
		begin := time.Now()
		i.wall = func() (int64, int32) {
			now := time.Now().Truncate(Resolution)
			return now.Unix(), int32(now.Nanosecond())
		}
		i.nano = func() int64 { return int64(time.Since(begin).Truncate(Resolution)) }
		i.sleep = i.wait
		conf = conf.WithRandSource(random{})
	}
	return conf.WithWalltime(i.wall, sys.ClockResolution(Resolution)).WithNanotime(i.nano, sys.ClockResolution(Resolution)).
		WithNanosleep(i.sleep), nil
}

// fix gives an instance clocks that are the same each time.
func (i *Instance) fix(f Fixed) {
	passed := -int64(Resolution)
	i.nano = func() int64 {
		passed += int64(Resolution)
		return passed
	}
	i.wall = func() (int64, int32) {
		now := f.Start.Add(time.Duration(i.nano()))
		return now.Unix(), int32(now.Nanosecond())
	}
	i.sleep = func(ns int64) { passed += min(max(ns, 0), int64(time.Hour)) }
}

// wait sleeps, and ends early if the instance is ended.
func (i *Instance) wait(ns int64) {
	if ns <= 0 {
		return
	}
	i.cpu.end()
	defer i.cpu.begin()
	timer := time.NewTimer(time.Duration(ns))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-i.ended.Done():
	}
}

// Start runs the instance's _start, once.
func (i *Instance) Start(ctx context.Context) (int, error) {
	_, err := i.Call(ctx, "_start")
	var exit *sys.ExitError
	if errors.As(err, &exit) {
		return int(exit.ExitCode()), nil
	}
	return 0, err
}

// Call calls an exported function. The error is as Run's, or a *sys.ExitError if the module called proc_exit.
func (i *Instance) Call(ctx context.Context, name string, params ...uint64) (results []uint64, err error) {
	f := i.module.ExportedFunction(name)
	if f == nil {
		return nil, invalid("it exports no function %s", name)
	}
	if want := len(f.Definition().ParamTypes()); want != len(params) {
		return nil, invalid("its function %s takes %d parameters, not %d", name, want, len(params))
	}
	err = i.within(ctx, func(run context.Context) error {
		results, err = f.Call(run, params...)
		return err
	})
	return results, err
}

// within runs something in the instance until it is done, ctx ends or the instance is ended.
func (i *Instance) within(ctx context.Context, do func(run context.Context) error) error {
	if !i.begin() {
		return context.Cause(i.ended)
	}
	defer i.calls.Done()
	i.cpu.begin()
	defer i.cpu.end()
	run, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stopEnd := context.AfterFunc(i.ended, func() { cancel(context.Cause(i.ended)) })
	defer stopEnd()
	stopRun := context.AfterFunc(run, func() { i.end(context.Cause(run)) }) // a sleep ends, too
	defer stopRun()
	if err := protect(func() error { return do(i.bind(run)) }); err != nil {
		return i.reason(run, err)
	}
	return nil
}

// reason is the error that says why a run ended.
func (i *Instance) reason(ctx context.Context, err error) error {
	for _, over := range []context.Context{i.ended, ctx} {
		if over.Err() != nil {
			return context.Cause(over)
		}
	}
	var exit *sys.ExitError
	if errors.As(err, &exit) {
		return exit
	}
	text, _, _ := strings.Cut(err.Error(), "\n")
	return &Trap{Text: strings.TrimSuffix(strings.TrimPrefix(text, "wasm error: "), " (recovered by wazero)")}
}

// begin counts a call, unless the instance is closed.
func (i *Instance) begin() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.closed {
		return false
	}
	i.calls.Add(1)
	return true
}

// Close ends whatever runs in the instance, waits for that, and frees it. It is idempotent. A call that waits for a
// stream of the Config is not ended by it: end the stream.
func (i *Instance) Close() {
	i.end(context.Canceled)
	i.mu.Lock()
	first := !i.closed
	i.closed = true
	i.mu.Unlock()
	i.calls.Wait()
	if first {
		_ = i.module.Close(context.Background()) // nothing of it can fail
		i.memory.release()
	}
}

// protect turns a panic of the engine into an error: it must not end all other sandboxes.
func protect(do func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the engine failed: %v", r)
		}
	}()
	return do()
}

// writer counts what is written, and ends the run that writes too much.
type writer struct {
	to      io.Writer
	budget  *atomic.Int64 // of all writers of an instance
	limited bool
	end     context.CancelCauseFunc
}

func (w *writer) Write(p []byte) (int, error) {
	if !w.limited {
		return w.to.Write(p)
	}
	left := w.budget.Add(-int64(len(p)))
	if left >= 0 {
		return w.to.Write(p)
	}
	w.end(ErrOutput)
	if fits := left + int64(len(p)); fits > 0 {
		return w.to.Write(p[:fits])
	}
	return 0, ErrOutput
}
