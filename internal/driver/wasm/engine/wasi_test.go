package engine_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/driver/wasm/engine"
	"github.com/firebreak-dev/firebreak/internal/memfs"
)

// deviations are the programs of the suite that do not pass, and why. All are of wazero v1.12.0, whose own list in the
// suite (expectations/wazero) has them, too; docs/wasm.md says what they mean for programs.
func deviations() map[string]string {
	const rights = "rights of descriptors, which later versions of WASI dropped, are not kept"
	const preopens = "descriptors that are open from the start cannot be renumbered"
	return map[string]string{
		"sock_shutdown-not_sock": "sock_shutdown of a file says EBADF, not ENOTSOCK",
		"dir_fd_op_failures":     "fd_prestat_dir_name takes a buffer that is larger than the name",
		"fd_fdstat_set_rights":   rights,
		"truncation_rights":      rights,
		"path_open_read_write":   rights,
		"overwrite_preopen":      preopens,
		"stdio":                  preopens,
		"renumber":               "fd_renumber takes a destination that is not open",
		"path_filestat":          "the flag SYNC is not kept: memory is all there is",
		"path_link":              "path_link takes the flag to follow links, and does not follow",
		"readlink":               "a buffer too small is ERANGE instead of a link cut short",
		"symlink_filestat":       "times of a link itself cannot be set",
	}
}

// suiteVariable names a checkout of the official test suite, branch prod/testsuite-all, which is in no registry.
const suiteVariable = "FIREBREAK_WASI_TESTSUITE"

// TestWASI runs the official suite of WASI preview 1 against our files.
func TestWASI(t *testing.T) {
	dir := os.Getenv(suiteVariable)
	if dir == "" {
		t.Skipf("%s names no checkout of WebAssembly/wasi-testsuite", suiteVariable)
	}
	suite := os.DirFS(dir)
	names, err := fs.Glob(suite, "tests/*/testsuite/wasm32-wasip1/*.wasm")
	if err != nil || len(names) < 70 {
		t.Fatalf("%d programs, %v", len(names), err)
	}
	deviations := deviations()
	e := engine.New(t.TempDir())
	defer e.Close(t.Context()) //nolint:errcheck // it is all freed with the process
	for _, name := range names {
		short := strings.TrimSuffix(path.Base(name), ".wasm")
		t.Run(short, func(t *testing.T) {
			failed := runWASI(t, e, suite, name)
			why, expected := deviations[short]
			switch {
			case failed != "" && !expected:
				t.Error(failed)
			case failed == "" && expected:
				t.Errorf("it passes: it is not to be excused any more with %q", why)
			}
		})
	}
	for name := range deviations {
		if !slices.ContainsFunc(names, func(n string) bool { return path.Base(n) == name+".wasm" }) {
			t.Errorf("the suite has no %s", name)
		}
	}
}

// runWASI returns what was wrong.
func runWASI(t *testing.T, e *engine.Engine, suite fs.FS, name string) string {
	spec := struct {
		Args     []string          `json:"args"`
		Dirs     []string          `json:"dirs"`
		Env      map[string]string `json:"env"`
		ExitCode int               `json:"exit_code"`
		Stdout   *string           `json:"stdout"`
	}{}
	text, err := fs.ReadFile(suite, strings.TrimSuffix(name, ".wasm")+".json")
	if err == nil {
		err = json.Unmarshal(text, &spec)
	} else if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err != nil {
		t.Fatal(err)
	}
	wasm, err := fs.ReadFile(suite, name)
	if err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	c := engine.Config{Args: append([]string{path.Base(name)}, spec.Args...), Stdin: strings.NewReader(""), Stdout: &stdout, Stderr: &stderr}
	for key, value := range spec.Env {
		c.Env = append(c.Env, key+"="+value)
	}
	for _, dir := range spec.Dirs {
		lower, err := fs.Sub(suite, path.Join(path.Dir(name), dir))
		if err != nil {
			t.Fatal(err)
		}
		c.Files = append(c.Files, engine.Mount{At: dir, Files: engine.Files(memfs.New(memfs.Options{Lower: lower}))})
	}
	m, err := e.Load(t.Context(), wasm)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Release()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	code, err := m.Run(ctx, c)
	if err != nil || code != spec.ExitCode || spec.Stdout != nil && stdout.String() != *spec.Stdout {
		text, _ := json.Marshal(map[string]any{"code": code, "error": err, "stdout": stdout.String(), "stderr": stderr.String()})
		return string(text)
	}
	return ""
}
