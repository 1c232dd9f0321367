// Package reach says who can reach a network address: everybody on the internet, or only this host and its networks.
// Whoever may name an address that we then connect to could otherwise have us ask what only we can.
package reach

import "net/netip"

// Of is who can reach an address.
type Of uint8

// The kinds of addresses.
const (
	Nobody   Of = iota // it stands for nothing that is served, or for where clouds tell a host its secrets
	Inside             // this host and its networks
	Everyone           // the public internet
)

// Address returns who can reach addr. An IPv6 address that stands for an IPv4 one is what that one is.
//
// Source: IANA's registries of special-purpose addresses for IPv4 and IPv6.
func Address(addr netip.Addr) Of {
	addr = inner(addr.WithZone(""))
	switch {
	case !addr.IsValid(), contains(never(), addr):
		return Nobody
	case addr.IsLoopback(), addr.IsPrivate(), contains(inside(), addr):
		return Inside
	case addr.Is6() && !contains([]string{"2000::/3"}, addr):
		return Nobody
	}
	return Everyone
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
