package gvisor

import (
	"bytes"
	"flag"
	"go/format"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the compiled filters")

const filtersFile = "filters_amd64.go"

// TestCompiledFilters holds the filters that we carry to those that the linked gVisor compiles itself.
func TestCompiledFilters(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("filters are compiled ahead for amd64 only")
	}
	want := compileFilters(t)
	if *update {
		if err := os.WriteFile(filtersFile, want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	have, err := os.ReadFile(filtersFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(have, want) {
		t.Errorf("%s is not what this gVisor compiles: run go generate", filtersFile)
	}
}

// compileFilters has gVisor compile in a program that is built as firebreak is, whatever this test is.
func compileFilters(t *testing.T) []byte {
	t.Helper()
	program := filepath.Join(t.TempDir(), "filters")
	build := exec.Command("go", "build", "-o", program, "./testdata/filters")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	cmd := exec.Command(program)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
	}
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("compile filters: %v", err)
	}
	text, err := format.Source(out)
	if err != nil {
		t.Fatal(err)
	}
	return text
}
