package agent_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/firebreak-dev/firebreak/internal/agent"
	"github.com/firebreak-dev/firebreak/internal/agent/account"
	"github.com/firebreak-dev/firebreak/internal/agent/code"
	"github.com/firebreak-dev/firebreak/internal/agent/files"
	programs "github.com/firebreak-dev/firebreak/internal/agent/program"
	filesystemv1 "github.com/firebreak-dev/firebreak/internal/api/filesystem"
	processv1 "github.com/firebreak-dev/firebreak/internal/api/process"
	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/memfs"
)

// toys is a place for kernels of a small language: lines of "set NAME VALUE", "get NAME", "env NAME", "bytes TEXT", "fail", "wait" and "die".
type toys struct{ kernels sync.WaitGroup }

func (*toys) Language(name string) (code.Language, error) {
	if name != "" && name != "toy" {
		return code.Language{}, code.Fail(http.StatusBadRequest, fmt.Errorf("language %q cannot be run here: the language is toy", name))
	}
	return code.Language{Name: "toy"}, nil
}

func (*toys) Offers(code.Language) bool { return true }

func (p *toys) Close() { p.kernels.Wait() }

func (p *toys) Start(o code.Options) (code.Kernel, error) {
	k := &toy{values: map[string]string{}, env: o.Env, gone: make(chan struct{}), stopped: make(chan struct{})}
	p.kernels.Go(func() { <-k.stopped; close(k.gone) })
	return k, nil
}

type toy struct {
	values, env map[string]string
	gone        chan struct{}

	mu      sync.Mutex
	reason  string
	stopped chan struct{}
}

func (k *toy) Ready(context.Context) error { return nil }
func (k *toy) Gone() <-chan struct{}       { return k.gone }

func (k *toy) Kill(reason string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.reason == "" {
		k.reason = reason
		close(k.stopped)
	}
}

func (k *toy) End() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return "the toy was killed: " + k.reason
}

func (k *toy) Run(ctx context.Context, text string, env map[string]string, out code.Sink) bool {
	stdout := code.NewWriter(out, "stdout")
	defer stdout.Close() //nolint:errcheck // it never fails
	for line := range strings.Lines(text) {
		words := append(strings.Fields(line), "", "", "")
		switch words[0] {
		case "set":
			k.values[words[1]] = words[2]
		case "get":
			form, _ := json.Marshal(k.values[words[1]])
			out.Result(true, map[string]json.RawMessage{"text": form})
		case "env":
			fmt.Fprintln(stdout, k.env[words[1]]+env[words[1]])
		case "bytes":
			for _, b := range []byte(words[1]) {
				_, _ = stdout.Write([]byte{b})
			}
		case "fail":
			out.Failed("Failure", "as asked", "")
		case "wait":
			select {
			case <-ctx.Done():
				return true
			case <-k.gone:
				return false
			}
		case "die":
			k.Kill("it asked for it")
			<-k.gone
			return false
		}
	}
	return true
}

// embed serves an embedded agent until the test ends.
func embed(t *testing.T) (*box, *memfs.FS) {
	t.Helper()
	memory := memfs.New(memfs.Options{UID: 1000, GID: 1000})
	if err := memory.MkdirAll("/home/user", 0o755); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	session := agent.NewSession(account.User{Name: "user", UID: 1000, GID: 1000, Home: "/home/user"})
	system := files.Memory{FS: memory}
	launcher := programs.New(programs.Config{Session: session, Place: "a toy sandbox", Stat: system.Stat, Log: log,
		Find: func(args []string) (programs.Func, error) {
			if args[0] != "cat" {
				return nil, fmt.Errorf("%q cannot be run in a toy sandbox: its program is cat", args[0])
			}
			return func(_ context.Context, c programs.Call) int {
				f, err := memory.Open(c.Dir + "/" + c.Args[1])
				if err != nil {
					fmt.Fprintln(c.Stderr, err)
					return 1
				}
				defer f.Close() //nolint:errcheck // opened for reading
				_, _ = io.Copy(c.Stdout, f)
				return 0
			}, nil
		}})
	a := agent.Embed(agent.Parts{Session: session, Files: system, Programs: launcher, Code: &toys{}, Place: "a toy sandbox", Protocol: agent.NewProtocol(), Log: log,
		Usage: func() agent.Usage {
			return agent.Usage{CPUs: 1, CPU: time.Second, Memory: 3 << 20, MemoryLimit: 8 << 20, Disk: 5, DiskLimit: 9}
		}})
	l := agent.NewListener()
	served := make(chan error, 1)
	go func() { served <- a.Serve(context.Background(), l) }()
	g := guest.New(l.Dial, "the token")
	transport := &http.Transport{DisableCompression: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return l.Dial(ctx) }}
	t.Cleanup(func() {
		g.Close()
		transport.CloseIdleConnections()
		_ = l.Close()
		<-served
		a.Close()
	})
	b := &box{Guest: g, t: t, agent: a, client: &http.Client{Transport: transport}}
	if err := g.Init(t.Context(), guest.Config{Envs: map[string]string{"FROM_INIT": "yes"}, User: "user"}); err != nil {
		t.Fatal(err)
	}
	return b, memory
}

// TestEmbed: the whole protocol where there is neither a process nor a file of the machine.
func TestEmbed(t *testing.T) {
	b, memory := embed(t)
	b.put("hello.txt", "from memory")
	r, err := b.run(shell("cat hello.txt"))
	if err != nil || r.stdout.String() != "from memory" || r.end.GetExitCode() != 0 {
		t.Errorf("%v, %v", r, err)
	}
	if r, err = b.run(shell("cat /etc/passwd")); err != nil || r.end.GetExitCode() != 1 || !strings.Contains(r.stderr.String(), "no such file") {
		t.Errorf("%v, %v", r, err)
	}
	if _, err := b.run(shell("cat hello.txt | sh")); connect.CodeOf(err) != connect.CodeUnimplemented || !strings.Contains(err.Error(), "no shell in a toy sandbox") {
		t.Error(err)
	}
	if _, err := b.run(shell("ls")); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Error(err)
	}
	if _, err := b.run(shell("cat hello.txt"), asUser("root")); connect.CodeOf(err) != connect.CodeUnauthenticated {
		t.Error(err)
	}
	if e, err := b.stat("~/hello.txt"); err != nil || e.GetOwner() != "user" || e.GetPath() != "/home/user/hello.txt" {
		t.Errorf("%v, %v", e, err)
	}
	if _, err := b.Filesystem().Remove(t.Context(), request(&filesystemv1.RemoveRequest{Path: "/home/user/hello.txt"})); err != nil {
		t.Error(err)
	}
	if _, err := memory.Stat("/home/user/hello.txt"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if m, err := b.Metrics(t.Context()); err != nil || m.MemTotal != 8<<20 || m.MemUsed != 3<<20 || m.DiskTotal != 9 || m.DiskUsed != 5 {
		t.Errorf("%+v, %v", m, err)
	}
	if _, err := b.DialPort(t.Context(), 8080); err == nil || !strings.Contains(err.Error(), "nothing in a toy sandbox can listen") {
		t.Error(err)
	}
	if _, err := b.Export(t.Context(), false); err == nil || !strings.Contains(err.Error(), "no root file system of its own") {
		t.Error(err)
	}
	if res, _ := b.do("GET", "/files?path=x", nil, header("X-Access-Token", "")); res.StatusCode != http.StatusUnauthorized {
		t.Errorf("without the token: %d", res.StatusCode)
	}
	terminal := &processv1.StartRequest{Process: &processv1.ProcessConfig{Cmd: "cat"}, Pty: &processv1.PTY{}}
	if _, err := b.run(terminal); connect.CodeOf(err) != connect.CodeUnimplemented {
		t.Error(err)
	}
}

func TestEmbedCode(t *testing.T) {
	b, _ := embed(t)
	i := b.interpreter()
	i.steps("toy", []step{
		{run: run{Code: "set x 1"}, text: "-"},
		{run: run{Code: "get x"}, text: "1", kinds: "number_of_executions result end_of_execution"},
		{run: run{Code: "env FROM_INIT\nenv A", Env: map[string]string{"A": "b"}}, stdout: "yes\nb\n"},
		{run: run{Code: "bytes ünï😀"}, stdout: "ünï😀"},
		{run: run{Code: "fail"}, failed: "Failure", value: "as asked"},
		{run: run{Code: "die"}, failed: "KernelDied"},
		{run: run{Code: "get x"}, text: "-"},
	})
	if err := b.Warm(t.Context(), "toy"); err != nil {
		t.Error(err)
	}
	if got := i.run(run{Code: "x", Language: "python"}); got.status != 400 || !strings.Contains(got.refusal, "the language is toy") {
		t.Errorf("%+v", got)
	}
	// A run whose client goes away is interrupted, and the kernel lives on.
	i.run(run{Code: "set x kept"})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := i.try(ctx, run{Code: "wait"}, nil); err == nil {
		t.Error("it did not wait")
	}
	if got := i.run(run{Code: "get x"}); got.text() != "kept" {
		t.Errorf("%+v", got)
	}
	// A context that is deleted ends its run.
	id := i.context("toy")
	ended := make(chan ran, 1)
	started := make(chan struct{})
	go func() {
		got, _ := i.try(t.Context(), run{Code: "wait", Context: id}, func(e told) {
			if e.Type == "number_of_executions" {
				close(started)
			}
		})
		ended <- got
	}()
	<-started
	if status, text := i.ask("DELETE", "/contexts/"+id, ""); status != 204 {
		t.Errorf("%d %s", status, text)
	}
	if got := <-ended; got.failed.Name != "KernelDied" || !strings.Contains(got.failed.Value, "the context was deleted") {
		t.Errorf("%+v", got)
	}
}

// TestEmbedLeaks: what Close leaves behind is nothing, whatever was going on.
func TestEmbedLeaks(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Run("a life", func(t *testing.T) {
		b, _ := embed(t)
		i := b.interpreter()
		i.run(run{Code: "set x 1"})
		b.put("f", "text")
		if _, err := b.run(shell("cat f")); err != nil {
			t.Error(err)
		}
		if _, err := b.Filesystem().CreateWatcher(t.Context(), request(&filesystemv1.CreateWatcherRequest{Path: "/"})); err != nil {
			t.Error(err)
		}
		go func() { _, _ = i.try(context.Background(), run{Code: "wait"}, nil) }()
	})
	eventually(t, func() string {
		if n := runtime.NumGoroutine(); n > before {
			return fmt.Sprintf("%d goroutines, then %d", before, n)
		}
		return ""
	})
}
