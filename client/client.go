// Package client talks to a Firebreak server, a remote one or the one inside the caller's own process: both are the
// same HTTP. Errors that it returns are *firebreak.Error where the server said more than an HTTP status.
package client

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/api"
	"github.com/firebreak-dev/firebreak/internal/api/filesystem/filesystemconnect"
	"github.com/firebreak-dev/firebreak/internal/api/firebreak/v1/firebreakv1connect"
	"github.com/firebreak-dev/firebreak/internal/api/process/processconnect"
)

// Data traffic is for the sandbox and the port in it that these headers name.
const (
	HeaderSandbox = "E2b-Sandbox-Id"
	HeaderPort    = "E2b-Sandbox-Port"
	agentPort     = "49983"
)

const (
	// maxErrorBody bounds what is read of an answer that is no success.
	maxErrorBody = 64 << 10
	// moment is for an answer that is on its way when nobody waits for it any more.
	moment = time.Second
	// maxMessage bounds one message of data traffic, which a sandbox wrote; the server passes it on unread.
	maxMessage = 32 << 20
)

// Client talks to one server. It may be used concurrently.
type Client struct {
	Sandboxes firebreakv1connect.SandboxServiceClient
	Templates firebreakv1connect.TemplateServiceClient
	Policy    firebreakv1connect.PolicyServiceClient
	Host      firebreakv1connect.HostServiceClient
	Pools     firebreakv1connect.PoolServiceClient   // for the operator
	Keys      firebreakv1connect.KeyServiceClient    // for the operator
	Tenants   firebreakv1connect.TenantServiceClient // for the operator

	base string
	http connect.HTTPClient
}

// Option is something to know about a server.
type Option func(*Client)

// WithAPIKey has all requests carry an API key. The operator, over a unix socket or inside this process, needs none.
func WithAPIKey(key string) Option {
	return func(c *Client) {
		if key != "" {
			c.http = keyed{c.http, key}
		}
	}
}

// New returns a client of the server at baseURL, which may contain a path, or name a unix socket: unix:///run/x.sock. A
// nil http is one that fits, and a unix socket needs that.
func New(baseURL string, http connect.HTTPClient, opts ...Option) *Client {
	c := &Client{base: strings.TrimRight(baseURL, "/"), http: http}
	if http == nil {
		c.base, c.http = reach(c.base)
	}
	for _, o := range opts {
		o(c)
	}
	options := []connect.ClientOption{connect.WithInterceptors(wireErrors{}), uncompressed()}
	c.Sandboxes = firebreakv1connect.NewSandboxServiceClient(c.http, c.base, options...)
	c.Templates = firebreakv1connect.NewTemplateServiceClient(c.http, c.base, options...)
	c.Policy = firebreakv1connect.NewPolicyServiceClient(c.http, c.base, options...)
	c.Host = firebreakv1connect.NewHostServiceClient(c.http, c.base, options...)
	c.Pools = firebreakv1connect.NewPoolServiceClient(c.http, c.base, options...)
	c.Keys = firebreakv1connect.NewKeyServiceClient(c.http, c.base, options...)
	c.Tenants = firebreakv1connect.NewTenantServiceClient(c.http, c.base, options...)
	return c
}

// Process runs and reaches programs in the sandbox. A request's user is a header, see UserHeader.
func (c *Client) Process(id string) processconnect.ProcessClient {
	return processconnect.NewProcessClient(c.data(id), c.base, append(dataOptions(), connect.WithInterceptors(connect.UnaryInterceptorFunc(outlast)))...)
}

// outlast has a short request last a moment longer than its context, for its answer. What ends a program's input, or signals
// to it, ends the program, and with that often its own context. net/http lets another request have the connection of one
// whose answer has no body just before it is told of the answer; canceling it then would fail that other one.
func outlast(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		longer, cancel := context.WithCancel(context.WithoutCancel(ctx))
		defer cancel()
		stop := context.AfterFunc(ctx, func() { time.AfterFunc(moment, cancel) })
		defer stop()
		return next(longer, req)
	}
}

// Filesystem reaches the files of the sandbox. A request's user is a header, see UserHeader.
func (c *Client) Filesystem(id string) filesystemconnect.FilesystemClient {
	return filesystemconnect.NewFilesystemClient(c.data(id), c.base, dataOptions()...)
}

func dataOptions() []connect.ClientOption {
	return []connect.ClientOption{connect.WithInterceptors(wireErrors{}), connect.WithReadMaxBytes(maxMessage), uncompressed()}
}

// uncompressed asks for answers as they are: messages are small, and setting up a compressor costs more than all else
// that a call does.
func uncompressed() connect.ClientOption { return connect.WithAcceptCompression("gzip", nil, nil) }

// UserHeader returns the header that makes a request of Process or Filesystem act as a user of the sandbox.
func UserHeader(user string) (name, value string) {
	return "Authorization", "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"))
}

// ReadFile streams a file out of the sandbox; user "" is the sandbox's default. The caller closes the reader.
func (c *Client) ReadFile(ctx context.Context, id, path, user string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.filesURL(path, user), nil)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	// What is read is copied to a file of ours: the transport's transparent gzip would only cost time.
	req.Header.Set("Accept-Encoding", "identity")
	resp, err := c.data(id).Do(req)
	if err != nil {
		return nil, fileError("read "+path, err)
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		return nil, fileError("read "+path, statusError(resp))
	}
	return resp.Body, nil
}

// WriteFile makes or overwrites a file in the sandbox with what r yields, and its directories where they are missing.
func (c *Client) WriteFile(ctx context.Context, id, path, user string, r io.Reader) error {
	// NopCloser: the transport would close a file that belongs to the caller, and with it standard input.
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.filesURL(path, user), io.NopCloser(r))
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	resp, err := c.data(id).Do(req)
	if err != nil {
		return fileError("write "+path, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fileError("write "+path, statusError(resp))
	}
	return nil
}

func (c *Client) filesURL(path, user string) string {
	q := url.Values{"path": {path}}
	if user != "" {
		q.Set("username", user)
	}
	return c.base + "/files?" + q.Encode()
}

func (c *Client) data(id string) dataClient { return dataClient{http: c.http, id: id} }

// dataClient addresses requests to one sandbox, and understands the server's answer that it is not there.
type dataClient struct {
	http connect.HTTPClient
	id   string
}

func (d dataClient) Do(req *http.Request) (*http.Response, error) {
	req.Header.Set(HeaderSandbox, d.id)
	req.Header.Set(HeaderPort, agentPort)
	resp, err := d.http.Do(req)
	if err != nil || resp.StatusCode != http.StatusBadGateway {
		return resp, err
	}
	defer resp.Body.Close()
	return nil, statusError(resp)
}

// answer is the body of an answer that is no success: of E2B's data plane, and of an agent's /files.
type answer struct {
	SandboxID string `json:"sandboxId"`
	Message   string `json:"message"`
	Port      any    `json:"port"`
}

func statusError(resp *http.Response) error {
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody)) // what was read before a failure is all there is to say
	var a answer
	if json.Unmarshal(body, &a) != nil || a.Message == "" {
		a.Message = strings.TrimSpace(resp.Status + " " + string(body))
	}
	e := &firebreak.Error{Kind: kindOfStatus(resp.StatusCode), Err: errors.New(a.Message)}
	if resp.StatusCode == http.StatusBadGateway && a.SandboxID != "" && a.Port == nil {
		e.Kind, e.Op = firebreak.KindNotFound, "sandbox "+a.SandboxID
	}
	return e
}

func kindOfStatus(status int) firebreak.Kind {
	if status == http.StatusUnauthorized {
		return firebreak.KindDenied // an unknown user of the sandbox
	}
	for k := firebreak.KindInvalid; k <= firebreak.KindUnavailable; k++ {
		if k.Edge().HTTP == status {
			return k
		}
	}
	return firebreak.KindInternal
}

func fileError(op string, err error) error {
	var e *firebreak.Error
	if errors.As(err, &e) {
		if e.Op != "" {
			op += ": " + e.Op
		}
		return &firebreak.Error{Kind: e.Kind, Op: op, Err: e.Err, Mend: e.Mend}
	}
	return fmt.Errorf("%s: %w", op, err)
}

// wireErrors turns the Connect errors of all calls into ours.
type wireErrors struct{}

func (wireErrors) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		resp, err := next(ctx, req)
		return resp, api.ErrorFromWire(err)
	}
}

func (wireErrors) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		return wireErrorsConn{next(ctx, spec)}
	}
}

func (wireErrors) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

type wireErrorsConn struct{ connect.StreamingClientConn }

// Receive and Send keep io.EOF as it is: connect-go ends its loops by it.
func (c wireErrorsConn) Receive(msg any) error { return keepEOF(c.StreamingClientConn.Receive(msg)) }

func (c wireErrorsConn) Send(msg any) error { return keepEOF(c.StreamingClientConn.Send(msg)) }

func keepEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return err
	}
	return api.ErrorFromWire(err)
}
