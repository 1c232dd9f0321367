package server

import (
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"
)

// connections counts what is open. Who is over a limit is turned away at once: waiting would only fill the kernel's queue.
type connections struct {
	most    int // of all
	perPeer int // of one address, but for this host's own: proxies are there
	log     *slog.Logger

	mu     sync.Mutex
	open   int                // guarded by mu
	peers  map[netip.Addr]int // guarded by mu
	turned int                // guarded by mu; away since told
	told   time.Time          // guarded by mu
}

// tellEvery is how often the log is told of connections that are turned away.
const tellEvery = time.Minute

func newConnections(most int, log *slog.Logger) *connections {
	return &connections{most: most, perPeer: max(1, most/4), log: log, peers: map[netip.Addr]int{}}
}

// admit counts a connection unless there are too many.
func (c *connections) admit(remote net.Addr) (release func(), ok bool) {
	peer, far := farPeer(remote)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open >= c.most || far && c.peers[peer] >= c.perPeer {
		c.turnAwayLocked(remote)
		return nil, false
	}
	c.open++
	if far {
		c.peers[peer]++
	}
	return sync.OnceFunc(func() { c.leave(peer, far) }), true
}

func (c *connections) leave(peer netip.Addr, far bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open--
	if !far {
		return
	}
	if c.peers[peer]--; c.peers[peer] == 0 {
		delete(c.peers, peer)
	}
}

func (c *connections) turnAwayLocked(remote net.Addr) {
	c.turned++
	if now := time.Now(); now.Sub(c.told) >= tellEvery {
		c.log.Warn("connections are turned away: too many are open", "open", c.open, "max", c.most, "turned_away", c.turned, "last", remote.String())
		c.told, c.turned = now, 0
	}
}

// farPeer returns the address of another host; of IPv6 the network that one customer has.
func farPeer(remote net.Addr) (netip.Addr, bool) {
	tcp, ok := remote.(*net.TCPAddr)
	if !ok {
		return netip.Addr{}, false
	}
	addr := tcp.AddrPort().Addr().Unmap()
	if addr.IsLoopback() {
		return addr, false
	}
	if addr.Is6() {
		if p, err := addr.WithZone("").Prefix(64); err == nil {
			addr = p.Addr()
		}
	}
	return addr, true
}

// countedListener accepts what may be.
type countedListener struct {
	net.Listener
	connections *connections
}

// Accept implements net.Listener.
func (l *countedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if release, ok := l.connections.admit(conn.RemoteAddr()); ok {
			return &countedConn{Conn: conn, release: release}, nil
		}
		_ = conn.Close() // the peer sees it closed, whatever this says
	}
}

type countedConn struct {
	net.Conn
	release func()
}

// Close implements net.Conn.
func (c *countedConn) Close() error {
	c.release()
	return c.Conn.Close()
}

// CloseWrite lets net/http close a connection so that the peer still reads its last answer.
func (c *countedConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}
