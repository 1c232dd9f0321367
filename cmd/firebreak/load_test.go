package main_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"

	"connectrpc.com/connect"

	"github.com/firebreak-dev/firebreak/internal/api/process"
)

// atOnce calls do for 0 to n-1, so many at a time, and fails the test with the first error.
func atOnce(t *testing.T, n, parallel int, do func(i int) error) {
	t.Helper()
	slots, errs := make(chan struct{}, parallel), make(chan error, n)
	var wg sync.WaitGroup
	for i := range n {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if err := do(i); err != nil {
				errs <- err
			}
		})
	}
	wg.Wait()
	close(errs)
	failed := 0
	for err := range errs {
		if failed++; failed <= 3 {
			t.Error(err)
		}
	}
	if failed > 0 {
		t.Fatalf("%d of %d failed", failed, n)
	}
}

// TestLoad holds a server to what its users do to it all at once: nothing fails, and nothing is left.
func TestLoad(t *testing.T) {
	creates, execs, size := 200, 1000, int64(1<<30)
	if testing.Short() {
		creates, execs, size = 16, 100, 32<<20
	}
	s := newServed(t)
	t.Run("creates", func(t *testing.T) {
		atOnce(t, creates, 20, func(int) error {
			m, err := s.create(t.Context(), `{"templateID":"base","timeout":600}`)
			if err == nil {
				err = s.call(t.Context(), "DELETE", "/sandboxes/"+m.ID, "", http.StatusNoContent, nil)
			}
			return err
		})
		var left []made
		if err := s.call(t.Context(), "GET", "/v2/sandboxes", "", http.StatusOK, &left); err != nil || len(left) > 0 {
			t.Errorf("after all were killed there are %v, %v", left, err)
		}
	})
	var boxes []made
	for range 4 {
		m, err := s.create(t.Context(), `{"templateID":"base","timeout":600}`)
		if err != nil {
			t.Fatal(err)
		}
		boxes = append(boxes, m)
	}
	t.Run("execs", func(t *testing.T) {
		atOnce(t, execs, 50, func(i int) error { return s.echo(t.Context(), boxes[i%len(boxes)].ID, fmt.Sprintf("number %d", i)) })
	})
	t.Run("large file", func(t *testing.T) {
		box, err := s.create(t.Context(), `{"templateID":"base","timeout":600}`)
		if err != nil {
			t.Fatal(err)
		}
		before := s.memory()
		sent := s.upload(t, box, size)
		if got := s.download(t, box); got != sent {
			t.Error("what came back is not what was sent")
		}
		if grown := s.memory() - before; grown > 64<<20 {
			t.Errorf("the server took %d MiB more for %d MiB", grown>>20, size>>20)
		}
	})
	t.Run("idle connections", func(t *testing.T) { s.idle(t, min(10*creates*5, 10_000)) })
}

// echo runs one command and holds it to its output.
func (s *served) echo(ctx context.Context, id, word string) error {
	no := false
	stream, err := s.client().Process(id).Start(ctx, connect.NewRequest(&process.StartRequest{
		Process: &process.ProcessConfig{Cmd: "/bin/echo", Args: []string{"-n", word}}, Stdin: &no}))
	if err != nil {
		return err
	}
	defer stream.Close()
	var heard strings.Builder
	for stream.Receive() {
		event := stream.Msg().GetEvent()
		heard.Write(event.GetData().GetStdout())
		if end := event.GetEnd(); end != nil {
			if end.GetExitCode() != 0 || heard.String() != word {
				return fmt.Errorf("echo %q said %q and ended with %d", word, heard.String(), end.GetExitCode())
			}
			return nil
		}
	}
	return fmt.Errorf("echo %q: no end: %w", word, stream.Err())
}

// endless yields bytes that do not compress, from a hash of their place.
type endless struct {
	n    uint64
	rest []byte
	sum  hash.Hash
}

func (e *endless) Read(p []byte) (int, error) {
	if len(e.rest) == 0 {
		block := sha256.Sum256(fmt.Append(nil, e.n))
		e.n, e.rest = e.n+1, []byte(strings.Repeat(string(block[:]), 1024))
	}
	n := copy(p, e.rest)
	e.rest = e.rest[n:]
	e.sum.Write(p[:n])
	return n, nil
}

func (s *served) files(t *testing.T, box made, method string, body io.Reader) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.url+"/files?path="+url.QueryEscape("/home/user/large"), body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("E2b-Sandbox-Id", box.ID)
	req.Header.Set("E2b-Sandbox-Port", "49983")
	req.Header.Set("X-Access-Token", box.Token)
	req.Header.Set("Content-Type", "application/octet-stream")
	req.Header.Set("Accept-Encoding", "identity")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(res.Body)
		t.Fatalf("%s: %d %s", method, res.StatusCode, text)
	}
	return res
}

func (s *served) upload(t *testing.T, box made, size int64) (sum [sha256.Size]byte) {
	t.Helper()
	source := &endless{sum: sha256.New()}
	res := s.files(t, box, http.MethodPost, io.LimitReader(source, size))
	res.Body.Close()
	return [sha256.Size]byte(source.sum.Sum(nil))
}

func (s *served) download(t *testing.T, box made) (sum [sha256.Size]byte) {
	t.Helper()
	res := s.files(t, box, http.MethodGet, nil)
	defer res.Body.Close()
	h := sha256.New()
	if _, err := io.Copy(h, res.Body); err != nil {
		t.Fatal(err)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// idle opens connections that each make one request and then only wait, from several addresses, and sees that the server
// serves others meanwhile.
func (s *served) idle(t *testing.T, n int) {
	address := strings.TrimPrefix(s.url, "http://")
	conns := make([]net.Conn, n)
	defer func() {
		for _, c := range conns {
			if c != nil {
				c.Close()
			}
		}
	}()
	atOnce(t, n, 50, func(i int) error {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(1+i%8))}}
		c, err := d.DialContext(t.Context(), "tcp", address)
		if err != nil {
			return err
		}
		conns[i] = c
		if _, err := io.WriteString(c, "GET /healthz HTTP/1.1\r\nHost: "+address+"\r\n\r\n"); err != nil {
			return err
		}
		buf := make([]byte, 12)
		if _, err := io.ReadFull(c, buf); err != nil || !strings.HasPrefix(string(buf), "HTTP/1.1 20") {
			return fmt.Errorf("connection %d: %q, %v", i, buf, err)
		}
		return nil
	})
	m, err := s.create(t.Context(), `{"templateID":"base","timeout":600}`)
	if err != nil {
		t.Fatalf("beside %d idle connections: %v", n, err)
	}
	if err := s.echo(t.Context(), m.ID, "here"); err != nil {
		t.Error(err)
	}
	t.Logf("%d idle connections; the server had at most %d MiB", n, s.memory()>>20)
}
