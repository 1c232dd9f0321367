package engine_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver/wasm/engine"
)

func open(t testing.TB, dir string) *engine.Engine {
	t.Helper()
	e := engine.New(dir)
	t.Cleanup(func() {
		if err := e.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return e
}

func load(t testing.TB, e *engine.Engine, wasm []byte) *engine.Module {
	t.Helper()
	m, err := e.Load(t.Context(), wasm)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Release)
	return m
}

// TestHostile: what a module must not do ends it with the reason, and the engine serves on.
func TestHostile(t *testing.T) {
	e := open(t, t.TempDir())
	for _, test := range []struct {
		name string
		wasm []byte
		want string
	}{
		{"deep recursion", command(1, recurse...), "stack overflow"},
		{"outside of its memory", command(1, outside...), "out of bounds memory access"},
		{"unreachable", command(1, 0x00), "unreachable"},
		{"what nobody offers", importing("env", "socket"), "it called socket of env, which it is not given"},
		{"endless loop", command(1, loop...), context.DeadlineExceeded.Error()},
		{"more memory at first than it may have", command(8000), engine.ErrMemory.Error()},
	} {
		t.Run(test.name, func(t *testing.T) {
			m, limit := load(t, e, test.wasm), time.Minute
			if test.name == "endless loop" {
				limit = time.Second
			}
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			_, err := m.Run(ctx, engine.Config{})
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %s", err, test.want)
			}
		})
	}
	if _, err := load(t, e, command(1)).Run(t.Context(), engine.Config{}); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// TestLoopFreesItsThread: many loops that are ended at once leave no goroutine and no running thread.
func TestLoopFreesItsThread(t *testing.T) {
	m := load(t, open(t, t.TempDir()), command(1, loop...))
	before := runtime.NumGoroutine()
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if _, err := m.Run(ctx, engine.Config{}); !errors.Is(err, context.Canceled) {
				t.Errorf("%v", err)
			}
		})
	}
	runtime.GC() // a loop must not stop the collector, which stops the world
	cancel()
	all.Wait()
	for i := 0; runtime.NumGoroutine() > before && i < 1000; i++ {
		time.Sleep(10 * time.Millisecond)
	}
	if n := runtime.NumGoroutine(); n > before {
		t.Errorf("%d goroutines before, %d after", before, n)
	}
}

// TestFuel: a run is ended when it has executed what it may.
func TestFuel(t *testing.T) {
	m := load(t, open(t, t.TempDir()), command(1, loop...))
	for _, fuel := range []int64{1, 1000, 5_000_000} {
		if _, err := m.Run(t.Context(), engine.Config{Fuel: fuel}); !errors.Is(err, engine.ErrFuel) {
			t.Errorf("with %d: %v", fuel, err)
		}
	}
	if _, err := load(t, open(t, t.TempDir()), command(1)).Run(t.Context(), engine.Config{Fuel: 100}); err != nil {
		t.Errorf("enough: %v", err)
	}
}

// TestMemory: all instances of a sandbox share what it may have, and give it back.
func TestMemory(t *testing.T) {
	m := load(t, open(t, t.TempDir()), command(1, growing...))
	memory := engine.NewMemory(64 << 20)
	for range 3 {
		if _, err := m.Run(t.Context(), engine.Config{Memory: memory}); err != nil {
			t.Fatal(err)
		}
	}
	if memory.Peak() != 64<<20 || memory.Used() != 0 || memory.Denied() != 3 {
		t.Errorf("peak %d, used %d, denied %d", memory.Peak(), memory.Used(), memory.Denied())
	}
	first, err := m.Instantiate(t.Context(), engine.Config{Memory: memory})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := first.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Run(t.Context(), engine.Config{Memory: memory}); !errors.Is(err, engine.ErrMemory) {
		t.Errorf("a second beside one that has all: %v", err)
	}
	first.Close()
	first.Close()
	if memory.Used() != 0 {
		t.Errorf("after Close %d bytes are taken", memory.Used())
	}
}

// TestRefused: what cannot or must not be compiled is refused before it takes anything.
func TestRefused(t *testing.T) {
	e := open(t, t.TempDir())
	manyLocals := append([]byte{1}, append(leb(1<<30), 0x7f, 0x0b)...)
	for name, test := range map[string]struct {
		wasm []byte
		want string
	}{
		"empty":             {nil, "does not begin"},
		"text":              {[]byte("#!/bin/sh"), "does not begin"},
		"a component":       {[]byte("\x00asm\x0d\x00\x01\x00"), "does not begin"},
		"cut short":         {command(1, loop...)[:40], "ends too early"},
		"two memories":      {module(section(5, vec([]byte{0, 1}, []byte{0, 1}))), "2 memories"},
		"shared memory":     {module(section(5, vec([]byte{3, 1, 1}))), "no threads"},
		"a huge memory":     {module(section(5, vec(append([]byte{0}, leb(1<<20)...)))), "65536 is the most"},
		"a huge table":      {module(section(4, vec(append([]byte{0x70, 0}, leb(1<<28)...)))), "more than 1048576 elements"},
		"many functions":    {module(section(3, leb(1<<30))), "200000 is the most"},
		"many locals":       {module(section(10, append([]byte{1}, append(leb(len(manyLocals)), manyLocals...)...))), "more than 20000 variables"},
		"imports a memory":  {module(section(2, vec(append(append(named("env"), named("memory")...), 2, 0, 1)))), "must be its own"},
		"of another WASI":   {importing("wasi_snapshot_preview1", "sock_open"), "no such function"},
		"deep nesting":      {command(1, append(bytes.Repeat([]byte{0x02, 0x40}, 5000), bytes.Repeat([]byte{0x0b}, 5000)...)...), "more than 4000 blocks"},
		"a huge branch":     {command(1, append(append([]byte{0x41, 0, 0x0e}, leb(9000)...), make([]byte, 9001)...)...), "8000 are the most"},
		"a huge function":   {command(1, bytes.Repeat([]byte{0x01}, 1<<21)...), "1048576 is the most"},
		"an invalid opcode": {command(1, 0xff), "not known here"},
	} {
		_, err := e.Load(t.Context(), test.wasm)
		if firebreak.KindOf(err) != firebreak.KindInvalid || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %s", name, err, test.want)
		}
	}
}

// TestDisk: what was compiled is used again unless somebody changed it, and then it is compiled anew.
func TestDisk(t *testing.T) {
	dir := t.TempDir()
	wasm := command(1, loop...)
	compiled := func() string {
		t.Helper()
		e := engine.New(dir)
		m, err := e.Load(t.Context(), wasm)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := m.Run(ctx, engine.Config{}); !errors.Is(err, context.Canceled) {
			t.Errorf("it runs otherwise: %v", err)
		}
		found, err := filepath.Glob(filepath.Join(dir, "*", "wazero-*", "*"))
		if err != nil || len(found) != 1 {
			t.Fatalf("compiled files: %q, %v", found, err)
		}
		m.Release()
		if err := e.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		return found[0]
	}
	file := compiled()
	genuine, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	old, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(compiled()); err != nil || !os.SameFile(info, old) {
		t.Errorf("what is genuine was compiled again: %v", err)
	}
	key, err := os.ReadFile(filepath.Join(dir, "key"))
	if err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func() error{
		"code changed": func() error {
			bad := bytes.Clone(genuine)
			bad[len(bad)/2] ^= 1
			return os.WriteFile(file, bad, 0o600)
		},
		"code missing":      func() error { return os.Remove(file) },
		"another file":      func() error { return os.WriteFile(filepath.Join(filepath.Dir(file), "more"), nil, 0o600) },
		"no authentication": func() error { return os.Remove(filepath.Join(filepath.Dir(filepath.Dir(file)), "mac")) },
		"another key":       func() error { key[0] ^= 1; return os.WriteFile(filepath.Join(dir, "key"), key, 0o600) },
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		again := compiled()
		if data, err := os.ReadFile(again); err != nil || !bytes.Equal(data, genuine) {
			t.Errorf("%s: not compiled anew: %v", name, err)
		}
	}
	for _, secret := range []string{"key", "."} {
		if info, err := os.Stat(filepath.Join(dir, secret)); err != nil || secret == "key" && info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", secret, info.Mode(), err)
		}
	}
}

// TestDiskIsBounded: strangers' modules do not fill the disk.
func TestDiskIsBounded(t *testing.T) {
	dir := t.TempDir()
	e := open(t, dir)
	for i := range 300 {
		m, err := e.Load(t.Context(), command(1, 0x41, byte(i&0x3f), 0x1a, 0x41, byte(i>>6), 0x1a))
		if err != nil {
			t.Fatal(err)
		}
		m.Release()
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) > 258 {
		t.Errorf("%d entries, %v", len(entries), err)
	}
}

// TestBombs: what is made to take the compiler long is refused or compiled within its time.
func TestBombs(t *testing.T) {
	e := open(t, t.TempDir())
	nest := func(n int) []byte {
		return append(bytes.Repeat([]byte{0x02, 0x40}, n), bytes.Repeat([]byte{0x0b}, n)...)
	}
	table := append([]byte{0x41, 0, 0x0e}, leb(7_900)...)
	for name, code := range map[string][]byte{
		"deep nesting":        nest(3_900),
		"a huge branch table": append(table, make([]byte, 7_901)...),
		"a long function":     bytes.Repeat([]byte{0x41, 1, 0x1a}, 100_000),
		"many live values":    append(bytes.Repeat([]byte{0x41, 1}, 20_000), bytes.Repeat([]byte{0x1a}, 20_000)...),
	} {
		begin := time.Now()
		m, err := e.Load(t.Context(), command(1, code...))
		t.Logf("%s: %v, %v", name, time.Since(begin), err)
		if err == nil {
			m.Release()
		} else if firebreak.KindOf(err) != firebreak.KindInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzModule: whatever the bytes are, they are refused or run within their limits.
func FuzzModule(f *testing.F) {
	for _, code := range [][]byte{loop, recurse, outside, growing, {0x00}} {
		f.Add(command(1, code...))
	}
	f.Add(importing("env", "f"))
	f.Add(importing("wasi_snapshot_preview1", "proc_exit"))
	e := open(f, f.TempDir())
	f.Fuzz(func(t *testing.T, wasm []byte) {
		m, err := e.Load(t.Context(), wasm)
		if err != nil {
			if firebreak.KindOf(err) != firebreak.KindInvalid {
				t.Errorf("not blamed on the module: %v", err)
			}
			return
		}
		defer m.Release()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if m.Exports("_start") {
			_, _ = m.Run(ctx, engine.Config{Memory: engine.NewMemory(16 << 20), Output: 1 << 10})
		}
	})
}

// TestCloseWhileRunning: the memory is given back only when nothing can touch it any more.
func TestCloseWhileRunning(t *testing.T) {
	m := load(t, open(t, t.TempDir()), command(1, touching...))
	for range 20 {
		inst, err := m.Instantiate(t.Context(), engine.Config{})
		if err != nil {
			t.Fatal(err)
		}
		var all sync.WaitGroup
		all.Go(func() {
			if _, err := inst.Start(t.Context()); !errors.Is(err, context.Canceled) {
				t.Errorf("a run that was closed: %v", err)
			}
		})
		runtime.Gosched()
		inst.Close()
		all.Wait()
		if _, err := inst.Start(t.Context()); !errors.Is(err, context.Canceled) {
			t.Errorf("a run after Close: %v", err)
		}
	}
}
