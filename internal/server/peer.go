package server

import (
	"context"
	"crypto/tls"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// peer is what a connection itself says of who is at its other end.
type peer struct {
	operator bool // on a unix socket: the user that this server runs as, or root
	local    bool // of this host
}

type peerKey struct{}

// withPeer is http.Server.ConnContext.
func withPeer(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, peerKey{}, peerOf(conn))
}

func peerOfContext(ctx context.Context) peer {
	p, _ := ctx.Value(peerKey{}).(peer) // nobody: no rights
	return p
}

func peerOf(conn net.Conn) peer {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	if c, ok := conn.(*countedConn); ok {
		conn = c.Conn
	}
	switch c := conn.(type) {
	case *net.UnixConn:
		return peer{operator: isOperator(c), local: true}
	case *net.TCPConn:
		_, far := farPeer(c.RemoteAddr())
		return peer{local: !far}
	}
	return peer{}
}

// isOperator asks the kernel who connected. Inside a user namespace root of the host is a stranger: it has no number
// there, and strangers share the one that stands for none.
func isOperator(conn *net.UnixConn) bool {
	raw, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	return err == nil && credErr == nil && (cred.Uid == 0 || cred.Uid == uint32(os.Geteuid()))
}
