// Package lb balances connections to the address of a service between those that serve it, in
// the namespace of the client: what leaves there bears the client's address and goes straight
// to one of them, whatever the host does with packets that cross its bridges. Its functions
// work in the network namespace of the calling thread.
package lb

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"escale.dev/escale/internal/sys/nft"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Service is an address and those who serve it, of the same family.
type Service struct {
	VIP      netip.Addr
	Backends []netip.Addr
}

// tableName is the table in a container's namespace.
const tableName = "escale-services"

// Table is the table for these services. One that nobody serves is left out.
func Table(list []Service) nft.Table {
	vips := []nft.Map{
		{Name: "vips", Key: []nft.Type{nft.Addr4}, Value: []nft.Type{nft.Verdict}},
		{Name: "vips6", Key: []nft.Type{nft.Addr6}, Value: []nft.Type{nft.Verdict}},
	}
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b Service) int { return a.VIP.Compare(b.VIP) })
	t := nft.Table{Family: nft.Inet, Name: tableName}
	for _, s := range list {
		to := slices.DeleteFunc(slices.Clone(s.Backends), func(a netip.Addr) bool { return a.Is4() != s.VIP.Is4() })
		if len(to) == 0 {
			continue
		}
		slices.SortFunc(to, netip.Addr.Compare)
		at := &vips[0]
		if s.VIP.Is6() {
			at = &vips[1]
		}
		chain := "to-" + strings.ReplaceAll(s.VIP.String(), ":", "_")
		at.Fixed = append(at.Fixed, nft.Element{Key: nft.Bytes(s.VIP), Value: "goto " + chain})
		t.Chains = append(t.Chains, nft.Chain{Name: chain, Rules: []nft.Rule{{nft.SpreadTo(to)}}})
	}
	t.Maps = vips
	t.Chains = append([]nft.Chain{{
		Name: "output", Base: &nft.Base{Type: "nat", Hook: "output", Priority: -100},
		Rules: []nft.Rule{{nft.ToVerdict(vips[0])}, {nft.ToVerdict(vips[1])}},
	}}, t.Chains...)
	return t
}

// Set makes the services those of the namespace, by the difference to what it has. Connections
// that are under way stay; datagrams to addresses that somebody serves no more, which are lost,
// go to those who serve now. Blocks for a millisecond or two, and with lost ones for as long as
// the kernel takes to list its flows.
func Set(list []Service, lost []netip.Addr) error {
	c := new(nft.Conn)
	defer func() { go c.Close() }() // it waits for the kernel
	t := Table(list)
	var err error
	if len(t.Chains) == 1 {
		err = c.Delete(t.Ref())
	} else {
		err = c.Set(t, nil, true)
	}
	if err != nil {
		return fmt.Errorf("services: %w", err)
	}
	return forget(list, lost)
}

// Lost are the addresses of services which somebody served and serves no more.
func Lost(before, after []Service) (out []netip.Addr) {
	serve := map[netip.Addr][]netip.Addr{}
	for _, s := range after {
		serve[s.VIP] = s.Backends
	}
	for _, s := range before {
		if slices.ContainsFunc(s.Backends, func(a netip.Addr) bool { return !slices.Contains(serve[s.VIP], a) }) {
			out = append(out, s.VIP)
		}
	}
	return out
}

// forget deletes the kernel's memory of datagrams to lost addresses that went to who does not
// serve any more.
func forget(list []Service, lost []netip.Addr) error {
	serve := flows{}
	for _, a := range lost {
		serve[a] = nil
	}
	for _, s := range list {
		if _, ok := serve[s.VIP]; ok {
			serve[s.VIP] = s.Backends
		}
	}
	var families []netlink.InetFamily
	for a := range serve {
		family := netlink.InetFamily(unix.AF_INET)
		if a.Is6() {
			family = unix.AF_INET6
		}
		if !slices.Contains(families, family) {
			families = append(families, family)
		}
	}
	for _, f := range families {
		if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, f, serve); err != nil {
			return fmt.Errorf("services: flows: %w", err)
		}
	}
	return nil
}

// flows are those of datagrams to services that lead to nobody who serves them.
type flows map[netip.Addr][]netip.Addr

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (f flows) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	to, _ := netip.AddrFromSlice(flow.Forward.DstIP)
	from, _ := netip.AddrFromSlice(flow.Reverse.SrcIP)
	who, ours := f[to.Unmap()]
	return ours && flow.Forward.Protocol == unix.IPPROTO_UDP && !slices.Contains(who, from.Unmap())
}

// Equal tells whether two lists, in any order, say the same.
func Equal(a, b []Service) bool {
	sorted := func(list []Service) []Service {
		out := slices.Clone(list)
		slices.SortFunc(out, func(a, b Service) int { return a.VIP.Compare(b.VIP) })
		return out
	}
	return slices.EqualFunc(sorted(a), sorted(b), func(a, b Service) bool {
		x, y := slices.Clone(a.Backends), slices.Clone(b.Backends)
		slices.SortFunc(x, netip.Addr.Compare)
		slices.SortFunc(y, netip.Addr.Compare)
		return cmp.Or(a.VIP.Compare(b.VIP), slices.CompareFunc(x, y, netip.Addr.Compare)) == 0
	})
}
