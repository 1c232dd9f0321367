package wasm

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/drivertest"
	"github.com/firebreak-dev/firebreak/internal/driver/wasm/engine"
)

// TestLanguages: what the suite asks of a language boundary, of each interpreter. The rest is asked of an empty module.
func TestLanguages(t *testing.T) {
	for name, l := range map[string]*drivertest.Language{
		"javascript": {
			Program: []string{"js", "-e", "console.log('ok')"}, Spin: []string{"js", "-e", "for (;;);"}, Name: "javascript", Define: "let x = 42",
			Recall: "x", Print: "console.log('ok')", Fail: "nothing.of.this", Forever: "for (;;);", Hoard: "const all = []; for (;;) all.push(new ArrayBuffer(8 << 20))",
		},
		"python": {
			Program: []string{"python", "-c", "print('ok')"}, Spin: []string{"python", "-c", "while True: pass"}, Name: "python", Define: "x = 42",
			Recall: "x", Print: "print('ok')", Fail: "1/0", Forever: "while True: pass", Hoard: "x = []\nwhile True: x.append(bytearray(8 << 20))",
		},
	} {
		t.Run(name, func(t *testing.T) {
			suite := ofLanguage(t, name, l)
			for _, check := range drivertest.Checks() {
				if strings.HasPrefix(check, "language-") || strings.HasPrefix(check, "files-") || check == "hammer" {
					t.Run(check, func(t *testing.T) { suite.RunCheck(t, check) })
				}
			}
		})
	}
}

// ofLanguage is the suite for sandboxes of an interpreter, which is compiled once for all of them.
func ofLanguage(t *testing.T, name string, l *drivertest.Language) drivertest.Suite {
	module, root := interpreter(t, name), t.TempDir()
	if err := os.Symlink(module, filepath.Join(root, "module.wasm")); err != nil {
		t.Fatal(err)
	}
	var hosts sync.Map // by state directory: the one driver of this process
	return drivertest.Suite{
		Name: "wasm", InMemory: true, Caps: caps, Agent: func(testing.TB) string { return "" }, Language: l,
		Root: func(testing.TB) driver.Root {
			return driver.Root{Form: driver.FormModule, Path: root, Language: name, Command: l.Program[:1]}
		},
		New: func(t testing.TB, p drivertest.Place) driver.Driver {
			d := New(Config{StateDir: p.StateDir, Log: p.Log})
			d.engine = engine.New(filepath.Join(cache, "wasm-compiled"))
			first, there := hosts.LoadOrStore(p.StateDir, d)
			if !there {
				t.Cleanup(func() { _ = d.Close(context.Background()) })
			}
			return first.(driver.Driver)
		},
	}
}
