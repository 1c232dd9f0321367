package drivertest

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path"
	"slices"
	"strings"

	"connectrpc.com/connect"

	"github.com/firebreak-dev/firebreak/internal/api/process"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/guest"
)

// box is a sandbox whose agent has been claimed.
type box struct {
	c     *C
	spec  driver.Spec
	sb    driver.Sandbox
	guest *guest.Guest
	probe string // where the probe lies in it, "" until it has been put there
}

// box makes a sandbox and claims its agent.
func (c *C) box(spec driver.Spec) *box {
	c.Helper()
	b, err := c.enter(c.ctx, spec, c.create(spec))
	if err != nil {
		c.Fatal(err)
	}
	c.Cleanup(func() { b.guest.Close() })
	return b
}

// enter claims the agent of sb, or talks on with one that was claimed so before.
func (c *C) enter(ctx context.Context, spec driver.Spec, sb driver.Sandbox) (*box, error) {
	g := guest.To(sb, "token-"+string(spec.ID))
	conf := guest.Config{Envs: map[string]string{"FROM_INIT": "init", "WHO_WINS": "init"}, Workdir: c.Work(spec),
		SandboxID: string(spec.ID), TemplateID: "of-the-suite"}
	if c.info.Caps.Has(driver.CapUsers) {
		conf.User = c.User
	}
	if err := g.Init(ctx, conf); err != nil {
		g.Close()
		return nil, fmt.Errorf("init: %w", err)
	}
	return &box{c: c, spec: spec, sb: sb, guest: g}, nil
}

// program is what a box is asked to run.
type program struct {
	cmd   string
	args  []string
	envs  map[string]string
	cwd   string
	user  string // "": the default
	tag   string
	stdin []byte // nil: none, and the program is told so
	open  bool   // its input stays open for more
	size  *process.PTY_Size
	count bool // count the output instead of keeping it

	started func(pid uint32)   // called once it runs
	output  func(chunk []byte) // called with all that it writes, as it comes
}

// result is how it ended.
type result struct {
	pid            uint32
	stdout, stderr string
	pty            string
	bytes          int64
	code           int32
	exited         bool
	status, err    string
	ended          bool // an end event came
}

func sh(script string) program { return program{cmd: "/bin/sh", args: []string{"-c", script}} }

func authorize(h http.Header, user string) {
	if user != "" {
		h.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(user+":")))
	}
}

// run returns when the program has ended. The error is the protocol's; how the program ended is in the result.
func (b *box) run(ctx context.Context, p program) (result, error) {
	stdin := p.stdin != nil || p.open
	req := connect.NewRequest(&process.StartRequest{
		Process: &process.ProcessConfig{Cmd: p.cmd, Args: p.args, Envs: p.envs},
		Stdin:   &stdin,
	})
	if p.cwd != "" {
		req.Msg.Process.Cwd = &p.cwd
	}
	if p.tag != "" {
		req.Msg.Tag = &p.tag
	}
	if p.size != nil {
		req.Msg.Pty = &process.PTY{Size: p.size}
		req.Msg.Stdin = nil
	}
	authorize(req.Header(), p.user)
	// Ended with this call: a stream that is only closed would first be read to its end.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := b.guest.Process().Start(ctx, req)
	if err != nil {
		return result{}, err
	}
	defer stream.Close()
	var res result
	for stream.Receive() {
		ev := stream.Msg().GetEvent()
		if start := ev.GetStart(); start != nil {
			if err := b.begun(ctx, p, start.GetPid()); err != nil {
				return res, err
			}
		}
		res.add(ev, p.count)
		if data := ev.GetData(); data != nil && p.output != nil {
			p.output(slices.Concat(data.GetStdout(), data.GetStderr(), data.GetPty()))
		}
	}
	return res, stream.Err()
}

// begun feeds a program that has started.
func (b *box) begun(ctx context.Context, p program, pid uint32) error {
	if p.started != nil {
		p.started(pid)
	}
	if p.stdin == nil {
		return nil
	}
	if len(p.stdin) > 0 {
		if err := b.send(ctx, pid, p.stdin); err != nil {
			return err
		}
	}
	which := &process.ProcessSelector{Selector: &process.ProcessSelector_Pid{Pid: pid}}
	if _, err := b.guest.Process().CloseStdin(ctx, connect.NewRequest(&process.CloseStdinRequest{Process: which})); err != nil {
		return fmt.Errorf("close input: %w", err)
	}
	return nil
}

// send gives a program more input.
func (b *box) send(ctx context.Context, pid uint32, input []byte) error {
	_, err := b.guest.Process().SendInput(ctx, connect.NewRequest(&process.SendInputRequest{
		Process: &process.ProcessSelector{Selector: &process.ProcessSelector_Pid{Pid: pid}},
		Input:   &process.ProcessInput{Input: &process.ProcessInput_Stdin{Stdin: input}},
	}))
	if err != nil {
		return fmt.Errorf("send input: %w", err)
	}
	return nil
}

func (r *result) add(ev *process.ProcessEvent, count bool) {
	if start := ev.GetStart(); start != nil {
		r.pid = start.GetPid()
	}
	if data := ev.GetData(); data != nil {
		r.bytes += int64(len(data.GetStdout()) + len(data.GetStderr()) + len(data.GetPty()))
		if !count {
			r.stdout += string(data.GetStdout())
			r.stderr += string(data.GetStderr())
			r.pty += string(data.GetPty())
		}
	}
	if end := ev.GetEnd(); end != nil {
		r.ended, r.code, r.exited = true, end.GetExitCode(), end.GetExited()
		r.status, r.err = end.GetStatus(), end.GetError()
	}
}

// must runs p and fails the check unless it exits with 0.
func (b *box) must(p program) result {
	b.c.Helper()
	res, err := b.run(b.c.ctx, p)
	if err != nil || res.code != 0 || !res.exited {
		b.c.Fatalf("run %s %q: %v, %+v", p.cmd, p.args, err, res)
	}
	return res
}

// put writes a file into the sandbox as the default user.
func (b *box) put(name string, data []byte) {
	b.c.Helper()
	status, body := b.files(http.MethodPost, name, data)
	if status != http.StatusOK {
		b.c.Fatalf("upload %s: status %d: %s", name, status, body)
	}
}

// files speaks to the agent's /files through the guest's proxy.
func (b *box) files(method, name string, data []byte) (int, string) {
	b.c.Helper()
	var body io.Reader
	if data != nil {
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(b.c.ctx, method, "http://sandbox/files?path="+url.QueryEscape(name), body)
	if err != nil {
		b.c.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	rec := httptest.NewRecorder()
	b.guest.Handler().ServeHTTP(rec, req)
	return rec.Code, rec.Body.String()
}

// inside returns the program that runs the probe with args, having put it there.
func (b *box) inside(args ...string) program {
	b.c.Helper()
	if b.probe == "" {
		data, err := os.ReadFile(b.c.bin.probe(b.c))
		if err != nil {
			b.c.Fatal(err)
		}
		at := path.Join(b.c.Work(b.spec), "inside")
		b.put(at, data)
		b.must(program{cmd: "/bin/chmod", args: []string{"755", at}})
		b.probe = at
	}
	return program{cmd: b.probe, args: args}
}

// report runs the probe and reads what it reports.
func (b *box) report(p program, into any) {
	b.c.Helper()
	res := b.must(p)
	if err := json.NewDecoder(strings.NewReader(res.stdout)).Decode(into); err != nil {
		b.c.Fatalf("read the probe's report: %v in %q", err, res.stdout)
	}
}

// codeIs reports whether err is the protocol's code.
func codeIs(err error, code connect.Code) bool {
	var e *connect.Error
	return errors.As(err, &e) && e.Code() == code
}
