package sdktest_test

import (
	"bufio"
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// server is a `firebreak serve` with a state directory of its own.
type server struct {
	exports []string // as E2B's clients want them, of the form NAME=value
	domain  string   // below which sandboxes have host names, with the port of TLS
	ca      string   // file of the authority that certifies these
}

// startServer starts a server with a state directory and ends it with the test, when nothing of it may be left.
func startServer(t *testing.T, bin, state string) *server {
	t.Helper()
	s, out := &server{}, &output{}
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(bin, "serve", "--listen", "127.0.0.1:0", "--tls", "auto", "--tls-listen", "127.0.0.1:0",
		"--domain", "boxes.firebreak.test", "--kill-on-exit", "--log-format", "json",
		// The host has what the interpreter is to show; the template base is made by the first build, in the midst of all.
		"--aliases", "base=host,code-interpreter-v1=host")
	cmd.Env = append(cleanEnv(), "FIREBREAK_STATE_DIR="+state)
	cmd.Stdout, cmd.Stderr = write, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { endServer(t, cmd, out) })
	_ = write.Close() // the child has it
	exports := make(chan []string, 1)
	go readExports(io.TeeReader(read, out), exports)
	var told []string // the domain and the authority, of what it says to people
	for end := time.Now().Add(time.Minute); told == nil && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		told = regexp.MustCompile(`(?s)sandboxes are at <port>-<id>\.(\S+),.*of the authority (\S+):`).FindStringSubmatch(out.String())
	}
	select {
	case s.exports = <-exports:
	case <-time.After(time.Minute):
	}
	if len(s.exports) != 3 || told == nil {
		t.Fatalf("the server printed %q\n%s", s.exports, out)
	}
	s.domain, s.ca = told[1], told[2]
	return s
}

// readExports passes on the first three exports that a server prints, or what there was at its end, and reads on.
func readExports(r io.Reader, found chan<- []string) {
	var exports []string
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		if name, ok := strings.CutPrefix(strings.TrimSpace(lines.Text()), "export "); ok && len(exports) < 3 {
			exports = append(exports, name)
			if len(exports) == 3 {
				found <- exports
			}
		}
	}
	if len(exports) < 3 {
		found <- exports
	}
}

func endServer(t *testing.T, cmd *exec.Cmd, out *output) {
	t.Helper()
	_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("the server ended with %v", err)
		}
	case <-time.After(2 * time.Minute):
		_ = cmd.Process.Kill()
		t.Error("the server does not end when it is told to")
	}
	if t.Failed() {
		t.Logf("the server's last words:\n%s", out)
	}
}

// output keeps the end of what was written to it.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

const maxOutput = 64 << 10

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.text.Write(p)
	if over := o.text.Len() - maxOutput; over > 0 {
		o.text.Next(over)
	}
	return len(p), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// cleanEnv is the environment without what clients and server are told by it.
func cleanEnv() []string {
	var env []string
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "E2B_") && !strings.HasPrefix(v, "FIREBREAK_") {
			env = append(env, v)
		}
	}
	return env
}

// binary returns the firebreak under test: FIREBREAK_BIN, or one built for this run.
func binary(t *testing.T) string {
	t.Helper()
	if path := os.Getenv("FIREBREAK_BIN"); path != "" {
		return path
	}
	path := filepath.Join(t.TempDir(), "firebreak")
	build := exec.Command("go", "build", "-o", path, "../../cmd/firebreak")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return path
}
