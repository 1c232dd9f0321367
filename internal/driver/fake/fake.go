// Package fake is the driver contract in memory: sandboxes are endpoints inside the calling process that answer health
// and init and run no programs. It shows what the contract means, and lets others test against it without a host.
package fake

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
)

var _ driver.Driver = (*Driver)(nil)

// marker is the one file that a fake sandbox keeps in its Dir.
const marker = "fake"

// caps: what another process sees of these sandboxes is played by Again.
const caps = driver.CapPause | driver.CapDetach

// Driver makes sandboxes in memory.
type Driver struct {
	host *host
	mute bool
}

// host is what outlives a Driver: its sandboxes, half-made ones too.
type host struct {
	mu    sync.Mutex
	boxes map[driver.ID]*box // guarded by mu; nil values are being made
}

// New returns a driver on a host of its own, which holds nothing yet.
func New() *Driver { return &Driver{host: &host{boxes: map[driver.ID]*box{}}} }

// Again returns another driver on the same host, as a second process would see it.
func (d *Driver) Again() *Driver { return &Driver{host: d.host, mute: d.mute} }

// Mute returns another driver on the same host, whose agents never listen.
func (d *Driver) Mute() *Driver { return &Driver{host: d.host, mute: true} }

// Probe implements driver.Driver.
func (d *Driver) Probe(ctx context.Context) (driver.Info, error) {
	return driver.Info{
		Name:     "fake",
		Boundary: firebreak.BoundaryLanguage,
		Forms:    []driver.Form{driver.FormDirectory, driver.FormDisk},
		Caps:     caps,
		Warnings: []driver.Problem{{Text: "it is a fake for tests: no program can run in it"}},
	}, ctx.Err()
}

// Create implements driver.Driver.
func (d *Driver) Create(ctx context.Context, spec driver.Spec) (driver.Sandbox, error) {
	if err := d.check(ctx, spec); err != nil {
		return nil, err
	}
	if err := d.reserve(spec.ID); err != nil {
		return nil, err
	}
	b, err := d.make(ctx, spec)
	d.host.mu.Lock()
	defer d.host.mu.Unlock()
	if err != nil {
		delete(d.host.boxes, spec.ID)
		return nil, err
	}
	d.host.boxes[spec.ID] = b
	return b, nil
}

func (d *Driver) check(ctx context.Context, spec driver.Spec) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := spec.ID.Check(); err != nil {
		return err
	}
	for key := range spec.Options {
		return &firebreak.Error{Kind: firebreak.KindInvalid, Op: "read options", Err: fmt.Errorf("the fake driver has no option %q", key)}
	}
	if missing := driver.Missing(caps, spec.Needs()); missing != 0 {
		return fmt.Errorf("the fake driver has no %v: %w", missing.Names(), errors.ErrUnsupported)
	}
	return nil
}

// reserve makes id half-made, so that List shows it and nobody else can take it.
func (d *Driver) reserve(id driver.ID) error {
	d.host.mu.Lock()
	defer d.host.mu.Unlock()
	if _, ok := d.host.boxes[id]; ok {
		return fmt.Errorf("sandbox %s: %w", id, fs.ErrExist)
	}
	d.host.boxes[id] = nil
	return nil
}

func (d *Driver) make(ctx context.Context, spec driver.Spec) (*box, error) {
	path := filepath.Join(spec.Dir, marker)
	if err := os.WriteFile(path, []byte(spec.ID), 0o600); err != nil {
		return nil, fmt.Errorf("mark directory: %w", err)
	}
	if d.mute {
		<-ctx.Done()
		return nil, errors.Join(ctx.Err(), os.Remove(path))
	}
	return newBox(spec.ID), nil
}

// Open implements driver.Driver.
func (d *Driver) Open(ctx context.Context, spec driver.Spec) (driver.Sandbox, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	d.host.mu.Lock()
	defer d.host.mu.Unlock()
	if b := d.host.boxes[spec.ID]; b != nil && !b.ended() {
		return b, nil
	}
	return nil, fmt.Errorf("sandbox %s: %w", spec.ID, fs.ErrNotExist)
}

// List implements driver.Driver.
func (d *Driver) List(ctx context.Context) ([]driver.ID, error) {
	d.host.mu.Lock()
	defer d.host.mu.Unlock()
	var ids []driver.ID
	for id := range d.host.boxes {
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
	d.host.mu.Lock()
	b := d.host.boxes[spec.ID]
	d.host.mu.Unlock()
	if b == nil {
		return nil
	}
	b.end(driver.Exit{Reason: firebreak.EndDestroyed, Code: -1, Detail: "destroyed"})
	if err := os.Remove(filepath.Join(spec.Dir, marker)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("clear directory: %w", err)
	}
	d.host.mu.Lock()
	defer d.host.mu.Unlock()
	if d.host.boxes[spec.ID] == b {
		delete(d.host.boxes, spec.ID)
	}
	return nil
}

// End makes a sandbox end by itself, as its agent would. fs.ErrNotExist if there is no such sandbox.
func (d *Driver) End(id driver.ID, exit driver.Exit) error {
	d.host.mu.Lock()
	b := d.host.boxes[id]
	d.host.mu.Unlock()
	if b == nil {
		return fmt.Errorf("sandbox %s: %w", id, fs.ErrNotExist)
	}
	b.end(exit)
	return nil
}
