package agent

import (
	"fmt"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// passing returns a listener, and the socket on which connections are passed to it.
func passing(t *testing.T) (net.Listener, int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fds[0]) })
	l, err := open(fmt.Sprintf("fd:%d", fds[1]))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l, fds[0]
}

func TestPassedConnections(t *testing.T) {
	l, to := passing(t)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours := os.NewFile(uintptr(pair[0]), "ours")
	defer ours.Close()
	// What is not one connection is dropped, and does no harm: no descriptor, two descriptors, one of no socket.
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	n := int(null.Fd())
	for _, rights := range [][]byte{nil, unix.UnixRights(n, n), unix.UnixRights(n), unix.UnixRights(pair[1])} {
		if err := unix.Sendmsg(to, []byte{0}, rights, nil, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Close(pair[1]); err != nil {
		t.Fatal(err)
	}
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(ours); err != nil || string(got) != "\x00hello" {
		t.Errorf("the host reads %q, %v; want the sign of acceptance and what was sent", got, err)
	}
}

func TestPassedCloseEndsAccept(t *testing.T) {
	l, _ := passing(t)
	ended := make(chan error, 1)
	go func() {
		_, err := l.Accept()
		ended <- err
	}()
	time.Sleep(10 * time.Millisecond) // either order must do
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil {
		t.Error("Accept returned a connection")
	}
}

func TestPassedRefusesWhatIsNoSocket(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	fd, err := unix.Dup(int(null.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	for _, address := range []string{fmt.Sprintf("fd:%d", fd), "fd:x", "fd:-1", "fd:99999999"} {
		if l, err := open(address); err == nil {
			_ = l.Close()
			t.Errorf("open(%q) succeeded", address)
		}
	}
}
