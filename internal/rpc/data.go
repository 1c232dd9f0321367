package rpc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/http/httputil"
	"strconv"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/guest"
)

// The headers that say which sandbox a request is for, and which port in it.
const (
	headerSandbox = "E2b-Sandbox-Id"
	headerPort    = "E2b-Sandbox-Port"
)

// maxHeader bounds the headers of an answer from inside a sandbox.
const maxHeader = 64 << 10

// dataPlane passes requests on into sandboxes: to the agent, or to another server that listens there.
type dataPlane struct {
	guests Guests
	ports  *httputil.ReverseProxy
}

func newDataPlane(guests Guests) *dataPlane {
	d := &dataPlane{guests: guests}
	d.ports = &httputil.ReverseProxy{
		Rewrite:       func(p *httputil.ProxyRequest) { p.Out.Host = p.In.Host },
		FlushInterval: -1, // at once: what is streamed is waited for
		ErrorHandler:  portError,
		Transport: &http.Transport{
			DialContext:            d.dial,
			DisableCompression:     true,
			IdleConnTimeout:        30 * time.Second,
			MaxIdleConnsPerHost:    8,
			MaxResponseHeaderBytes: maxHeader,
		},
	}
	return d
}

// ServeHTTP answers as E2B's proxy does where there is nobody to pass the request on to.
func (d *dataPlane) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id := r.Header.Get(headerSandbox)
	port, err := portOf(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	g, err := d.guests.Guest(r.Context(), id)
	switch kind := firebreak.KindOf(err); {
	case err == nil && port == guest.AgentPort:
		g.Handler().ServeHTTP(w, r)
	case err == nil:
		ctx := context.WithValue(r.Context(), guestKey{}, g)
		r = r.WithContext(ctx)
		r.URL.Scheme, r.URL.Host = "http", net.JoinHostPort(id, strconv.Itoa(int(port)))
		guest.FullDuplex(w)
		d.ports.ServeHTTP(w, r)
	case kind == firebreak.KindInvalid:
		http.Error(w, err.Error(), http.StatusBadRequest)
	case kind == firebreak.KindNotFound || kind == firebreak.KindState:
		refuse(w, id, "The sandbox was not found", 0)
	case r.Context().Err() != nil: // nobody listens
	default:
		refuse(w, id, fmt.Sprintf("The sandbox cannot be reached: %v", err), 0)
	}
}

func portOf(r *http.Request) (uint16, error) {
	text := r.Header.Get(headerPort)
	if text == "" {
		return guest.AgentPort, nil
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || port == 0 {
		return 0, fmt.Errorf("%s: %q is no port", headerPort, text)
	}
	return uint16(port), nil
}

type guestKey struct{}

// dial reaches a port in the sandbox whose guest the request's context carries. Connections are kept by the address,
// which is the sandbox and the port.
func (d *dataPlane) dial(ctx context.Context, _, address string) (net.Conn, error) {
	g, ok := ctx.Value(guestKey{}).(*guest.Guest)
	if !ok {
		return nil, errors.New("dial port: the request is for no sandbox")
	}
	_, text, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("dial port: %w", err)
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("dial port: %w", err)
	}
	return g.DialPort(ctx, uint16(port))
}

func portError(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil {
		return // nobody listens
	}
	id, port := r.Header.Get(headerSandbox), r.Header.Get(headerPort)
	number, _ := strconv.Atoi(port) // it was a number when the request came in
	if errors.Is(err, fs.ErrNotExist) {
		refuse(w, id, "The sandbox was not found", 0)
		return
	}
	refuse(w, id, "The sandbox is running but port is not open", number)
}

func refuse(w http.ResponseWriter, id, message string, port int) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusBadGateway)
	_ = json.NewEncoder(w).Encode(struct { // the client may have gone
		SandboxID string `json:"sandboxId"`
		Message   string `json:"message"`
		Port      int    `json:"port,omitempty"`
		Code      int    `json:"code"`
	}{id, message, port, http.StatusBadGateway})
}
