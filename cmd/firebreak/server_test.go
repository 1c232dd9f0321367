package main_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/client"
)

// served is a firebreak serve that can be killed and started again at the same address, with the same state.
type served struct {
	alone
	cmd  *exec.Cmd
	url  string
	key  string
	logs bytes.Buffer // of the server that runs
	flag []string
}

// newServed starts a server, of which nothing may be left when the test ends.
func newServed(t *testing.T, flags ...string) *served {
	t.Helper()
	s := &served{alone: newAlone(t, t.TempDir()), flag: flags}
	s.start("127.0.0.1:0")
	t.Cleanup(func() {
		s.stop()
		if t.Failed() {
			t.Logf("the server said:\n%s", s.logs.String())
		}
	})
	return s
}

// start waits until the server has said where it is and looks after what there was.
func (s *served) start(address string) {
	s.t.Helper()
	s.cmd = s.command(context.Background(), append([]string{"serve", "--listen", address}, s.flag...)...)
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	s.logs.Reset()
	s.cmd.Stderr = &s.logs
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		name, value, _ := strings.Cut(strings.TrimPrefix(lines.Text(), "export "), "=")
		switch name {
		case "E2B_API_KEY":
			s.key = value
		case "E2B_API_URL":
			s.url = value
		case "E2B_SANDBOX_URL":
			go io.Copy(io.Discard, out)
			s.untilReady()
			return
		}
	}
	s.cmd.Wait()
	s.t.Fatalf("the server said no address:\n%s", s.logs.String())
}

func (s *served) untilReady() {
	s.t.Helper()
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		res, err := http.Get(s.url + "/readyz")
		if err != nil {
			continue
		}
		res.Body.Close()
		if res.StatusCode < 300 {
			return
		}
	}
	s.t.Fatalf("the server is not ready:\n%s", s.logs.String())
}

// kill ends the server as a crash does; what it started lives on.
func (s *served) kill() {
	s.t.Helper()
	if err := s.cmd.Process.Kill(); err != nil {
		s.t.Fatal(err)
	}
	s.cmd.Wait()
}

// again starts it where it was.
func (s *served) again() {
	s.t.Helper()
	s.start(strings.TrimPrefix(s.url, "http://"))
}

// stop ends the server in order.
func (s *served) stop() {
	if s.cmd.ProcessState != nil {
		return
	}
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		s.t.Error(err)
	}
	if err := s.cmd.Wait(); err != nil {
		s.t.Errorf("the server ended with %v:\n%s", err, s.logs.String())
	}
}

func (s *served) client() *client.Client { return client.New(s.url, nil, client.WithAPIKey(s.key)) }

// call is a request as E2B's clients make it, whose answer must have this status. into may be nil.
func (s *served) call(ctx context.Context, method, path, body string, status int, into any) error {
	req, err := http.NewRequestWithContext(ctx, method, s.url+path, strings.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("X-API-Key", s.key)
	req.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode != status {
		return fmt.Errorf("%s %s: %d %s", method, path, res.StatusCode, text)
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(text, into)
}

// made is what E2B's clients are told of a sandbox.
type made struct {
	ID    string `json:"sandboxID"`
	Token string `json:"envdAccessToken"`
}

func (s *served) create(ctx context.Context, body string) (made, error) {
	var m made
	return m, s.call(ctx, "POST", "/v2/sandboxes", body, http.StatusCreated, &m)
}

// memory returns the most memory that the server has had in bytes.
func (s *served) memory() int64 {
	s.t.Helper()
	text, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(s.cmd.Process.Pid), "status"))
	if err != nil {
		s.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var kib int64
		if n, _ := fmt.Sscanf(line, "VmHWM: %d kB", &kib); n == 1 {
			return kib << 10
		}
	}
	s.t.Fatal("the server has no memory")
	return 0
}
