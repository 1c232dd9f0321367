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

// listenForAgent makes the socket that the agent is to have.
func (r request) listenForAgent() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("make agent's socket: %w", err)
	}
	file := os.NewFile(uintptr(fd), agentSocket)
	dir, err := os.Open(r.Record)
	if err != nil {
		file.Close()
		return nil, err
	}
	defer dir.Close()
	// The path may be too long for an address.
	addr := &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), agentSocket)}
	if err := unix.Bind(fd, addr); err != nil {
		file.Close()
		return nil, fmt.Errorf("name agent's socket: %w", err)
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
	dir, err := os.Open(s.record)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	if !s.current() { // dir is from before: if it is not this sandbox's, neither is the record
		return nil, fs.ErrNotExist
	}
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	err = pass(ctx, filepath.Join(fmt.Sprintf("/proc/self/fd/%d", dir.Fd()), agentSocket), theirs)
	theirs.Close()
	if err == nil {
		err = s.awaitAccept(ctx, ours)
	}
	if err != nil {
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

func socketPair() (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	theirs, file := os.NewFile(uintptr(fds[1]), "sandbox's end"), os.NewFile(uintptr(fds[0]), "our end")
	defer file.Close()
	ours, err := net.FileConn(file)
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return ours, theirs, nil
}
