package client

import (
	"context"
	"net"
	"net/http"
	"strings"
	"time"

	"connectrpc.com/connect"
)

// UnixScheme begins the URL of a server's unix socket; its absolute path follows.
const UnixScheme = "unix://"

const idle = time.Minute // below the server's: using what it just closed would fail

// reach returns what sends requests to a server, and the address that they have then.
func reach(base string) (string, connect.HTTPClient) {
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 16, IdleConnTimeout: idle}
	path, unix := strings.CutPrefix(base, UnixScheme)
	if unix {
		base = "http://firebreak"
		transport.Proxy = nil
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}
	}
	return base, &http.Client{Transport: transport, CheckRedirect: stay}
}

// stay takes a redirect as the answer: whoever it leads to must not get the API key.
func stay(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// keyed sends requests with an API key.
type keyed struct {
	http connect.HTTPClient
	key  string
}

// Do implements connect.HTTPClient.
func (k keyed) Do(req *http.Request) (*http.Response, error) {
	req.Header.Set("X-Api-Key", k.key)
	return k.http.Do(req)
}
