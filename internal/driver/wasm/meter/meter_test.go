package meter_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"

	"github.com/firebreak-dev/firebreak/internal/driver/wasm/meter"
)

const slice = 1000

// metered makes a runtime that offers Tick, which grants another slice and counts.
func metered(t testing.TB, ticks *int) wazero.Runtime {
	t.Helper()
	r := wazero.NewRuntimeWithConfig(t.Context(), wazero.NewRuntimeConfig().WithCoreFeatures(api.CoreFeaturesV2))
	t.Cleanup(func() { _ = r.Close(context.Background()) })
	_, err := r.NewHostModuleBuilder(meter.Module).NewFunctionBuilder().
		WithGoModuleFunction(api.GoModuleFunc(func(_ context.Context, m api.Module, _ []uint64) {
			*ticks++
			fuel := m.ExportedGlobal(meter.Fuel).(api.MutableGlobal)
			fuel.Set(fuel.Get() + slice)
		}), nil, nil).Export(meter.Tick).Instantiate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// function is a module of one exported function f of (i32) -> i32 with a memory and this code.
func function(code ...byte) []byte {
	out := []byte("\x00asm\x01\x00\x00\x00")
	for _, s := range []struct {
		id   byte
		body []byte
	}{
		{1, []byte{1, 0x60, 1, 0x7f, 1, 0x7f}}, {3, []byte{1, 0}}, {5, []byte{1, 0, 1}},
		{7, []byte{1, 1, 'f', 0, 0}},
		{10, append([]byte{1, byte(len(code) + 2), 0}, append(code, 0x0b)...)},
	} {
		out = append(append(out, s.id, byte(len(s.body))), s.body...)
	}
	return out
}

// TestCounts: what a run takes is what it executes, by hand, and its result is what it was.
func TestCounts(t *testing.T) {
	sum := []byte{ // for n := f's parameter; n > 0; n-- {}; return n
		0x03, 0x40, 0x20, 0, 0x41, 1, 0x6b, 0x21, 0, 0x20, 0, 0x0d, 0, 0x0b, 0x20, 0,
	}
	for _, test := range []struct {
		name         string
		code         []byte
		param        uint64
		result, cost int64
	}{
		{"a constant", []byte{0x41, 7}, 0, 7, 1},
		{"nothing counts for a mark", []byte{0x01, 0x02, 0x40, 0x0b, 0x41, 7}, 0, 7, 1},
		{"a return", []byte{0x41, 7, 0x0f}, 0, 7, 2},
		{"a branch out", []byte{0x41, 7, 0x0c, 0}, 0, 7, 2},
		{"one side", []byte{0x20, 0, 0x04, 0x7f, 0x41, 1, 0x05, 0x41, 2, 0x41, 3, 0x6a, 0x41, 4, 0x6a, 0x0b}, 1, 1, 3},
		{"the other side", []byte{0x20, 0, 0x04, 0x7f, 0x41, 1, 0x05, 0x41, 2, 0x41, 3, 0x6a, 0x41, 4, 0x6a, 0x0b}, 0, 9, 7},
		{"rounds", sum, 10, 0, 1 + 10*6 + 1},
		{"many rounds", sum, 10_000, 0, 1 + 10_000*6 + 1},
		{"a fill", []byte{0x41, 0, 0x41, 0, 0x41, 0x80, 0x20, 0xfc, 11, 0, 0x41, 5}, 0, 5, 5 + 4096/8},
		{"a growing", []byte{0x41, 1, 0x40, 0}, 0, 1, 2 + 1000},
		{"a call of itself", []byte{0x20, 0, 0x45, 0x04, 0x7f, 0x41, 3, 0x05, 0x20, 0, 0x41, 1, 0x6b, 0x10, 0, 0x0b}, 2, 3, 3*3 + 2*4 + 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			ticks := 0
			r := metered(t, &ticks)
			wasm, err := meter.Rewrite(function(test.code...), slice)
			if err != nil {
				t.Fatal(err)
			}
			m, err := r.Instantiate(t.Context(), wasm)
			if err != nil {
				t.Fatal(err)
			}
			got, err := m.ExportedFunction("f").Call(t.Context(), test.param)
			if err != nil || int64(got[0]) != test.result {
				t.Errorf("result %v, %v; want %d", got, err, test.result)
			}
			left := int64(m.ExportedGlobal(meter.Fuel).Get())
			if cost := int64(slice)*int64(ticks+1) - left; cost != test.cost {
				t.Errorf("it took %d, want %d", cost, test.cost)
			}
		})
	}
}

// TestSpec: of all modules of WebAssembly's own tests, those that are valid stay valid.
func TestSpec(t *testing.T) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/tetratelabs/wazero").Output()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(strings.TrimSpace(string(out)), "internal/integration_test/spectest")
	valid, r := 0, metered(t, new(int))
	for _, version := range []string{"v1", "v2"} {
		err = filepath.WalkDir(filepath.Join(dir, version), func(path string, _ fs.DirEntry, err error) error {
			if err != nil || filepath.Ext(path) != ".wasm" {
				return err
			}
			wasm, err := os.ReadFile(path)
			if err == nil && stays(t, r, filepath.Base(path), wasm) {
				valid++
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if valid < 1000 {
		t.Errorf("only %d modules were valid", valid)
	}
}

// stays reports whether a module is valid, and complains if it does not stay so.
func stays(t *testing.T, r wazero.Runtime, name string, wasm []byte) bool {
	t.Helper()
	before, err := r.CompileModule(t.Context(), wasm)
	if err != nil {
		return false
	}
	_ = before.Close(t.Context())
	metered, err := meter.Rewrite(wasm, slice)
	if err != nil {
		limited := strings.Contains(err.Error(), "are the most") || strings.Contains(err.Error(), "blocks in each other") // br_table.0 has 24615
		if !limited && !strings.Contains(err.Error(), "imports something of kind") {
			t.Errorf("%s: %v", name, err)
		}
		return true
	}
	after, err := r.CompileModule(t.Context(), metered)
	if err != nil {
		t.Errorf("%s became invalid: %v", name, err)
		return true
	}
	_ = after.Close(t.Context())
	return true
}

func TestReserved(t *testing.T) {
	wasm, err := meter.Rewrite(function(0x41, 7), slice)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := meter.Rewrite(wasm, slice); err == nil || !strings.Contains(err.Error(), "for us") {
		t.Errorf("a module that imports our function: %v", err)
	}
	own := bytes.ReplaceAll(wasm, []byte(meter.Module), []byte("firebreak:other"))
	if _, err := meter.Rewrite(own, slice); err == nil || !strings.Contains(err.Error(), "for us") {
		t.Errorf("a module that exports our global: %v", err)
	}
}

// FuzzRewrite: any bytes are refused or rewritten, and what was valid stays valid.
func FuzzRewrite(f *testing.F) {
	f.Add(function(0x41, 7))
	f.Add(function(0x03, 0x40, 0x0c, 0, 0x0b, 0x00))
	f.Add(function(0x20, 0, 0x0e, 1, 0, 0))
	r := metered(f, new(int))
	f.Fuzz(func(t *testing.T, wasm []byte) {
		// The compiler alone takes what a module says of its size for true.
		if _, err := meter.Rewrite(wasm, slice); err == nil && len(wasm) < 1<<12 && !hasCustom(wasm) {
			stays(t, r, "it", wasm)
		}
	})
}

// hasCustom reports whether a module that can be rewritten has custom sections.
func hasCustom(wasm []byte) bool {
	for at := 8; at < len(wasm); {
		if wasm[at] == 0 {
			return true
		}
		size, n := binary.Uvarint(wasm[at+1:])
		at += 1 + n + int(size)
	}
	return false
}

// TestHuge: what says that it is larger than its module is refused before the compiler makes room for it.
func TestHuge(t *testing.T) {
	much := []byte{0xff, 0xff, 0xff, 0xff, 0x0f}
	for name, section := range map[string][]byte{
		"types":         append([]byte{1, 6}, much...),
		"parameters":    append([]byte{1, 8, 1, 0x60}, much...),
		"tables":        append([]byte{4, 6}, much...),
		"globals":       append([]byte{6, 6}, much...),
		"exports":       append([]byte{7, 6}, much...),
		"a name":        append([]byte{7, 7, 1}, much...),
		"segments":      append([]byte{9, 6}, much...),
		"elements":      append([]byte{9, 10, 1, 0, 0x41, 0, 0x0b}, much...),
		"expressions":   append([]byte{9, 10, 1, 4, 0x41, 0, 0x0b}, much...),
		"data segments": append([]byte{11, 6}, much...),
		"data":          append([]byte{11, 10, 1, 0, 0x41, 0, 0x0b}, much...),
		"passive data":  append([]byte{11, 7, 1, 1}, much...),
		"code":          append([]byte{10, 6}, much...),
	} {
		section[1] = byte(len(section) - 2)
		if wasm, err := meter.Rewrite(append([]byte("\x00asm\x01\x00\x00\x00"), section...), slice); err == nil {
			t.Errorf("%s: rewritten as %x", name, wasm)
		}
	}
}
