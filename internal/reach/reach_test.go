package reach

import (
	"net/netip"
	"testing"
)

func TestAddress(t *testing.T) {
	for address, want := range map[string]Of{
		"8.8.8.8": Everyone, "2606:4700::1111": Everyone, "::ffff:8.8.8.8": Everyone, "64:ff9b::808:808": Everyone, "2002:808:808::1": Everyone,
		"127.0.0.1": Inside, "127.8.9.10": Inside, "::1": Inside, "::ffff:127.0.0.1": Inside, "10.0.0.1": Inside, "172.16.0.1": Inside,
		"192.168.1.1": Inside, "fd12::1": Inside, "100.64.0.1": Inside, "198.18.0.1": Inside, "64:ff9b::a00:1": Inside, "2002:7f00:1::": Inside,
		"0.0.0.0": Nobody, "169.254.169.254": Nobody, "::ffff:169.254.169.254": Nobody, "64:ff9b::a9fe:a9fe": Nobody, "2002:a9fe:a9fe::": Nobody,
		"168.63.129.16": Nobody, "100.100.100.200": Nobody, "fd00:ec2::254": Nobody, "224.0.0.1": Nobody, "255.255.255.255": Nobody,
		"::": Nobody, "::8.8.8.8": Nobody, "fe80::1%eth0": Nobody, "ff02::1": Nobody, "fec0::1": Nobody, "64:ff9b:1::1": Nobody,
		"100::1": Nobody, "2001:db8::1": Nobody, "3fff::1": Nobody, "5f00::1": Nobody, "192.0.2.1": Nobody,
	} {
		if got := Address(netip.MustParseAddr(address)); got != want {
			t.Errorf("%s: %d, want %d", address, got, want)
		}
	}
	if got := Address(netip.Addr{}); got != Nobody {
		t.Errorf("no address: %d, want %d", got, Nobody)
	}
}
