package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/api/process"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/guest"
)

// live is what was measured of one driver's running sandboxes.
type live struct {
	driver  string
	problem string // why it was not measured
	trip    sample // `true` started through the API until its end event
	bare    time.Duration
	idle    int64 // bytes of PSS, all host processes of an idle sandbox
	creates sample
	total   time.Duration
	left    []string
}

// box is one sandbox under measure.
type box struct {
	spec  driver.Spec
	guest *guest.Guest
}

func (b *bench) start(ctx context.Context, d driver.Driver, root driver.Root, id string) (*box, error) {
	spec := driver.Spec{ID: driver.ID(id), Root: root, Dir: filepath.Join(b.dir, "sandboxes", id),
		Limits: firebreak.Limits{}}
	if _, fleeting := d.(driver.Fleeting); !fleeting { // as the manager does it
		if err := os.MkdirAll(spec.Dir, 0o700); err != nil {
			return nil, err
		}
	}
	sb, err := d.Create(ctx, spec)
	if err != nil {
		return nil, err
	}
	g := guest.To(sb, "0123456789abcdef")
	if err := g.Init(ctx, guest.Config{}); err != nil {
		return nil, err
	}
	return &box{spec: spec, guest: g}, nil
}

func (b *bench) stop(ctx context.Context, d driver.Driver, x *box) error {
	x.guest.Close()
	if err := d.Destroy(ctx, x.spec); err != nil {
		return err
	}
	if _, fleeting := d.(driver.Fleeting); fleeting {
		return nil
	}
	return os.RemoveAll(x.spec.Dir)
}

// command runs one program to its end and returns what it wrote to standard output.
func command(ctx context.Context, g *guest.Guest, name string, args ...string) (string, error) {
	stdin := false
	stream, err := g.Process().Start(ctx, connect.NewRequest(&process.StartRequest{
		Process: &process.ProcessConfig{Cmd: name, Args: args}, Stdin: &stdin}))
	if err != nil {
		return "", err
	}
	defer stream.Close()
	var out strings.Builder
	for stream.Receive() {
		event := stream.Msg().GetEvent()
		out.Write(event.GetData().GetStdout())
		if end := event.GetEnd(); end != nil && end.GetExitCode() != 0 {
			return out.String(), fmt.Errorf("%s: %s", name, end.GetStatus())
		}
	}
	return out.String(), stream.Err()
}

// bareExec asks a program inside the sandbox how long a fork, exec and wait of true takes there.
const bareExec = `
import os, time
took = []
for i in range(60):
    start = time.perf_counter()
    os.waitpid(os.posix_spawn("/usr/bin/true", ["true"], {}), 0)
    took.append(time.perf_counter() - start)
took = sorted(took[10:])
print(int(took[len(took) // 2] * 1e9))
`

func (b *bench) measure(ctx context.Context, name string, d driver.Driver, root driver.Root) (*live, error) {
	l := &live{driver: name}
	x, err := b.start(ctx, d, root, "bench"+name)
	if err != nil {
		return nil, err
	}
	defer b.stop(context.WithoutCancel(ctx), d, x)
	time.Sleep(2 * time.Second) // idle means that nothing of the start is still at work
	l.idle = pss(string(x.spec.ID))
	for i := range 120 {
		start := time.Now()
		if _, err := command(ctx, x.guest, "/usr/bin/true"); err != nil {
			return nil, err
		}
		if i >= 20 {
			l.trip = append(l.trip, time.Since(start))
		}
	}
	out, err := command(ctx, x.guest, "/usr/bin/python3", "-c", bareExec)
	if err != nil {
		return nil, fmt.Errorf("measure bare exec: %w", err)
	}
	nanoseconds, err := strconv.ParseInt(strings.TrimSpace(out), 10, 64)
	l.bare = time.Duration(nanoseconds)
	return l, err
}

// flood makes count sandboxes, at most wide at a time, destroys them and looks for what is left of them.
func (b *bench) flood(ctx context.Context, l *live, d driver.Driver, root driver.Root, count, wide int) error {
	var mu sync.Mutex
	begin := time.Now()
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(wide)
	for i := range count {
		group.Go(func() error {
			start := time.Now()
			x, err := b.start(ctx, d, root, fmt.Sprintf("flood%s%d", l.driver, i))
			if err != nil {
				return err
			}
			took := time.Since(start)
			mu.Lock()
			l.creates = append(l.creates, took)
			mu.Unlock()
			return b.stop(ctx, d, x)
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	l.total = time.Since(begin)
	l.left = leftovers("flood" + l.driver)
	return nil
}
