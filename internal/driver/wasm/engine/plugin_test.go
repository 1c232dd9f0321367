package engine_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver/wasm/engine"
)

// plugin builds the example with Go's own compiler.
func plugin(t *testing.T) []byte {
	t.Helper()
	at := filepath.Join(t.TempDir(), "plugin.wasm")
	build := exec.Command("go", "build", "-buildmode=c-shared", "-ldflags=-s -w", "-o", at, "github.com/firebreak-dev/firebreak/examples/plugin")
	build.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	wasm, err := os.ReadFile(at)
	if err != nil {
		t.Fatal(err)
	}
	return wasm
}

func TestPlugin(t *testing.T) {
	m := load(t, open(t, t.TempDir()), plugin(t))
	call := func(c engine.Config, name, in string) (string, error) {
		t.Helper()
		inst, err := m.Instantiate(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		defer inst.Close()
		if err := inst.Initialize(t.Context()); err != nil {
			t.Fatal(err)
		}
		out, err := inst.CallBytes(t.Context(), name, []byte(in))
		return string(out), err
	}
	if out, err := call(engine.Config{}, "greet", "world"); err != nil || out != "hello, WORLD" {
		t.Errorf("greet: %q, %v", out, err)
	}
	long := strings.Repeat("x", 1<<20)
	if out, err := call(engine.Config{}, "greet", long); err != nil || out != "hello, "+strings.ToUpper(long) {
		t.Errorf("a megabyte: %d bytes, %v", len(out), err)
	}
	if _, err := call(engine.Config{}, "fetch", "{}"); err == nil || !strings.Contains(err.Error(), "called fetch, which it is not given") {
		t.Errorf("fetch without being given it: %v", err)
	}
	given := engine.Config{Given: map[string]engine.Given{"fetch": func(_ context.Context, in []byte) ([]byte, error) {
		if string(in) == "bad" {
			return nil, errors.New("refused")
		}
		return append([]byte("got "), in...), nil
	}}}
	if out, err := call(given, "fetch", "a page"); err != nil || out != "got a page" {
		t.Errorf("fetch: %q, %v", out, err)
	}
	if _, err := call(given, "fetch", "bad"); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("fetch refused: %v", err)
	}
	for name, kind := range map[string]firebreak.Kind{"none": firebreak.KindNotFound, "alloc": firebreak.KindInvalid, "_initialize": firebreak.KindInvalid} {
		if _, err := call(engine.Config{}, name, ""); firebreak.KindOf(err) != kind {
			t.Errorf("%s: %v", name, err)
		}
	}
}
