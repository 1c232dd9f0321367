package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"

	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/wasm"
	"github.com/firebreak-dev/firebreak/internal/driver/wasm/engine"
	"github.com/firebreak-dev/firebreak/internal/memfs"
)

// nothing is a command that ends at once, with a page of memory.
const nothing = "\x00asm\x01\x00\x00\x00\x01\x04\x01\x60\x00\x00\x03\x02\x01\x00\x05\x03\x01\x00\x01\x07\x0a\x01\x06_start\x00\x00\x0a\x04\x01\x02\x00\x0b"

// modules is what was measured of WebAssembly.
type modules struct {
	raw     sample // wazero alone: an instance and its run
	engine  sample // with our limits and files
	whole   sample // a sandbox made, the module run through the API, and the sandbox destroyed
	lines   []line
	idle    int64         // bytes of this process, for each of many sandboxes
	created time.Duration // of all of them
	many    int
}

// line is a program of one line, in a language.
type line struct {
	language string
	problem  string
	whole    sample
	warm     sample // 1 + 1 in a sandbox that is there, as a command
}

func (b *bench) wasm(ctx context.Context) (*modules, error) {
	fmt.Fprintln(os.Stderr, "wasm")
	m := &modules{many: 1000}
	root := filepath.Join(b.dir, "nothing")
	if err := place(root, []byte(nothing)); err != nil {
		return nil, err
	}
	if err := m.alone(ctx); err != nil {
		return nil, err
	}
	if err := m.engined(ctx, filepath.Join(b.dir, "engine")); err != nil {
		return nil, err
	}
	d := wasm.New(wasm.Config{StateDir: filepath.Join(b.dir, "wasm"), Log: slog.New(slog.DiscardHandler)})
	defer d.Close(context.WithoutCancel(ctx))
	var err error
	small := driver.Root{Form: driver.FormModule, Path: root, Command: []string{"nothing"}}
	if m.whole, err = b.wholes(ctx, d, small, 500, "nothing"); err != nil {
		return nil, err
	}
	if err := b.crowd(ctx, m, d, small); err != nil {
		return nil, err
	}
	for _, l := range []struct{ language, flag, code string }{{"python", "-c", "print(1 + 1)"}, {"javascript", "-e", "console.log(1 + 1)"}} {
		one, err := b.line(ctx, d, l.language, l.flag, l.code)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", l.language, err)
		}
		m.lines = append(m.lines, one)
	}
	return m, nil
}

// place makes a template's directory.
func place(dir string, module []byte) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "module.wasm"), module, 0o600)
}

const moduleRounds = 2000

// alone measures wazero by itself.
func (m *modules) alone(ctx context.Context) error {
	r := wazero.NewRuntime(ctx)
	defer r.Close(ctx)
	if _, err := wasi_snapshot_preview1.Instantiate(ctx, r); err != nil {
		return err
	}
	compiled, err := r.CompileModule(ctx, []byte(nothing))
	if err != nil {
		return err
	}
	for range moduleRounds {
		begin := time.Now()
		inst, err := r.InstantiateModule(ctx, compiled, wazero.NewModuleConfig().WithName(""))
		if err != nil {
			return err
		}
		if err := inst.Close(ctx); err != nil {
			return err
		}
		m.raw = append(m.raw, time.Since(begin))
	}
	return nil
}

// engined measures it with a file system, limits and metering.
func (m *modules) engined(ctx context.Context, dir string) error {
	e := engine.New(dir)
	defer e.Close(ctx)
	loaded, err := e.Load(ctx, []byte(nothing))
	if err != nil {
		return err
	}
	defer loaded.Release()
	for range moduleRounds {
		begin := time.Now()
		files := []engine.Mount{{At: "/", Files: engine.Files(memfs.New(memfs.Options{}))}}
		if _, err := loaded.Run(ctx, engine.Config{Args: []string{"nothing"}, Memory: engine.NewMemory(1 << 20), Files: files}); err != nil {
			return err
		}
		m.engine = append(m.engine, time.Since(begin))
	}
	return nil
}

// wholes measures sandboxes from their making to their end, with one command in them.
func (b *bench) wholes(ctx context.Context, d driver.Driver, root driver.Root, rounds int, name string, args ...string) (took sample, err error) {
	for i := range rounds + 1 {
		begin := time.Now()
		x, err := b.start(ctx, d, root, fmt.Sprintf("whole%d", i))
		if err != nil {
			return nil, err
		}
		_, err = command(ctx, x.guest, name, args...)
		if err == nil {
			err = b.stop(ctx, d, x)
		}
		if err != nil {
			return nil, err
		}
		if i > 0 { // the first one compiles
			took = append(took, time.Since(begin))
		}
	}
	return took, nil
}

// crowd makes many sandboxes, one after another, and weighs this process.
func (b *bench) crowd(ctx context.Context, m *modules, d driver.Driver, root driver.Root) error {
	before := ownMemory()
	begin := time.Now()
	var all []*box
	for i := range m.many {
		x, err := b.start(ctx, d, root, fmt.Sprintf("crowd%d", i))
		if err != nil {
			return err
		}
		all = append(all, x)
	}
	m.created = time.Since(begin)
	m.idle = (ownMemory() - before) / int64(m.many)
	for _, x := range all {
		if err := b.stop(ctx, d, x); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) line(ctx context.Context, d driver.Driver, language, flag, code string) (line, error) {
	l := line{language: language}
	data, err := os.ReadFile(filepath.Join(filepath.Dir(b.sdk), "..", "wasm", language+".wasm"))
	if err != nil {
		l.problem = err.Error()
		return l, nil
	}
	dir := filepath.Join(b.dir, language)
	if err := place(dir, data); err != nil {
		return l, err
	}
	root := driver.Root{Form: driver.FormModule, Path: dir, Language: language, Command: []string{language}}
	if l.whole, err = b.wholes(ctx, d, root, 30, language, flag, code); err != nil {
		return l, err
	}
	x, err := b.start(ctx, d, root, "warm"+language)
	if err != nil {
		return l, err
	}
	defer b.stop(context.WithoutCancel(ctx), d, x)
	for range 30 {
		begin := time.Now()
		if _, err := command(ctx, x.guest, language, flag, code); err != nil {
			return l, err
		}
		l.warm = append(l.warm, time.Since(begin))
	}
	return l, nil
}

func modulesTable(w io.Writer, m *modules) {
	budget := 500 * time.Microsecond
	fmt.Fprintf(w, "\n## WebAssembly\n\n| what | p50 ms | p99 ms | budget | kept |\n|---|---|---|---|---|\n")
	row := func(what string, s sample, budget, kept string) {
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s |\n", what, milliseconds(s.median()), milliseconds(s.quantile(0.99)), budget, kept)
	}
	row("wazero alone: an instance of a compiled module, and its run", m.raw, "", "")
	row("the same with limits, metering and a file system", m.engine, "", "")
	row("a sandbox made, the module run through the API, the sandbox destroyed", m.whole, "≤ 0.5 ms p50", verdict(m.whole.median() <= budget))
	for _, l := range m.lines {
		if l.problem != "" {
			fmt.Fprintf(w, "| %s | %s | | | |\n", l.language, l.problem)
			continue
		}
		row("the same with 1 + 1 in "+l.language, l.whole, "", "")
		row("1 + 1 in "+l.language+", a command in a sandbox that is there", l.warm, "", "")
	}
	fmt.Fprintf(w, "\n%d idle sandboxes in one process take %.0f KiB each (budget 1 MiB: %s); they are made at %.0f per second, one after another.\n",
		m.many, float64(m.idle)/1024, verdict(m.idle <= 1<<20), float64(m.many)/m.created.Seconds())
}
