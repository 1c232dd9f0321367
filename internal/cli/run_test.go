package cli

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak"
	firebreakv1 "github.com/firebreak-dev/firebreak/internal/api/firebreak/v1"
)

// run is one command line of a test.
type run struct {
	s       *server
	stdin   *os.File // nil: /dev/null
	env     map[string]string
	signals chan os.Signal
	errOut  *os.File // nil: collected
	out     *os.File // nil: collected
	serve   Serve
}

type ran struct {
	code           int
	stdout, stderr string
}

// do runs the command line.
func (r run) do(t *testing.T, args ...string) ran {
	t.Helper()
	dir := t.TempDir()
	open := func(f *os.File, name string) *os.File {
		if f != nil {
			return f
		}
		made, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { made.Close() })
		return made
	}
	out, errOut := open(r.out, "out"), open(r.errOut, "err")
	in := r.stdin
	if in == nil {
		null, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		defer null.Close()
		in = null
	}
	a := &app{in: in, out: out, errOut: errOut, connect: r.s.connect, serve: r.serve,
		lookupEnv: func(name string) (string, bool) { v, ok := r.env[name]; return v, ok },
		subscribe: func() (<-chan os.Signal, func()) { return r.signals, func() {} }}
	code := a.main(context.Background(), args)
	read := func(name string) string {
		data, _ := os.ReadFile(filepath.Join(dir, name)) // not there if the test has its own
		return string(data)
	}
	return ran{code, read("out"), read("err")}
}

func (r ran) want(t *testing.T, code int, stdout, stderr string) {
	t.Helper()
	if r.code != code || r.stdout != stdout || r.stderr != stderr {
		t.Errorf("got exit status %d, stdout %q, stderr %q\nwant %d, %q, %q", r.code, r.stdout, r.stderr, code, stdout, stderr)
	}
}

func (r ran) wantError(t *testing.T, code int, parts ...string) {
	t.Helper()
	if r.code != code || strings.Count(r.stderr, "\n") != 1 || !strings.HasPrefix(r.stderr, "firebreak: ") {
		t.Errorf("got exit status %d, stderr %q, want %d and one line", r.code, r.stderr, code)
	}
	for _, part := range parts {
		if !strings.Contains(r.stderr, part) {
			t.Errorf("%q is not in %q", part, r.stderr)
		}
	}
}

func pipeWith(t *testing.T, write func(w io.Writer)) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		write(w)
		w.Close()
	}()
	t.Cleanup(func() {
		r.Close()
		<-done
	})
	return r
}

func TestRunPassesOnOutputAndExitStatus(t *testing.T) {
	for _, c := range []struct {
		name           string
		script         string
		code           int
		stdout, stderr string
	}{
		{"success", "echo out; echo err >&2", 0, "out\n", "err\n"},
		{"status", "exit 3", 3, "", ""},
		{"status 255", "exit 255", 255, "", ""},
		{"binary", `printf 'a\000\377\033b'`, 0, "a\x00\xff\x1bb", ""},
		{"no newline", "printf x", 0, "x", ""},
		{"killed", "kill -9 $$", 137, "", ""},
		{"terminated", "kill -15 $$", 143, "", ""},
		{"segfault", "kill -11 $$", 139, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newServer(t)
			run{s: s}.do(t, "run", "--", "sh", "-c", c.script).want(t, c.code, c.stdout, c.stderr)
			if fmt.Sprint(s.deleted) != "["+sandboxID+"]" {
				t.Errorf("deleted %v", s.deleted)
			}
		})
	}
}

func TestRunPassesOnLargeOutputWhole(t *testing.T) {
	s := newServer(t)
	got := run{s: s}.do(t, "run", "--", "sh", "-c", "seq 1 300000; seq 1 100000 >&2")
	if got.code != 0 || strings.Count(got.stdout, "\n") != 300000 || strings.Count(got.stderr, "\n") != 100000 ||
		!strings.HasSuffix(got.stdout, "\n300000\n") {
		t.Errorf("exit status %d, %d and %d bytes", got.code, len(got.stdout), len(got.stderr))
	}
}

func TestRunTakesUpABrokenStream(t *testing.T) {
	s := newServer(t)
	s.breakAfter = 100_000
	got := run{s: s}.do(t, "run", "--", "seq", "1", "100000")
	lines := strings.Split(strings.TrimSpace(got.stdout), "\n")
	if got.code != 0 || len(lines) != 100000 {
		t.Fatalf("exit status %d, %d lines, %s", got.code, len(lines), got.stderr)
	}
	for i, line := range lines {
		if line != fmt.Sprint(i+1) {
			t.Fatalf("line %d is %q", i+1, line)
		}
	}
	if s.breakAfter != 0 {
		t.Error("the stream was never cut")
	}
}

func TestRunStreamsInput(t *testing.T) {
	const size = 20 << 20
	want := sha256.Sum256(bytes.Repeat([]byte("0123456789abcdef"), size/16))
	in := pipeWith(t, func(w io.Writer) {
		for range size / 16 / 1024 {
			_, _ = w.Write(bytes.Repeat([]byte("0123456789abcdef"), 1024))
		}
	})
	run{s: newServer(t), stdin: in}.do(t, "run", "--", "sha256sum").want(t, 0, fmt.Sprintf("%x  -\n", want), "")
}

func TestRunLeavesInputAlone(t *testing.T) {
	in := pipeWith(t, func(w io.Writer) { _, _ = io.WriteString(w, "for somebody else") })
	run{s: newServer(t), stdin: in}.do(t, "run", "--interactive=false", "--", "cat").want(t, 0, "", "")
	rest, err := io.ReadAll(in)
	if string(rest) != "for somebody else" || err != nil {
		t.Errorf("left are %q, %v", rest, err)
	}
}

func TestRunEndsWhileInputIsOpen(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	run{s: newServer(t), stdin: r}.do(t, "run", "--", "echo", "done").want(t, 0, "done\n", "")
}

func TestRunOutlivesAProgramThatTakesNoInput(t *testing.T) {
	in := pipeWith(t, func(w io.Writer) { _, _ = w.Write(make([]byte, 64<<10)) })
	run{s: newServer(t), stdin: in}.do(t, "run", "--", "sh", "-c", "exec <&-; sleep 0.2; echo done").want(t, 0, "done\n", "")
}

func TestRunDoesNotWaitForInputThatIsLost(t *testing.T) {
	s := newServer(t)
	s.cutInput = true
	in := pipeWith(t, func(w io.Writer) { _, _ = io.WriteString(w, "lost") })
	run{s: s, stdin: in}.do(t, "run", "--", "cat").wantError(t, 125, "run: send input: the line is cut")
}

func TestRunEndsQuietlyWhenNobodyReads(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	r.Close()
	s := newServer(t)
	run{s: s, out: w}.do(t, "run", "--", "yes").want(t, 141, "", "")
	if len(s.deleted) != 1 {
		t.Error("the sandbox is left")
	}
}

func TestRunTellsWhyAProgramDidNotStart(t *testing.T) {
	for _, c := range []struct {
		args []string
		code int
		text string
	}{
		{[]string{"--", "missing-program"}, 127, "run: missing-program: not found in the sandbox; check the spelling"},
		{[]string{"--", "missing program"}, 127, "sh -c 'missing program'"},
		{[]string{"--", "useradd"}, 127, "run: useradd: not found in the sandbox"},
		{[]string{"--", "notexecutable"}, 126, "run: notexecutable cannot be executed: permission denied; make it executable"},
		{[]string{"-w", "/nowhere", "--", "true"}, 125, "run: cwd '/nowhere' does not exist"},
		{[]string{"--isolation", "nodriver", "--", "true"}, 125, "run: nodriver cannot run here; buy a better machine"},
	} {
		s := newServer(t)
		run{s: s}.do(t, append([]string{"run"}, c.args...)...).wantError(t, c.code, c.text)
		if len(s.sandboxes) != 0 {
			t.Errorf("%v left a sandbox", c.args)
		}
	}
}

func TestRunStopsAtItsTimeLimit(t *testing.T) {
	s := newServer(t)
	got := run{s: s}.do(t, "run", "--timeout", "3", "--", "sh", "-c", "echo begun; exec sleep 100")
	got.want(t, 124, "begun\n", "firebreak: run: the program was stopped at its time limit of 3s; raise it with --timeout\n")
	if d := s.created[0].Timeout.AsDuration(); d != 3*time.Second+deadlineSlack {
		t.Errorf("the sandbox got %s", d)
	}
	if len(s.limits) != 1 || s.limits[0] != "3000" {
		t.Errorf("the agent was told %q milliseconds, and not the limit", s.limits)
	}
}

func TestRunTellsWhyTheSandboxDied(t *testing.T) {
	for _, c := range []struct {
		name   string
		reason firebreak.EndReason
		usage  *firebreakv1.Usage
		script string
		code   int
		want   string
	}{
		{"memory, whole sandbox", firebreak.EndOutOfMemory, nil, "cut", 137, "killed at its memory limit of 1 GiB; raise it with --memory"},
		{"memory, the program", "", &firebreakv1.Usage{OomKills: 1}, "kill -9 $$", 137, "killed at its memory limit of 1 GiB; raise it with --memory"},
		{"processes", "", &firebreakv1.Usage{PidsDenied: 7}, "exit 2", 2, "refused new processes at its limit of 64; raise it with --pids"},
		{"deadline", firebreak.EndDeadline, nil, "cut", 124, "stopped at its time limit; raise it with --timeout"},
		{"destroyed", firebreak.EndDestroyed, nil, "cut", 137, "removed while the program ran"},
		{"lost", firebreak.EndLost, nil, "cut", 125, "the sandbox ended before the program did: a detail"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newServer(t)
			s.usage = c.usage
			script := c.script
			if script == "cut" {
				s.breakAfter, script = 1, "echo; exec sleep 100"
				s.onEnd = func(sb *firebreakv1.Sandbox) {
					sb.EndReason, sb.EndDetail, sb.State = string(c.reason), "a detail", "ended"
				}
			}
			got := run{s: s}.do(t, "run", "--memory", "1g", "--pids", "64", "--", "sh", "-c", script)
			got.wantError(t, c.code, "firebreak: run: ", c.want)
		})
	}
}

func TestRunPassesSignalsOn(t *testing.T) {
	for _, c := range []struct {
		name   string
		script string
		send   []syscall.Signal
		code   int
		stdout string
	}{
		{"interrupt", `trap 'echo caught; exit 5' INT; echo ready; while :; do sleep 0.05; done`, []syscall.Signal{syscall.SIGINT}, 5, "ready\ncaught\n"},
		{"interrupt kills", `echo ready; exec sleep 100`, []syscall.Signal{syscall.SIGINT}, 130, "ready\n"},
		{"twice", `trap '' INT; echo ready; while :; do sleep 0.05; done`, []syscall.Signal{syscall.SIGINT, syscall.SIGINT}, 137, "ready\n"},
		{"terminate", `trap 'exit 6' TERM; echo ready; while :; do sleep 0.05; done`, []syscall.Signal{syscall.SIGTERM}, 6, "ready\n"},
		{"usr1", `trap 'exit 7' USR1; echo ready; while :; do sleep 0.05; done`, []syscall.Signal{syscall.SIGUSR1}, 7, "ready\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			signals := make(chan os.Signal)
			output := make(chan string, 1)
			go func() {
				defer close(output)
				var all []byte
				buf := make([]byte, 100)
				for sent := false; ; {
					n, err := r.Read(buf)
					all = append(all, buf[:n]...)
					if !sent && strings.Contains(string(all), "ready") {
						sent = true
						for _, sig := range c.send {
							signals <- sig
							time.Sleep(150 * time.Millisecond)
						}
					}
					if err != nil {
						output <- string(all)
						return
					}
				}
			}()
			s := newServer(t)
			got := run{s: s, signals: signals, out: w}.do(t, "run", "--", "sh", "-c", c.script)
			w.Close()
			got.stdout = <-output
			got.want(t, c.code, c.stdout, "")
			if len(s.deleted) != 1 {
				t.Error("the sandbox is left")
			}
		})
	}
}

func TestRunFlagsReachTheServer(t *testing.T) {
	s := newServer(t)
	data := t.TempDir()
	file := filepath.Join(data, "env")
	if err := os.WriteFile(file, []byte("# comment\nA=file\nB=with = and \"quotes\"\nFROM\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got := run{s: s, env: map[string]string{"FROM": "caller", "C": "c"}}.do(t, "run", "--isolation", "container", "--cpus", "1.5", "--memory", "512m",
		"--disk", "2g", "--pids", "99", "--timeout", "5m", "-e", "A=flag", "-e", "C", "-e", "UNSET", "--env-file", file,
		"--volume", data+":/data:ro", "--name", "n", "-u", "root", "-w", "/home", "--", "sh", "-c", `echo "$A $B $C $FROM ${UNSET-none}"; pwd`)
	got.want(t, 0, "flag with = and \"quotes\" c caller none\n"+s.dir+"/home\n",
		"firebreak: warning: environment variable UNSET is not set here, so the sandbox does not get it\n")
	req := s.created[0]
	if l := req.Limits; req.Driver != "container" || l.Cpus != 1.5 || l.MemoryBytes != 512<<20 || l.DiskBytes != 2<<30 || l.Pids != 99 || req.Name != "n" {
		t.Errorf("created with %v", req)
	}
	if m := req.Mounts; len(m) != 1 || m[0].Source != data || m[0].Target != "/data" || !m[0].ReadOnly {
		t.Errorf("mounts are %v", m)
	}
	if s.users[0] != "Basic cm9vdDo=" {
		t.Errorf("the user came as %q", s.users[0])
	}
}

func TestRunJSON(t *testing.T) {
	decode := func(got ran) (object runJSON) {
		t.Helper()
		if err := json.Unmarshal([]byte(got.stdout), &object); err != nil || strings.Count(got.stdout, "\n") != 1 || got.stderr != "" {
			t.Fatalf("stdout %q, stderr %q: %v", got.stdout, got.stderr, err)
		}
		if object.ExitCode == nil || *object.ExitCode != got.code {
			t.Fatalf("exit code %v, exit status %d", object.ExitCode, got.code)
		}
		return object
	}
	s := newServer(t)
	s.usage = &firebreakv1.Usage{MemoryPeakBytes: 7 << 20}
	o := decode(run{s: s}.do(t, "run", "--json", "--", "sh", "-c", `echo "<out>"; printf '\377' >&2; exit 3`))
	if o.ID != sandboxID || *o.ExitCode != 3 || o.Reason != "exited" || *o.Stdout != "<out>\n" || o.Stderr != nil || string(o.StderrBase64) != "\xff" ||
		o.Timings["create"] != 41 || o.Timings["exec"] <= 0 || o.Usage.MemoryPeak != 7<<20 {
		t.Errorf("got %+v", o)
	}
	o = decode(run{s: newServer(t)}.do(t, "run", "--json", "--", "sh", "-c", "yes é | tr -d '\\n' | head -c 3000000; echo end >&2"))
	if len(*o.Stdout) != maxCapture && len(*o.Stdout) != maxCapture-1 || !o.StdoutTruncated || *o.Stderr != "end\n" || o.StderrTruncated {
		t.Errorf("kept %d bytes of stdout, %v, %q", len(*o.Stdout), o.StdoutTruncated, *o.Stderr)
	}
	o = decode(run{s: newServer(t)}.do(t, "run", "--json", "--", "sh", "-c", "kill -9 $$"))
	if o.Reason != "signal" || o.Signal != "killed" || *o.ExitCode != 137 {
		t.Errorf("got %+v", o)
	}
	o = decode(run{s: newServer(t)}.do(t, "run", "--json", "--isolation", "nodriver", "--", "true"))
	if o.Error == nil || o.Error.Kind != "host" || o.Error.Message != "nodriver cannot run here; buy a better machine" || *o.ExitCode != 125 {
		t.Errorf("got %+v", o)
	}
	o = decode(run{s: newServer(t)}.do(t, "run", "--json", "--timeout", "200ms", "--", "sleep", "9"))
	if o.Reason != "timeout" || *o.ExitCode != 124 {
		t.Errorf("got %+v", o)
	}
}

func TestRunVerboseSaysWhatWasChosenAndWhereTheTimeWent(t *testing.T) {
	got := run{s: newServer(t)}.do(t, "run", "-v", "--", "true")
	var lines []string
	for line := range strings.Lines(got.stderr) {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	all := strings.Join(lines, ",")
	all, found := strings.CutPrefix(all, "firebreak: gvisor (user-kernel) was chosen for origin model, tenancy single, data internal, needs linux "+
		"by policy default@1234, rules model-written; not enforced: brokered-secrets,")
	if !found || !strings.HasPrefix(all, "image 1.0 ms,create 41.0 ms,agent 12.0 ms,exec ") || !strings.Contains(all, ",destroy ") || !strings.Contains(all, ",total ") {
		t.Errorf("stderr is\n%s", got.stderr)
	}
}

func TestRunWarnsUnlessQuiet(t *testing.T) {
	run{s: newServer(t)}.do(t, "run", "--isolation", "process", "--", "true").want(t, 0, "", "firebreak: warning: no boundary\n")
	run{s: newServer(t)}.do(t, "run", "-q", "--isolation", "process", "--", "true").want(t, 0, "", "")
}
