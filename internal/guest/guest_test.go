package guest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak"
)

// hostile serves h where an agent would be, and returns the host's end of it.
func hostile(t *testing.T, h http.HandlerFunc) *Guest {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	g := New(func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", server.Listener.Addr().String())
	}, "token")
	t.Cleanup(g.Close)
	return g
}

func TestInitTriesUntilTheAgentIsThere(t *testing.T) {
	var tries atomic.Int32
	client, server := net.Pipe()
	go func() {
		buffer := make([]byte, 4096)
		server.Read(buffer)
		io.WriteString(server, "HTTP/1.1 204 No Content\r\n\r\n")
	}()
	g := New(func(context.Context) (net.Conn, error) {
		if tries.Add(1) < 4 {
			return nil, errors.New("not yet")
		}
		return client, nil
	}, "token")
	defer g.Close()
	if err := g.Init(t.Context(), Config{}); err != nil {
		t.Fatal(err)
	}
	if tries.Load() != 4 {
		t.Errorf("%d tries, want 4", tries.Load())
	}
}

func TestInitEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	g := New(func(context.Context) (net.Conn, error) { return nil, errors.New("mute") }, "token")
	if err := g.Init(ctx, Config{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want deadline exceeded", err)
	}
}

func TestInitDoesNotRepeatARefusal(t *testing.T) {
	var calls atomic.Int32
	g := hostile(t, func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		http.Error(w, "taken", http.StatusUnauthorized)
	})
	if err := g.Init(t.Context(), Config{}); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("got %v, want the refusal", err)
	}
	if calls.Load() != 1 {
		t.Errorf("%d calls, want 1", calls.Load())
	}
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	var elsewhere atomic.Bool
	g := hostile(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/secret" {
			elsewhere.Store(true)
		}
		http.Redirect(w, r, "/secret", http.StatusTemporaryRedirect)
	})
	if err := g.Health(t.Context()); err == nil {
		t.Error("a redirect passed for health")
	}
	if elsewhere.Load() {
		t.Error("the redirect was followed")
	}
}

func TestEndlessHeadersAndErrorsEnd(t *testing.T) {
	g := hostile(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Flood", strings.Repeat("x", 2*maxHeader))
	})
	if err := g.Health(t.Context()); err == nil {
		t.Error("a flood of headers was taken")
	}
	g = hostile(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusTeapot)
		io.WriteString(w, strings.Repeat("e", 1<<20))
	})
	if err := g.Health(t.Context()); err == nil || len(err.Error()) > 2*maxErrorText {
		t.Errorf("an error of %d bytes", len(err.Error()))
	}
}

func TestHandlerHidesTheInside(t *testing.T) {
	g := hostile(t, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, r.URL.Path+" "+r.Header.Get(TokenHeader))
	})
	door := httptest.NewServer(g.Handler())
	defer door.Close()
	for path, want := range map[string]int{"/files": 200, "/init": 404, "/ports/22": 404, "/a/../init": 404, "//init": 404} {
		answer, err := http.Get(door.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(answer.Body)
		answer.Body.Close()
		if answer.StatusCode != want {
			t.Errorf("%s: %d %s, want %d", path, answer.StatusCode, body, want)
		}
		if want == 200 && string(body) != path+" token" {
			t.Errorf("%s: the agent saw %q", path, body)
		}
	}
}

func TestDialPortPassesBytesThatCameWithTheAnswer(t *testing.T) {
	g := hostile(t, func(w http.ResponseWriter, r *http.Request) {
		conn, buffered, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		buffered.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nbanner")
		buffered.Flush()
		io.Copy(conn, buffered)
	})
	conn, err := g.DialPort(t.Context(), 80)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "+echo")
	got := make([]byte, len("banner+echo"))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != "banner+echo" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestDialPortClosed(t *testing.T) {
	g := hostile(t, func(w http.ResponseWriter, r *http.Request) { http.Error(w, "closed", http.StatusBadGateway) })
	if _, err := g.DialPort(t.Context(), 80); firebreak.KindOf(err) != firebreak.KindUnavailable {
		t.Errorf("got %v, want unavailable", err)
	}
}

type readWriter struct {
	io.Reader
	io.Writer
}

func FuzzUpgrade(f *testing.F) {
	f.Add([]byte("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nbytes"))
	f.Add([]byte("HTTP/1.1 502 Bad Gateway\r\nContent-Length: 999999999999\r\n\r\nno"))
	f.Add([]byte("HTTP/1.1 101\r\n"))
	f.Fuzz(func(t *testing.T, answer []byte) {
		reader, err := upgrade(readWriter{bytes.NewReader(answer), io.Discard}, 80, "token")
		if err != nil {
			return
		}
		rest, err := io.ReadAll(reader)
		if err != nil || !bytes.HasSuffix(answer, rest) {
			t.Errorf("what follows the answer was changed: %q, %v", rest, err)
		}
	})
}
