package ipam

import (
	"fmt"
	"math/bits"
	"net/netip"

	"escale.dev/escale/internal/sys/rtnl"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Host are the subnets of both families that addresses and routes of this network
// namespace use, but for those of the link with the index except (0: none). The
// kernel's own for link-local addresses and multicast are not among them, nor is
// a default route.
func Host(except int) ([]netip.Prefix, error) {
	var out []netip.Prefix
	add := func(link int, ip, mask []byte) {
		p, ok := Prefix(ip, mask)
		// Half of everything is a default route in disguise, as VPNs set it.
		if ok && (except == 0 || link != except) && p.Bits() > 1 && !p.Addr().IsMulticast() && !p.Addr().IsLinkLocalUnicast() {
			out = append(out, p)
		}
	}
	addrs, err := rtnl.Whole(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("addresses of the host: %w", err)
	}
	for _, a := range addrs {
		add(a.LinkIndex, a.IP, a.Mask)
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := rtnl.Whole(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return nil, fmt.Errorf("routes of the host: %w", err)
		}
		for _, r := range routes {
			if r.Dst != nil {
				add(r.LinkIndex, r.Dst.IP, r.Dst.Mask)
			}
		}
	}
	return out, nil
}

// Prefix makes a prefix of an address and a mask as the kernel's messages have them.
func Prefix(ip, mask []byte) (netip.Prefix, bool) {
	a, ok := netip.AddrFromSlice(ip)
	if !ok || len(mask) == 0 {
		return netip.Prefix{}, false
	}
	n := 0
	for _, b := range mask {
		n += bits.OnesCount8(b)
	}
	return netip.PrefixFrom(a.Unmap(), n), true
}
