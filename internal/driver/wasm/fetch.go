package wasm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/firebreak-dev/firebreak/internal/driver/wasm/engine"
	"github.com/firebreak-dev/firebreak/internal/reach"
)

const (
	maxAnswer = 8 << 20 // bytes of a body
	fetchTime = 30 * time.Second
)

// fetcher asks hosts of a list for a module, and no others. What their names stand for is looked at as it is dialled:
// only the public internet is reached.
type fetcher struct {
	hosts  []string // "api.example.com", or with a port
	client *http.Client
}

// asked is what a module passes: a request. Bodies are base64 in JSON.
type asked struct {
	Method  string            `json:"method"`
	URL     string            `json:"url"`
	Headers map[string]string `json:"headers"`
	Body    []byte            `json:"body"`
}

// answer is what it gets.
type answer struct {
	Status  int               `json:"status"`
	Headers map[string]string `json:"headers"`
	Body    []byte            `json:"body"`
}

// newFetcher returns the function fetch for a list of hosts.
func newFetcher(hosts []string, reachable func(netip.Addr) bool) engine.Given {
	dialer := &net.Dialer{Timeout: 10 * time.Second, Control: func(_, address string, _ syscall.RawConn) error {
		at, err := netip.ParseAddrPort(address)
		if err == nil && !reachable(at.Addr()) {
			err = fmt.Errorf("%s is no address of the public internet", at.Addr())
		}
		return err
	}}
	f := &fetcher{hosts: hosts, client: &http.Client{
		// No proxy, no cookies, and each connection for one request: nothing of one sandbox is there for the next.
		Transport:     &http.Transport{DialContext: dialer.DialContext, DisableKeepAlives: true, ForceAttemptHTTP2: true, MaxResponseHeaderBytes: 256 << 10},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       fetchTime,
	}}
	return f.fetch
}

// public reports whether everybody can reach an address.
func public(addr netip.Addr) bool { return reach.Address(addr) == reach.Everyone }

func (f *fetcher) fetch(ctx context.Context, in []byte) ([]byte, error) {
	var a asked
	d := json.NewDecoder(bytes.NewReader(in))
	d.DisallowUnknownFields()
	if err := d.Decode(&a); err != nil {
		return nil, fmt.Errorf("read the request: %w", err)
	}
	req, err := f.request(ctx, a)
	if err != nil {
		return nil, err
	}
	resp, err := f.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	out := answer{Status: resp.StatusCode, Headers: map[string]string{}}
	if out.Body, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1)); err != nil {
		return nil, err
	}
	if len(out.Body) > maxAnswer {
		return nil, fmt.Errorf("the answer has more than %d bytes", maxAnswer)
	}
	for name, values := range resp.Header {
		out.Headers[strings.ToLower(name)] = strings.Join(values, ", ")
	}
	return json.Marshal(out)
}

// request is what is sent, if its host is of the list.
func (f *fetcher) request(ctx context.Context, a asked) (*http.Request, error) {
	at, err := url.Parse(a.URL)
	if err != nil {
		return nil, err
	}
	if at.Scheme != "https" && at.Scheme != "http" || at.User != nil {
		return nil, fmt.Errorf("%q is no plain address of http or https", a.URL)
	}
	if !slices.Contains(f.hosts, strings.ToLower(at.Host)) {
		return nil, fmt.Errorf("%s is not among the hosts that it may fetch from: %s", at.Host, strings.Join(f.hosts, ", "))
	}
	req, err := http.NewRequestWithContext(ctx, a.Method, at.String(), bytes.NewReader(a.Body))
	if err != nil {
		return nil, err
	}
	for name, value := range a.Headers {
		if http.CanonicalHeaderKey(name) == "Host" {
			return nil, errors.New("the header Host says what the URL says and is not to be given")
		}
		req.Header.Set(name, value)
	}
	return req, nil
}

// parseHosts reads the hosts of an option.
func parseHosts(value string) (map[string]engine.Given, error) {
	var hosts []string
	for host := range strings.SplitSeq(value, ",") {
		at, err := url.Parse("https://" + host)
		if err != nil || at.Host != host || at.Hostname() == "" || strings.Contains(host, "*") {
			return nil, fmt.Errorf("%q is no host, or host and port; patterns are not taken", host)
		}
		hosts = append(hosts, strings.ToLower(host))
	}
	return map[string]engine.Given{"fetch": newFetcher(hosts, public)}, nil
}
