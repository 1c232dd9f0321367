package cli

import (
	"strings"
	"testing"
	"time"
)

// TestRunTakesFlagsAfterAFile: those that decide, up to the first word that is none. echo.wasm prints what reaches the program.
func TestRunTakesFlagsAfterAFile(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	tree(t, dir, "echo.wasm 0644 x", "a.sh 0644 echo \"$@\"")
	for _, c := range []struct {
		args  string // those after run
		own   string // what the program gets
		needs string
	}{
		{"echo.wasm --needs compute a b", "a b", "compute"},
		{"echo.wasm --needs=compute --origin untrusted --plugin a --needs linux", "a --needs linux", "compute"},
		{"--needs linux echo.wasm --needs compute", "", "linux,compute"},
		{"echo.wasm --verbose --needs compute", "--verbose --needs compute", ""},
		{"echo.wasm -m 1g --needs compute", "-m 1g --needs compute", ""},
		{"echo.wasm --needs compute -v", "-v", "compute"},
		{"echo.wasm --needs compute --unknown --json", "--unknown --json", "compute"},
		{"echo.wasm -- --needs y", "--needs y", ""},
		{"echo.wasm -- -- a", "-- a", ""},
		{"echo.wasm --needs compute -- --verbose -- x", "--verbose -- x", "compute"},
		{"echo.wasm a -- --needs y", "a -- --needs y", ""},
		{"echo.wasm - --needs y", "- --needs y", ""},
		{"a.sh --needs compute --plugin=false a", "a", "compute"},
		{"-- echo --needs y", "--needs y", ""},
		{"echo --needs y", "--needs y", ""},
	} {
		s := newServer(t)
		got := run{s: s}.do(t, append([]string{"run", "-q"}, strings.Fields(c.args)...)...)
		if got.code != 0 || strings.TrimSpace(got.stdout) != c.own || strings.Join(s.created[0].Workload.Needs, ",") != c.needs {
			t.Errorf("%s: %+v, needs %v", c.args, got, s.created)
		}
	}
	s := newServer(t)
	run{s: s}.do(t, strings.Fields("run -q a.sh --isolation container --accept-weaker mine --memory 1g --cpus 2 --disk 1g --pids 9 --timeout 5m --option a=b --data health --gpu x")...).want(t, 0, "x\n", "")
	c := s.created[0]
	if l := c.Limits; c.Driver != "container" || c.AcceptWeaker != "mine" || l.MemoryBytes != 1<<30 || l.Cpus != 2 || l.DiskBytes != 1<<30 || l.Pids != 9 ||
		c.Options["a"] != "b" || c.Workload.Data != "health" || !c.Workload.Gpu || c.Command != "a.sh x" || c.Timeout.AsDuration() != 5*time.Minute+deadlineSlack {
		t.Errorf("created by %v", c)
	}
}

func TestRunRefusesFlagsAfterAFile(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	tree(t, dir, "a.sh 0644 echo \"$@\"")
	for args, part := range map[string]string{
		"a.sh --needs compute --verbose":     "run: --verbose after a.sh could be a flag of firebreak or of the program; write it before a.sh, or -- before what is the program's own",
		"a.sh --needs compute --output=x":    "run: --output after a.sh could be",
		"a.sh --needs compute --quiet":       "run: --quiet after a.sh could be",
		"a.sh --data x.csv":                  `run: --data "x.csv": unknown word; choose one of public, internal, regulated, finance, health, personal (if it is for the program: firebreak run a.sh -- --data x.csv)`,
		"a.sh --needs":                       "flag needs an argument: --needs",
		"a.sh --needs nothing":               `--needs: "nothing" is none of linux`,
		"a.sh --cpus -1":                     "a limit is negative",
		"a.sh --allow net=x":                 `run: --allow "net=x": there is no capability "net"`,
		"a.sh --accept-weaker x":             "--accept-weaker without a driver",
		"a.sh --isolation gvizor --memory 1": "did you mean gvisor?",
	} {
		s := newServer(t)
		run{s: s}.do(t, append([]string{"run"}, strings.Fields(args)...)...).wantError(t, 125, part)
		if len(s.created) != 0 {
			t.Errorf("%s made a sandbox", args)
		}
	}
}
