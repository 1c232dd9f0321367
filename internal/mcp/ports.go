package mcp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/dataplane"
	"github.com/firebreak-dev/firebreak/internal/guest"
)

const (
	maxPorts   = 16  // of one sandbox that are exposed
	maxForward = 128 // connections to one forwarded port at once
)

type exposeIn struct {
	Port    int    `json:"port" jsonschema:"TCP port that a program in the sandbox listens on"`
	Sandbox string `json:"sandbox,omitempty" jsonschema:"id of another sandbox of this session; default: the session's own"`
}

type exposeOut struct {
	Sandbox string `json:"sandbox"`
	Port    int    `json:"port"`
	URL     string `json:"url"`
}

func (d *Door) addPortTool() {
	if !d.cfg.Local && d.cfg.PortURL == nil {
		return
	}
	about := "Return an address at which the user can reach a server that runs in the sandbox (start it with run_command and background first). "
	if d.cfg.Local {
		about += "It is on the user's computer only, and works until the sandbox ends."
	} else {
		about += "From then on whoever knows the address can reach all ports of this sandbox, until it ends."
	}
	add(d, tool{name: "expose_port", title: "Open a port of the sandbox", openWorld: true, idempotent: true, about: about,
		limits: limits{"port": between(1, 65535), "sandbox": longest(maxID)}},
		(*call).expose)
}

func (c *call) expose(in exposeIn) (result, exposeOut, error) {
	if in.Port == guest.AgentPort || in.Port == dataplane.CodePort {
		return result{}, exposeOut{}, invalid("use another port", "port %d is firebreak's own", in.Port)
	}
	b, g, err := c.box(in.Sandbox)
	if err != nil {
		return result{}, exposeOut{}, err
	}
	port := uint16(in.Port)
	conn, err := g.DialPort(c.ctx, port)
	if err != nil {
		return result{}, exposeOut{}, &firebreak.Error{Kind: firebreak.KindState, Err: fmt.Errorf("nothing in the sandbox listens on port %d of its loopback interface", port),
			Mend: "start the server with run_command and background, see with read_output that it runs, and expose the port then"}
	}
	_ = conn.Close() // it was a try
	url, err := c.open(b, g, port)
	if err != nil {
		return result{}, exposeOut{}, err
	}
	b.log.add("port %d is at %s", port, url)
	return text("Port %d is at %s", port, url), exposeOut{Sandbox: b.id, Port: in.Port, URL: url}, nil
}

// open returns where the port is reached, and sees to it that it is.
func (c *call) open(b *box, g *guest.Guest, port uint16) (string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if url := b.opened[port]; url != "" {
		return url, nil
	}
	if len(b.opened) >= maxPorts {
		return "", &firebreak.Error{Kind: firebreak.KindExhausted, Err: fmt.Errorf("%d ports of this sandbox are open already", maxPorts), Mend: "use one of them"}
	}
	if c.door.cfg.PortURL != nil {
		if _, err := c.door.cfg.Sandboxes.Annotate(c.ctx, b.id, map[string]string{dataplane.AnnotationPrivate: ""}); err != nil {
			return "", err
		}
		b.opened[port] = c.door.cfg.PortURL(b.id, port)
		return b.opened[port], nil
	}
	address, err := c.session.forward(b, g, port)
	if err != nil {
		return "", err
	}
	b.opened[port] = "http://" + address
	return b.opened[port], nil
}

// forward listens on the loopback interface for as long as the sandbox is the session's, and passes connections on.
func (s *session) forward(b *box, g *guest.Guest, port uint16) (string, error) {
	ctx, leave, err := s.join(b.ctx)
	if err != nil {
		return "", err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		leave()
		return "", &firebreak.Error{Kind: firebreak.KindHost, Op: "listen on the loopback interface", Err: err}
	}
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	go func() {
		defer leave()
		defer stop()
		accept(ctx, l, func(ctx context.Context) (net.Conn, error) { return g.DialPort(ctx, port) })
	}()
	return l.Addr().String(), nil
}

// accept passes connections on until the listener is closed, and returns when all have ended.
func accept(ctx context.Context, l net.Listener, dial func(context.Context) (net.Conn, error)) {
	var passing sync.WaitGroup
	defer passing.Wait()
	slots := make(chan struct{}, maxForward)
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		near, err := l.Accept()
		if err != nil {
			if ctx.Err() == nil && !errors.Is(err, net.ErrClosed) {
				<-slots
				continue // it has gone again
			}
			return
		}
		passing.Go(func() {
			defer func() { <-slots }()
			pass(ctx, near, dial)
		})
	}
}

// pass copies both ways until both have ended, or ctx does.
func pass(ctx context.Context, near net.Conn, dial func(context.Context) (net.Conn, error)) {
	defer near.Close() //nolint:errcheck // it may be closed already
	far, err := dial(ctx)
	if err != nil {
		return
	}
	defer far.Close() //nolint:errcheck // it may be closed already
	stop := context.AfterFunc(ctx, func() {
		_ = near.Close()
		_ = far.Close()
	})
	defer stop()
	var both sync.WaitGroup
	both.Go(func() { copyHalf(far, near) })
	both.Go(func() { copyHalf(near, far) })
	both.Wait()
}

// copyHalf copies until the end of one half, and tells the other side of it.
func copyHalf(to, from net.Conn) {
	_, _ = io.Copy(to, from) // however it ends
	if half, ok := to.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
		return
	}
	_ = to.Close()
}
