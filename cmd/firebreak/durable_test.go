package main_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/firebreak-dev/firebreak/internal/api/process"
)

// counter is a process in a sandbox that counts, and what was heard of it.
type counter struct {
	sandbox made
	pid     uint32

	mu     sync.Mutex
	heard  bytes.Buffer // guarded by mu
	offset uint64       // guarded by mu: of the next byte
	fault  error        // guarded by mu
}

const counting = `import sys, time
n = 0
while True:
    n += 1
    print(n, flush=True)
    time.sleep(0.2)
`

// TestServerKilledUnderLoad kills the server again and again while processes run in many sandboxes. Each of them must be
// there afterwards, and what they printed be heard without a gap.
func TestServerKilledUnderLoad(t *testing.T) {
	sandboxes, rounds := 50, 20
	if testing.Short() {
		sandboxes, rounds = 6, 4
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	s := newServed(t)
	all := startCounters(t, s, sandboxes)
	for range rounds {
		ctx, cancel := context.WithCancel(t.Context())
		var listening sync.WaitGroup
		for _, c := range all {
			listening.Go(func() { c.listen(ctx, s) })
		}
		time.Sleep(time.Duration(random.IntN(1500)) * time.Millisecond)
		s.kill()
		listening.Wait() // their streams were cut
		cancel()
		s.again()
		var listed []made
		if err := s.call(t.Context(), "GET", "/v2/sandboxes?state=running", "", 200, &listed); err != nil {
			t.Fatal(err)
		}
		if len(listed) != sandboxes {
			t.Fatalf("%d of %d sandboxes are there after a kill:\n%s", len(listed), sandboxes, s.logs.String())
		}
	}
	for _, c := range all {
		c.judge(t, s)
	}
}

func startCounters(t *testing.T, s *served, n int) []*counter {
	t.Helper()
	all := make([]*counter, n)
	var starting sync.WaitGroup
	slots := make(chan struct{}, 8)
	for i := range all {
		starting.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			c := &counter{}
			all[i] = c
			var err error
			if c.sandbox, err = s.create(t.Context(), `{"templateID":"base","timeout":3600}`); err != nil {
				c.fault = err
				return
			}
			c.fault = c.begin(t.Context(), s)
		})
	}
	starting.Wait()
	for _, c := range all {
		if c.fault != nil {
			t.Fatal(c.fault)
		}
	}
	return all
}

// begin starts the process and leaves it alone.
func (c *counter) begin(ctx context.Context, s *served) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	no := false
	stream, err := s.client().Process(c.sandbox.ID).Start(ctx, connect.NewRequest(&process.StartRequest{
		Process: &process.ProcessConfig{Cmd: "python3", Args: []string{"-c", counting}}, Stdin: &no}))
	if err != nil {
		return err
	}
	defer stream.Close()
	for stream.Receive() {
		if start := stream.Msg().GetEvent().GetStart(); start != nil {
			c.pid = start.GetPid()
			return nil
		}
	}
	return fmt.Errorf("no process was started: %w", stream.Err())
}

// listen goes on where it was, until the stream is cut.
func (c *counter) listen(ctx context.Context, s *served) {
	c.mu.Lock()
	defer c.mu.Unlock()
	stream, err := s.client().Process(c.sandbox.ID).Connect(ctx, connect.NewRequest(&process.ConnectRequest{
		Process:    &process.ProcessSelector{Selector: &process.ProcessSelector_Pid{Pid: c.pid}},
		ResumeFrom: &process.Offsets{Stdout: c.offset},
	}))
	if err != nil {
		return // the server was killed before it answered
	}
	defer stream.Close()
	for stream.Receive() {
		event := stream.Msg().GetEvent()
		if end := event.GetEnd(); end != nil {
			c.fault = fmt.Errorf("the process in %s ended: %s", c.sandbox.ID, end.GetStatus())
			return
		}
		if data := event.GetData(); data != nil {
			if data.GetOffset() != c.offset {
				c.fault = fmt.Errorf("%s goes on at byte %d, heard up to %d", c.sandbox.ID, data.GetOffset(), c.offset)
				return
			}
			c.heard.Write(data.GetStdout())
			c.offset += uint64(len(data.GetStdout()))
		}
	}
}

// judge hears what is new once more and looks for gaps.
func (c *counter) judge(t *testing.T, s *served) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	c.listen(ctx, s)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fault != nil {
		t.Error(c.fault)
	}
	lines := strings.Fields(c.heard.String())
	if len(lines) < 5 {
		t.Errorf("%s printed only %q", c.sandbox.ID, lines)
	}
	for i, line := range lines[:max(0, len(lines)-1)] { // the last may be a part
		if line != strconv.Itoa(i+1) {
			t.Errorf("%s: line %d is %q", c.sandbox.ID, i+1, line)
			return
		}
	}
}
