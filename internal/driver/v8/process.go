package v8

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/api/process"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/guest"
)

const (
	port         = 8787             // of workerd, on the loopback of its own sandbox
	bootLimit    = time.Minute      // until workerd answers
	endLimit     = 30 * time.Second // for what must be undone
	beat         = 2 * time.Second  // how often it is looked whether workerd answers
	ahead        = 2                // isolates that are made before they are needed
	fillAfter    = 30 * time.Millisecond
	maxSaid      = 4 << 10 // bytes of what workerd said that are repeated
	lockName     = "lock"
	processesDir = ".processes" // in the state directory
	memoryMark   = 0.8          // of a process's memory: at more, an idle one is made anew
)

// proc is one workerd, in a sandbox of its own.
type proc struct {
	d      *Driver
	inner  driver.Driver
	spec   driver.Spec
	sb     driver.Sandbox
	guest  *guest.Guest
	client *http.Client
	lock   *os.File
	log    *slog.Logger

	typeScript bool // it has what makes JavaScript of it

	ctx     context.Context // of all that it does
	stop    context.CancelFunc
	work    sync.WaitGroup
	names   atomic.Int64
	running atomic.Int64 // runs
	spares  chan spare
	filling atomic.Bool

	mu      sync.Mutex
	kernels map[*kernel]struct{}
	reason  string // why it ended
	said    []byte // the last that workerd wrote to its standard error

	dead    chan struct{} // closed when it is of no use any more
	cleared chan struct{} // closed when nothing of it is left
}

// boot starts a workerd. On error nothing is left.
func (d *Driver) boot(ctx context.Context, memory int64) (_ *proc, err error) {
	inner, info, err := d.wall(ctx)
	if err != nil {
		return nil, err
	}
	sucrase := d.cfg.TypeScript()
	root, err := d.root(ctx, sucrase)
	if err != nil {
		return nil, err
	}
	p := &proc{d: d, inner: inner, typeScript: sucrase != "", kernels: map[*kernel]struct{}{}, spares: make(chan spare, ahead), dead: make(chan struct{}), cleared: make(chan struct{})}
	id := driver.ID("v8" + strings.ToLower(rand.Text()[:16]))
	p.spec = driver.Spec{ID: id, Root: root, Dir: filepath.Join(d.cfg.StateDir, processesDir, string(id))}
	p.log = d.log.With("process", id)
	for _, l := range []struct {
		bit driver.Caps
		set func()
	}{
		{driver.CapLimitMemory, func() { p.spec.Limits.Memory = memory }},
		{driver.CapLimitCPU, func() { p.spec.Limits.CPUs = 2 }},
		{driver.CapLimitPIDs, func() { p.spec.Limits.PIDs = 64 }},
		{driver.CapLimitDisk, func() { p.spec.Limits.Disk = 16 << 20 }},
	} {
		if info.Caps.Has(l.bit) {
			l.set()
		}
	}
	p.ctx, p.stop = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			p.end(err.Error())
			<-p.cleared
		}
	}()
	if err := p.claim(); err != nil {
		return nil, err
	}
	if p.sb, err = inner.Create(ctx, p.spec); err != nil {
		return nil, fmt.Errorf("make the sandbox of workerd: %w", err)
	}
	return p, p.begin(ctx)
}

// claim makes the directory, locked as long as this process lives: others take what is not locked for left behind.
func (p *proc) claim() (err error) {
	if err := os.MkdirAll(p.spec.Dir, 0o700); err != nil {
		return err
	}
	p.lock, err = os.OpenFile(p.spec.Dir+"."+lockName, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	return unix.Flock(int(p.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
}

// begin starts workerd and waits until it answers.
func (p *proc) begin(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	p.guest = guest.New(p.sb.Dial, rand.Text())
	if err := p.guest.Init(ctx, guest.Config{User: "user"}); err != nil {
		return err
	}
	p.client = &http.Client{
		Transport: &http.Transport{
			DialContext:            func(ctx context.Context, _, _ string) (net.Conn, error) { return p.guest.DialPort(ctx, port) },
			DisableCompression:     true,
			MaxResponseHeaderBytes: maxHeader,
			MaxIdleConnsPerHost:    16,
			IdleConnTimeout:        time.Minute,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	stream, err := p.guest.Process().Start(p.ctx, connect.NewRequest(&process.StartRequest{Process: &process.ProcessConfig{
		Cmd: inEngine("ld.so"), Args: []string{"--library-path", inEngine("lib"), inEngine("workerd"), "serve", "--experimental", inEngine("config.capnp"), "config"},
	}}))
	if err != nil {
		return fmt.Errorf("start workerd: %w", err)
	}
	p.work.Go(func() { p.listen(stream) })
	for pause := 5 * time.Millisecond; p.ping(ctx, time.Second) != nil; pause = min(2*pause, 100*time.Millisecond) {
		select {
		case <-p.dead:
			return fmt.Errorf("workerd does not start: %s: %s", p.why(), p.words())
		case <-ctx.Done():
			return fmt.Errorf("workerd does not answer: %w: %s", ctx.Err(), p.words())
		case <-time.After(pause):
		}
	}
	p.work.Go(p.watch)
	p.fill()
	return nil
}

// listen keeps the last of what workerd says until it ends.
func (p *proc) listen(stream *connect.ServerStreamForClient[process.StartResponse]) {
	defer stream.Close()
	status := "its agent went away"
	for stream.Receive() {
		if data := stream.Msg().GetEvent().GetData(); data != nil {
			p.mu.Lock()
			p.said = append(append(p.said, data.GetStderr()...), data.GetStdout()...)
			p.said = p.said[max(0, len(p.said)-maxSaid):]
			p.mu.Unlock()
		}
		if end := stream.Msg().GetEvent().GetEnd(); end != nil {
			status = end.GetStatus()
		}
	}
	reason := "its V8 process ended (" + status + ")"
	if words := p.words(); strings.Contains(words, "out of memory") || strings.Contains(status, "killed") {
		reason = "its V8 process ended: an isolate in it used more memory than it may"
	}
	p.end(reason)
}

// words is the last that workerd said. Isolates cannot write there, but what it says of them may hold their words.
func (p *proc) words() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return string(bytes.ToValidUTF8(p.said, []byte("�")))
}

func (p *proc) why() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.reason
}

// ping asks whether workerd, which does one thing at a time, is free to answer.
func (p *proc) ping(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	_, err := p.ask(ctx, "ping", "", http.StatusOK)
	return err
}

// ask makes a request whose answer is short.
func (p *proc) ask(ctx context.Context, name, verb string, want int) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://v8/"+name+"/"+verb, http.NoBody)
	if err != nil {
		return "", err
	}
	res, err := p.client.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, maxSaid))
	if err == nil && res.StatusCode != want {
		err = fmt.Errorf("workerd answered %d: %q", res.StatusCode, text)
	}
	return string(text), err
}

// watch ends a workerd that does not answer, and isolates that nobody has used for long.
func (p *proc) watch() {
	tick := time.NewTicker(min(beat, p.d.cfg.Stall))
	defer tick.Stop()
	for {
		select {
		case <-p.dead:
			return
		case <-tick.C:
		}
		if err := p.ping(p.ctx, p.d.cfg.Stall); err != nil && p.ctx.Err() == nil {
			p.end(fmt.Sprintf("its V8 process was ended: a script of the same tenant held the processor for %v without a pause", p.d.cfg.Stall))
			return
		}
		p.evict()
		if p.running.Load() > 0 || p.spec.Limits.Memory == 0 {
			continue
		}
		if u, err := p.sb.Usage(p.ctx); err == nil && float64(u.Memory) > memoryMark*float64(p.spec.Limits.Memory) {
			p.end(fmt.Sprintf("its V8 process was made anew: its memory had grown to %d MiB", u.Memory>>20))
		}
	}
}

// evict ends what has been idle for too long, and the longest idle of too many.
func (p *proc) evict() {
	p.mu.Lock()
	all := make([]*kernel, 0, len(p.kernels))
	for k := range p.kernels {
		all = append(all, k)
	}
	p.mu.Unlock()
	var oldest *kernel
	var oldestSince time.Time
	for _, k := range all {
		since, idle := k.idle()
		if idle && time.Since(since) > p.d.cfg.Idle {
			k.Kill(fmt.Sprintf("it was evicted, since nothing ran in it for %v", p.d.cfg.Idle))
			continue
		}
		if idle && (oldest == nil || since.Before(oldestSince)) {
			oldest, oldestSince = k, since
		}
	}
	if oldest != nil && len(all) > p.d.cfg.Isolates {
		oldest.Kill(fmt.Sprintf("it was evicted, since its tenant has more than %d isolates", p.d.cfg.Isolates))
	}
}

// spare is an isolate that nothing has run in, and the request for its first run, if that is on its way.
type spare struct {
	name  string
	first *posted
}

// isolate returns a fresh isolate, one made ahead if there is one.
func (p *proc) isolate(ctx context.Context) (spare, error) {
	defer p.fill()
	select {
	case s, ok := <-p.spares:
		if ok {
			return s, nil
		}
	default:
	}
	name, err := p.make(ctx)
	return spare{name: name}, err
}

func (p *proc) make(ctx context.Context) (string, error) {
	name := fmt.Sprintf("i%d", p.names.Add(1))
	_, err := p.ask(ctx, name, "new", http.StatusNoContent)
	return name, err
}

// fill makes spares, unless that is being done.
func (p *proc) fill() {
	if len(p.spares) == cap(p.spares) || !p.filling.CompareAndSwap(false, true) {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reason != "" {
		return
	}
	p.work.Go(func() {
		defer p.filling.Store(false)
		for len(p.spares) < cap(p.spares) {
			select { // workerd does one thing at a time: who took an isolate runs code in it first
			case <-time.After(fillAfter):
			case <-p.ctx.Done():
				return
			}
			name, err := p.make(p.ctx)
			if err != nil {
				return // who needs an isolate finds out
			}
			first, err := p.post(p.ctx, name)
			if err != nil {
				p.drop(name)
				return
			}
			p.spares <- spare{name, first} // nobody else fills it
		}
	})
}

// drop ends an isolate. If it holds the processor, watch ends the whole process.
func (p *proc) drop(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reason != "" {
		return
	}
	p.work.Go(func() {
		select { // who waits for its last words is told first
		case <-time.After(fillAfter):
			_, _ = p.ask(p.ctx, name, "end", http.StatusOK)
		case <-p.ctx.Done():
		}
	})
}

// add counts a kernel among those that end with the process.
func (p *proc) add(k *kernel) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reason != "" {
		return errors.New(p.reason)
	}
	p.kernels[k] = struct{}{}
	return nil
}

func (p *proc) remove(k *kernel) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.kernels, k)
}

// end ends the process and all kernels in it, for the first reason that is given. It does not wait.
func (p *proc) end(reason string) {
	p.mu.Lock()
	if p.reason != "" {
		p.mu.Unlock()
		return
	}
	p.reason = reason
	kernels := p.kernels
	p.kernels = map[*kernel]struct{}{}
	p.mu.Unlock()
	close(p.dead)
	p.stop()
	for k := range kernels {
		k.lose(reason)
	}
	go p.clear()
}

// clear removes all that boot made.
func (p *proc) clear() {
	defer close(p.cleared)
	p.work.Wait()
	close(p.spares)
	for s := range p.spares {
		s.first.close()
	}
	if p.client != nil {
		p.client.CloseIdleConnections()
	}
	if p.guest != nil {
		p.guest.Close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), endLimit)
	defer cancel()
	if err := clearAway(ctx, p.inner, p.spec); err != nil {
		p.log.Error("the sandbox of a V8 process is left behind; the next start clears it", "error", err)
	}
	if p.lock != nil {
		_ = p.lock.Close()
	}
}

// clearAway destroys a process's sandbox and what is kept of it.
func clearAway(ctx context.Context, inner driver.Driver, spec driver.Spec) error {
	if err := inner.Destroy(ctx, spec); err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(spec.Dir), os.RemoveAll(spec.Dir+"."+lockName))
}
