package container

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// dial connects to the agent in the network namespace of a process. Only making the socket needs to be there: a socket
// keeps the namespace in which it was made.
func dial(ctx context.Context, pidfd *os.File) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	fd, err := socketIn(pidfd)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "agent")
	defer f.Close() // net.FileConn makes a copy
	err = unix.Connect(fd, &unix.SockaddrInet4{Port: agentPort, Addr: [4]byte{127, 0, 0, 1}})
	if errors.Is(err, unix.EINPROGRESS) {
		err = connected(ctx, f)
	}
	if err != nil {
		return nil, fmt.Errorf("connect to agent: %w", err)
	}
	return net.FileConn(f)
}

// connected waits until a connection that is being made is there.
func connected(ctx context.Context, f *os.File) error {
	stop := context.AfterFunc(ctx, func() { _ = f.SetWriteDeadline(time.Unix(1, 0)) }) // f may be closed by then
	defer stop()
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Write(func(fd uintptr) bool {
		if _, err := unix.Getpeername(int(fd)); err == nil {
			return true
		}
		number, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && number != 0 {
			err = unix.Errno(number)
		}
		failed = err
		return err != nil
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return errors.Join(err, failed)
}

// socketIn makes a socket in the network namespace of a process; fs.ErrNotExist if the process has ended.
func socketIn(pidfd *os.File) (int, error) {
	type made struct {
		fd  int
		err error
	}
	done := make(chan made)
	go func() {
		runtime.LockOSThread()
		fd, back, err := socketThere(int(pidfd.Fd()))
		if back {
			runtime.UnlockOSThread()
		} // else the thread ends with this goroutine, and nothing else ever runs in that namespace
		done <- made{fd, err}
	}()
	m := <-done
	if errors.Is(m.err, unix.ESRCH) {
		m.err = fmt.Errorf("the sandbox has ended: %w", fs.ErrNotExist)
	}
	return m.fd, m.err
}

// socketThere enters the network namespace with the calling thread and comes back, if it can.
func socketThere(pidfd int) (fd int, back bool, err error) {
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, true, fmt.Errorf("open own network namespace: %w", err)
	}
	defer unix.Close(home)
	if err := unix.Setns(pidfd, unix.CLONE_NEWNET); err != nil {
		return -1, true, fmt.Errorf("enter network namespace: %w", err)
	}
	fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		fd, err = -1, fmt.Errorf("make socket: %w", err)
	}
	return fd, unix.Setns(home, unix.CLONE_NEWNET) == nil, err
}
