package code

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/agent/proc"
)

const (
	maxEarly = 4 << 10                // of output before a kernel is ready, to tell why it did not become that
	late     = 100 * time.Millisecond // in which the frames of a kernel that ended are still read
)

// names of the two streams, by their index.
func streamName(i int) string { return [...]string{"stdout", "stderr"}[i] }

// kernel is an interpreter that runs our program as a process.
type kernel struct {
	child    *proc.Child
	program  string
	language language
	log      *slog.Logger

	write sync.Mutex // of requests

	mu     sync.Mutex // orders what goes out, and guards the rest
	out    Sink       // of the present run; nil between two
	id     uint64     // of the present or the latest run
	ready  bool
	begun  chan struct{} // closed when it is ready
	early  []byte
	idle   [2][]byte // output between two runs
	rest   [2][]byte // the beginning of a character
	buf    []byte    // that output is read into
	reason string    // why it was killed
	done   chan struct{}

	gone chan struct{} // closed when it ended and all it said has been read
}

// Ready implements Kernel.
func (k *kernel) Ready(ctx context.Context) error {
	select {
	case <-k.begun:
		return nil
	case <-k.gone:
		return fail(http.StatusInternalServerError, "%s", k.End())
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Gone implements Kernel.
func (k *kernel) Gone() <-chan struct{} { return k.gone }

// serve reads what the kernel says and prints until it ends, and clears up after it.
func (k *kernel) serve() {
	var pumps sync.WaitGroup
	for i := range 2 {
		pumps.Go(func() { k.pump(i) })
	}
	pumps.Go(func() {
		<-k.child.Exited()
		// Its children may hold the other end for ever.
		_ = k.child.Answers.SetReadDeadline(time.Now().Add(late)) // closed already: read to the end
	})
	r := bufio.NewReaderSize(k.child.Answers, 4<<10)
	for {
		f, err := readFrame(r)
		if err != nil {
			k.broken(err)
			break
		}
		k.handle(f, r.Buffered() == 0)
	}
	_ = k.child.Signal(unix.SIGKILL) // ESRCH: it ended by itself
	select {
	case <-k.child.Exited():
	case <-time.After(5 * time.Second): // stuck in the operating system
	}
	k.mu.Lock()
	k.drain()
	k.mu.Unlock()
	close(k.gone)
	k.child.Close()
	pumps.Wait()
}

// broken remembers why nothing more is read, if that is not simply the end.
func (k *kernel) broken(err error) {
	if err == io.EOF || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, os.ErrClosed) {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.reason == "" {
		k.reason = "it said what no kernel says (code that it ran may have): " + err.Error()
	}
}

// Kill implements Kernel.
func (k *kernel) Kill(reason string) {
	k.mu.Lock()
	if k.reason == "" {
		k.reason = reason
	}
	k.mu.Unlock()
	_ = k.child.Signal(unix.SIGKILL) // ESRCH: it was faster
}

// End implements Kernel.
func (k *kernel) End() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case k.reason != "":
		return fmt.Sprintf("%s was killed: %s", k.program, k.reason)
	case !k.ready:
		return fmt.Sprintf("%s %s before it was ready: %s", k.program, k.child.End(), strings.ToValidUTF8(string(k.early), "�"))
	}
	return fmt.Sprintf("%s %s", k.program, k.child.End())
}

// handle does what a frame says. What was printed before it comes before it.
func (k *kernel) handle(f frame, last bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.drain()
	if f.Type == "ready" {
		if !k.ready {
			close(k.begun)
		}
		k.ready = true
		return
	}
	if k.out != nil && f.ID == k.id {
		switch f.Type {
		case "result":
			k.out.Result(f.Main, f.Forms)
		case "error":
			k.out.Failed(f.Name, f.Value, f.Traceback)
		case "done":
			k.finish(f)
			return
		}
		if last {
			k.out.Flush()
		}
	}
	if f.Ack != 0 {
		if err := k.send(appendFrame(nil, fmt.Appendf(nil, `{"ack":%d}`, f.Ack))); err != nil {
			k.log.Debug("answer a kernel", "error", err)
		}
	}
}

// finish ends the present run. k.mu is held.
func (k *kernel) finish(f frame) {
	for i, rest := range k.rest {
		k.out.Print(streamName(i), string(rest))
		k.rest[i] = nil
	}
	if k.language.shell && f.Status != 0 {
		k.out.Failed("ExitStatus", fmt.Sprintf("exit status %d", f.Status), "")
	}
	k.out = nil
	k.done <- struct{}{}
}

// pump passes output on as it comes.
func (k *kernel) pump(i int) {
	raw, err := k.file(i).SyscallConn()
	for err == nil {
		err = raw.Read(func(fd uintptr) bool {
			k.mu.Lock()
			defer k.mu.Unlock()
			n, failed := k.read(i, fd)
			if n > 0 && k.out != nil {
				k.out.Flush()
			}
			if n == 0 && failed == nil {
				failed = io.EOF
			}
			err = failed
			return !errors.Is(failed, unix.EAGAIN)
		})
		if errors.Is(err, unix.EAGAIN) {
			err = nil
		}
	}
}

func (k *kernel) file(i int) *os.File { return [...]*os.File{k.child.Stdout, k.child.Stderr}[i] }

// drain passes on what waits in the pipes, and no more than that: something may print without end. k.mu is held.
func (k *kernel) drain() {
	for i := range 2 {
		raw, err := k.file(i).SyscallConn()
		if err != nil {
			continue
		}
		_ = raw.Control(func(fd uintptr) { // closed: nothing waits
			waiting, err := unix.IoctlGetInt(int(fd), unix.TIOCINQ)
			for n := 0; err == nil && waiting > 0; waiting -= n {
				if n, err = k.read(i, fd); n == 0 {
					return
				}
			}
		})
	}
}

// read reads once, without waiting, and passes that on. k.mu is held.
func (k *kernel) read(i int, fd uintptr) (int, error) {
	n, err := unix.Read(int(fd), k.buf)
	for errors.Is(err, unix.EINTR) {
		n, err = unix.Read(int(fd), k.buf)
	}
	if n > 0 {
		k.print(i, k.buf[:n])
	}
	return max(n, 0), err
}

func (k *kernel) print(i int, data []byte) {
	switch {
	case !k.ready: // an interpreter's own noise
		k.early = append(k.early, data[:min(len(data), maxEarly-len(k.early))]...)
	case k.out == nil:
		k.idle[i] = append(k.idle[i], data[:min(len(data), maxIdle-len(k.idle[i]))]...)
	default:
		if len(k.rest[i]) > 0 {
			data = append(k.rest[i], data...)
		}
		whole := wholeRunes(data)
		k.rest[i] = append([]byte(nil), data[whole:]...)
		k.out.Print(streamName(i), string(data[:whole]))
	}
}

// wholeRunes is the length of data without the beginning of a character at its end.
func wholeRunes(data []byte) int {
	for n := 1; n < utf8.UTFMax && n <= len(data); n++ {
		if b := data[len(data)-n]; utf8.RuneStart(b) {
			if !utf8.FullRune(data[len(data)-n:]) {
				return len(data) - n
			}
			break
		}
	}
	return len(data)
}

// Run implements Kernel.
func (k *kernel) Run(ctx context.Context, code string, env map[string]string, out Sink) bool {
	req := request{ID: k.begin(out), Language: k.language.name, Code: code, Env: env}
	defer func() {
		k.mu.Lock()
		k.out = nil
		k.mu.Unlock()
	}()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		k.ask(ctx, req)
	}()
	defer func() { <-sent }()
	select {
	case <-k.done:
		return true
	case <-k.gone:
		return false
	case <-ctx.Done():
		return k.interrupt(req)
	}
}

// ask sends a request once the kernel is ready, because what it prints until then is not of a run. What is larger than a
// pipe waits for the kernel to read it.
func (k *kernel) ask(ctx context.Context, req request) {
	select {
	case <-k.begun:
	case <-k.gone:
		return
	case <-ctx.Done():
	}
	text := req.frame()
	if k.language.shell {
		text = req.commands()
	}
	if err := k.send(text); err != nil {
		k.Kill("it does not read what it shall run: " + err.Error())
	}
}

// begin has what the kernel says from now on told to out, and numbers the run.
func (k *kernel) begin(out Sink) uint64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	select {
	case <-k.done: // of a run that was interrupted in its last moment
	default:
	}
	k.drain()
	k.id++
	k.out = out
	for i, text := range k.idle {
		out.Print(streamName(i), string(text))
		k.idle[i] = nil
	}
	return k.id
}

// interrupt stops a run whose client is gone, and reports whether the kernel survives that.
func (k *kernel) interrupt(req request) bool {
	for _, patience := range []time.Duration{300 * time.Millisecond, 700 * time.Millisecond, 2 * time.Second} {
		_ = k.child.Signal(unix.SIGINT) // ESRCH: gone
		if k.language.shell {           // it may have dropped the line that says so
			_ = k.send(req.finish()) // not sent: it reads nothing, and is killed below
		}
		select {
		case <-k.done:
			return true
		case <-k.gone:
			return false
		case <-time.After(patience):
		}
	}
	k.Kill("the run before went on after it was interrupted")
	<-k.gone
	return false
}

// send writes to the kernel.
func (k *kernel) send(text []byte) error {
	k.write.Lock()
	defer k.write.Unlock()
	if err := k.child.Requests.SetWriteDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	_, err := k.child.Requests.Write(text)
	return err
}
