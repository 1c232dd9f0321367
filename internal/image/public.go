package image

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/reach"
)

// publicOnly is a way to registries that ends at this host and its networks: whoever may name an image could otherwise
// have us ask any service there, by the name itself, by a redirect or by the place for tokens that a registry names.
//
// The address is checked when the connection is made, so that no name can mean another one by then. Behind a proxy that
// is for the proxy to do, and names are checked before.
type publicOnly struct{}

// RoundTrip implements http.RoundTripper.
func (publicOnly) RoundTrip(r *http.Request) (*http.Response, error) {
	base, ok := remote.DefaultTransport.(*http.Transport)
	if !ok {
		return nil, errors.New("this program's way to registries was replaced")
	}
	t := base.Clone()
	t.DisableKeepAlives = true // nobody will use this one again
	if proxied(t, r) {
		if err := checkHost(r.Context(), r.URL.Hostname()); err != nil {
			return nil, err
		}
		return t.RoundTrip(r)
	}
	t.Proxy = nil
	t.DialContext = (&net.Dialer{Timeout: 10 * time.Second, Control: checkAddress}).DialContext
	return t.RoundTrip(r)
}

func proxied(t *http.Transport, r *http.Request) bool {
	if t.Proxy == nil {
		return false
	}
	proxy, err := t.Proxy(r)
	return err != nil || proxy != nil
}

func checkHost(ctx context.Context, host string) error {
	addresses, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		if a, parseErr := netip.ParseAddr(host); parseErr == nil {
			addresses = []netip.Addr{a}
		} // else only the proxy can resolve names, and ours has none for this one
	}
	for _, a := range addresses {
		if reach.Address(a) != reach.Everyone {
			return notPublic(host)
		}
	}
	return nil
}

func checkAddress(_, address string, _ syscall.RawConn) error {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("read address: %w", err)
	}
	if reach.Address(to.Addr()) != reach.Everyone {
		return notPublic(to.Addr().String())
	}
	return nil
}

func notPublic(where string) error {
	return &firebreak.Error{Kind: firebreak.KindDenied, Err: fmt.Errorf("%s is not on the public Internet", where),
		Mend: "use an image of a public registry, or have the operator name this one"}
}
