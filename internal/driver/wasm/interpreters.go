package wasm

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"

	"github.com/firebreak-dev/firebreak/internal/agent/code"
	"github.com/firebreak-dev/firebreak/internal/driver/wasm/engine"
	"github.com/firebreak-dev/firebreak/internal/memfs"
)

// world is what all programs of a sandbox share.
type world struct {
	module   *engine.Module
	language string   // of the interpreter that the module is; "" if it is none
	command  []string // the names by which it is run
	files    *memfs.FS
	memory   *engine.Memory
	cpu      engine.CPU
	disk     int64          // bytes that the files may have
	mounts   []engine.Mount // beside them
	options  options
	slots    chan struct{} // one for each program that may run at one time
}

// base is what every program gets in its environment.
func (w *world) base(home string) map[string]string {
	return map[string]string{"HOME": home, "USER": user, "LOGNAME": user, "PATH": "/"}
}

func environment(layers ...map[string]string) []string {
	all := map[string]string{}
	for _, layer := range layers {
		maps.Copy(all, layer)
	}
	list := make([]string, 0, len(all))
	for name, value := range all {
		list = append(list, name+"="+value)
	}
	slices.Sort(list)
	return list
}

// config is what a program is given; its streams are added.
func (w *world) config(args, env []string, dir string) engine.Config {
	c := engine.Config{
		Args: args, Env: env, Memory: w.memory, CPU: &w.cpu, Fuel: w.options.fuel, Fixed: w.options.fixed, Given: w.options.given,
		Files: append([]engine.Mount{{At: "/", Files: engine.FilesFrom(w.files, dir)}}, w.mounts...),
	}
	switch w.language {
	case "python":
		c.Env = pythonPath(c.Env, dir)
		fallthrough
	case "javascript":
		c.Files = append(c.Files, prelude())
	}
	return c
}

// enter waits for a slot.
func (w *world) enter() error {
	select {
	case w.slots <- struct{}{}:
		return nil
	default:
		return fmt.Errorf("%d programs run in this sandbox, and no more may", cap(w.slots))
	}
}

func (w *world) leave() { <-w.slots }

// interpreters is where the code of a sandbox runs.
type interpreters struct {
	*world
	mu     sync.Mutex
	closed bool
	work   sync.WaitGroup
}

var _ code.Place = (*interpreters)(nil)

// Language implements code.Place.
func (p *interpreters) Language(name string) (code.Language, error) {
	l, err := find(p.language, name)
	return code.Language{Name: l.name}, err
}

// Offers implements code.Place.
func (p *interpreters) Offers(l code.Language) bool {
	_, err := find(p.language, l.Name)
	return err == nil
}

// Close implements code.Place.
func (p *interpreters) Close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.work.Wait()
}

// Start implements code.Place.
func (p *interpreters) Start(o code.Options) (code.Kernel, error) {
	l, err := find(p.language, o.Language.Name)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, code.Fail(http.StatusServiceUnavailable, fmt.Errorf("the sandbox ends"))
	}
	if err := p.enter(); err != nil {
		return nil, code.Fail(http.StatusTooManyRequests, err)
	}
	k := newKernel(l.program, l.name)
	if l.framed {
		text, err := code.Preamble(l.name)
		if err != nil {
			p.leave()
			return nil, err
		}
		k.requests.push(text)
	}
	ctx, stop := context.WithCancel(context.Background())
	k.stop = stop
	c := p.config(append([]string{l.program}, l.args...), environment(p.base(o.User.Home), o.Env, map[string]string{"PWD": o.Dir}), o.Dir)
	c.Fuel = 0 // of one command: a context lives on
	c.Stdout, c.Stderr = k.stream(0), k.stream(1)
	c.Files = append(c.Files, k.streams(&p.cpu))
	p.work.Go(func() {
		defer p.leave()
		defer stop()
		k.serve(ctx, func(ctx context.Context) (int, error) { return p.module.Run(ctx, c) })
	})
	return k, nil
}
