package mcp_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/manager"
	"github.com/firebreak-dev/firebreak/internal/mcp"
	"github.com/firebreak-dev/firebreak/internal/policy"
	"github.com/firebreak-dev/firebreak/internal/store"
)

// raw is a client that writes what it likes.
type raw struct {
	in   *os.File // the door reads what is written to it
	out  *os.File
	done chan error
}

func (w *world) raw() *raw {
	w.t.Helper()
	in, ours, err := os.Pipe()
	if err != nil {
		w.t.Fatal(err)
	}
	answers, out, err := os.Pipe()
	if err != nil {
		w.t.Fatal(err)
	}
	r := &raw{in: ours, out: answers, done: make(chan error, 1)}
	go func() {
		r.done <- w.door.Serve(operator(context.Background()), in, out)
	}()
	return r
}

func (r *raw) say(t *testing.T, lines ...string) {
	t.Helper()
	for _, line := range lines {
		if _, err := io.WriteString(r.in, line+"\n"); err != nil {
			t.Fatal(err)
		}
	}
}

// close goes away, and waits until nothing of the session is left.
func (r *raw) close(t *testing.T) {
	t.Helper()
	_ = r.in.Close()
	_ = r.out.Close()
	select {
	case <-r.done: // with whatever error the client made
	case <-time.After(2 * time.Minute):
		buf := make([]byte, 1<<20)
		t.Fatalf("the session does not end:\n%s", buf[:runtime.Stack(buf, true)])
	}
}

const began = `{"jsonrpc":"2.0","method":"notifications/initialized"}`

// TestKilledInTheMiddle has clients vanish while tools are at work; nothing of theirs may be left.
func TestKilledInTheMiddle(t *testing.T) {
	w := newWorld(t, nil)
	for i := range 4 {
		pids := filepath.Join(t.TempDir(), "pid")
		r := w.raw()
		r.say(t, hello, began)
		for id, args := range []string{
			`"run_command","arguments":{"command":"echo $$ >` + pids + `.new; mv ` + pids + `.new ` + pids + `; sleep 600"}`,
			`"run_command","arguments":{"command":"sleep 600","background":true}`,
			`"run_code","arguments":{"code":"import time; time.sleep(600)"}`,
			`"create_sandbox","arguments":{}`,
		} {
			r.say(t, fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":%s}}`, id+2, args))
		}
		if i > 0 { // else at once
			for eventually(t, "it begins", func() bool { _, err := os.Stat(pids); return err == nil }) {
			}
		}
		r.close(t)
		w.holds(0)
		if pid, err := os.ReadFile(pids); err == nil {
			for eventually(t, "the command ends", func() bool { return ended(t, string(pid)) }) {
			}
		}
	}
}

// TestFlood sends far more calls at once than may be at work, and has all answered.
func TestFlood(t *testing.T) {
	w := newWorld(t, nil)
	c := w.connect(nil)
	c.call("run_command", object{"command": "true"}, nil)
	var mu sync.Mutex
	var all sync.WaitGroup
	counts := map[bool]int{}
	for range 500 {
		all.Go(func() {
			res, err := c.CallTool(t.Context(), &sdk.CallToolParams{Name: "run_command", Arguments: object{"command": "sleep 0.1"}})
			if err != nil {
				t.Error(err)
				return
			}
			if res.IsError && !strings.Contains(textOf(res), "at work already") {
				t.Error(textOf(res))
			}
			mu.Lock()
			defer mu.Unlock()
			counts[res.IsError]++
		})
	}
	all.Wait()
	if counts[true] == 0 || counts[false] == 0 {
		t.Errorf("of 500 calls at once %d were done and %d refused", counts[false], counts[true])
	}
	if got := c.call("run_command", object{"command": "echo still"}, nil); !strings.HasPrefix(got, "still\n") {
		t.Errorf("after that: %q", got)
	}
}

// TestBackgroundHasALimit starts commands until no more may run.
func TestBackgroundHasALimit(t *testing.T) {
	c := newWorld(t, nil).connect(nil)
	for range 32 {
		c.call("run_command", object{"command": "sleep 600", "background": true}, nil)
	}
	c.refused("run_command", object{"command": "sleep 600", "background": true}, "32 commands", "kill_command")
	c.call("kill_command", object{"command_id": "c7"}, nil)
	c.call("run_command", object{"command": "true"}, nil)
}

// TestHugeMessages holds both transports to their limit.
func TestHugeMessages(t *testing.T) {
	_, s := remote(t, nil)
	huge := `{"jsonrpc":"2.0","id":3,"method":"tools/call","params":{"name":"write_file","arguments":{"path":"x","content":"` + strings.Repeat("x", 9<<20) + `"}}}`
	res, _ := post(t, s, "acme", hello)
	id := res.Header.Get("Mcp-Session-Id")
	if res, text := post(t, s, "acme", huge, "Mcp-Session-Id", id); res.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("%d %.200s", res.StatusCode, text)
	}
	c := dialHTTP(t, s, "acme", nil)
	c.refused("write_file", object{"path": "x", "content": strings.Repeat("x", 3<<20)}, "maxLength")
	c.refused("run_code", object{"code": strings.Repeat("#", 1<<20)}, "maxLength")
}

// TestWhatIsNoMessage says lines that are none. Each is answered, and the session goes on.
func TestWhatIsNoMessage(t *testing.T) {
	w := newWorld(t, nil)
	r := w.raw()
	defer r.close(t)
	answers := bufio.NewReader(r.out)
	ask := func(line, want string) {
		t.Helper()
		r.say(t, line)
		got, err := answers.ReadString('\n')
		if err != nil || !strings.Contains(got, want) {
			t.Fatalf("%.100q: %q, %v; want %q", line, got, err, want)
		}
	}
	ask(hello, `"protocolVersion"`)
	r.say(t, began, "", "  ")
	for line, want := range map[string]string{
		"{": "-32700", "\x00": "-32700", "x": "-32700", `{"jsonrpc":"2.0","id":1,"method":"ping"} {}`: "-32700",
		"{}": "-32600", `"x"`: "-32600", "[]": "-32600", "[1]": "-32600", `{"jsonrpc":"1.0","id":1,"method":"ping"}`: "-32600",
		strings.Repeat("[", 100000): "-32600",
		strings.Repeat("x", 9<<20):  "-32600",
		`{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"run_command","arguments":{"command":` + strings.Repeat("[", 600) + strings.Repeat("]", 600) + `}}}`: "-32600",
		`{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"run_command","arguments":{"command":` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `}}}`: "isError",
		`{"jsonrpc":"2.0","id":2,"method":"zen"}`: "-32601",
	} {
		ask(line, want)
	}
	ask(`{"jsonrpc":"2.0","id":3,"method":"ping"}`, `"id":3`)
}

// mute has no sandboxes, so that what clients say can be tried fast.
type mute struct{}

func (mute) Create(context.Context, manager.Request) (store.Record, manager.Timings, error) {
	return store.Record{}, manager.Timings{}, context.DeadlineExceeded
}
func (mute) Find(context.Context, string) (store.Record, error) {
	return store.Record{}, os.ErrNotExist
}
func (mute) SetTimeout(context.Context, string, time.Duration, bool) (store.Record, error) {
	return store.Record{}, os.ErrNotExist
}
func (mute) Annotate(context.Context, string, map[string]string) (store.Record, error) {
	return store.Record{}, os.ErrNotExist
}
func (mute) Delete(context.Context, string) (store.Record, error) {
	return store.Record{}, os.ErrNotExist
}
func (mute) Guest(context.Context, string) (*guest.Guest, error) { return nil, os.ErrNotExist }
func (mute) Advise(context.Context, manager.Question) (policy.Decision, error) {
	return policy.Decision{}, os.ErrNotExist
}

func newMute() *mcp.Door {
	return mcp.New(mcp.Config{Sandboxes: mute{}, Guests: mute{}, Advisor: mute{}, Log: slog.New(slog.DiscardHandler), Local: true})
}

// FuzzMessages has clients say anything, over both transports. A door must neither panic nor hang.
func FuzzMessages(f *testing.F) {
	call := func(name, args string) string {
		return `{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"` + name + `","arguments":` + args + `}}`
	}
	for _, seed := range []string{
		hello, hello + "\n" + began + "\n" + call("run_code", `{"code":"1"}`), call("run_command", `{"command":"x","timeout_seconds":1e999}`),
		call("read_file", `{"path":"a","line":-1}`), call("edit_file", `{"path":"a","edits":[{}]}`), call("search_files", `{"pattern":"("}`),
		call("expose_port", `{"port":65536}`), call("advise", `{"needs":[1]}`), call("read_output", `{"command_id":"c1","offset":-9223372036854775808}`),
		call("create_sandbox", `null`), `{"jsonrpc":"2.0","id":null,"method":"ping"}`, `{"jsonrpc":"1.0"}`, `[]`, `[{},{}]`, `{`, "\x00", `"x"`,
		`{"jsonrpc":"2.0","id":1,"method":"resources/read","params":{"uri":"sandbox://default/files/%"}}`,
		`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"create_sandbox","arguments":{"network":true},"inputResponses":{"sandbox":{"action":"accept"}}}}`,
		`{"jsonrpc":"2.0","id":1,"result":{}}`, `{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":2}}`,
		`{"jsonrpc":"2.0","id":3,"method":"server/discover","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, said []byte) {
		door := newMute()
		in, out := io.NopCloser(bytes.NewReader(said)), nopWriter{io.Discard}
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_ = door.Serve(operator(t.Context()), in, out) // whatever the client is told
			req, err := http.NewRequest(http.MethodPost, "/mcp", bytes.NewReader(said))
			if err != nil {
				panic(err)
			}
			req.Header.Set("Content-Type", "application/json")
			req.Header.Set("Accept", "application/json, text/event-stream")
			door.ServeHTTP(&nowhere{header: http.Header{}}, req.WithContext(operator(t.Context())))
			_ = door.Close()
		}()
		select {
		case <-ended:
		case <-time.After(time.Minute):
			buf := make([]byte, 1<<20)
			panic(fmt.Sprintf("it hangs on %q:\n%s", said, buf[:runtime.Stack(buf, true)]))
		}
	})
}

type nopWriter struct{ io.Writer }

func (nopWriter) Close() error { return nil }

// nowhere is a client that reads nothing.
type nowhere struct{ header http.Header }

func (n *nowhere) Header() http.Header         { return n.header }
func (n *nowhere) Write(p []byte) (int, error) { return len(p), nil }
func (n *nowhere) WriteHeader(int)             {}
