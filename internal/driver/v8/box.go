package v8

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"os"

	"github.com/firebreak-dev/firebreak/internal/agent"
	"github.com/firebreak-dev/firebreak/internal/agent/account"
	"github.com/firebreak-dev/firebreak/internal/agent/files"
	"github.com/firebreak-dev/firebreak/internal/agent/program"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/embedded"
	"github.com/firebreak-dev/firebreak/internal/memfs"
)

// The one account of a sandbox.
const (
	user = "user"
	home = "/home/user"
	uid  = 1000
)

// box is one sandbox: its files, and the agent that serves it. Its code runs in the group's process.
type box struct {
	*embedded.Sandbox
	group    *group
	root     *os.Root // the template; nil: none
	files    *memfs.FS
	disk     int64
	programs *program.Launcher
}

var _ driver.Local = (*box)(nil)

// newBox makes a sandbox in a group, which it leaves at its end.
func (d *Driver) newBox(spec driver.Spec, g *group) (_ *box, err error) {
	b := &box{group: g, disk: cmp.Or(spec.Limits.Disk, defaultDisk)}
	var lower fs.FS
	if spec.Root.Form == driver.FormScript {
		if b.root, err = os.OpenRoot(spec.Root.Path); err != nil {
			return nil, fmt.Errorf("open the template: %w", err)
		}
		lower = under{b.root.FS(), home[1:]}
	}
	b.files = memfs.New(memfs.Options{Lower: lower, UID: uid, GID: uid, Limits: memfs.Limits{Bytes: b.disk, Files: 100_000, Open: 10_000}})
	for _, dir := range []string{home, "/tmp"} {
		if err := b.files.MkdirAll(dir, 0o755); err != nil {
			b.closeRoot()
			return nil, err
		}
	}
	b.embed(d, spec)
	return b, nil
}

func (b *box) closeRoot() {
	if b.root != nil {
		_ = b.root.Close() // only read from
	}
}

// embed makes the agent.
func (b *box) embed(d *Driver, spec driver.Spec) {
	log := d.log.With("sandbox", spec.ID)
	session := agent.NewSession(account.User{Name: user, UID: uid, GID: uid, Home: home})
	system := files.Memory{FS: b.files}
	b.programs = program.New(program.Config{Session: session, Place: placeName, Find: b.find, Stat: system.Stat,
		Max: int(cmp.Or(spec.Limits.PIDs, defaultPrograms)), Log: log})
	code := &interpreters{group: b.group, files: b.files, typeScript: d.cfg.TypeScript}
	b.Sandbox = embedded.New(spec.ID, agent.Parts{
		Session: session, Files: system, Programs: b.programs, Code: code, Place: placeName, Protocol: d.protocol(), Log: log,
		Usage: func() agent.Usage {
			held := uint64(b.files.Usage().Bytes)
			return agent.Usage{CPUs: 1, Memory: held, MemoryLimit: heap << 20, Disk: held, DiskLimit: uint64(b.disk)}
		},
	}, func() {
		b.closeRoot()
		b.group.leave()
	})
	code.ctx, _ = b.Agent()
}

// Usage implements driver.Sandbox: PIDs are the programs that run, and the agent; Memory is what of its files lies there. What
// its isolates take cannot be told from what others take in the same process.
func (b *box) Usage(ctx context.Context) (driver.Usage, error) {
	if b.Ended() {
		return driver.Usage{}, fmt.Errorf("usage of sandbox %s: %w", b.ID(), fs.ErrNotExist)
	}
	return driver.Usage{Memory: b.files.Usage().Bytes, PIDs: int64(b.programs.Live()) + 1}, ctx.Err()
}
