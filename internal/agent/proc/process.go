package proc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/agent/account"
	processv1 "github.com/firebreak-dev/firebreak/internal/api/process"
)

// Process is one that was started here, running or ended.
type Process struct {
	manager *Manager
	user    account.User
	config  *processv1.ProcessConfig
	tag     *string
	pid     int
	born    time.Time
	output  *Output
	files   [streams]*os.File // our ends of what it writes
	expired atomic.Bool       // its deadline killed it

	input chan struct{} // holds a token while somebody writes to stdin
	stdin *os.File      // our end, the terminal's too; nil without one

	exited chan struct{}   // closed when it was reaped
	status unix.WaitStatus // valid once exited is closed
	ended  chan struct{}   // closed when its output is complete too
}

func (p *Process) isMain() bool { return p.tag != nil && *p.tag == tagMain }

// start starts the process. On error nothing is left.
func (p *Process) start(launch Launch, req *processv1.StartRequest) error {
	p.born = time.Now()
	err := launch(&Stdio{p, req}, func(pid int) {
		p.pid = pid
		p.manager.add(p) // before it can end
	}, func(status unix.WaitStatus) {
		p.status = status
		close(p.exited)
	})
	if err != nil {
		p.close()
	}
	return err
}

func winsize(s *processv1.PTY_Size) *pty.Winsize {
	return &pty.Winsize{Rows: uint16(min(s.GetRows(), 65535)), Cols: uint16(min(s.GetCols(), 65535))}
}

// supervise sees the process to its end: kills it at its deadline, and ends its output when that is complete.
func (p *Process) supervise(deadline time.Time) {
	var pumps, drained sync.WaitGroup
	for s, f := range p.files {
		if f != nil {
			drained.Add(1)
			pumps.Go(func() { p.pump(Stream(s), f, sync.OnceFunc(drained.Done)) })
		}
	}
	if !deadline.IsZero() {
		timer := time.AfterFunc(time.Until(deadline), func() {
			p.expired.Store(true)
			_ = p.manager.Launcher.Signal(p.pid, unix.SIGKILL) // ESRCH: it was faster
		})
		defer timer.Stop()
	}
	<-p.exited
	for _, f := range p.files {
		if f != nil {
			_ = f.SetReadDeadline(time.Unix(1, 0)) // wakes its pump to see that; closed already: then that has ended
		}
	}
	drained.Wait()
	p.manager.retire(p) // first: who learns of the end must not find it among those that run
	p.output.end()
	close(p.ended)
	pumps.Wait()
	p.close()
	p.manager.closed(p)
}

const (
	// quiet is how long the output must be silent after a process has ended, if something that it left behind still
	// holds the other end: a process substitution comes to its end within that time, a daemon never does.
	quiet = 300 * time.Millisecond
	// patience is how long what was left behind may go on without being quiet.
	patience = 2 * time.Second
)

// pump moves a stream to the output. It calls drained once that is complete, and goes on reading in vain until nobody
// holds the other end, because a daemon that writes to a closed pipe dies.
func (p *Process) pump(s Stream, f *os.File, drained func()) {
	defer drained()
	size := pipeChunk
	if s == PTY {
		size = ptyChunk
	}
	buf := make([]byte, minChunk)
	for after := (aftermath{}); ; {
		n, err := f.Read(buf)
		if after.over {
			n = 0
		}
		p.output.Write(s, buf[:n])
		if n == len(buf) && n < size {
			buf = make([]byte, 2*n)
		}
		woken := errors.Is(err, os.ErrDeadlineExceeded)
		if err != nil && !woken {
			return // EOF; EIO from a terminal
		}
		select {
		case <-p.exited:
			if !after.over && after.ended(f, n, woken) {
				drained()
			}
			_ = f.SetReadDeadline(after.next())
		default:
		}
	}
}

// aftermath is what a stream brings after its process has ended.
type aftermath struct {
	over  bool
	until time.Time // the end of patience; zero before the first look
	asked time.Time // when the last read began
	left  int       // bytes that may be the process's own: they were in the pipe at the first look
}

// ended reports whether the stream is complete, after a read of n bytes that a deadline may have woken.
func (a *aftermath) ended(f *os.File, n int, woken bool) bool {
	if a.until.IsZero() {
		a.until, a.left = time.Now().Add(patience), waiting(f)
		return false
	}
	a.left -= n
	// Supervise's deadline may come late and wake a read that had no time to find anything.
	silent := woken && time.Since(a.asked) >= quiet
	a.over = silent || a.left <= 0 && time.Now().After(a.until)
	return a.over
}

// next is the deadline of the next read.
func (a *aftermath) next() time.Time {
	if a.over {
		return time.Time{}
	}
	a.asked = time.Now()
	return a.asked.Add(quiet)
}

// waiting is how many bytes can be read from f at once.
func waiting(f *os.File) (n int) {
	if raw, err := f.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	}
	return n
}

// close closes our ends.
func (p *Process) close() {
	for _, f := range append(p.files[:], p.stdin) {
		if f != nil {
			_ = f.Close()
		}
	}
}

// errNoInput is the error of a process whose input does not exist or has been closed.
var errNoInput = errors.New("process takes no input: its stdin is closed or was never open")

// Input writes to stdin or to the terminal. It blocks until the process has room for all of it.
func (p *Process) Input(ctx context.Context, in *processv1.ProcessInput) error {
	data, terminal := in.GetStdin(), false
	if t, ok := in.GetInput().(*processv1.ProcessInput_Pty); ok {
		data, terminal = t.Pty, true
	}
	if terminal != (p.files[PTY] != nil) {
		return connect.NewError(connect.CodeInvalidArgument,
			errors.New("input for a terminal and for stdin are not the same: the process has the other one"))
	}
	if err := p.lockInput(ctx); err != nil {
		return err
	}
	defer func() { <-p.input }()
	if p.stdin == nil {
		return connect.NewError(connect.CodeFailedPrecondition, errNoInput)
	}
	stop := context.AfterFunc(ctx, func() { _ = p.stdin.SetWriteDeadline(time.Unix(1, 0)) })
	_, err := p.stdin.Write(data)
	if !stop() {
		_ = p.stdin.SetWriteDeadline(time.Time{})
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrClosed):
		return connect.NewError(connect.CodeFailedPrecondition, errNoInput)
	case ctx.Err() != nil:
		return fmt.Errorf("write input: %w", ctx.Err())
	}
	return connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("write input: %w", err))
}

func (p *Process) lockInput(ctx context.Context) error {
	select {
	case p.input <- struct{}{}:
		return nil
	case <-p.exited:
		return connect.NewError(connect.CodeNotFound, errors.New("process has ended"))
	case <-ctx.Done():
		return ctx.Err()
	}
}

// CloseInput closes stdin; a terminal has no such thing.
func (p *Process) CloseInput(ctx context.Context) error {
	if p.files[PTY] != nil {
		return connect.NewError(connect.CodeUnimplemented, errors.New("a terminal's input cannot be closed; send it Ctrl-D"))
	}
	if err := p.lockInput(ctx); err != nil {
		return err
	}
	defer func() { <-p.input }()
	if p.stdin != nil {
		_ = p.stdin.Close() // closed already: so much the better
	}
	return nil
}

// Resize changes the terminal's size.
func (p *Process) Resize(size *processv1.PTY_Size) error {
	if p.files[PTY] == nil {
		return connect.NewError(connect.CodeFailedPrecondition, errors.New("process has no terminal"))
	}
	raw, err := p.files[PTY].SyscallConn() // not pty.Setsize: see unblocked
	if err != nil {
		return err
	}
	var failed error
	w := winsize(size)
	err = raw.Control(func(fd uintptr) {
		failed = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: w.Rows, Col: w.Cols})
	})
	return errors.Join(err, failed)
}

// Info describes the process.
func (p *Process) Info() *processv1.ProcessInfo {
	return &processv1.ProcessInfo{Config: p.config, Pid: uint32(p.pid), Tag: p.tag}
}
