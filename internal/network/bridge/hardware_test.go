package bridge

import (
	"net/netip"
	"testing"

	"escale.dev/escale/internal/network"
)

// Who gets an address gets the MAC address that went with it before, whoever had it; what
// has none gets one of its own.
func TestHardwareOf(t *testing.T) {
	at := func(s string) (p netip.Prefix) {
		if s != "" {
			p = netip.MustParsePrefix(s)
		}
		return p
	}
	for _, c := range []struct{ ip, ip6, want string }{
		{"172.17.0.2/16", "", "02:42:ac:11:00:02"},
		{"172.17.0.2/16", "fd00::9/64", "02:42:ac:11:00:02"},
		{"", "fd00:1:2::a:9/64", "02:42:00:0a:00:09"},
	} {
		for _, id := range []string{"a", "b"} {
			if mac := hardwareOf(network.Join{EndpointID: id, IP: at(c.ip), IP6: at(c.ip6)}).String(); mac != c.want {
				t.Errorf("%q %q: %s, want %s", c.ip, c.ip6, mac, c.want)
			}
		}
	}
	if a, b := hardwareOf(network.Join{EndpointID: "a"}).String(), hardwareOf(network.Join{EndpointID: "b"}).String(); a == b {
		t.Errorf("two without addresses have %s both", a)
	}
}
