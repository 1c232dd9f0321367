// Package guest is the host's end of the talk with the agent in a sandbox. Whatever comes from there is hostile: sizes
// and times are limited, redirects are not followed, and nothing of it decides what the host does next.
package guest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"sync"
	"syscall"
	"time"

	"connectrpc.com/connect"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/api/filesystem/filesystemconnect"
	"github.com/firebreak-dev/firebreak/internal/api/process/processconnect"
)

// AgentPort is where the agent listens inside, if the driver reaches it over TCP.
const AgentPort = 49983

const (
	base        = "http://agent"
	tokenHeader = "X-Access-Token"

	maxHeader   = 64 << 10 // of a response
	maxMessage  = 32 << 20 // of Connect, from the agent: a listing of 50,000 files
	maxSend     = 8 << 20  // of Connect, to the agent, who takes no more
	maxText     = 4 << 10  // of an error that is quoted
	dialTimeout = 10 * time.Second

	answerTimeout = 5 * time.Second
	warmTimeout   = 30 * time.Second
)

// Dial opens a new stream to the agent.
type Dial = func(context.Context) (net.Conn, error)

// Guest talks to one agent. It is safe for concurrent use.
type Guest struct {
	dial      Dial
	token     string
	transport http.RoundTripper
	client    *http.Client
	proxy     http.Handler
	ports     *http.Transport

	// Most of what talks to a sandbox that lives for a moment needs neither.
	process    func() processconnect.ProcessClient
	filesystem func() filesystemconnect.FilesystemClient
}

// New returns the guest of the agent that dial reaches and token opens. It does not dial yet.
func New(dial func(context.Context) (net.Conn, error), token string) *Guest {
	t := &http.Transport{
		DisableCompression:     true, // what the agent compressed is for the client, and inflating it here a bomb
		MaxResponseHeaderBytes: maxHeader,
		MaxIdleConnsPerHost:    8,
		IdleConnTimeout:        time.Minute, // below the agent's: reusing what it just closed would fail
	}
	g := newGuest(patient(dial), token, t)
	t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) { return g.dial(ctx) }
	return g
}

// patient bounds the time of a dial.
func patient(dial Dial) Dial {
	return func(ctx context.Context) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, dialTimeout)
		defer cancel()
		return dial(ctx)
	}
}

func newGuest(dial Dial, token string, transport http.RoundTripper) *Guest {
	g := &Guest{dial: dial, token: token, transport: transport}
	g.client = &http.Client{Transport: authorized{g.transport, token}, CheckRedirect: noRedirect}
	g.process = sync.OnceValue(func() processconnect.ProcessClient {
		return newProcessClient(g.client)
	})
	g.filesystem = sync.OnceValue(func() filesystemconnect.FilesystemClient {
		return filesystemconnect.NewFilesystemClient(g.client, base, limits()...)
	})
	g.proxy = g.newProxy()
	g.ports = g.newPorts()
	return g
}

// limits are of Connect's messages.
func limits() []connect.ClientOption {
	return []connect.ClientOption{connect.WithReadMaxBytes(maxMessage), connect.WithSendMaxBytes(maxSend),
		connect.WithAcceptCompression("gzip", nil, nil)} // a bomb less, and nothing is gained on one host
}

// Close drops the idle connections. Streams that are open go on until their contexts end.
func (g *Guest) Close() {
	g.client.CloseIdleConnections()
	g.ports.CloseIdleConnections()
}

// Process is the agent's process service.
func (g *Guest) Process() processconnect.ProcessClient { return g.process() }

// Filesystem is the agent's file service.
func (g *Guest) Filesystem() filesystemconnect.FilesystemClient { return g.filesystem() }

// authorized adds the token.
type authorized struct {
	next  http.RoundTripper
	token string
}

func (a authorized) RoundTrip(r *http.Request) (*http.Response, error) {
	if a.token != "" {
		r = r.Clone(r.Context())
		r.Header.Set(tokenHeader, a.token)
	}
	return a.next.RoundTrip(r)
}

// CloseIdleConnections is for http.Client.
func (a authorized) CloseIdleConnections() {
	if t, ok := a.next.(*http.Transport); ok {
		t.CloseIdleConnections()
	}
}

func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// Config is what the agent is told before anything else.
type Config struct {
	Envs     map[string]string // of every process
	User     string            // whom requests that name nobody run as
	Workdir  string            // where they begin
	Deadline time.Time         // when the agent ends the sandbox by itself; zero for never

	// What programs find of their sandbox in E2B_SANDBOX_ID and E2B_TEMPLATE_ID; "" for nothing. Envs win over them.
	SandboxID, TemplateID string
}

// Init claims the agent for the token and configures it. It tries until the agent answers, refuses, or has ended, or ctx
// ends; it may be repeated, and then replaces the configuration.
func (g *Guest) Init(ctx context.Context, c Config) error {
	body, err := json.Marshal(map[string]any{
		"accessToken": g.token, "envVars": c.Envs, "defaultUser": c.User, "defaultWorkdir": c.Workdir, "deadline": c.Deadline,
		"sandboxID": c.SandboxID, "templateID": c.TemplateID,
	})
	if err != nil {
		return fmt.Errorf("write init: %w", err)
	}
	for pause := time.Millisecond; ; pause = min(2*pause, 20*time.Millisecond) {
		err := g.ask(ctx, http.MethodPost, "/init", body, answerTimeout)
		var refused *firebreak.Error
		switch {
		case err == nil || errors.As(err, &refused):
			return err
		case errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOENT): // it has ended; a socket may yet be made
			return &firebreak.Error{Kind: firebreak.KindUnavailable, Op: "wait for the agent", Err: err}
		}
		select {
		case <-ctx.Done():
			return &firebreak.Error{Kind: firebreak.KindUnavailable, Op: "wait for the agent", Err: errors.Join(ctx.Err(), err)}
		case <-time.After(pause):
		}
	}
}

// Health returns nil if the agent answers.
func (g *Guest) Health(ctx context.Context) error {
	return g.ask(ctx, http.MethodGet, "/health", nil, answerTimeout)
}

// Warm starts the interpreter of a language's default code context, so that the first run finds it ready.
func (g *Guest) Warm(ctx context.Context, language string) error {
	return g.ask(ctx, http.MethodPost, "/warm/"+url.PathEscape(language), nil, warmTimeout)
}

// ask expects 204. An answer that says no is a *firebreak.Error; no answer is something else.
func (g *Guest) ask(ctx context.Context, method, path string, body []byte, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout) // a stream that was opened too early may never answer
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, base+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := g.client.Do(req)
	if err != nil {
		return fmt.Errorf("ask the agent: %w", err)
	}
	defer res.Body.Close() //nolint:errcheck // read as far as we want it
	if res.StatusCode == http.StatusNoContent {
		return nil
	}
	text, _ := io.ReadAll(io.LimitReader(res.Body, maxText)) // what could be read says enough
	err = fmt.Errorf("%s %s answered %d: %q", method, path, res.StatusCode, text)
	return &firebreak.Error{Kind: kindOf(res.StatusCode), Op: "ask the agent", Err: err}
}

// kindOf is what a status of the agent, other than the wanted one, means.
func kindOf(status int) firebreak.Kind {
	switch status {
	case http.StatusBadRequest:
		return firebreak.KindInvalid
	case http.StatusUnauthorized, http.StatusForbidden:
		return firebreak.KindDenied
	case http.StatusNotFound:
		return firebreak.KindNotFound
	case http.StatusNotImplemented:
		return firebreak.KindUnsupported
	case http.StatusInsufficientStorage:
		return firebreak.KindExhausted
	case http.StatusBadGateway:
		return firebreak.KindUnavailable
	}
	return firebreak.KindInternal
}
