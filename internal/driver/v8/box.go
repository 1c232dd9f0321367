package v8

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"sync"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/agent"
	"github.com/firebreak-dev/firebreak/internal/agent/account"
	"github.com/firebreak-dev/firebreak/internal/agent/files"
	"github.com/firebreak-dev/firebreak/internal/agent/program"
	"github.com/firebreak-dev/firebreak/internal/driver"
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
	id       driver.ID
	group    *group
	root     *os.Root // the template; nil: none
	files    *memfs.FS
	disk     int64
	agent    *agent.Agent
	programs *program.Launcher
	listener *agent.Listener
	stop     context.CancelFunc
	dead     chan struct{} // closed when it has ended

	mu     sync.Mutex
	once   bool          // guarded by mu: the end has begun
	exit   driver.Exit   // guarded by mu until dead is closed
	served chan struct{} // guarded by mu: closed when the agent serves no streams any more; nil: it never did
}

var _ driver.Local = (*box)(nil)

// newBox makes a sandbox in a group, which it leaves at its end.
func (d *Driver) newBox(spec driver.Spec, g *group) (_ *box, err error) {
	b := &box{id: spec.ID, group: g, listener: agent.NewListener(), dead: make(chan struct{}),
		disk: cmp.Or(spec.Limits.Disk, defaultDisk)}
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
	ctx, stop := context.WithCancel(context.Background())
	b.stop = stop
	log := d.log.With("sandbox", spec.ID)
	session := agent.NewSession(account.User{Name: user, UID: uid, GID: uid, Home: home})
	system := files.Memory{FS: b.files}
	b.programs = program.New(program.Config{Session: session, Place: placeName, Find: b.find, Stat: system.Stat,
		Max: int(cmp.Or(spec.Limits.PIDs, defaultPrograms)), Log: log})
	b.agent = agent.Embed(agent.Parts{
		Session: session, Files: system, Programs: b.programs, Code: &interpreters{group: b.group, typeScript: d.cfg.TypeScript, ctx: ctx}, Place: placeName, Protocol: d.protocol(), Log: log,
		Due: func() { b.end(driver.Exit{Reason: firebreak.EndDeadline, Code: 124, Detail: "its time was up"}) },
		Usage: func() agent.Usage {
			held := uint64(b.files.Usage().Bytes)
			return agent.Usage{CPUs: 1, Memory: held, MemoryLimit: heap << 20, Disk: held, DiskLimit: uint64(b.disk)}
		},
	})
}

// Agent implements driver.Local.
func (b *box) Agent() (context.Context, http.Handler) { return b.agent.Live(), b.agent }

// listen has the agent serve streams, from the first one on: requests need none.
func (b *box) listen() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.once || b.served != nil {
		return
	}
	b.served = make(chan struct{})
	go func() {
		defer close(b.served)
		_ = b.agent.Serve(b.agent.Live(), b.listener) // until the end, or its time is up, of which Due tells
	}()
}

func (b *box) ended() bool {
	select {
	case <-b.dead:
		return true
	default:
		return false
	}
}

// end is the only way out; all callers return when everything has stopped, the first one's exit counts.
func (b *box) end(exit driver.Exit) {
	b.mu.Lock()
	first := !b.once
	if first {
		b.once, b.exit = true, exit
	}
	served := b.served
	b.mu.Unlock()
	if !first {
		<-b.dead
		return
	}
	b.stop()
	b.agent.Close()
	if served != nil {
		<-served
	}
	_ = b.listener.Close()
	b.closeRoot()
	b.group.leave()
	close(b.dead)
}

// Dial implements driver.Sandbox.
func (b *box) Dial(ctx context.Context) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	b.listen()
	conn, err := b.listener.Dial(ctx)
	if b.ended() || errors.Is(err, net.ErrClosed) {
		if err == nil {
			_ = conn.Close()
		}
		return nil, fmt.Errorf("dial sandbox %s: %w", b.id, fs.ErrNotExist)
	}
	return conn, err
}

// Wait implements driver.Sandbox.
func (b *box) Wait(ctx context.Context) (driver.Exit, error) {
	if err := ctx.Err(); err != nil {
		return driver.Exit{}, err
	}
	select {
	case <-b.dead:
		return b.exit, nil
	case <-ctx.Done():
		return driver.Exit{}, ctx.Err()
	}
}

// Usage implements driver.Sandbox: PIDs are the programs that run, and the agent; Memory is what of its files lies there. What
// its isolates take cannot be told from what others take in the same process.
func (b *box) Usage(ctx context.Context) (driver.Usage, error) {
	if b.ended() {
		return driver.Usage{}, fmt.Errorf("usage of sandbox %s: %w", b.id, fs.ErrNotExist)
	}
	return driver.Usage{Memory: b.files.Usage().Bytes, PIDs: int64(b.programs.Live()) + 1}, ctx.Err()
}
