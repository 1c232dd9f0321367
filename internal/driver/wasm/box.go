package wasm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/agent"
	"github.com/firebreak-dev/firebreak/internal/agent/account"
	"github.com/firebreak-dev/firebreak/internal/agent/files"
	"github.com/firebreak-dev/firebreak/internal/agent/program"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/embedded"
	"github.com/firebreak-dev/firebreak/internal/driver/wasm/engine"
	"github.com/firebreak-dev/firebreak/internal/memfs"
)

// The one account of a sandbox.
const (
	user = "user"
	home = "/home/user"
	uid  = 1000
)

// idle is about what a sandbox takes in which nothing runs: the agent and the file system. In bytes.
const idle = 10 << 10

// box is one sandbox: its world, and the agent that serves it.
type box struct {
	*embedded.Sandbox
	*world
	roots []*os.Root // of what is mounted, and of the template
}

var _ driver.Local = (*box)(nil)

// newBox makes a sandbox; the module is its to release.
func newBox(spec driver.Spec, opts options, m *engine.Module, h *host) (_ *box, err error) {
	b := &box{}
	defer func() {
		if err != nil {
			b.closeRoots()
		}
	}()
	tree, err := b.tree(spec)
	if err != nil {
		return nil, err
	}
	b.world = &world{
		module: m, language: spec.Root.Language, command: spec.Root.Command, mounts: tree.mounts, options: opts,
		disk: cmp.Or(spec.Limits.Disk, defaultDisk),
		files: memfs.New(memfs.Options{Lower: tree.lower, UID: uid, GID: uid, Limits: memfs.Limits{
			Bytes: cmp.Or(spec.Limits.Disk, defaultDisk), Files: 100_000, Open: 10_000}}),
		memory: engine.NewMemory(cmp.Or(spec.Limits.Memory, defaultMemory)),
		slots:  make(chan struct{}, cmp.Or(spec.Limits.PIDs, defaultPrograms)),
	}
	for _, dir := range []string{home, "/tmp"} {
		if err := b.files.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	b.embed(spec.ID, h.protocol(), h.cfg.Log.With("sandbox", spec.ID))
	return b, nil
}

// tree is what of the host's files a sandbox sees, all of it read-only.
type tree struct {
	lower  fs.FS
	mounts []engine.Mount
}

// tree opens the template's library and what is mounted. Links cannot lead out of an os.Root.
func (b *box) tree(spec driver.Spec) (t tree, err error) {
	open := func(dir string) (fs.FS, error) {
		root, err := os.OpenRoot(dir)
		if err != nil {
			return nil, err
		}
		b.roots = append(b.roots, root)
		return root.FS(), nil
	}
	if _, err := os.Stat(filepath.Join(spec.Root.Path, "lib")); err == nil {
		if t.lower, err = open(spec.Root.Path); err != nil {
			return t, err
		}
		t.lower = library{t.lower}
	}
	for _, m := range spec.Mounts {
		files, err := open(m.Source)
		if err != nil {
			return t, &firebreak.Error{Kind: firebreak.KindInvalid, Op: "mount " + m.Source, Err: err, Mend: "only directories can be mounted into a WASM sandbox"}
		}
		t.mounts = append(t.mounts, engine.Mount{At: path.Clean(m.Target), Files: engine.ReadOnly(files)})
	}
	return t, nil
}

// library is a template without its module: what lies in lib.
type library struct{ fs.FS }

func (l library) Open(name string) (fs.File, error) {
	if name == "." {
		return nil, &fs.PathError{Op: "open", Path: name, Err: errors.ErrUnsupported} // listed by ReadDir
	}
	return l.FS.Open(name)
}

func (l library) ReadDir(name string) ([]fs.DirEntry, error) {
	entries, err := fs.ReadDir(l.FS, name)
	if name == "." {
		entries = slices.DeleteFunc(entries, func(e fs.DirEntry) bool { return e.Name() != "lib" })
	}
	return entries, err
}

func (l library) ReadLink(name string) (string, error) { return fs.ReadLink(l.FS, name) }

func (l library) Lstat(name string) (fs.FileInfo, error) { return fs.Lstat(l.FS, name) }

func (b *box) closeRoots() {
	for _, root := range b.roots {
		_ = root.Close() // only read from
	}
}

// embed makes the agent.
func (b *box) embed(id driver.ID, protocol *agent.Protocol, log *slog.Logger) {
	session := agent.NewSession(account.User{Name: user, UID: uid, GID: uid, Home: home})
	system := files.Memory{FS: b.files}
	programs := program.New(program.Config{Session: session, Place: placeName, Find: b.find, Stat: system.Stat, Max: cap(b.slots), Log: log})
	b.Sandbox = embedded.New(id, agent.Parts{
		Session: session, Files: system, Programs: programs, Code: &interpreters{world: b.world}, Place: placeName, Protocol: protocol, Log: log,
		Usage: func() agent.Usage {
			return agent.Usage{CPUs: 1, CPU: b.cpu.Time(), Memory: uint64(b.memory.Used() + b.files.Usage().Bytes), MemoryLimit: uint64(b.memory.Max()),
				Disk: uint64(b.files.Usage().Bytes), DiskLimit: uint64(b.disk)}
		},
	}, func() {
		b.module.Release()
		b.closeRoots()
	})
}

// Usage implements driver.Sandbox: PIDs are the programs that run, and the agent. What the Go runtime spends on a sandbox cannot be told from what it spends on others.
func (b *box) Usage(ctx context.Context) (driver.Usage, error) {
	if b.Ended() {
		return driver.Usage{}, fmt.Errorf("usage of sandbox %s: %w", b.ID(), fs.ErrNotExist)
	}
	held := b.files.Usage().Bytes + idle
	return driver.Usage{CPU: b.cpu.Time(), Memory: b.memory.Used() + held, MemoryPeak: b.memory.Peak() + held,
		PIDs: int64(len(b.slots)) + 1, OOMKills: b.memory.Denied()}, ctx.Err()
}
