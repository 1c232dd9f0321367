package agent_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/firebreak-dev/firebreak/internal/agent"
	"github.com/firebreak-dev/firebreak/internal/agentbin"
	filesystemv1 "github.com/firebreak-dev/firebreak/internal/api/filesystem"
	processv1 "github.com/firebreak-dev/firebreak/internal/api/process"
	"github.com/firebreak-dev/firebreak/internal/guest"
)

// TestMain lets this test binary be the agent, so that a test can have one as a process of its own.
func TestMain(m *testing.M) {
	if os.Getenv("BE_THE_AGENT") != "" {
		os.Unsetenv("BE_THE_AGENT")
		os.Exit(agent.Main(os.Args[1:], os.Stderr))
	}
	os.Exit(m.Run())
}

// box is an agent under test, and its guest.
type box struct {
	*guest.Guest
	t       testing.TB
	agent   *agent.Agent
	address string
	client  *http.Client
}

func dialer(address string) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", address)
	}
}

// inProcess serves an agent in this process until the test ends.
func inProcess(t testing.TB, c agent.Config) *box {
	t.Helper()
	c.Log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	a, err := agent.New(c)
	if err != nil {
		t.Fatal(err)
	}
	address := filepath.Join(t.TempDir(), "a.sock")
	l, err := net.Listen("unix", address)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- a.Serve(ctx, l) }()
	b := newBox(t, address)
	b.agent = a
	t.Cleanup(func() {
		stop()
		if err := <-served; err != nil && !errors.Is(err, agent.ErrDeadline) {
			t.Errorf("serve: %v", err)
		}
		a.Close()
	})
	return b
}

func newBox(t testing.TB, address string) *box {
	b := &box{Guest: guest.New(dialer(address), "the token"), t: t, address: address}
	transport := &http.Transport{DisableCompression: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return dialer(address)(ctx)
	}}
	b.client = &http.Client{Transport: transport}
	t.Cleanup(func() { b.Close(); transport.CloseIdleConnections() })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := b.Init(ctx, guest.Config{Envs: map[string]string{"FROM_INIT": "yes"}, User: me(t)}); err != nil {
		t.Fatal(err)
	}
	return b
}

// asProcess starts the agent as a process of its own, as firebreak does.
func asProcess(t testing.TB, args ...string) (*box, *exec.Cmd) {
	t.Helper()
	return program(t, "/proc/self/exe", args...)
}

// realAgent is the program as it is shipped: without the race detector, whose memory is its own.
func realAgent(t testing.TB) string {
	t.Helper()
	path, err := agentbin.Path(t.Context(), t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func program(t testing.TB, exe string, args ...string) (*box, *exec.Cmd) {
	t.Helper()
	address := filepath.Join(t.TempDir(), "a.sock")
	cmd := exec.Command(exe, append([]string{"--listen", "unix:" + address}, args...)...)
	cmd.Env = append(os.Environ(), "BE_THE_AGENT=1")
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Signal(syscall.SIGTERM)
			_ = cmd.Wait()
		}
	})
	return newBox(t, address), cmd
}

func me(t testing.TB) string {
	t.Helper()
	out, err := exec.Command("id", "-un").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can become other users")
	}
}

// result is what a whole run gave.
type result struct {
	pid                 uint32
	stdout, stderr, pty bytes.Buffer
	end                 *processv1.ProcessEvent_EndEvent
	at                  processv1.Offsets // after the last byte
}

// add takes an event and checks the protocol's promises.
func (r *result) add(e *processv1.ProcessEvent) error {
	if r.end != nil {
		return fmt.Errorf("%v after the end", e)
	}
	switch e := e.GetEvent().(type) {
	case *processv1.ProcessEvent_Start:
		if r.pid != 0 {
			return errors.New("two starts")
		}
		r.pid = e.Start.GetPid()
		o := e.Start.GetOffsets()
		r.at.Stdout, r.at.Stderr, r.at.Pty = o.GetStdout(), o.GetStderr(), o.GetPty()
	case *processv1.ProcessEvent_Data:
		return r.data(e.Data)
	case *processv1.ProcessEvent_End:
		r.end = e.End
	}
	if r.pid == 0 {
		return fmt.Errorf("%v before the start", e)
	}
	return nil
}

func (r *result) data(d *processv1.ProcessEvent_DataEvent) error {
	if r.pid == 0 {
		return errors.New("data before the start")
	}
	into, at, data, limit := &r.stdout, &r.at.Stdout, d.GetStdout(), 32<<10
	switch d.GetOutput().(type) {
	case *processv1.ProcessEvent_DataEvent_Stderr:
		into, at, data = &r.stderr, &r.at.Stderr, d.GetStderr()
	case *processv1.ProcessEvent_DataEvent_Pty:
		into, at, data, limit = &r.pty, &r.at.Pty, d.GetPty(), 16<<10
	}
	if d.GetOffset() != *at {
		return fmt.Errorf("data at offset %d, want %d", d.GetOffset(), *at)
	}
	if len(data) > limit {
		return fmt.Errorf("%d bytes in one event, want %d at most", len(data), limit)
	}
	*at += uint64(len(data))
	into.Write(data)
	return nil
}

// events is what Start and Connect return.
type events interface {
	Receive() bool
	Err() error
	Close() error
}

func event(s events) *processv1.ProcessEvent {
	switch s := s.(type) {
	case *connect.ServerStreamForClient[processv1.StartResponse]:
		return s.Msg().GetEvent()
	case *connect.ServerStreamForClient[processv1.ConnectResponse]:
		return s.Msg().GetEvent()
	}
	return nil
}

// collect reads a stream to its end.
func collect(t testing.TB, s events) (*result, error) {
	t.Helper()
	r := &result{}
	for s.Receive() {
		if err := r.add(event(s)); err != nil {
			t.Fatal(err)
		}
	}
	return r, s.Err()
}

// until reads a stream until done says so.
func (r *result) until(t testing.TB, s events, done func() bool) {
	t.Helper()
	for !done() {
		if !s.Receive() {
			t.Fatalf("the stream ended too early: %v; stdout %q stderr %q pty %q", s.Err(), tail(r.stdout), tail(r.stderr), tail(r.pty))
		}
		if err := r.add(event(s)); err != nil {
			t.Fatal(err)
		}
	}
}

func tail(b bytes.Buffer) string {
	all := b.Bytes()
	return string(all[max(0, len(all)-200):])
}

func shell(script string) *processv1.StartRequest {
	no := false
	return &processv1.StartRequest{Process: &processv1.ProcessConfig{Cmd: "/bin/sh", Args: []string{"-c", script}}, Stdin: &no}
}

type option func(http.Header)

func asUser(name string) option {
	return func(h http.Header) {
		h.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(name+":")))
	}
}

func header(name, value string) option { return func(h http.Header) { h.Set(name, value) } }

func request[T any](msg *T, options ...option) *connect.Request[T] {
	req := connect.NewRequest(msg)
	for _, o := range options {
		o(req.Header())
	}
	return req
}

// begin starts a process and reads its start event.
func (b *box) begin(req *processv1.StartRequest, options ...option) (events, *result) {
	b.t.Helper()
	stream, err := b.Process().Start(b.t.Context(), request(req, options...))
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = stream.Close() })
	r := &result{}
	r.until(b.t, stream, func() bool { return r.pid != 0 })
	return stream, r
}

// run runs a process to its end.
func (b *box) run(req *processv1.StartRequest, options ...option) (*result, error) {
	b.t.Helper()
	stream, err := b.Process().Start(b.t.Context(), request(req, options...))
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	return collect(b.t, stream)
}

// output runs a script that must succeed and returns its standard output.
func (b *box) output(script string, options ...option) string {
	b.t.Helper()
	r, err := b.run(shell(script), options...)
	if err != nil || r.end.GetExitCode() != 0 {
		b.t.Fatalf("%s: %v, %v, stderr %q", script, err, r, tail(r.stderr))
	}
	return r.stdout.String()
}

func byPID(pid uint32) *processv1.ProcessSelector {
	return &processv1.ProcessSelector{Selector: &processv1.ProcessSelector_Pid{Pid: pid}}
}

func byTag(tag string) *processv1.ProcessSelector {
	return &processv1.ProcessSelector{Selector: &processv1.ProcessSelector_Tag{Tag: tag}}
}

func (b *box) input(pid uint32, text string) {
	b.t.Helper()
	_, err := b.Process().SendInput(b.t.Context(), request(&processv1.SendInputRequest{
		Process: byPID(pid), Input: &processv1.ProcessInput{Input: &processv1.ProcessInput_Stdin{Stdin: []byte(text)}}}))
	if err != nil {
		b.t.Fatal(err)
	}
}

// do sends a plain HTTP request with the token and returns the whole answer.
func (b *box) do(method, path string, body io.Reader, options ...option) (*http.Response, []byte) {
	b.t.Helper()
	req, err := http.NewRequestWithContext(b.t.Context(), method, "http://agent"+path, body)
	if err != nil {
		b.t.Fatal(err)
	}
	req.Header.Set("X-Access-Token", "the token")
	for _, o := range options {
		o(req.Header)
	}
	res, err := b.client.Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return res, text
}

func (b *box) stat(path string, options ...option) (*filesystemv1.EntryInfo, error) {
	res, err := b.Filesystem().Stat(b.t.Context(), request(&filesystemv1.StatRequest{Path: path}, options...))
	if err != nil {
		return nil, err
	}
	return res.Msg.GetEntry(), nil
}

func wantCode(t testing.TB, err error, want connect.Code) {
	t.Helper()
	if err == nil || connect.CodeOf(err) != want {
		t.Errorf("got %v, want %v", err, want)
	}
}

// eventually repeats check, which says what is still missing, until it says nothing.
func eventually(t testing.TB, check func() string) {
	t.Helper()
	text := ""
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if text = check(); text == "" {
			return
		}
	}
	t.Fatal(text)
}
