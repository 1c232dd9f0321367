package v8

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak/internal/agent/code"
	"github.com/firebreak-dev/firebreak/internal/driver/v8/script"
)

const (
	maxOutput = 64 << 20        // bytes that come of one run
	yield     = 2 * time.Second // after which a script that was interrupted must have let go of the processor
)

// request is what a kernel is asked to run.
type request struct {
	Code    string            `json:"code"`
	Boxed   bool              `json:"boxed"`
	Env     map[string]string `json:"env"`
	Argv    []string          `json:"argv,omitempty"`
	Program bool              `json:"program"`

	Modules map[string]*script.Module `json:"modules,omitempty"` // by their paths
	Main    string                    `json:"main,omitempty"`    // a program's first
	At      string                    `json:"at,omitempty"`      // where the code of a context stands
	From    map[string]string         `json:"from,omitempty"`    // paths of the modules that its names for them mean
	Input   *[]byte                   `json:"input,omitempty"`   // all of its standard input, if it may look at it
	Dir     string                    `json:"dir,omitempty"`     // where it runs
	Files   *tree                     `json:"files,omitempty"`   // the sandbox's, if it may look at them
}

// kernel is an isolate that keeps its state from one run to the next: of a code.Kernel all but Run.
type kernel struct {
	ready chan struct{} // closed when it has its isolate, or will never have one
	gone  chan struct{}

	mu     sync.Mutex
	proc   *proc   // nil before ready
	name   string  // of the isolate
	first  *posted // the request for its first run; nil: there is none, or no more
	used   time.Time
	busy   bool
	reason string // why it ended
}

func newKernel() *kernel {
	return &kernel{ready: make(chan struct{}), gone: make(chan struct{}), used: time.Now()}
}

// begin gets an isolate from the group's process.
func (k *kernel) begin(ctx context.Context, g *group) {
	defer close(k.ready)
	p, err := g.process(ctx)
	if err == nil {
		err = p.add(k)
	}
	var made spare
	if err == nil {
		made, err = p.isolate(ctx)
	}
	if err != nil {
		k.lose("no isolate could be made: " + err.Error())
		if p != nil {
			p.remove(k)
		}
		return
	}
	k.mu.Lock()
	k.proc, k.name = p, made.name
	ended := k.reason != ""
	if !ended {
		k.first = made.first
	}
	k.mu.Unlock()
	if ended {
		made.first.close()
		p.remove(k)
		p.drop(made.name)
	}
}

// Ready implements code.Kernel.
func (k *kernel) Ready(ctx context.Context) error {
	select {
	case <-k.gone:
		return errors.New(k.End())
	case <-ctx.Done():
		return ctx.Err()
	case <-k.ready:
	}
	select {
	case <-k.gone:
		return errors.New(k.End())
	default:
		return nil
	}
}

// Gone implements code.Kernel.
func (k *kernel) Gone() <-chan struct{} { return k.gone }

// End implements code.Kernel.
func (k *kernel) End() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return "the isolate was ended: " + k.reason
}

// Kill implements code.Kernel.
func (k *kernel) Kill(reason string) {
	if !k.lose(reason) {
		return
	}
	k.mu.Lock()
	p, name := k.proc, k.name
	k.mu.Unlock()
	if p != nil {
		p.remove(k)
		p.drop(name)
	}
}

// lose marks the kernel as gone, and reports whether it was not.
func (k *kernel) lose(reason string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.reason != "" {
		return false
	}
	k.reason = reason
	close(k.gone)
	k.first.close()
	k.first = nil
	return true
}

// idle reports since when nothing runs in the kernel.
func (k *kernel) idle() (time.Time, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.used, !k.busy && k.proc != nil
}

func (k *kernel) occupy(busy bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.busy, k.used = busy, time.Now()
}

// run has the isolate evaluate what is prepared with the help of its process, and reports whether the kernel lives on.
func (k *kernel) run(ctx context.Context, prepared func(context.Context, *proc) (request, error), take func(script.Frame)) bool {
	if err := k.Ready(ctx); err != nil {
		return ctx.Err() != nil
	}
	k.occupy(true)
	defer k.occupy(false)
	k.proc.running.Add(1)
	defer k.proc.running.Add(-1)
	begun := make(chan struct{})
	within, cancel := k.patience(ctx, begun)
	defer cancel()
	r, err := prepared(within, k.proc)
	if bad := new(codeError); errors.As(err, &bad) {
		take(script.Frame{Type: "error", Name: bad.name, Value: bad.text})
		return !k.lost(0)
	}
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = k.exchange(within, r, begun, take)
	}
	if err == nil {
		return !k.lost(0)
	}
	if k.lost(0) {
		return false
	}
	if ctx.Err() == nil && !errors.Is(err, errUnfinished) && !errors.Is(err, errHostile) {
		// A connection breaks when the process ends, which is told on another way.
		if k.lost(yield) {
			return false
		}
	}
	if pingErr := k.proc.ping(context.WithoutCancel(ctx), yield); pingErr != nil {
		k.proc.end("its V8 process was ended: a script whose run was ended did not let go of the processor")
		return false
	}
	switch {
	case ctx.Err() != nil:
		return true // interrupted
	case errors.Is(err, errUnfinished):
		take(script.Frame{Type: "error", Name: "Unfinished", Value: "the code waits for what can never come: nothing in its isolate is left that could go on"})
		return true
	}
	k.Kill(err.Error())
	return false
}

// patience returns a context that ends with the kernel, and a while after ctx: a request that is taken back before workerd
// has read it may still be run, after all pings. So it is not taken back before its code has paused for the first time,
// which is when the first line of the answer comes.
func (k *kernel) patience(ctx context.Context, begun <-chan struct{}) (context.Context, context.CancelFunc) {
	within, cancel := context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		defer cancel()
		select {
		case <-k.gone:
		case <-within.Done():
		case <-ctx.Done():
			select {
			case <-begun:
			case <-k.gone:
			case <-within.Done():
			case <-time.After(yield):
			}
		}
	}()
	return within, cancel
}

// lost waits a moment for the kernel's end.
func (k *kernel) lost(wait time.Duration) bool {
	select {
	case <-k.gone:
		return true
	default:
	}
	if wait == 0 {
		return false
	}
	select {
	case <-k.gone:
		return true
	case <-time.After(wait):
		return false
	}
}

var (
	errUnfinished = errors.New("the run has no end")
	errHostile    = errors.New("it said what no kernel says (code that it ran may have)")
)

// exchange makes the request and takes what comes of it. It closes begun when the first line of that is there.
func (k *kernel) exchange(ctx context.Context, r request, begun chan<- struct{}, take func(script.Frame)) error {
	body, err := json.Marshal(r)
	if err != nil {
		return err
	}
	res, err := k.send(ctx, body)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("workerd answered %d", res.StatusCode)
	}
	lines := bufio.NewScanner(res.Body)
	lines.Buffer(nil, code.MaxFrame)
	total, ran := 0, false
	for lines.Scan() {
		if total == 0 {
			close(begun)
		}
		if total += len(lines.Bytes()) + 1; total > maxOutput {
			return fmt.Errorf("one run told more than %d MiB", maxOutput>>20)
		}
		if len(lines.Bytes()) == 0 {
			continue // it says no more than that the code has paused
		}
		f, err := script.ParseFrame(lines.Bytes())
		if err != nil {
			return fmt.Errorf("%w: %w", errHostile, err)
		}
		if f.Type == "done" {
			return nil
		}
		ran = ran || f.Type == "ran"
		take(f)
	}
	if errors.Is(lines.Err(), bufio.ErrTooLong) {
		return fmt.Errorf("one piece of output has more than %d MiB", code.MaxFrame>>20)
	}
	if ran && ctx.Err() == nil {
		return nil // and nothing is left that could go on
	}
	return errors.Join(errUnfinished, ctx.Err())
}

// send sends the request, whose beginning may be on its way since long.
func (k *kernel) send(ctx context.Context, body []byte) (*http.Response, error) {
	k.mu.Lock()
	first := k.first
	k.first = nil
	k.mu.Unlock()
	if first != nil {
		return first.finish(ctx, body)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://v8/"+k.name+"/run", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	return k.proc.client.Do(req)
}
