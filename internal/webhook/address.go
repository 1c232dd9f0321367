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

// checkAddr refuses addresses that only this host, or its network, can reach.
func checkAddr(addr netip.Addr, private bool) error {
	addr = inner(addr.WithZone(""))
	own := addr.IsLoopback() || addr.IsPrivate() || contains(inside(), addr)
	switch {
	case !addr.IsValid(), contains(never(), addr), own && !private, addr.Is6() && !own && !contains([]string{"2000::/3"}, addr):
		return errAddress{addr}
	}
	return nil
}

// inner returns the IPv4 address that an IPv6 one stands for, as several kinds do.
func inner(addr netip.Addr) netip.Addr {
	if addr = addr.Unmap(); !addr.Is6() {
		return addr
	}
	b := addr.As16()
	switch {
	case contains([]string{"64:ff9b::/96"}, addr):
		return netip.AddrFrom4([4]byte(b[12:]))
	case contains([]string{"2002::/16"}, addr):
		return netip.AddrFrom4([4]byte(b[2:6]))
	}
	return addr
}

// never lists what nobody on the internet has, and where clouds tell a host its secrets.
func never() []string {
	return []string{
		"0.0.0.0/8", "169.254.0.0/16", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
		"2001::/23", "2001:db8::/32", "3fff::/20",
		"100.100.100.200/32", "168.63.129.16/32", "fd00:ec2::/32", "fd20:ce::/32",
	}
}

// inside lists what is used within networks, beside what netip knows.
func inside() []string { return []string{"100.64.0.0/10", "198.18.0.0/15"} }

func contains(prefixes []string, addr netip.Addr) bool {
	for _, p := range prefixes {
		if netip.MustParsePrefix(p).Contains(addr) {
			return true
		}
	}
	return false
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
