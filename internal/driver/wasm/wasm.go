// Package wasm is the driver that runs WebAssembly: each sandbox is a module of its template in this very process, with a
// file system in memory and the agent's protocol served by Go functions. There are no system calls, no processes, no
// sockets and no threads in it, and it ends with the process that made it.
package wasm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/agent"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/wasm/engine"
)

const (
	name      = "wasm"
	placeName = "a WASM sandbox" // in messages
)

// caps: what is limited is counted here, by no kernel. CPUs are not: a module has one thread, and shares those of this
// process with all others.
const caps = driver.CapLimitMemory | driver.CapLimitDisk | driver.CapLimitPIDs | driver.CapMounts | driver.CapPrivateRoot | driver.CapPrivatePIDs | driver.CapPrivateNet

// What a sandbox has that nobody limits.
const (
	defaultMemory   = 512 << 20 // bytes, of all its programs
	defaultDisk     = 256 << 20 // bytes, in memory, too
	defaultPrograms = 64        // at one time
)

// Config is what a Driver needs.
type Config struct {
	StateDir string // absolute; compiled modules are kept in it
	Log      *slog.Logger
}

// Driver makes sandboxes in this process. Others see nothing of them.
type Driver struct {
	*host
	mute bool
}

// host is what the drivers of one process share.
type host struct {
	cfg    Config
	engine *engine.Engine

	protocol func() *agent.Protocol // of all its sandboxes

	mu    sync.Mutex
	boxes map[driver.ID]*box // guarded by mu; nil values are being made
}

var _ driver.Fleeting = (*Driver)(nil)

// New returns a driver, which holds nothing yet. Close frees what it compiled.
func New(cfg Config) *Driver {
	return &Driver{host: &host{cfg: cfg, engine: engine.New(filepath.Join(cfg.StateDir, ".compiled")), boxes: map[driver.ID]*box{},
		protocol: sync.OnceValue(agent.NewProtocol)}}
}

// Mute returns another driver of the same sandboxes, for tests: the agents of those that it makes never listen.
func (d *Driver) Mute() *Driver { return &Driver{host: d.host, mute: true} }

// Fleeting implements driver.Fleeting.
func (d *Driver) Fleeting() {}

// Close frees what was compiled. All sandboxes must be destroyed.
func (d *Driver) Close(ctx context.Context) error { return d.engine.Close(ctx) }

// probeModule returns 42 from its function f.
const probeModule = "\x00asm\x01\x00\x00\x00\x01\x05\x01\x60\x00\x01\x7f\x03\x02\x01\x00\x07\x05\x01\x01f\x00\x00\x0a\x06\x01\x04\x00\x41\x2a\x0b"

// Probe implements driver.Driver: it compiles a module and calls it.
func (d *Driver) Probe(ctx context.Context) (driver.Info, error) {
	info := driver.Info{Name: name, Version: "wazero " + engine.Version(), Boundary: firebreak.BoundaryLanguage,
		Forms: []driver.Form{driver.FormModule}, Caps: caps,
		Usual: firebreak.Limits{Memory: defaultMemory, Disk: defaultDisk, PIDs: defaultPrograms}}
	err := d.try(ctx)
	if ctx.Err() != nil {
		return info, ctx.Err()
	}
	if err != nil {
		info.Problems = append(info.Problems, driver.Problem{Text: err.Error(), Mend: "WebAssembly is compiled on amd64 and arm64, and the state directory must be writable"})
	}
	return info, nil
}

func (d *Driver) try(ctx context.Context) error {
	m, err := d.engine.Load(ctx, []byte(probeModule))
	if err != nil {
		return err
	}
	defer m.Release()
	inst, err := m.Instantiate(ctx, engine.Config{})
	if err != nil {
		return err
	}
	defer inst.Close()
	got, err := inst.Call(ctx, "f")
	if err == nil && got[0] != 42 {
		err = fmt.Errorf("a module that returns 42 returned %d", got[0])
	}
	return err
}

// Create implements driver.Driver.
func (d *Driver) Create(ctx context.Context, spec driver.Spec) (driver.Sandbox, error) {
	opts, err := check(ctx, spec)
	if err != nil {
		return nil, err
	}
	if err := d.reserve(spec.ID); err != nil {
		return nil, err
	}
	b, err := d.make(ctx, spec, opts)
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		delete(d.boxes, spec.ID)
		return nil, err
	}
	d.boxes[spec.ID] = b
	return b, nil
}

// check refuses what this driver cannot do.
func check(ctx context.Context, spec driver.Spec) (options, error) {
	if err := ctx.Err(); err != nil {
		return options{}, err
	}
	if err := spec.ID.Check(); err != nil {
		return options{}, err
	}
	if missing := driver.Missing(caps, spec.Needs()); missing != 0 {
		return options{}, fmt.Errorf("the wasm driver has no %v: %w", missing.Names(), errors.ErrUnsupported)
	}
	if spec.Root.Form != driver.FormModule && spec.Root.Form != driver.FormInvalid {
		return options{}, &firebreak.Error{Kind: firebreak.KindUnsupported, Op: "create WASM sandbox",
			Err:  fmt.Errorf("the template is a %v, and a WASM sandbox starts from a module: %w", spec.Root.Form, errors.ErrUnsupported),
			Mend: "use a template of a WebAssembly module, such as wasm-python (firebreak setup wasm)"}
	}
	for _, m := range spec.Mounts {
		if !m.ReadOnly {
			return options{}, &firebreak.Error{Kind: firebreak.KindUnsupported, Op: "create WASM sandbox",
				Err: fmt.Errorf("%s is to be writable, and a WASM sandbox only reads files of the host: %w", m.Source, errors.ErrUnsupported), Mend: "mount it read-only"}
		}
	}
	return parseOptions(spec.Options)
}

// reserve makes id half-made, so that List shows it and nobody else can take it.
func (d *Driver) reserve(id driver.ID) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.boxes[id]; ok {
		return fmt.Errorf("sandbox %s: %w", id, fs.ErrExist)
	}
	d.boxes[id] = nil
	return nil
}

// Open implements driver.Driver.
func (d *Driver) Open(ctx context.Context, spec driver.Spec) (driver.Sandbox, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if b := d.boxes[spec.ID]; b != nil && !b.Ended() {
		return b, nil
	}
	return nil, fmt.Errorf("sandbox %s: %w", spec.ID, fs.ErrNotExist)
}

// List implements driver.Driver.
func (d *Driver) List(ctx context.Context) ([]driver.ID, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var ids []driver.ID
	for id := range d.boxes {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids, ctx.Err()
}

// Destroy implements driver.Driver. A sandbox that is still being made belongs to its Create.
func (d *Driver) Destroy(ctx context.Context, spec driver.Spec) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	d.mu.Lock()
	b := d.boxes[spec.ID]
	d.mu.Unlock()
	if b == nil {
		return nil
	}
	b.End(driver.Exit{Reason: firebreak.EndDestroyed, Code: -1, Detail: "destroyed"})
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.boxes[spec.ID] == b {
		delete(d.boxes, spec.ID)
	}
	return nil
}

// make makes a sandbox: its module is compiled, and its agent listens.
func (d *Driver) make(ctx context.Context, spec driver.Spec, opts options) (*box, error) {
	path := filepath.Join(spec.Root.Path, "module.wasm")
	m, err := d.engine.Open(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", path, err)
	}
	b, err := newBox(spec, opts, m, d.host)
	if err != nil {
		m.Release()
		return nil, err
	}
	if d.mute {
		<-ctx.Done()
		b.End(driver.Exit{Reason: firebreak.EndDestroyed, Code: -1})
		return nil, ctx.Err()
	}
	return b, nil
}
