package webhook

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/firebreak-dev/firebreak/internal/reach"
)

const maxURL = 2048 // bytes

// checkURL refuses what could never be sent to. What a name stands for is looked at when it is dialled, for that may
// change.
func checkURL(text string, private bool) error {
	u, err := url.Parse(text)
	switch {
	case len(text) > maxURL:
		return fmt.Errorf("its URL is longer than %d bytes", maxURL)
	case err != nil:
		return errors.New("its URL is none")
	case u.Scheme != "http" && u.Scheme != "https", u.Hostname() == "", u.User != nil, u.Fragment != "":
		return errors.New("its URL is not https://host/path or http://host/path")
	}
	host := strings.TrimSuffix(strings.ToLower(u.Hostname()), ".")
	if addr, err := netip.ParseAddr(host); err == nil {
		return checkAddr(addr, private)
	}
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return checkAddr(netip.AddrFrom4([4]byte{127, 0, 0, 1}), private)
	}
	return nil
}

// errAddress is a refusal to send to an address.
type errAddress struct{ addr netip.Addr }

func (e errAddress) Error() string {
	return fmt.Sprintf("%s is not an address of the public internet: nothing is sent there", e.addr)
}

// checkAddr refuses addresses that only this host, or its network, can reach, unless private ones are allowed.
func checkAddr(addr netip.Addr, private bool) error {
	switch of := reach.Address(addr); {
	case of == reach.Everyone, of == reach.Inside && private:
		return nil
	}
	return errAddress{addr}
}

// newClient returns what sends. It looks at each address as it is dialled, after all names are resolved, follows no
// redirects and asks no proxy, which would dial for it.
func newClient(private bool, timeout time.Duration) *http.Client {
	dialer := &net.Dialer{Timeout: timeout, Control: func(_, address string, _ syscall.RawConn) error {
		ap, err := netip.ParseAddrPort(address)
		if err != nil {
			return err
		}
		return checkAddr(ap.Addr(), private)
	}}
	return &http.Client{
		Timeout:       timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{DialContext: dialer.DialContext, TLSHandshakeTimeout: timeout, ResponseHeaderTimeout: timeout,
			MaxResponseHeaderBytes: maxAnswer, MaxIdleConns: 100, MaxIdleConnsPerHost: 1, IdleConnTimeout: 30 * time.Second, ForceAttemptHTTP2: true},
	}
}
