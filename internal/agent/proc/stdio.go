package proc

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"connectrpc.com/connect"
	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	processv1 "github.com/firebreak-dev/firebreak/internal/api/process"
)

// Stdio is what a process reads from and writes to. A launcher takes either its descriptors or its streams, once.
type Stdio struct {
	process *Process
	req     *processv1.StartRequest
}

// Descriptors opens the descriptors 0, 1 and 2 of a process of the machine. They are the caller's to close. Errors are
// Connect's.
func (s *Stdio) Descriptors() (fds []int, err error) {
	if s.req.GetPty() != nil {
		fds, err = s.process.openTerminal(s.req.GetPty().GetSize())
	} else {
		fds, err = s.process.openPipes(s.takesInput())
	}
	if err != nil {
		closeAll(fds)
		return nil, noRoom(err)
	}
	return fds, nil
}

func (s *Stdio) takesInput() bool { return s.req.Stdin == nil || s.req.GetStdin() }

func noRoom(err error) error {
	return connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("open input and output: %w", err))
}

// Streams is for a program that is a function of this process: what it writes is its output without a way through the
// kernel. When ctx is done nothing can be read or written any more, and who waits for that is woken. Errors are Connect's.
func (s *Stdio) Streams(ctx context.Context) (stdin io.Reader, stdout, stderr io.Writer, err error) {
	stdin = strings.NewReader("")
	if s.takesInput() {
		fd, ours, err := openPipe(0)
		if err != nil {
			return nil, nil, nil, noRoom(err)
		}
		s.process.stdin = ours
		if err := unix.SetNonblock(fd, true); err != nil {
			closeAll([]int{fd})
			return nil, nil, nil, noRoom(err)
		}
		theirs := os.NewFile(uintptr(fd), "pipe")
		context.AfterFunc(ctx, func() { _ = theirs.Close() })
		stdin = onlyReader{theirs}
	}
	out := func(to Stream) io.Writer { return outputWriter{s.process.output, to, ctx} }
	return stdin, out(Stdout), out(Stderr), nil
}

// onlyReader hides that there is a file of the host: nothing but reading shall be done with it.
type onlyReader struct{ io.Reader }

// outputWriter writes a stream of an output until ctx is done.
type outputWriter struct {
	output *Output
	stream Stream
	ctx    context.Context
}

// Write implements io.Writer. The error is os.ErrClosed once nothing is written any more.
func (w outputWriter) Write(p []byte) (int, error) {
	if n := w.output.write(w.stream, p, w.ctx.Done()); n < len(p) {
		return n, os.ErrClosed
	}
	return len(p), nil
}

// openPipes returns the child's descriptors 0, 1 and 2. Only our ends are non-blocking: programs do not expect it.
func (p *Process) openPipes(stdin bool) (theirs []int, err error) {
	theirs = []int{-1, -1, -1}
	if stdin {
		theirs[0], p.stdin, err = openPipe(0)
	} else {
		theirs[0], err = unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	}
	for s := Stdout; s <= Stderr && err == nil; s++ {
		theirs[s+1], p.files[s], err = openPipe(1)
	}
	return theirs, err
}

// openPipe makes a pipe of which the child gets the end called theirs: 0 to read from, 1 to write to.
func openPipe(theirs int) (int, *os.File, error) {
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		return -1, nil, err
	}
	ours := ends[1-theirs]
	if err := unix.SetNonblock(ours, true); err != nil {
		closeAll(ends[:])
		return -1, nil, err
	}
	return ends[theirs], os.NewFile(uintptr(ours), "pipe"), nil
}

// openTerminal returns the child's descriptors 0, 1 and 2, which are one terminal of the user's own.
func (p *Process) openTerminal(size *processv1.PTY_Size) ([]int, error) {
	master, theirs, err := pty.Open()
	if err != nil {
		return nil, err
	}
	defer master.Close() //nolint:errcheck // its duplicate is what we use
	defer theirs.Close() //nolint:errcheck // duplicates go to the child
	if err := theirs.Chown(int(p.user.UID), -1); err != nil && p.manager.Session.Switches() {
		p.manager.Log.Debug("give the terminal to its user", "user", p.user.Name, "error", err)
	}
	if size != nil {
		if err := pty.Setsize(master, winsize(size)); err != nil {
			return nil, err
		}
	}
	ours, err := unblocked(master)
	if err != nil {
		return nil, err
	}
	p.files[PTY], p.stdin = ours, ours
	var fds []int
	for range 3 {
		fd, err := unix.FcntlInt(theirs.Fd(), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			closeAll(fds)
			return nil, err
		}
		fds = append(fds, fd)
	}
	if err := unix.SetNonblock(fds[0], false); err != nil {
		closeAll(fds)
		return nil, err
	}
	return fds, nil
}

// unblocked duplicates f. Package pty has made it blocking, which takes a thread for each read and ignores deadlines.
func unblocked(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}
