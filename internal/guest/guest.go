// Package guest is the host's end of the talk with the agent in a sandbox. It believes nothing that comes from there:
// messages are bounded, redirects are not followed, and what it cannot parse ends the stream.
package guest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/api/filesystem/filesystemconnect"
	"github.com/firebreak-dev/firebreak/internal/api/process/processconnect"
)

const (
	// AgentPort is the TCP port on a sandbox's loopback on which its agent listens.
	AgentPort = 49983

	// TokenHeader carries the sandbox's token on every request.
	TokenHeader = "X-Access-Token"

	// maxMessage bounds one message from a sandbox: a listing of 64k files fits, a flood does not.
	maxMessage = 32 << 20
	// maxHeader bounds the response headers from a sandbox, bytes.
	maxHeader = 64 << 10
	// maxErrorText bounds what is read of an error answer, bytes.
	maxErrorText = 4 << 10

	dialTimeout   = 10 * time.Second
	attemptLimit  = 5 * time.Second // one try of the first talk with an agent that may just be starting
	firstPause    = 500 * time.Microsecond
	longestPause  = 20 * time.Millisecond
	idleLifetime  = 60 * time.Second
	idlePerSandbox = 16
)

// Guest talks to one sandbox's agent. It may be used concurrently.
type Guest struct {
	token     string
	dial      func(context.Context) (net.Conn, error)
	transport *http.Transport
	client    *http.Client
}

// Config is what the agent is told once, before anything runs in its sandbox.
type Config struct {
	Envs     map[string]string // of every program
	User     string            // who runs programs unless a request says otherwise; empty: as the agent itself
	Workdir  string            // where programs start; empty: the user's home
	Deadline time.Time         // when the agent ends the sandbox by itself; zero: never
}

// New returns the host's end for the sandbox that dial reaches. The token is the sandbox's secret.
func New(dial func(context.Context) (net.Conn, error), token string) *Guest {
	g := &Guest{token: token, dial: dial}
	g.transport = &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, dialTimeout)
			defer cancel()
			return dial(ctx)
		},
		DisableCompression:     true,
		MaxIdleConns:           idlePerSandbox,
		MaxIdleConnsPerHost:    idlePerSandbox,
		IdleConnTimeout:        idleLifetime,
		MaxResponseHeaderBytes: maxHeader,
	}
	g.client = &http.Client{
		Transport:     withToken{g},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return g
}

// withToken adds the sandbox's token to each request.
type withToken struct{ g *Guest }

func (w withToken) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set(TokenHeader, w.g.token)
	return w.g.transport.RoundTrip(r)
}

const agentURL = "http://agent"

type initRequest struct {
	AccessToken    string            `json:"accessToken"`
	EnvVars        map[string]string `json:"envVars,omitempty"`
	DefaultUser    string            `json:"defaultUser,omitempty"`
	DefaultWorkdir string            `json:"defaultWorkdir,omitempty"`
	Deadline       *time.Time        `json:"deadline,omitempty"`
}

// Init hands the agent its token and settings. It tries until the agent answers or ctx ends, because an agent that was
// just started needs a moment; an answer other than success is not tried again.
func (g *Guest) Init(ctx context.Context, c Config) error {
	request := initRequest{AccessToken: g.token, EnvVars: c.Envs, DefaultUser: c.User, DefaultWorkdir: c.Workdir}
	if !c.Deadline.IsZero() {
		request.Deadline = &c.Deadline
	}
	body, err := json.Marshal(request)
	if err != nil {
		return fmt.Errorf("write the agent's settings: %w", err)
	}
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		err = g.attempt(ctx, http.MethodPost, "/init", body)
		var answered *answerError
		if err == nil || errors.As(err, &answered) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the agent does not answer: %w (last: %w)", ctx.Err(), err)
		case <-time.After(pause):
		}
	}
}

// Health asks once whether the agent answers.
func (g *Guest) Health(ctx context.Context) error {
	return g.attempt(ctx, http.MethodGet, "/health", nil)
}

// answerError is an answer of the agent that is not a success.
type answerError struct {
	status int
	text   string
}

func (e *answerError) Error() string { return fmt.Sprintf("the agent answers %d: %s", e.status, e.text) }

func (g *Guest) attempt(ctx context.Context, method, path string, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, attemptLimit)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, agentURL+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	answer, err := g.client.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, maxErrorText))
	if err != nil {
		return err
	}
	if answer.StatusCode/100 != 2 {
		return &answerError{answer.StatusCode, strings.TrimSpace(string(text))}
	}
	return nil
}

// Process returns the client of the sandbox's processes.
func (g *Guest) Process() processconnect.ProcessClient {
	return processconnect.NewProcessClient(g.client, agentURL, connect.WithReadMaxBytes(maxMessage))
}

// Filesystem returns the client of the sandbox's files.
func (g *Guest) Filesystem() filesystemconnect.FilesystemClient {
	return filesystemconnect.NewFilesystemClient(g.client, agentURL, connect.WithReadMaxBytes(maxMessage))
}

// hidden are the agent's paths that are for its host alone.
func hidden(path string) bool {
	return path == "/init" || path == "/ports" || strings.HasPrefix(path, "/ports/")
}

// Handler passes data traffic to the agent, adding the sandbox's token. Streams are flushed at once. The agent's
// internal paths answer 404, an agent that is gone 502.
func (g *Guest) Handler() http.Handler {
	proxy := &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL.Scheme, p.Out.URL.Host, p.Out.Host = "http", "agent", "agent"
			p.Out.Header.Set(TokenHeader, g.token)
		},
		Transport:     g.transport,
		FlushInterval: -1,
		ErrorHandler:  badGateway,
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if hidden(r.URL.Path) {
			writeError(w, http.StatusNotFound, "no such path")
			return
		}
		proxy.ServeHTTP(w, r)
	})
}

func badGateway(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil {
		return // nobody listens any more
	}
	writeError(w, http.StatusBadGateway, "the sandbox does not answer: "+err.Error())
}

func writeError(w http.ResponseWriter, status int, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"code": status, "message": message})
}

// Close gives back idle connections. Streams under way go on.
func (g *Guest) Close() { g.transport.CloseIdleConnections() }

// unreachable classes a failure to reach something inside.
func unreachable(op string, err error) error {
	return &firebreak.Error{Kind: firebreak.KindUnavailable, Op: op, Err: err}
}
