package wasm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"

	"github.com/firebreak-dev/firebreak/internal/agent/code"
	"github.com/firebreak-dev/firebreak/internal/driver/wasm/engine"
)

const maxEarly = 4 << 10 // bytes that an interpreter says before it is ready, to tell why it did not become that

// kernel is an interpreter that keeps its state: an instance whose program reads requests from one stream and writes
// frames to another. All that it says comes on the one goroutine that runs it, in its order.
type kernel struct {
	name     string // the program, for people
	language string
	requests *queue

	mu     sync.Mutex
	out    code.Sink
	writer [2]*code.Writer // of stdout and stderr, for the present run
	id     uint64
	ready  bool
	early  []byte
	reason string
	how    string // it ended by itself
	frame  []byte // what came of a frame so far

	begun chan struct{} // closed when it is ready
	done  chan struct{}
	stop  context.CancelFunc
	gone  chan struct{}
}

var _ code.Kernel = (*kernel)(nil)

func newKernel(name, language string) *kernel {
	return &kernel{name: name, language: language, requests: newQueue(), begun: make(chan struct{}), done: make(chan struct{}, 1),
		gone: make(chan struct{}), stop: func() {}}
}

// serve runs the program until it ends.
func (k *kernel) serve(ctx context.Context, run func(context.Context) (int, error)) {
	status, err := run(ctx)
	k.mu.Lock()
	k.how = fmt.Sprintf("ended with exit status %d", status)
	if err != nil && !errors.Is(err, context.Canceled) {
		k.how = "was ended: " + err.Error()
		if errors.As(err, new(*engine.Trap)) {
			k.how += deep
		}
	}
	k.mu.Unlock()
	close(k.gone)
}

// Run implements code.Kernel. Nothing can interrupt the code of an interpreter but its end.
func (k *kernel) Run(ctx context.Context, text string, env map[string]string, out code.Sink) bool {
	if err := k.Ready(ctx); err != nil && ctx.Err() == nil {
		return false
	}
	if env == nil {
		env = map[string]string{} // null is no object
	}
	id := k.begin(out)
	defer k.finish()
	k.requests.push(code.AppendRequest(nil, id, k.language, text, env))
	select {
	case <-k.done:
		return true
	case <-k.gone:
		return false
	case <-ctx.Done():
		k.Kill("its run was ended, and WebAssembly knows no interrupt")
		<-k.gone
		return false
	}
}

func (k *kernel) begin(out code.Sink) uint64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.id++
	k.out = out
	k.writer = [2]*code.Writer{code.NewWriter(out, "stdout"), code.NewWriter(out, "stderr")}
	return k.id
}

func (k *kernel) finish() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.out = nil
}

// Ready implements code.Kernel.
func (k *kernel) Ready(ctx context.Context) error {
	select {
	case <-k.begun:
		return nil
	case <-k.gone:
		return errors.New(k.End())
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Kill implements code.Kernel.
func (k *kernel) Kill(reason string) {
	k.mu.Lock()
	if k.reason == "" {
		k.reason = reason
	}
	k.mu.Unlock()
	k.stop()
	k.requests.close()
}

// Gone implements code.Kernel.
func (k *kernel) Gone() <-chan struct{} { return k.gone }

// End implements code.Kernel.
func (k *kernel) End() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case k.reason != "":
		return k.name + " was killed: " + k.reason
	case !k.ready:
		return fmt.Sprintf("%s %s before it was ready: %s", k.name, k.how, bytes.ToValidUTF8(k.early, []byte("�")))
	}
	return k.name + " " + k.how
}

// stream is where the program writes its stdout or stderr.
func (k *kernel) stream(i int) io.Writer {
	return writerFunc(func(p []byte) (int, error) {
		k.mu.Lock()
		defer k.mu.Unlock()
		switch {
		case len(p) == 0:
		case !k.ready:
			k.early = append(k.early, p[:min(len(p), maxEarly-len(k.early))]...)
		case k.out != nil:
			return k.writer[i].Write(p)
		}
		return len(p), nil
	})
}

// answers is where the program writes its frames.
func (k *kernel) answers() io.Writer {
	return writerFunc(func(p []byte) (int, error) {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.frame = append(k.frame, p...)
		for {
			body, rest, err := cutFrame(k.frame)
			if body == nil && err == nil {
				return len(p), nil
			}
			if err == nil {
				k.frame = rest
				err = k.take(body)
			}
			if err != nil {
				if k.reason == "" {
					k.reason = "it said what no kernel says (code that it ran may have): " + err.Error()
				}
				k.stop()
				return 0, err
			}
		}
	})
}

// cutFrame takes a frame that is whole off text, or nil.
func cutFrame(text []byte) (body, rest []byte, err error) {
	const digits = 8
	end := bytes.IndexByte(text[:min(len(text), digits+1)], '\n')
	if end < 0 {
		if len(text) > digits {
			err = errors.New("a frame has no length")
		}
		return nil, nil, err
	}
	size, err := strconv.ParseUint(string(text[:end]), 10, 32)
	if err != nil || size == 0 || size > code.MaxFrame {
		return nil, nil, fmt.Errorf("a frame's length is %q", text[:end])
	}
	if text = text[end+1:]; uint64(len(text)) < size {
		return nil, nil, nil
	}
	return text[:size], text[size:], nil
}

// take does what a frame says. k.mu is held.
func (k *kernel) take(body []byte) error {
	f, err := code.ParseFrame(body)
	if err != nil {
		return err
	}
	if f.Type == "ready" && !k.ready {
		k.ready = true
		close(k.begun)
	}
	if k.out != nil && f.ID == k.id {
		switch f.Type {
		case "result":
			k.out.Result(f.Main, f.Forms)
			k.out.Flush()
		case "error":
			k.out.Failed(f.Name, f.Value, f.Traceback)
		case "done":
			_ = k.writer[0].Close()
			_ = k.writer[1].Close()
			k.out = nil
			k.done <- struct{}{}
		}
	}
	if f.Ack != 0 {
		k.requests.push(code.AppendFrame(nil, fmt.Appendf(nil, `{"ack":%d}`, f.Ack)))
	}
	return nil
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// queue is a stream that never refuses what is put in: one request and its acknowledgements, which the kernel waits for.
type queue struct {
	mu    sync.Mutex
	cond  *sync.Cond
	text  []byte
	ended bool
}

func newQueue() *queue {
	q := &queue{}
	q.cond = sync.NewCond(&q.mu)
	return q
}

func (q *queue) push(text []byte) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.text = append(q.text, text...)
	q.cond.Broadcast()
}

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ended = true
	q.cond.Broadcast()
}

// Read implements io.Reader.
func (q *queue) Read(p []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.text) == 0 && !q.ended {
		q.cond.Wait()
	}
	if q.ended {
		return 0, io.EOF
	}
	n := copy(p, q.text)
	q.text = q.text[n:]
	return n, nil
}

// streams are what the program finds in /dev/kernel.
func (k *kernel) streams(cpu *engine.CPU) engine.Mount {
	return engine.Mount{At: "/dev/kernel", Files: engine.Pipes(map[string]io.Reader{"requests": cpu.Waits(k.requests)}, map[string]io.Writer{"answers": k.answers()})}
}
