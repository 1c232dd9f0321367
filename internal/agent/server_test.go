package agent_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/agent"
	processv1 "github.com/firebreak-dev/firebreak/internal/api/process"
	"github.com/firebreak-dev/firebreak/internal/guest"
)

func TestOnlyTheOwnerIsServed(t *testing.T) {
	b := inProcess(t, agent.Config{})
	for _, token := range []string{"", "wrong", "the token2"} {
		for path, want := range map[string]int{
			"GET /health": 204, "GET /metrics": 401, "GET /envs": 401, "POST /init": 401, "POST /ports/1": 401, "GET /files?path=/etc/passwd": 401,
			"POST /files?path=/tmp/x": 401, "POST /files/compose": 401, "POST /process.Process/List": 401, "POST /filesystem.Filesystem/Stat": 401,
			"GET //files?path=/etc/passwd": 401, "GET /files/../files?path=/etc/passwd": 401,
		} {
			method, path, _ := strings.Cut(path, " ")
			res, body := b.do(method, path, strings.NewReader("{}"), header("X-Access-Token", token), header("Content-Type", "application/json"))
			if res.StatusCode != want {
				t.Errorf("%s %s with token %q: %d %s, want %d", method, path, token, res.StatusCode, body, want)
			}
		}
	}
	thief := guest.New(dialer(b.address), "the thief's")
	defer thief.Close()
	if err := thief.Init(t.Context(), guest.Config{}); firebreak.KindOf(err) != firebreak.KindDenied {
		t.Errorf("a second owner: %v", err)
	}
	if err := b.Init(t.Context(), guest.Config{Envs: map[string]string{"SECOND": "time"}, User: me(t)}); err != nil {
		t.Errorf("the owner's second init: %v", err)
	}
	var envs map[string]string
	res, body := b.do("GET", "/envs", nil)
	if err := json.Unmarshal(body, &envs); err != nil || res.StatusCode != 200 || len(envs) != 1 || envs["SECOND"] != "time" {
		t.Errorf("envs %v, %v", envs, err)
	}
}

func TestHealthIsEmpty(t *testing.T) {
	b := inProcess(t, agent.Config{})
	res, body := b.do("GET", "/health", nil)
	if res.StatusCode != 204 || len(body) > 0 || res.Header.Get("Content-Type") != "" {
		t.Errorf("%d %q %v", res.StatusCode, body, res.Header)
	}
}

func TestMetrics(t *testing.T) {
	b := inProcess(t, agent.Config{})
	var m map[string]float64
	for range 2 {
		_, body := b.do("GET", "/metrics", nil)
		if err := json.Unmarshal(body, &m); err != nil {
			t.Fatal(err)
		}
	}
	for _, key := range []string{"ts", "cpu_count", "mem_total", "mem_used", "mem_total_mib", "mem_used_mib", "disk_total", "disk_used"} {
		if m[key] <= 0 {
			t.Errorf("%s is %v", key, m[key])
		}
	}
	if used, ok := m["cpu_used_pct"]; !ok || used < 0 || used > 100 || m["mem_used"] > m["mem_total"] || m["disk_used"] > m["disk_total"] {
		t.Errorf("metrics %v", m)
	}
}

func TestJSONCodecOfTheSDKs(t *testing.T) {
	b := inProcess(t, agent.Config{})
	var body bytes.Buffer
	text := `{"process":{"cmd":"/bin/sh","args":["-c","echo hi; exit 3"]},"stdin":false}`
	body.Write([]byte{0, 0, 0, 0, byte(len(text))})
	body.WriteString(text)
	res, answer := b.do("POST", "/process.Process/Start", &body, header("Content-Type", "application/connect+json"), header("Connect-Protocol-Version", "1"))
	for _, want := range []string{`{"event":{"start":{"pid":`, `"stdout":"aGkK"`, `{"event":{"end":{"exitCode":3,"exited":true,"status":"exit status 3","error":"exit status 3"}}}`} {
		if !strings.Contains(strings.ReplaceAll(string(answer), " ", ""), strings.ReplaceAll(want, " ", "")) {
			t.Errorf("%d %q lacks %s", res.StatusCode, answer, want)
		}
	}
}

func TestPorts(t *testing.T) {
	b := inProcess(t, agent.Config{})
	for _, network := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := net.Listen("tcp", network)
		if err != nil {
			t.Logf("%s: %v", network, err) // a host without IPv6
			continue
		}
		defer l.Close()
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { // answers only once all is read: needs the half-close
					defer c.Close()
					all, _ := io.ReadAll(c)
					_, _ = c.Write(bytes.ToUpper(all))
				}()
			}
		}()
		port := uint16(l.Addr().(*net.TCPAddr).Port)
		for range 3 {
			conn, err := b.DialPort(t.Context(), port)
			if err != nil {
				t.Fatal(err)
			}
			text := strings.Repeat("abc", 100_000)
			go func() {
				_, _ = io.WriteString(conn, text)
				_ = conn.(interface{ CloseWrite() error }).CloseWrite()
			}()
			got, err := io.ReadAll(conn)
			if err != nil || string(got) != strings.ToUpper(text) {
				t.Errorf("%d bytes came back, %v", len(got), err)
			}
			_ = conn.Close()
		}
	}
	if _, err := b.DialPort(t.Context(), 1); firebreak.KindOf(err) != firebreak.KindUnavailable || !strings.Contains(err.Error(), "502") {
		t.Errorf("a closed port: %v", err)
	}
	for path, want := range map[string]int{"/ports/0": 400, "/ports/65536": 400, "/ports/x": 400, "/ports/80": 426} {
		if res, body := b.do("POST", path, nil); res.StatusCode != want {
			t.Errorf("%s: %d %s, want %d", path, res.StatusCode, body, want)
		}
	}
}

func TestDeadlineEndsTheSandbox(t *testing.T) {
	b, cmd := asProcess(t)
	_, r := b.begin(shell("trap '' TERM INT HUP; sleep 1000"))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // one that has ended may never answer
	defer cancel()
	if err := b.Init(ctx, guest.Config{User: me(t), Deadline: time.Now().Add(3 * time.Second)}); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 124 {
		t.Errorf("ended with %v, want status 124", err)
	}
	gone(t, r.pid)
}

// gone waits until pid lives no more; its new parent may take its time to reap it.
func gone(t *testing.T, pid uint32) {
	t.Helper()
	eventually(t, func() string {
		if s := state(strconv.Itoa(int(pid))); s != "" && s != "Z" {
			return fmt.Sprintf("process %d is in state %s", pid, s)
		}
		return ""
	})
}

func TestSignalsAreForwarded(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP} {
		b, cmd := asProcess(t)
		s, r := b.begin(shell(fmt.Sprintf("trap 'echo caught; sleep 0.05 && echo cleaned; exit 5' %d; echo ready; while :; do sleep 0.01; done", sig)))
		r.until(t, s, func() bool { return r.stdout.String() == "ready\n" })
		_, stubborn := b.begin(shell("trap '' TERM INT HUP; sleep 1000"))
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		r.until(t, s, func() bool { return r.end != nil })
		if r.stdout.String() != "ready\ncaught\ncleaned\n" || r.end.GetExitCode() != 5 {
			t.Errorf("%v: got %q, %v", sig, r.stdout.String(), r.end)
		}
		if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 128+int(sig) {
			t.Errorf("%v: ended with %v", sig, err)
		}
		gone(t, stubborn.pid)
	}
}

func TestTheLastOutputArrives(t *testing.T) {
	for range 5 {
		b, cmd := asProcess(t)
		s, r := b.begin(shell("trap 'seq 1 20000; exit 6' TERM; echo ready; while :; do sleep 0.01; done"))
		r.until(t, s, func() bool { return r.stdout.String() == "ready\n" })
		must(t, cmd.Process.Signal(syscall.SIGTERM))
		r.until(t, s, func() bool { return r.end != nil })
		if !strings.HasSuffix(tail(r.stdout), "\n20000\n") || r.end.GetExitCode() != 6 {
			t.Errorf("got %q, %v", tail(r.stdout), r.end)
		}
	}
}

func TestPassedConnections(t *testing.T) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	must(t, err)
	theirs := os.NewFile(uintptr(fds[1]), "theirs")
	t.Cleanup(func() { _ = syscall.Close(fds[0]) })
	cmd := exec.Command("/proc/self/exe", "--listen", "fd:3")
	cmd.Env, cmd.Stderr, cmd.ExtraFiles = append(os.Environ(), "BE_THE_AGENT=1"), os.Stderr, []*os.File{theirs}
	must(t, cmd.Start())
	_ = theirs.Close()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	must(t, syscall.Sendmsg(fds[0], []byte{0}, nil, nil, 0)) // nothing passed: nothing happens
	b := &box{t: t, Guest: guest.New(func(context.Context) (net.Conn, error) {
		pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		defer syscall.Close(pair[1])
		if err := syscall.Sendmsg(fds[0], []byte{0}, syscall.UnixRights(pair[1]), nil, 0); err != nil {
			return nil, err
		}
		ours := os.NewFile(uintptr(pair[0]), "ours")
		defer ours.Close()
		conn, err := net.FileConn(ours)
		if err != nil {
			return nil, err
		}
		_, err = conn.Read(make([]byte, 1)) // the agent says that it has it
		return conn, err
	}, "the token")}
	t.Cleanup(b.Close)
	must(t, b.Init(t.Context(), guest.Config{User: me(t)}))
	if got := b.output("echo through"); got != "through\n" {
		t.Errorf("got %q", got)
	}
}

func TestZombiesAreReaped(t *testing.T) {
	b, cmd := asProcess(t)
	// Each orphan leaves its parent and its session, ends, and is nobody's but the agent's.
	b.output("i=0; while [ $i -lt 200 ]; do (setsid sh -c 'sleep 0.2' & ) ; i=$((i+1)); done")
	eventually(t, func() string {
		if n := children(t, cmd.Process.Pid); n > 0 {
			return fmt.Sprintf("%d children are left", n)
		}
		return ""
	})
	for i := range 50 { // and the agent still gets the status of its own children
		r, err := b.run(shell(fmt.Sprintf("(setsid true &); exit %d", i)))
		if err != nil || r.end.GetExitCode() != int32(i) {
			t.Fatalf("%v, %v; want status %d", r.end, err, i)
		}
	}
}

func children(t *testing.T, pid int) int {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil || len(tasks) == 0 {
		t.Fatal("no list of children: ", err)
	}
	n := 0
	for _, task := range tasks {
		text, _ := os.ReadFile(task) // a thread that has ended has none
		n += len(strings.Fields(string(text)))
	}
	return n
}

func TestOrphansDieWithTheAgent(t *testing.T) {
	b, cmd := asProcess(t)
	pid := strings.TrimSpace(b.output("setsid sleep 1000 >/dev/null 2>&1 & echo $!"))
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	n, err := strconv.Atoi(pid)
	if err != nil {
		t.Fatal(err)
	}
	gone(t, uint32(n))
}

func TestDropCapabilities(t *testing.T) {
	needRoot(t)
	b, cmd := asProcess(t, "--drop-capabilities")
	for _, user := range []string{"root", "nobody"} {
		status := b.output("cat /proc/self/status", asUser(user))
		for _, line := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
			if !strings.Contains(status, line+":\t0000000000000000\n") {
				t.Errorf("%s has %s", user, grep(status, line))
			}
		}
		if !strings.Contains(status, "NoNewPrivs:\t1\n") {
			t.Errorf("%s has %s", user, grep(status, "NoNewPrivs"))
		}
	}
	own, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
	if err != nil || !strings.Contains(string(own), "NoNewPrivs:\t0\n") || strings.Contains(string(own), "CapEff:\t0000000000000000\n") {
		t.Errorf("the agent itself has %s, %s", grep(string(own), "NoNewPrivs"), grep(string(own), "CapEff"))
	}
	if got := b.output("id -un", asUser("nobody")); got != "nobody\n" {
		t.Errorf("runs as %q", got)
	}
}

func grep(text, prefix string) string {
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), prefix) {
			return lines.Text()
		}
	}
	return "no " + prefix
}

func TestChildrenDieFirstOfMemory(t *testing.T) {
	b := inProcess(t, agent.Config{})
	own, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		t.Fatal(err)
	}
	mine, err := strconv.Atoi(strings.TrimSpace(string(own)))
	if err != nil {
		t.Fatal(err)
	}
	s, r := b.begin(&processv1.StartRequest{Process: &processv1.ProcessConfig{Cmd: "/bin/sh", Args: []string{"-c", "read x; cat /proc/self/oom_score_adj"}}})
	b.input(r.pid, "\n") // it has begun, and so has its score
	r.until(t, s, func() bool { return r.end != nil })
	got, err := strconv.Atoi(strings.TrimSpace(r.stdout.String()))
	if err != nil || got != min(1000, mine+500) {
		t.Errorf("children have %d, %v; the agent %d", got, err, mine)
	}
}

func TestFlags(t *testing.T) {
	for _, args := range [][]string{{"--listen", "nonsense"}, {"--listen", "udp:1"}, {"--no-such-flag"}, {"argument"}, {"--pids-max", "-1"}, {"--listen", "unix:/no/such/dir/a.sock"}} {
		var stderr bytes.Buffer
		if code := agent.Main(args, &stderr); code == 0 || stderr.Len() == 0 {
			t.Errorf("%v: status %d, said %q", args, code, stderr.String())
		}
	}
}

func TestSocketOfADeadAgentIsReplaced(t *testing.T) {
	b, cmd := asProcess(t)
	if out, err := againAt(b.address); err == nil || !strings.Contains(out, "another agent") {
		t.Errorf("a second agent at the same place: %v %s", err, out)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	second := exec.Command("/proc/self/exe", "--listen", "unix:"+b.address)
	second.Env = append(os.Environ(), "BE_THE_AGENT=1")
	if err := second.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = second.Process.Kill()
		_ = second.Wait()
	}()
	if err := b.Init(t.Context(), guest.Config{User: me(t)}); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(b.address); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket has mode %v, %v", info.Mode(), err)
	}
}

func againAt(address string) (string, error) {
	cmd := exec.Command("/proc/self/exe", "--listen", "unix:"+address)
	cmd.Env = append(os.Environ(), "BE_THE_AGENT=1")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestSmall(t *testing.T) {
	exe := realAgent(t)
	info, err := os.Stat(exe)
	if err != nil {
		t.Fatal(err)
	}
	b, cmd := program(t, exe)
	b.output("echo hello")
	resident := rss(t, cmd.Process.Pid)
	t.Logf("executable %d KiB, resident after a command %d KiB", info.Size()>>10, resident>>10)
	if info.Size() > 12<<20 {
		t.Errorf("the executable has %d bytes", info.Size())
	}
	if resident > 16<<20 {
		t.Errorf("the agent has %d bytes resident", resident)
	}
}

// An agent without root is its own user, whoever the default is.
func TestOrdinaryUser(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	for p := dir; p != "/"; p = filepath.Dir(p) {
		if info, err := os.Stat(p); err == nil && info.Mode().Perm()&0o011 == 0 {
			if err := os.Chmod(p, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	exe := filepath.Join(dir, "agent")
	data, err := os.ReadFile(realAgent(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(exe, data, 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	cmd := exec.Command(exe, "--listen", "tcp:"+address)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	b := &box{t: t, Guest: guest.New(func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", address)
	}, "the token")}
	defer b.Close()
	if err := b.Init(t.Context(), guest.Config{User: "user"}); err != nil {
		t.Fatal(err)
	}
	if got := b.output("id -u"); got != "65534\n" {
		t.Errorf("runs as %q", got)
	}
	if got := b.output("id -un", asUser("nobody")); got != "nobody\n" {
		t.Errorf("runs as %q", got)
	}
	_, err = b.run(shell("id"), asUser("root"))
	wantCode(t, err, connect.CodeUnauthenticated)
}

func TestCloseWithStreamsOpen(t *testing.T) {
	a, err := agent.New(agent.Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "a.sock"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- a.Serve(ctx, l) }()
	b := newBox(t, l.Addr().String())
	s, _ := b.begin(&processv1.StartRequest{Process: &processv1.ProcessConfig{Cmd: "cat"}})
	stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
	a.Close()
	for s.Receive() {
	}
	if s.Err() == nil || errors.Is(s.Err(), io.EOF) {
		t.Errorf("a cut stream ended with %v", s.Err())
	}
	if _, err := b.client.Get("http://agent/health"); err == nil {
		t.Error("it still answers")
	}
}
