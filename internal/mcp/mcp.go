// Package mcp is the door for clients of the Model Context Protocol: chat programs and coding agents, whose models call
// its tools. Each session has a sandbox, made when a tool first needs one and gone when the session ends. It translates;
// what may be made, and behind which boundary, is decided below.
//
// Every byte that a tool gives back was written by code nobody has read. It is cut to a size, made valid UTF-8, and never
// decides what the host does next.
package mcp

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/manager"
	"github.com/firebreak-dev/firebreak/internal/policy"
	"github.com/firebreak-dev/firebreak/internal/store"
)

// Sandboxes makes, finds and ends sandboxes, on behalf of the caller in the context.
type Sandboxes interface {
	Create(ctx context.Context, req manager.Request) (store.Record, manager.Timings, error)
	Find(ctx context.Context, ref string) (store.Record, error)
	SetTimeout(ctx context.Context, ref string, d time.Duration, extendOnly bool) (store.Record, error)
	Annotate(ctx context.Context, ref string, notes map[string]string) (store.Record, error)
	Delete(ctx context.Context, ref string) (store.Record, error)
}

// Guests reaches into them.
type Guests interface {
	Guest(ctx context.Context, ref string) (*guest.Guest, error)
}

// Advisor says what code must run behind.
type Advisor interface {
	Advise(ctx context.Context, q manager.Question) (policy.Decision, error)
}

// Config is what the door is made of. The first block is needed.
type Config struct {
	Sandboxes Sandboxes
	Guests    Guests
	Advisor   Advisor
	Log       *slog.Logger

	Version string          // of this program, as clients are told it
	Request manager.Request // for each sandbox, where its client says nothing else

	// Local: the client is a program of this process's own user on this host, so that files of its roots can be copied, and
	// ports of sandboxes opened on the loopback interface.
	Local bool
	// PortURL returns where browsers reach a port of a sandbox. nil: nowhere, unless Local.
	PortURL func(id string, port uint16) string

	Hosts   []string // names by which clients on this host reach the server, beside those of the loopback interface
	Origins []string // of web pages that may speak to it, beside its own; "*" is all

	Idle        time.Duration // how long a sandbox that no tool uses lives; 0: 20 minutes
	SessionIdle time.Duration // how long a session over HTTP without requests lives; 0: an hour
	Sessions    int           // at once, of all callers; 0: 1000. One tenant has at most half of them

	Extend  func(*sdk.Server) // adds to what clients are offered; nil: nothing
	Watched []string          // addresses of what it adds to which clients may subscribe
}

const (
	defaultIdle        = 20 * time.Minute
	defaultSessionIdle = time.Hour
	defaultSessions    = 1000

	maxMessage = 8 << 20 // bytes of one message of a client

	maxBoxes = 8  // sandboxes of one session
	maxCalls = 16 // tools of one session at work at once
)

// Door answers MCP clients. It may be used concurrently.
type Door struct {
	cfg    Config
	log    *slog.Logger
	server *sdk.Server
	http   http.Handler
	seal   []byte  // key of what clients carry between two halves of a call
	spare  *budget // memory for what tools printed

	work sync.WaitGroup // sessions that have not ended

	mu       sync.Mutex
	closed   bool                            // guarded by mu
	sessions map[*sdk.ServerSession]*session // guarded by mu
}

// New makes the door. Who calls is in the contexts of Serve and of requests (package auth). Close ends it.
func New(cfg Config) *Door {
	if cfg.Idle == 0 {
		cfg.Idle = defaultIdle
	}
	if cfg.SessionIdle == 0 {
		cfg.SessionIdle = defaultSessionIdle
	}
	if cfg.Sessions == 0 {
		cfg.Sessions = defaultSessions
	}
	d := &Door{cfg: cfg, log: cfg.Log, seal: []byte(rand.Text()), spare: &budget{left: maxSpare}, sessions: map[*sdk.ServerSession]*session{}}
	d.server = sdk.NewServer(
		&sdk.Implementation{Name: "firebreak", Title: "Firebreak sandboxes", Version: cfg.Version},
		&sdk.ServerOptions{
			Instructions: d.instructions(),
			Logger:       slog.New(slog.DiscardHandler), // it tells of every message
			Capabilities: withLogging(),

			SubscribeHandler: d.subscribe, UnsubscribeHandler: d.unsubscribe, CompletionHandler: d.complete,
		})
	d.server.AddReceivingMiddleware(d.admit)
	d.addTools()
	d.addResources()
	if cfg.Extend != nil {
		cfg.Extend(d.server)
	}
	d.http = d.newHTTP()
	return d
}

func (d *Door) instructions() string {
	text := `These tools run code and commands in a sandbox: an isolated Linux machine of your own. Nothing that you do in it can ` +
		`harm the user's computer, and nothing in it can read the user's files unless they were put there. It is made by ` +
		`the first tool that needs it and kept between calls: files, variables of run_code and background commands stay. ` +
		`It ends with this session, or when no tool has used it for ` + d.cfg.Idle.String() + `. It has no network. ` +
		`run_code keeps state between calls, run_command starts anew each time; use read_file, write_file and edit_file ` +
		`rather than cat and sed. Results are cut; what was left out is named and can be read with read_output or read_file.`
	if len(d.cfg.Request.Mounts) > 0 {
		text += ` The user's directory is shared at ` + Workspace + `: what you change there changes on the user's computer.`
	}
	return text
}

// Serve speaks to one client over two streams until it goes away, ctx is done or a stream fails, and then ends its
// session with all sandboxes in it. It closes both.
func (d *Door) Serve(ctx context.Context, in io.ReadCloser, out io.WriteCloser) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answers := &lockedWriter{WriteCloser: out}
	transport := &sdk.IOTransport{Reader: newFrames(in, answers), Writer: answers, MaxLineLength: maxMessage + 1}
	ss, err := d.server.Connect(ctx, transport, nil)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() {
		d.end(ss)
		_ = ss.Close() // it is what Wait returns
	})
	defer stop()
	err = ss.Wait()
	if s := d.end(ss); s != nil {
		<-s.gone
	}
	if ctx.Err() != nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrClosedPipe) {
		return nil
	}
	return err
}

// ServeHTTP implements http.Handler.
func (d *Door) ServeHTTP(w http.ResponseWriter, r *http.Request) { d.http.ServeHTTP(w, r) }

// Close ends all sessions, and returns when their sandboxes have.
func (d *Door) Close() error {
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	for ss := range d.server.Sessions() {
		d.end(ss)
		d.work.Go(func() { _ = ss.Close() }) // the client may have gone
	}
	d.work.Wait()
	return nil
}

func unavailable(text string) error {
	return &firebreak.Error{Kind: firebreak.KindUnavailable, Err: errors.New(text), Mend: "try again in a moment"}
}
