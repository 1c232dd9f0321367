package gvisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak"
)

// The agent is handed one socket, which has a name in the record's directory. A connection is made by sending one end
// of a pair to that name. gVisor's own port forwarding is no alternative: in the version linked in it loses what a full
// socket does not take, and can miss that there is something to forward.
const (
	agentSocket = "agent.sock" // in StateDir/<id>
	agentFD     = 3            // in the agent
)

// mailbox makes a socket with this name in the record, for others to send connections to.
func (r request) mailbox(name string) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("make %s: %w", name, err)
	}
	file := os.NewFile(uintptr(fd), name)
	dir, err := os.Open(r.Record)
	if err != nil {
		file.Close()
		return nil, err
	}
	defer dir.Close()
	// The path may be too long for an address.
	addr := &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name)}
	if err := unix.Bind(fd, addr); err != nil {
		file.Close()
		return nil, fmt.Errorf("name %s: %w", name, err)
	}
	return file, nil
}

// Dial implements driver.Sandbox.
func (s *box) Dial(ctx context.Context) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	conn, err := s.dial(ctx)
	if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.ECONNREFUSED) {
		s.settle(ctx, s.state.Sandbox) // the agent is gone, and the sandbox is about to be
	}
	switch {
	case err == nil:
		return conn, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, fs.ErrNotExist) || !s.state.Sandbox.alive():
		return nil, fmt.Errorf("dial agent: the sandbox has ended: %w", fs.ErrNotExist)
	}
	return nil, &firebreak.Error{Kind: firebreak.KindUnavailable, Op: "dial agent", Err: err}
}

func (s *box) dial(ctx context.Context) (net.Conn, error) {
	file, err := s.send(ctx, agentSocket)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	conn, err := net.FileConn(file)
	if err != nil {
		return nil, err
	}
	if err := s.awaitAccept(ctx, conn); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// send makes a connection, sends one end to a mailbox of the sandbox and returns the other.
func (s *box) send(ctx context.Context, name string) (*os.File, error) {
	dir, err := os.Open(s.record)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	if !s.current() { // dir is from before: if it is not this sandbox's, neither is the record
		return nil, fs.ErrNotExist
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "our end"), os.NewFile(uintptr(fds[1]), "sandbox's end")
	defer theirs.Close()
	if err := pass(ctx, filepath.Join(fmt.Sprintf("/proc/self/fd/%d", dir.Fd()), name), theirs); err != nil {
		ours.Close()
		return nil, err
	}
	return ours, nil
}

// pass sends file to the socket with this name, waiting while too many wait there already.
func pass(ctx context.Context, name string, file *os.File) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	rights := unix.UnixRights(int(file.Fd()))
	for {
		err := unix.Sendmsg(fd, []byte{0}, rights, &unix.SockaddrUnix{Name: name}, 0)
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return err
		}
		if err := sleep(ctx, time.Millisecond); err != nil {
			return err
		}
	}
}

// awaitAccept returns once the agent has said that the connection has arrived.
func (s *box) awaitAccept(ctx context.Context, conn net.Conn) error {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	_, err := conn.Read(make([]byte, 1))
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("wait until the agent accepts: %w", err)
	}
	return nil
}
