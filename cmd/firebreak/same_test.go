package main_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
)

// TestSameBehindEveryBoundary runs the examples behind gVisor, in a container and as plain programs of this host: what
// they print and the files that they make are the same, byte for byte.
func TestSameBehindEveryBoundary(t *testing.T) {
	examples, err := filepath.Abs("../../examples")
	if err != nil {
		t.Fatal(err)
	}
	for _, example := range []struct {
		script  string
		args    []string
		results []string
	}{
		{"sales.py", nil, []string{"report.txt", "report.svg"}},
		{"primes.js", []string{"200000"}, nil},
	} {
		t.Run(example.script, func(t *testing.T) {
			first, who := map[string][]byte{}, ""
			for _, isolation := range []string{"gvisor", "container"} {
				serves(t, binary(t), isolation)
				a, dir := newAlone(t, t.TempDir()), t.TempDir()
				args := []string{"run", "-q", "--isolation", isolation}
				for _, name := range example.results {
					args = append(args, "--output", name+":"+filepath.Join(dir, name))
				}
				args = append(args, filepath.Join(examples, example.script))
				got := map[string][]byte{"what it prints": []byte(a.must(append(args, example.args...)...))}
				for _, name := range example.results {
					if got[name], err = os.ReadFile(filepath.Join(dir, name)); err != nil {
						t.Fatalf("%s: %v", isolation, err)
					}
				}
				for name, data := range got {
					if len(data) == 0 || who != "" && !bytes.Equal(data, first[name]) {
						t.Errorf("%s differs:\n%s: %.300s\n%s: %.300s", name, who, first[name], isolation, data)
					}
				}
				first, who = got, isolation
			}
			here := plainRun(t, filepath.Join(examples, example.script), example.args...)
			if !slices.Equal(here, first["what it prints"]) {
				t.Errorf("on this host it prints:\n%.300s\nand behind %s:\n%.300s", here, who, first["what it prints"])
			}
		})
	}
}

// plainRun is the program without any of this.
func plainRun(t *testing.T, script string, args ...string) []byte {
	t.Helper()
	interpreter := map[string]string{".py": "/usr/bin/python3", ".js": "node"}[filepath.Ext(script)]
	cmd := exec.Command(interpreter, append([]string{script}, args...)...)
	cmd.Dir = t.TempDir()
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v", interpreter, err)
	}
	return out
}
