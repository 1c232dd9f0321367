package cli

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// inputReader reads a file that may be a terminal or a pipe nobody writes to, and can be told to stop waiting.
type inputReader struct {
	f          *os.File
	wake, stop *os.File // the two ends of a pipe that is closed to end a wait
}

func newInputReader(f *os.File) (*inputReader, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("read standard input: %w", err)
	}
	return &inputReader{f: f, wake: r, stop: w}, nil
}

// Read returns io.EOF at the end of the file and after Stop. It takes nothing from the file that it does not return.
func (r *inputReader) Read(p []byte) (int, error) {
	for {
		fds := []unix.PollFd{{Fd: int32(r.f.Fd()), Events: unix.POLLIN}, {Fd: int32(r.wake.Fd()), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil {
			if errors.Is(err, unix.EINTR) {
				continue
			}
			return 0, fmt.Errorf("wait for standard input: %w", err)
		}
		if fds[1].Revents != 0 || fds[0].Revents&unix.POLLNVAL != 0 {
			return 0, io.EOF
		}
		n, err := unix.Read(int(r.f.Fd()), p)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			continue
		case errors.Is(err, unix.EIO): // the terminal was hung up
			return 0, io.EOF
		case err != nil:
			return 0, fmt.Errorf("read standard input: %w", err)
		case n == 0:
			return 0, io.EOF
		}
		return n, nil
	}
}

// Stop ends a Read that waits, and all later ones.
func (r *inputReader) Stop() { _ = r.stop.Close() }

// Close is called once nobody reads any more.
func (r *inputReader) Close() {
	_ = r.stop.Close()
	_ = r.wake.Close()
}

// piped reports whether f is something whose content is meant for the program: a pipe, a socket or a file, but not a
// terminal or /dev/null.
func piped(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice == 0 && !info.IsDir()
}
