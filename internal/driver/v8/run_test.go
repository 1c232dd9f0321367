package v8_test

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/firebreak-dev/firebreak/internal/agent/code"
	"github.com/firebreak-dev/firebreak/internal/api/process"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/v8"
	"github.com/firebreak-dev/firebreak/internal/guest"
)

// place is a driver at work.
type place struct {
	*v8.Driver
	t     testing.TB
	state string
	count int
}

func newPlace(t testing.TB, wall string, change func(*v8.Config)) *place {
	t.Helper()
	p := &place{t: t, state: t.TempDir()}
	p.Driver = open(t, p.state, wall, change)
	info, err := p.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := info.Err(); err != nil && required() {
		t.Fatal(err)
	} else if err != nil {
		t.Skip(err)
	}
	return p
}

// sandbox is one, with clients of its agent.
type sandbox struct {
	*guest.Guest
	t      testing.TB
	client *http.Client
}

// sandbox makes one of a tenant, "one" if nothing is said.
func (p *place) sandbox(options map[string]string) *sandbox {
	p.t.Helper()
	options = maps.Clone(options)
	tenant := cmp.Or(options["tenant"], "one")
	delete(options, "tenant")
	p.count++
	spec := driver.Spec{ID: driver.ID(fmt.Sprintf("box%d", p.count)), Dir: p.t.TempDir(), Options: options, Tenant: tenant}
	sb, err := p.Create(p.t.Context(), spec)
	if err != nil {
		p.t.Fatal(err)
	}
	g := guest.New(sb.Dial, "the token")
	transport := &http.Transport{DisableCompression: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return g.DialPort(ctx, code.Port) }}
	p.t.Cleanup(func() {
		transport.CloseIdleConnections()
		g.Close()
		if err := p.Destroy(context.Background(), spec); err != nil {
			p.t.Error(err)
		}
	})
	if err := g.Init(p.t.Context(), guest.Config{Envs: map[string]string{"FROM_INIT": "yes"}, User: "user"}); err != nil {
		p.t.Fatal(err)
	}
	return &sandbox{g, p.t, &http.Client{Transport: transport}}
}

// ran is what came of a run.
type ran struct{ stdout, stderr, text, failed, value, traceback, refused string }

func (s *sandbox) try(ctx context.Context, text, language string) (r ran, err error) {
	return s.ask(ctx, map[string]string{"code": text, "language": language})
}

func (s *sandbox) ask(ctx context.Context, request map[string]string) (r ran, err error) {
	body, err := json.Marshal(request)
	if err != nil {
		return r, err
	}
	req, err := http.NewRequestWithContext(ctx, "POST", "http://code/execute", bytes.NewReader(body))
	if err != nil {
		return r, err
	}
	res, err := s.client.Do(req)
	if err != nil {
		return r, err
	}
	defer res.Body.Close()
	lines := bufio.NewScanner(res.Body)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		if res.StatusCode != http.StatusOK {
			r.refused += lines.Text()
			continue
		}
		var e struct {
			Type, Text, Name, Value, Traceback string
			Main                               bool `json:"is_main_result"`
		}
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return r, err
		}
		switch e.Type {
		case "stdout":
			r.stdout += e.Text
		case "stderr":
			r.stderr += e.Text
		case "result":
			r.text = e.Text
		case "error":
			r.failed, r.value, r.traceback = e.Name, e.Value, e.Traceback
		}
	}
	return r, lines.Err()
}

func (s *sandbox) run(text string) ran {
	s.t.Helper()
	r, err := s.try(s.t.Context(), text, "")
	if err != nil {
		s.t.Fatalf("run %.100q: %v", text, err)
	}
	return r
}

// value checks what a run's last expression is.
func (s *sandbox) value(text, want string) {
	s.t.Helper()
	if r := s.run(text); r.text != want || r.failed != "" {
		s.t.Errorf("%.200q is %q (%s %s), want %q", text, r.text, r.failed, r.value, want)
	}
}

func (s *sandbox) write(name, text string) {
	s.t.Helper()
	if err := s.WriteFile(s.t.Context(), name, "", strings.NewReader(text)); err != nil {
		s.t.Fatal(err)
	}
}

// command runs one as E2B's clients do.
func (s *sandbox) command(line string) (stdout, stderr string, status int32, err error) {
	stream, err := s.Process().Start(s.t.Context(), connect.NewRequest(&process.StartRequest{Process: &process.ProcessConfig{Cmd: "/bin/bash", Args: []string{"-l", "-c", line}}}))
	if err != nil {
		return "", "", 0, err
	}
	defer stream.Close()
	for stream.Receive() {
		data := stream.Msg().GetEvent().GetData()
		stdout, stderr = stdout+string(data.GetStdout()), stderr+string(data.GetStderr())
		if end := stream.Msg().GetEvent().GetEnd(); end != nil {
			status = end.GetExitCode()
		}
	}
	return stdout, stderr, status, stream.Err()
}

func walls(t *testing.T, test func(t *testing.T, p *place)) {
	for _, wall := range []string{"gvisor", "container"} {
		t.Run(wall, func(t *testing.T) { test(t, newPlace(t, wall, nil)) })
	}
}

// TestCode: state is kept, the last expression is the value, and what is printed comes.
func TestCode(t *testing.T) {
	walls(t, func(t *testing.T, p *place) {
		s := p.sandbox(nil)
		for _, step := range [][2]string{
			{"1 + 1", "2"},
			{"let x = 20; const y = { a: 1 }; class A { f () { return 7 } }; function g () { return x }", ""},
			{"x += 1; g() + new A().f() + y.a", "29"},
			{"const x = 5; x", "5"},
			{"await new Promise(r => setTimeout(() => r('late'), 5))", "late"},
			{"const z = await Promise.resolve(3); z * x", "15"},
			{"z", "3"},
			{"import path, { join as j } from 'node:path'; j('a', 'b') + path.sep", "a/b/"},
			{"j('c', 'd')", "c/d"},
			{"const { q, ...rest } = { q: 1, w: 2 }; rest", "{ w: 2 }"},
			{"Promise.resolve([1, 2])", "[ 1, 2 ]"},
			{"process.env.FROM_INIT", "yes"},
			{"'use strict'; undefined", ""},
			{"if (x) { 'yes' } else { 'no' }", "yes"},
			{"require('node:util').inspect(new Map([[1, 2]]))", "Map(1) { 1 => 2 }"},
			{"({ then: 5 })", "{ then: 5 }"},
		} {
			s.value(step[0], step[1])
		}
		r := s.run("console.log('a', 1, { b: [2] }); console.error('oops'); process.stdout.write('raw'); null")
		if r.stdout != "a 1 { b: [ 2 ] }\nraw" || r.stderr != "oops\n" || r.text != "null" {
			t.Errorf("%+v", r)
		}
		if r := s.run("function f () { throw new TypeError('bad') }\nf()"); r.failed != "TypeError" || r.value != "bad" || !strings.Contains(r.traceback, "cell") || strings.Contains(r.traceback, "kernel.js") {
			t.Errorf("%+v", r)
		}
		if r := s.run("for (let i = 0; i < 100000; i++) console.log(i); console.error('end')"); r.failed != "" || len(r.stdout) != 588890 || r.stderr != "end\n" {
			t.Errorf("many lines: %d bytes, %q, %s %s", len(r.stdout), r.stderr, r.failed, r.value)
		}
		for _, text := range []string{"setTimeout(() => { throw new RangeError('nobody') }, 1)", "Promise.reject(new RangeError('nobody')); undefined", "queueMicrotask(() => { throw new RangeError('nobody') })"} {
			if r := s.run(text + "; await new Promise(r => setTimeout(r, 20)); 1"); r.failed != "" || !strings.HasPrefix(r.stderr, "RangeError: nobody\n") || strings.Contains(r.stderr, "kernel.js") || r.text != "1" {
				t.Errorf("%s: %+v", text, r)
			}
		}
		if r := s.run("throw new Error('x'.repeat(1e7) + '\\n    at ' + ':1:1'.repeat(1e6))"); r.failed != "Error" || len(r.traceback) > 2<<20 {
			t.Errorf("a long error: %s %.100s, %d bytes", r.failed, r.value, len(r.traceback))
		}
		if r := s.run("1 +"); r.failed != "SyntaxError" {
			t.Errorf("%+v", r)
		}
		if r := s.run("await new Promise(() => {})"); r.failed != "Unfinished" {
			t.Errorf("%+v", r)
		}
		s.value("x", "5")
		if r := s.run("await fetch('http://example.com')"); r.failed != "TypeError" || r.value != "fetch is refused: a V8 sandbox has no network" {
			t.Errorf("%+v", r)
		}
		if r, err := s.try(t.Context(), "1", "python"); err != nil || !strings.Contains(r.refused, "its languages are javascript and typescript") {
			t.Errorf("%+v %v", r, err)
		}
	})
}

// TestInterrupt: a run whose client goes away is ended, and what it waits for; the state stays.
func TestInterrupt(t *testing.T) {
	s := newPlace(t, "", nil).sandbox(nil)
	s.value("var kept = 1; kept", "1")
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := s.try(ctx, "await new Promise(r => setTimeout(r, 600000))", ""); err == nil {
		t.Error("it did not wait")
	}
	s.value("kept", "1")
}

func TestPrograms(t *testing.T) {
	s := newPlace(t, "", nil).sandbox(nil)
	if err := s.WriteFile(t.Context(), "/home/user/x.js", "", strings.NewReader("console.log(process.argv.slice(1), process.env.A); console.error('e'); await 1; process.exit(3); console.log('never')")); err != nil {
		t.Fatal(err)
	}
	if stdout, stderr, status, err := s.command("A=b node x.js one 'two three'"); err != nil || stdout != "[ 'x.js', 'one', 'two three' ] b\n" || stderr != "e\n" || status != 3 {
		t.Errorf("%q %q %d %v", stdout, stderr, status, err)
	}
	if stdout, _, status, err := s.command(`js -e "console.log(6 * 7)"`); err != nil || stdout != "42\n" || status != 0 {
		t.Errorf("%q %d %v", stdout, status, err)
	}
	if _, stderr, status, err := s.command(`node -e "throw new RangeError('no')"`); err != nil || !strings.Contains(stderr, "RangeError: no") || status != 1 {
		t.Errorf("%q %d %v", stderr, status, err)
	}
	if _, stderr, status, err := s.command("node nowhere.js"); err != nil || !strings.Contains(stderr, "no such file") || status != 1 {
		t.Errorf("%q %d %v", stderr, status, err)
	}
	for line, want := range map[string]string{"ls -l": "cannot be run in a V8 sandbox", "node x.js | cat": "no shell in a V8 sandbox", "node --inspect x.js": "no other options"} {
		if _, _, _, err := s.command(line); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", line, err)
		}
	}
}

// TestLeftovers: a driver clears what one that died left, and leaves alone what lives.
func TestLeftovers(t *testing.T) {
	p := newPlace(t, "container", nil)
	s := p.sandbox(nil)
	s.value("1", "1")
	second := open(t, p.state, "container", nil)
	if _, err := second.Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.value("2", "2")
	locks, err := filepath.Glob(filepath.Join(p.state, "v8", ".processes", "*.lock"))
	if err != nil || len(locks) != 1 {
		t.Errorf("%v, %v", locks, err)
	}
}
