package agent

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// passed is a listener whose connections the host hands in, one with each datagram on an inherited socket. It needs
// neither a network nor a file system that the host can see into, and nothing in the sandbox can connect to it.
type passed struct{ socket *net.UnixConn }

// accepted is written on each connection first: the host then knows that it has arrived.
var accepted = []byte{0}

// listenPassed takes over the descriptor with this number.
func listenPassed(number string) (net.Listener, error) {
	fd, err := strconv.ParseUint(number, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("listen at fd:%s: not a number", number)
	}
	file := os.NewFile(uintptr(fd), "passed connections")
	defer file.Close()
	conn, err := net.FilePacketConn(file)
	if err != nil {
		return nil, fmt.Errorf("listen at fd:%s: %w", number, err)
	}
	socket, ok := conn.(*net.UnixConn)
	if !ok {
		_ = conn.Close()
		return nil, fmt.Errorf("listen at fd:%s: not a Unix socket", number)
	}
	return passed{socket}, nil
}

// Accept implements net.Listener. What is not one connection is dropped.
func (p passed) Accept() (net.Conn, error) {
	for {
		control := make([]byte, unix.CmsgSpace(4))
		_, n, _, _, err := p.socket.ReadMsgUnix(make([]byte, 1), control)
		if err != nil {
			return nil, err
		}
		conn, err := passedConn(control[:n])
		if err != nil {
			continue
		}
		if _, err := conn.Write(accepted); err != nil {
			_ = conn.Close()
			continue
		}
		return conn, nil
	}
}

func passedConn(control []byte) (net.Conn, error) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil || len(messages) != 1 {
		return nil, errors.Join(err, errors.New("no descriptor"))
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, errors.Join(err, errors.New("not one descriptor"))
	}
	file := os.NewFile(uintptr(fds[0]), "passed connection")
	defer file.Close()
	return net.FileConn(file)
}

func (p passed) Close() error { return p.socket.Close() }

func (p passed) Addr() net.Addr { return p.socket.LocalAddr() }
