package agent_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/firebreak-dev/firebreak/internal/agent"
	processv1 "github.com/firebreak-dev/firebreak/internal/api/process"
)

// One GiB through the agent: not a byte is lost, and memory does not grow.
func TestGibibyteOfOutput(t *testing.T) {
	size := 1 << 30
	if testing.Short() {
		size = 64 << 20
	}
	b, cmd := program(t, realAgent(t))
	b.output("true") // what is made once is made
	before := rss(t, cmd.Process.Pid)
	stream, err := b.Process().Start(t.Context(), request(shell(fmt.Sprintf("head -c %d /dev/zero | tr '\\0' x", size))))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	var at uint64
	peak := before
	for i := 0; stream.Receive(); i++ {
		d := stream.Msg().GetEvent().GetData()
		if d == nil {
			continue
		}
		if d.GetOffset() != at || strings.Trim(string(d.GetStdout()[:1]), "x") != "" {
			t.Fatalf("offset %d, want %d", d.GetOffset(), at)
		}
		at += uint64(len(d.GetStdout()))
		if i%1000 == 0 {
			peak = max(peak, rss(t, cmd.Process.Pid))
		}
	}
	if stream.Err() != nil || at != uint64(size) {
		t.Errorf("%d of %d bytes, %v", at, size, stream.Err())
	}
	t.Logf("resident: %d KiB idle, %d KiB at most", before>>10, peak>>10)
	if peak > before+16<<20 {
		t.Errorf("the agent grew from %d to %d bytes", before, peak)
	}
}

func rss(t testing.TB, pid int) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		t.Fatal(err)
	}
	var size, resident int
	if _, err := fmt.Sscan(string(text), &size, &resident); err != nil {
		t.Fatal(err)
	}
	return resident * os.Getpagesize()
}

func TestSlowReaderHoldsTheProcessBack(t *testing.T) {
	b := inProcess(t, agent.Config{Ring: 64 << 10})
	s, r := b.begin(shell("seq 1 400000 | tee /dev/stderr"))
	time.Sleep(300 * time.Millisecond) // nobody reads, and all buffers on the way are full
	res, err := b.Process().List(t.Context(), request(&processv1.ListRequest{}))
	if err != nil || len(res.Msg.GetProcesses()) != 1 {
		t.Errorf("the process did not wait for its reader: %v, %v", res.Msg, err)
	}
	r.until(t, s, func() bool { return r.end != nil })
	if sha256.Sum256(r.stdout.Bytes()) != sha256.Sum256(r.stderr.Bytes()) || !strings.HasSuffix(tail(r.stdout), "\n400000\n") {
		t.Errorf("lost some: %d and %d bytes", r.stdout.Len(), r.stderr.Len())
	}
}

func TestUnreadOutputFallsOut(t *testing.T) {
	b := inProcess(t, agent.Config{Ring: 64 << 10})
	ctx, cancel := context.WithCancel(t.Context())
	flag := t.TempDir() + "/go"
	stream, err := b.Process().Start(ctx, request(shell("while [ ! -e "+flag+" ]; do sleep 0.05; done; seq 1 100000; echo over >&2; sleep 1000")))
	if err != nil || !stream.Receive() {
		t.Fatal(err, stream.Err())
	}
	pid := stream.Msg().GetEvent().GetStart().GetPid()
	cancel()
	for stream.Receive() {
	}
	must(t, os.WriteFile(flag, nil, 0o600))
	end := &processv1.Offsets{Stdout: 588895, Stderr: 5}
	eventually(t, func() string { // until all is there, that is out of range
		ctx, cancel := context.WithCancel(t.Context())
		s, err := b.Process().Connect(ctx, request(&processv1.ConnectRequest{Process: byPID(pid), ResumeFrom: end}))
		if err == nil {
			defer s.Close()
			defer cancel() // first, or it would wait for the end
			if s.Receive() {
				return ""
			}
			err = s.Err()
		}
		cancel()
		return "not all is there: " + err.Error()
	})
	again, err := b.Process().Connect(t.Context(), request(&processv1.ConnectRequest{Process: byPID(pid)}))
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	r := &result{}
	r.until(t, again, func() bool { return r.stderr.Len() > 0 && r.at.Stdout == end.Stdout })
	if r.stdout.Len() != 64<<10 || !strings.HasSuffix(r.stdout.String(), "\n100000\n") {
		t.Errorf("%d bytes were kept, ending in %q", r.stdout.Len(), tail(r.stdout))
	}
	old, err := b.Process().Connect(t.Context(), request(&processv1.ConnectRequest{Process: byPID(pid), ResumeFrom: &processv1.Offsets{}}))
	if err == nil {
		_, err = collect(t, old)
	}
	wantCode(t, err, connect.CodeOutOfRange)
	b.signal(pid, processv1.Signal_SIGNAL_SIGKILL)
}

func TestManyAtOnce(t *testing.T) {
	b := inProcess(t, agent.Config{})
	failures := make(chan error, 64)
	for i := range 64 {
		go func() {
			stream, err := b.Process().Start(t.Context(), request(shell(fmt.Sprintf("echo out %d; echo err %d >&2; exit %d", i, i, i))))
			if err != nil {
				failures <- err
				return
			}
			defer stream.Close()
			r := &result{}
			for stream.Receive() {
				if err := r.add(stream.Msg().GetEvent()); err != nil {
					failures <- err
					return
				}
			}
			if want := fmt.Sprintf("out %d\n", i); r.stdout.String() != want || r.end.GetExitCode() != int32(i) {
				failures <- fmt.Errorf("%d: out %q err %q end %v, %v", i, r.stdout.String(), r.stderr.String(), r.end, stream.Err())
				return
			}
			failures <- nil
		}()
	}
	for range 64 {
		if err := <-failures; err != nil {
			t.Error(err)
		}
	}
}

func TestNothingIsLeftBehind(t *testing.T) {
	goroutines, files := runtime.NumGoroutine(), openFiles(t)
	t.Run("use", func(t *testing.T) {
		b := inProcess(t, agent.Config{})
		for range 20 {
			b.output("echo x")
		}
		b.begin(shell("sleep 1000"))
		terminal := shell("sleep 1000")
		terminal.Pty = &processv1.PTY{}
		b.begin(terminal)
	})
	eventually(t, func() string {
		if g, f := runtime.NumGoroutine(), openFiles(t); g > goroutines || f > files {
			return fmt.Sprintf("%d goroutines and %d files, want %d and %d", g, f, goroutines, files)
		}
		return ""
	})
}

func openFiles(t testing.TB) int {
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}
