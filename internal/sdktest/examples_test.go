package sdktest_test

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const examples = "../../examples/e2b"

// testExamples runs the examples as their readers would, and holds them to what they print.
func testExamples(t *testing.T, k kit, s *server) {
	for name, want := range map[string]string{
		"hello.py":       "42\nLinux\nZeroDivisionError\n",
		"hello.mjs":      "42\nLinux\nZeroDivisionError\n",
		"computesdk.mjs": "0 hello from compute\n" + "3 why\n" + "hello.py\n" + "false\n" + "true\n" + "true\n" + "null\n",
		"openai_agents.py": "north 20\nsouth 30\nby agent\n" + "failed with 3\n" + "read: b'north 20\\nsouth 30\\n'\n" +
			"files: ['report.py', 'report.txt', 'sales.txt']\n" + "terminal: True\nsaved: True\nrunning: True\nrunning: False\n",
	} {
		t.Run(name, func(t *testing.T) {
			// As in the programs, Python is not left the time to end in which the HTTP client's threads may abort it.
			const whole = "import os, runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__'); sys.stdout.flush(); os._exit(0)"
			args := []string{k.python, "-c", whole, filepath.Join(examples, name)}
			if strings.HasSuffix(name, ".mjs") {
				args = []string{k.node, filepath.Join(k.npm, filepath.Base(examples), name)}
			}
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
			defer cancel()
			cmd := k.command(ctx, s.byHeaders(), args...)
			errs := &output{}
			cmd.Stderr = errs
			out, err := cmd.Output()
			if err != nil || string(out) != want {
				t.Errorf("%v; it printed\n%s\nand not\n%s\n%s", err, out, want, errs)
			}
		})
	}
}
