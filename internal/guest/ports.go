package guest

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"time"
)

const (
	idlePorts    = 64 // connections of one sandbox that wait for another request
	idlePort     = 8  // of these to one port
	idlePortTime = 30 * time.Second
)

// Ports sends HTTP/1.1 requests to servers inside: the port of a URL says to which, its host says nothing. An upgrade
// makes the body of the answer an io.ReadWriteCloser with CloseWrite. Connections are kept until Close. An error of the
// kind firebreak.KindUnavailable tells that the port could not be reached, firebreak.KindUnsupported that the sandbox has
// none; others are of what answers there.
func (g *Guest) Ports() http.RoundTripper { return g.ports }

func (g *Guest) newPorts() *http.Transport {
	return &http.Transport{
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			_, text, err := net.SplitHostPort(address)
			if err != nil {
				return nil, fmt.Errorf("dial port: %w", err)
			}
			port, err := strconv.ParseUint(text, 10, 16)
			if err != nil {
				return nil, fmt.Errorf("dial port: %w", err)
			}
			// The transport goes on dialing for the next request when this one is given up.
			ctx, cancel := context.WithTimeout(ctx, 2*dialTimeout)
			defer cancel()
			return g.DialPort(ctx, uint16(port))
		},
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxHeader,
		MaxIdleConns:           idlePorts,
		MaxIdleConnsPerHost:    idlePort,
		IdleConnTimeout:        idlePortTime,
	}
}
