package build

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak/internal/store"
)

// killedVariable has TestKilledHelper be a server that builds in that directory until it is killed.
const killedVariable = "FIREBREAK_BUILD_UNTIL_KILLED"

func TestKilledHelper(t *testing.T) {
	dir := os.Getenv(killedVariable)
	if dir == "" {
		t.Skip("it is a part of TestKilled")
	}
	l := newLabIn(t, "gvisor", dir, nil)
	l.small()
	ctx := as(t, "acme")
	tpl, b := l.begin(ctx, "app", Spec{FromTemplate: "small", Steps: runs("echo kept >~/kept", "echo begun; sleep 1000")})
	l.until(ctx, tpl, b, "begun")
	os.Stdout.WriteString("begun " + tpl.ID + " " + b.ID + "\n")
	select {}
}

// TestKilled: of a build whose server is killed nothing is left but the word that it failed.
func TestKilled(t *testing.T) {
	newLab(t, "gvisor", nil) // skips where it cannot be
	dir, err := os.MkdirTemp("", "lab")
	must(t, err, os.Chmod(dir, 0o755))
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	program, err := gvisorProgram()
	must(t, err)
	cmd := exec.Command("/proc/self/exe", "-test.run", "^TestKilledHelper$")
	cmd.Env = append(os.Environ(), killedVariable+"="+dir, "FIREBREAK_BIN="+program)
	out, err := cmd.StdoutPipe()
	must(t, err, cmd.Start())
	var words []string
	for lines := bufio.NewScanner(out); len(words) != 3 && lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "begun ") {
			words = strings.Fields(lines.Text())
		}
	}
	must(t, cmd.Process.Kill())
	_ = cmd.Wait() // it was killed
	if len(words) != 3 {
		t.Fatal("it did not begin to build")
	}
	l := newLabIn(t, "gvisor", dir, nil)
	ctx := as(t, "acme")
	b, lines, err := l.Status(ctx, words[1], words[2])
	if err != nil || b.State != store.BuildFailed || !strings.Contains(b.Reason, "restarted") || len(lines) < 3 {
		t.Errorf("%+v with %d lines, %v", b, len(lines), err)
	}
	all, err := l.manager.List(operator(ctx))
	if err != nil || len(all) != 0 {
		t.Errorf("sandboxes are left: %v, %v", all, err)
	}
	if ids, err := l.driver.List(ctx); err != nil || len(ids) != 0 {
		t.Errorf("the driver has %v, %v", ids, err)
	}
	if layers, err := l.store.Layers(ctx); err != nil || len(layers) != 0 {
		t.Errorf("layers are left: %v, %v", layers, err)
	}
	names, err := os.ReadDir(filepath.Join(dir, "images", "templates"))
	if err != nil || len(names) != 1 {
		t.Errorf("images %v, %v", names, err)
	}
	l.mustBuild(ctx, "app", Spec{FromTemplate: "small", Steps: runs("true")})
}
