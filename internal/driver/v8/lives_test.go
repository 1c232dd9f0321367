package v8_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/driver/v8"
)

// runIn runs code in a context of the sandbox.
func (s *sandbox) runIn(id, text string) ran {
	s.t.Helper()
	r, err := s.ask(s.t.Context(), map[string]string{"code": text, "context_id": id})
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

func (s *sandbox) newContext(dir string) string {
	s.t.Helper()
	res, err := s.client.Post("http://code/contexts", "application/json", bytes.NewBufferString(fmt.Sprintf(`{"language":"javascript","cwd":%q}`, dir)))
	if err != nil {
		s.t.Fatal(err)
	}
	defer res.Body.Close()
	var made struct{ ID string }
	if err := json.NewDecoder(res.Body).Decode(&made); err != nil || res.StatusCode >= http.StatusBadRequest {
		s.t.Fatalf("make a context: %d, %v", res.StatusCode, err)
	}
	return made.ID
}

// TestCrowd: of more isolates than a process keeps, the one that was idle longest is ended, and that is told.
func TestCrowd(t *testing.T) {
	s := newPlace(t, "", func(c *v8.Config) { c.Isolates = 3 }).sandbox(nil)
	var ids []string
	for range 4 {
		ids = append(ids, s.newContext("/home/user"))
		if r := s.runIn(ids[len(ids)-1], "var kept = 1; kept"); r.text != "1" {
			t.Fatalf("%+v", r)
		}
	}
	var first ran
	for end := time.Now().Add(time.Minute); first.failed == "" && time.Now().Before(end); first = s.runIn(ids[0], "kept") {
		for range 50 {
			time.Sleep(100 * time.Millisecond)
			for _, id := range ids[1:] { // which makes the first the one that is idle longest
				if r := s.runIn(id, "kept"); r.text != "1" {
					t.Fatalf("one that is used was ended: %+v", r)
				}
			}
		}
	}
	if first.failed != "KernelDied" || !strings.Contains(first.value, "more than 3 isolates") {
		t.Errorf("the fourth isolate: %+v", first)
	}
	if r := s.runIn(ids[0], "typeof kept"); r.text != "undefined" {
		t.Errorf("after it was told: %+v", r)
	}
}

// TestFull: a process whose memory has grown is made anew when nothing runs in it.
func TestFull(t *testing.T) {
	p := newPlace(t, "container", func(c *v8.Config) { c.Stall = time.Minute })
	s := p.sandbox(nil)
	s.value("var hold = new Uint8Array(900 << 20).fill(1); hold.length", "943718400")
	var r ran
	for end := time.Now().Add(time.Minute); r.failed == "" && time.Now().Before(end); time.Sleep(5 * time.Second) {
		r = s.run("typeof hold")
	}
	if r.failed != "KernelDied" || !strings.Contains(r.value, "made anew: its memory had grown to") {
		t.Errorf("%+v", r)
	}
	s.value("typeof hold", "undefined")
}

// deadVariable is set in a process of this test that dies; it has the state directory.
const deadVariable = "FIREBREAK_V8_TEST_STATE"

// TestDeath is of a process that is killed in the midst: the next one clears what it left.
func TestDeath(t *testing.T) {
	if state := os.Getenv(deadVariable); state != "" {
		p := &place{t: t, state: state, Driver: open(t, state, "container", nil)}
		p.sandbox(nil).value("1 + 1", "2")
		_, _ = os.Stdout.WriteString("it lives\n")
		select {}
	}
	newPlace(t, "container", nil) // or it cannot be tried here
	state := t.TempDir()
	child := exec.Command(os.Args[0], "-test.run=^TestDeath$", "-test.v")
	child.Env = append(os.Environ(), deadVariable+"="+state, "TMPDIR="+t.TempDir())
	out, err := child.StdoutPipe()
	if err == nil {
		err = child.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	lines, lives := bufio.NewScanner(out), false
	for !lives && lines.Scan() {
		lives = strings.Contains(lines.Text(), "it lives")
	}
	_ = child.Process.Kill()
	_ = child.Wait() // it was killed
	left, err := filepath.Glob(filepath.Join(state, "v8", ".processes", "*"))
	if err != nil || len(left) != 2 || !lives {
		t.Fatalf("it lived: %v; left: %v, %v", lives, left, err)
	}
	id := filepath.Base(strings.TrimSuffix(left[0], ".lock"))
	if running(t, id) == "" {
		t.Fatal("workerd does not outlive the process that started it")
	}
	d := open(t, state, "container", nil)
	if info, err := d.Probe(t.Context()); err != nil || info.Err() != nil {
		t.Fatal(err, info.Err())
	}
	if left, err := filepath.Glob(filepath.Join(state, "v8", ".processes", "*")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if name := running(t, id); name != "" {
		t.Errorf("%s runs on", name)
	}
}

// running finds a process that has a word on its command line.
func running(t *testing.T, word string) string {
	t.Helper()
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range lines {
		if line, err := os.ReadFile(path); err == nil && bytes.Contains(line, []byte(word)) {
			return string(bytes.ReplaceAll(line, []byte{0}, []byte{' '}))
		}
	}
	return ""
}
