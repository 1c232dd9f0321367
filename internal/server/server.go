// Package server is Firebreak as a network service: listeners, who is calling, limits against hostile clients, and an
// orderly end. What requests mean is the business of the doors behind it, which it is given.
package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/cors"

	"github.com/firebreak-dev/firebreak/internal/auth"
)

// DataPlane passes requests on into sandboxes.
type DataPlane interface {
	http.Handler
	// Addressed reports whether a request is for a sandbox, and not for the server itself.
	Addressed(r *http.Request) bool
}

// Config is what a server is made of. Doors that are nil answer 404.
type Config struct {
	DataPlane DataPlane
	RPC       http.Handler // firebreak.v1, and gRPC's own services
	E2B       http.Handler
	MCP       http.Handler // at /mcp
	Metrics   http.Handler

	// Authenticate returns whose key it is; an error of firebreak.KindDenied if it is nobody's.
	Authenticate func(ctx context.Context, key string) (auth.Tenant, error)
	// Ready returns why requests cannot be served yet; nil: they can.
	Ready func(ctx context.Context) error
	// Public reports whether the E2B door answers a request of nobody: the others need a key. nil: none.
	Public func(r *http.Request) bool
	// Upload reports whether a request to the E2B door carries a file, whose size and time it bounds itself. nil: none.
	Upload func(r *http.Request) bool

	CA []byte // certificate of the local authority, served at /ca.pem; nil: there is none

	Origins []string // of web pages that may call the API: "*" is all, as a page needs a key like everybody else

	MaxConnections int           // at the same time; of one remote address at most a quarter
	Grace          time.Duration // for requests under way at the end
	Log            *slog.Logger
}

const (
	headerTimeout = 10 * time.Second // for a request's headers, and for a TLS handshake
	idleTimeout   = 3 * time.Minute  // between two requests of a connection
	maxHeader     = 64 << 10         // bytes of headers; more is 431
	maxStreams    = 250              // of one HTTP/2 connection
	pingAfter     = time.Minute      // of silence of an HTTP/2 peer
	pingTimeout   = 20 * time.Second
)

// Listener is where a server accepts connections.
type Listener struct {
	net.Listener
	TLS bool // the connections are encrypted, with the certificates of Serve
}

// Server serves. Its methods may be called concurrently, but Serve only once.
type Server struct {
	cfg  Config
	log  *slog.Logger
	http *http.Server

	streams     context.Context // of requests that would not end by themselves
	cutStreams  context.CancelCauseFunc
	ending      atomic.Bool
	cors        *cors.Cors
	connections *connections
	bodyTime    time.Duration // for a body of the control plane to arrive
}

// ErrClosing is why the context of a long request ends when the server does.
var ErrClosing = errors.New("the server is shutting down")

// New makes a server; Serve runs it.
func New(cfg Config) *Server {
	s := &Server{cfg: cfg, log: cfg.Log, connections: newConnections(cfg.MaxConnections, cfg.Log), bodyTime: bodyTimeout, cors: newCORS(cfg.Origins)}
	s.streams, s.cutStreams = context.WithCancelCause(context.Background())
	protocols := &http.Protocols{}
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true) // gRPC on the plain port
	s.http = &http.Server{
		Handler:           s.handler(),
		Protocols:         protocols,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: maxStreams, SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ConnContext:       withPeer,
		ErrorLog:          slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug), // clients' faults
	}
	return s
}

// newCORS lets pages call what takes no cookies.
func newCORS(origins []string) *cors.Cors {
	return cors.New(cors.Options{
		AllowedOrigins: origins,
		AllowedMethods: []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete},
		AllowedHeaders: []string{"*"},
		ExposedHeaders: []string{"X-Next-Token", "X-Total-Running", headerID, "Retry-After", "Mcp-Session-Id", "Mcp-Protocol-Version", "Grpc-Status", "Grpc-Message", "Grpc-Status-Details-Bin"},
		MaxAge:         7200, // seconds: the most that a browser takes
	})
}

// Connections returns how many are open.
func (s *Server) Connections() int {
	s.connections.mu.Lock()
	defer s.connections.mu.Unlock()
	return s.connections.open
}

// Serve accepts connections until ctx is done, or a listener fails. Then no more are accepted, what would go on for ever
// is cut off, and what ends by itself may do so for the grace time. certificate is of TLS listeners.
func (s *Server) Serve(ctx context.Context, certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error), listeners ...Listener) error {
	s.http.TLSConfig = &tls.Config{GetCertificate: certificate, MinVersion: tls.VersionTLS12}
	failed := make(chan error, len(listeners))
	var serving sync.WaitGroup
	for _, l := range listeners {
		serving.Go(func() {
			if err := s.serveOne(l); !errors.Is(err, http.ErrServerClosed) {
				failed <- fmt.Errorf("serve %s: %w", l.Addr(), err)
			}
		})
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	err = errors.Join(err, s.end())
	serving.Wait()
	return err
}

func (s *Server) serveOne(l Listener) error {
	counted := &countedListener{Listener: l.Listener, connections: s.connections}
	if l.TLS {
		return s.http.ServeTLS(counted, "", "")
	}
	return s.http.Serve(counted)
}

// end is the orderly end.
func (s *Server) end() error {
	s.ending.Store(true)
	s.cutStreams(ErrClosing)
	ctx, cancel := context.WithTimeout(context.Background(), s.cfg.Grace)
	defer cancel()
	err := s.http.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		s.log.Warn("requests are cut off that did not end in time", "grace", s.cfg.Grace)
		err = s.http.Close()
	}
	if err != nil {
		return fmt.Errorf("end the server: %w", err)
	}
	return nil
}
